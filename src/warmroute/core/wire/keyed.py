"""The dialect that writes an event as a map: vLLM since 0.24, SGLang since 0.5.20.

An absent key means null, an unknown key means nothing.
"""

from __future__ import annotations

from typing import Any

import msgspec

from warmroute.core.wire import fields


class Stored(msgspec.Struct, tag_field="type", tag="BlockStored", frozen=True, gc=False, kw_only=True):
    """`{"type": "BlockStored", ...}`."""

    block_hashes: fields.Hashes
    parent_block_hash: fields.Hash | None = None
    token_ids: fields.Tokens
    block_size: fields.BlockSize
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: fields.ExtraKeysList | None = None
    group_idx: fields.Group | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: fields.Window | None = None
    cache_salt: Any = None
    """SGLang's: a namespace of the whole prompt."""


class Removed(msgspec.Struct, tag_field="type", tag="BlockRemoved", frozen=True, gc=False, kw_only=True):
    """`{"type": "BlockRemoved", ...}`."""

    block_hashes: fields.Hashes
    medium: str | None = None
    group_idx: fields.Group | None = None


class Cleared(msgspec.Struct, tag_field="type", tag="AllBlocksCleared", frozen=True, gc=False):
    """`{"type": "AllBlocksCleared"}`."""


DECODER = msgspec.msgpack.Decoder(Stored | Removed | Cleared)
