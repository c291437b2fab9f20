"""Where the dialects meet: fields as published become the one event that everybody above knows."""

from __future__ import annotations

from typing import Any, TypeAlias

from warmroute.core.wire import keyed, positional
from warmroute.core.wire.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, ExtraKeys
from warmroute.errors import WireError
from warmroute.types import Medium

Published: TypeAlias = (
    keyed.Stored | keyed.Removed | keyed.Cleared | positional.Stored | positional.Removed | positional.Cleared
)

MEDIA = {
    "GPU": Medium.GPU,
    "CPU": Medium.CPU,
    "CPU_PINNED": Medium.CPU,  # SGLang
    "STORAGE": Medium.STORAGE,
    "DISK": Medium.STORAGE,  # SGLang
    "EXTERNAL": Medium.STORAGE,  # SGLang
    "FS": Medium.STORAGE,  # vLLM 0.26
    "OBJ": Medium.STORAGE,  # vLLM 0.26
}
FULL_ATTENTION_KINDS = frozenset({None, "full_attention", "mla_attention", "sink_full_attention"})
"""Groups that keep every block of a range. None: releases before there were kinds."""

_CLEARED = AllBlocksCleared()


def canonical(published: Published, unknown_media: list[str]) -> Event:
    """The event that was meant; names of media that nobody knows are added to `unknown_media`. Raises WireError."""
    if isinstance(published, (keyed.Stored, positional.Stored)):
        return _stored(published, unknown_media)
    if isinstance(published, (keyed.Removed, positional.Removed)):
        return BlockRemoved(
            block_hashes=published.block_hashes,
            medium=_medium(published.medium, unknown_media),
            group=published.group_idx or 0,
        )
    return _CLEARED


def _stored(published: keyed.Stored | positional.Stored, unknown_media: list[str]) -> BlockStored:
    hashes, tokens = published.block_hashes, published.token_ids
    kind = published.kv_cache_spec_kind
    fits = len(tokens) == published.block_size * len(hashes)
    if not fits and hashes and tokens and published.group_idx is None and kind is None:
        raise WireError(
            "token_count", f"{len(tokens)} token ids for {len(hashes)} blocks of {published.block_size} tokens"
        )
    name, lora_id = published.lora_name, published.lora_id
    by_hash = not fits or kind not in FULL_ATTENTION_KINDS
    return BlockStored(
        block_hashes=hashes,
        parent=published.parent_block_hash,
        token_ids=tokens,
        block_size=published.block_size,
        medium=_medium(published.medium, unknown_media),
        group=published.group_idx or 0,
        by_hash=by_hash,
        sliding_window=published.kv_cache_spec_sliding_window,
        lora=name or (None if lora_id is None else f"#{lora_id}"),
        extra_keys=() if by_hash else _extra_keys(published, name),
    )


def _medium(name: str | None, unknown_media: list[str]) -> Medium:
    if not name or name == "GPU":
        return Medium.GPU
    medium = MEDIA.get(name.upper())
    if medium is None:
        unknown_media.append(name)
        return Medium.STORAGE
    return medium


def _extra_keys(published: keyed.Stored | positional.Stored, lora_name: str | None) -> tuple[ExtraKeys, ...]:
    count, lists = len(published.block_hashes), published.extra_keys
    per_block: tuple[ExtraKeys, ...] = ()
    if lists and any(lists):
        if len(lists) != count:
            raise WireError("extra_keys_count", f"{len(lists)} lists of extra keys for {count} blocks")
        per_block = tuple([_block_keys(keys, lora_name) if keys else () for keys in lists])
        if not any(per_block):
            per_block = ()
    # A salt for the whole prompt distinguishes its first block; all others inherit it through their parent.
    if count and published.cache_salt and published.parent_block_hash is None:
        if not isinstance(published.cache_salt, str | bytes):
            raise WireError("wrong_type", f"cache_salt is a {type(published.cache_salt).__name__}")
        first, *rest = per_block or ((),) * count
        per_block = ((*first, published.cache_salt), *rest)
    return per_block


def _block_keys(keys: list[Any], lora_name: str | None) -> ExtraKeys:
    # The adapter's name comes first where there is one; the event says it elsewhere. It is taken out once: a salt may
    # be spelled the same.
    names: list[Any] = keys[1:] if lora_name is not None and keys[0] == lora_name else keys
    kept = [key[0] if isinstance(key, list) and key else key for key in names]  # [identifier, offset] -> identifier
    return tuple([key for key in kept if isinstance(key, str | bytes)])
