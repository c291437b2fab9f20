"""The dialect that writes an event as an array: vLLM before 0.24, SGLang before 0.5.20.

A release only ever appended fields, so one order serves all: an array may end early or go on with what is not known
here. The two engines part at the seventh field, where vLLM has the adapter's name and SGLang a map of metadata.
"""

from __future__ import annotations

from typing import Any

import msgspec

from warmroute.core.wire import fields


class Stored(msgspec.Struct, array_like=True, tag="BlockStored", frozen=True, gc=False):
    """`["BlockStored", hashes, parent, tokens, block_size, ...]`."""

    block_hashes: fields.Hashes
    parent_block_hash: fields.Hash | None
    token_ids: fields.Tokens
    block_size: fields.BlockSize
    lora_id: int | None = None
    medium: str | None = None
    name_or_metadata: str | dict[str, Any] | None = None
    extra_keys: fields.ExtraKeysList | None = None
    group_idx: fields.Group | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: fields.Window | None = None

    @property
    def lora_name(self) -> str | None:
        """The adapter's name (vLLM 0.14 and later)."""
        return self.name_or_metadata if isinstance(self.name_or_metadata, str) else None

    @property
    def cache_salt(self) -> Any:
        """The salt in SGLang's metadata."""
        return self.name_or_metadata.get("cache_salt") if isinstance(self.name_or_metadata, dict) else None


class Removed(msgspec.Struct, array_like=True, tag="BlockRemoved", frozen=True, gc=False):
    """`["BlockRemoved", hashes, ...]`."""

    block_hashes: fields.Hashes
    medium: str | None = None
    group_idx: fields.Group | None = None


class Cleared(msgspec.Struct, array_like=True, tag="AllBlocksCleared", frozen=True, gc=False):
    """`["AllBlocksCleared"]`."""


DECODER = msgspec.msgpack.Decoder(Stored | Removed | Cleared)
