"""Our index with the seven methods that a widely used benchmark of such indexes wants of an implementation.

    PYTHONPATH=benchmarks/index python bench_index.py --impl adapter:Adapter --group ...

That benchmark names a block's content by one number. Here it becomes token ids, as vLLM would publish them, so `apply`
includes decoding and hashing them all the same. A query comes as such numbers too; it is turned into what our index is
asked, once as long as it is the same list, so of a query that is asked only once that is included.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

from subjects import Warmroute
from workload import BLOCK_SIZE, Chain

IDS = 0x0001FFFF_0001FFFF  # two token ids of 17 bits, as large as those of real vocabularies


class Adapter:
    name = "warmroute"

    def __init__(self) -> None:
        self._subject = Warmroute()
        self._asked: Sequence[int] = ()
        self._query: Any = None

    @staticmethod
    def version() -> str:
        return Warmroute.version()

    def hash_blocks(self, tokens: list[int], block_size: int) -> Any:
        return self._subject.hash_array(tokens, block_size)

    def encode_stored(self, _event_id: int, parent: int | None, blocks: list[tuple[int, int]]) -> bytes:
        names = [name for name, _ in blocks]
        tokens = _tokens([content for _, content in blocks])
        if parent is None:
            return self._subject.stored(Chain(names, (), tokens), 0, len(names))
        return self._subject.stored(Chain([parent, *names], (), [0] * BLOCK_SIZE + tokens), 1, len(names) + 1)

    def encode_removed(self, _event_id: int, hashes: list[int]) -> bytes:
        return self._subject.removed(hashes)

    def apply(self, worker: int, event: bytes) -> None:
        self._subject.apply(worker, event)

    def find_raw(self, contents: Sequence[int]) -> Any:
        if contents is not self._asked:
            self._asked, self._query = contents, self._subject.query(Chain((), (), _tokens(contents)))
        return self._subject.find(self._query)

    def find(self, contents: Sequence[int]) -> dict[int, int]:
        return self._subject.depths(self.find_raw(contents))

    def remove_worker(self, worker: int) -> None:
        self._subject.drop(worker)


def _tokens(contents: Sequence[int]) -> list[int]:
    pairs = array("Q", [content & IDS for content in contents for _ in range(BLOCK_SIZE // 2)])
    return memoryview(pairs).cast("B").cast("I").tolist()
