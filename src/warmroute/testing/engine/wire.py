"""Cache events -> the bytes that a given release publishes.

Maps leave out what is None among the fields that have a default there; arrays leave out nothing. That, the order of
fields and the form of hashes are all that differs between releases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from warmroute.testing.engine.cache import CacheEvent, Removed, Stored
from warmroute.testing.engine.release import HashForm
from warmroute.testing.events import Form, Release

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class EventEncoder:
    """Encodes one rank's batches as one release does."""

    layout: Release
    form: Form
    hash_form: HashForm
    rank: int = 0

    def batch(self, ts: float, events: Sequence[CacheEvent], *, foreign: Sequence[Any] = ()) -> bytes:
        """One step's events; `foreign` are further ones as they are, for a consumer that must survive them."""
        return msgspec.msgpack.encode([ts, [*foreign, *map(self._event, events)], self.rank])

    def _event(self, event: CacheEvent) -> Any:
        if isinstance(event, Stored):
            return self._tagged("BlockStored", self.layout.stored, self._stored(event))
        if isinstance(event, Removed):
            values = {"block_hashes": [self._hash(event.digest)], "medium": "GPU", "group_idx": 0}
            return self._tagged("BlockRemoved", self.layout.removed, values)
        return self._tagged("AllBlocksCleared", (), {})

    def _tagged(self, tag: str, fields: Sequence[str], values: dict[str, Any]) -> Any:
        if self.form == "array":
            return [tag, *(values.get(name) for name in fields)]
        shown = ((name, values.get(name)) for name in fields)
        return {"type": tag} | {
            name: value for name, value in shown if value is not None or name in self.layout.required
        }

    def _stored(self, event: Stored) -> dict[str, Any]:
        content = event.content
        keys = (content.extra_keys(event.first_block + block) for block in range(len(event.digests)))
        return {
            "block_hashes": [self._hash(digest) for digest in event.digests],
            "parent_block_hash": None if event.parent is None else self._hash(event.parent),
            "token_ids": event.token_ids,
            "block_size": event.block_size,
            "lora_id": content.lora_id,
            "medium": "GPU",
            "lora_name": content.lora_name,
            "extra_keys": [list(each) or None for each in keys],
            "group_idx": 0,
            "kv_cache_spec_kind": "full_attention",
            "session_id": content.session_id,
        }

    def _hash(self, digest: bytes) -> int | bytes:
        if self.hash_form == "bytes":
            return digest
        low = int.from_bytes(digest, "big") & _MASK
        return low - (1 << 64) if self.hash_form == "signed" and low >> 63 else low
