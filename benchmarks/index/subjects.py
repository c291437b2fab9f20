"""The implementations that are measured, behind one face. Each runs in its own environment: imports are local.

`stored` and `removed` make the bytes of an event in the form that the implementation takes; that is not measured.
`apply` takes them. `find` answers a query that `query` made, both in the form that costs least; `find_dict` says the
same as worker -> depth. `hash` takes a list of token ids or what `tokens` made of it; `hash_array` gives the form that
costs least.
"""

# ruff: noqa: PLC0415 - each implementation is in an environment of its own

from __future__ import annotations

import json
from array import array
from typing import Any

from workload import BLOCK_SIZE, Chain


class Warmroute:
    """Payloads as vLLM 0.32 publishes them, with token ids: decoding and hashing are part of `apply`."""

    name = "warmroute"

    def __init__(self) -> None:
        from warmroute.core.hashing import prefix_hashes
        from warmroute.core.index import make_index
        from warmroute.core.index.contract import ApplyReport
        from warmroute.core.wire import decode_natively

        self.index: Any = make_index(1000)
        self.report = ApplyReport()
        self.hash = prefix_hashes
        self.decode = decode_natively

    @staticmethod
    def version() -> str:
        from importlib.metadata import version

        return version("warmroute")

    def tokens(self, ids: list[int]) -> array[int]:
        return array("I", ids)

    def hash_array(self, tokens: Any, block_size: int) -> Any:
        from warmroute import _native

        return _native.prefix_hash_array(tokens, block_size, 0, 0)

    def stored(self, chain: Chain, start: int, stop: int) -> bytes:
        return self.stored_many([(chain, start, stop)])

    def stored_many(self, pieces: list[tuple[Chain, int, int]], release: str = "vllm-0.32") -> bytes:
        """One message with an event for each piece: what a step of an engine with so many requests publishes."""
        from warmroute.core.wire.events import BlockStored
        from warmroute.testing.events import encode_batch

        return encode_batch(
            [
                BlockStored(
                    block_hashes=tuple(chain.hashes[start:stop]),
                    parent=chain.hashes[start - 1] if start else None,
                    token_ids=tuple(chain.tokens[start * BLOCK_SIZE : stop * BLOCK_SIZE]),
                    block_size=BLOCK_SIZE,
                )
                for chain, start, stop in pieces
            ],
            release=release,
        )

    def removed(self, hashes: list[int]) -> bytes:
        from warmroute.core.wire.events import BlockRemoved
        from warmroute.testing.events import encode_batch

        return encode_batch([BlockRemoved(block_hashes=tuple(hashes))])

    def apply(self, worker: int, event: bytes) -> None:
        self.index.add_batch(worker, self.decode(event), self.report)

    def settle(self) -> None:
        """Nothing is left to be done behind a call's back."""

    def query(self, chain: Chain) -> array[int]:
        return array("Q", self.hash(chain.tokens, BLOCK_SIZE))

    def find(self, query: Any) -> Any:
        return self.index.match_arrays(query, BLOCK_SIZE)

    def find_dict(self, query: Any) -> dict[int, int]:
        return self.index.match_arrays(query, BLOCK_SIZE).to_dict()  # type: ignore[no-any-return]

    def depths(self, answer: Any) -> dict[int, int]:
        return answer.to_dict()  # type: ignore[no-any-return]

    def drop(self, worker: int) -> None:
        self.index.drop(worker)


class Dynamo:
    """ai-dynamo-runtime's RadixTree: JSON events with ready-made content hashes, applied by a thread of its own."""

    name = "dynamo"

    def __init__(self) -> None:
        from dynamo._core import RadixTree, compute_block_hash_for_seq

        self._tree = RadixTree()
        self._next = 0
        self.hash = self.hash_array = compute_block_hash_for_seq  # it has no other form

    @staticmethod
    def version() -> str:
        from importlib.metadata import version

        return version("ai-dynamo-runtime")

    def tokens(self, ids: list[int]) -> list[int]:
        return ids  # other sequences are taken, and cost more

    def stored(self, chain: Chain, start: int, stop: int) -> bytes:
        blocks = [
            {"block_hash": name, "tokens_hash": content}
            for name, content in zip(chain.hashes[start:stop], chain.contents[start:stop], strict=True)
        ]
        return self._event({"stored": {"parent_hash": chain.hashes[start - 1] if start else None, "blocks": blocks}})

    def removed(self, hashes: list[int]) -> bytes:
        return self._event({"removed": {"block_hashes": hashes}})

    def _event(self, data: dict[str, Any]) -> bytes:
        self._next += 1
        return json.dumps({"event_id": self._next, "dp_rank": 0, "data": data}, separators=(",", ":")).encode()

    def apply(self, worker: int, event: bytes) -> None:
        self._tree.apply_event(worker, event)

    def settle(self) -> None:
        self._tree.find_matches([1])  # it is answered after all that was applied before

    def query(self, chain: Chain) -> list[int]:
        return list(chain.contents)

    def find(self, query: list[int]) -> Any:
        return self._tree.find_matches(query)

    def find_dict(self, query: list[int]) -> dict[tuple[int, int], int]:
        return self._tree.find_matches(query).scores  # type: ignore[no-any-return]

    def depths(self, answer: Any) -> dict[int, int]:
        return {worker: depth for (worker, _rank), depth in answer.scores.items()}

    def drop(self, worker: int) -> None:
        self._tree.remove_worker(worker)


SUBJECTS: dict[str, Any] = {subject.name: subject for subject in (Warmroute, Dynamo)}
