"""The simulated cache and scheduler against recordings of a real vLLM 0.32: same hits, same events, batch for batch.

Each file: the engine's settings, then rounds of requests sent at once, and the batches that vLLM published for them.
Token ids and hashes are renamed to small numbers by order of appearance; what is compared does not depend on them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from warmroute.testing.engine.cache import CacheEvent, PagedCache, Pages, Removed, Stored
from warmroute.testing.engine.scheduler import Scheduler, Sequence

RECORDINGS = Path(__file__).parent.parent / "data" / "engine"


class Replay:
    """Runs recorded rounds; hashes are named by order of appearance, as in the recording."""

    def __init__(self, block_size: int, num_blocks: int) -> None:
        self.cache = PagedCache(num_blocks, block_size)
        self.scheduler = Scheduler(self.cache, sequences_max=8, tokens_max=2048, sample=self.sample)
        self.completions: dict[int, Iterator[int]] = {}
        self.names: dict[bytes, int] = {}

    def sample(self, tokens: list[int]) -> int:
        return next(self.completions[id(tokens)])

    def round(self, requests: list[dict[str, Any]]) -> tuple[list[int | None], list[list[Any]]]:
        sequences = []
        for request in requests:
            pages = Pages(list(request["prompt"]))
            self.completions[id(pages.tokens)] = iter(request["completion"])
            sequence = Sequence(pages, len(request["prompt"]), len(request["completion"]), lambda *_: None)
            sequences.append(sequence)
            self.scheduler.add(sequence)
        batches = []
        while self.scheduler.busy:
            step = self.scheduler.schedule()
            if step.events:
                batches.append([self.named(event) for event in step.events])
            self.scheduler.complete(step)
            self.cache.check()
        return [sequence.cached_tokens for sequence in sequences], batches

    def name(self, digest: bytes | None) -> int | None:
        return None if digest is None else self.names.setdefault(digest, len(self.names))

    def named(self, event: CacheEvent) -> list[Any]:
        if isinstance(event, Stored):
            hashes = [self.name(digest) for digest in event.digests]
            return ["stored", hashes, self.name(event.parent), len(event.token_ids)]
        return ["removed", [self.name(event.digest)]] if isinstance(event, Removed) else ["cleared"]


@pytest.mark.parametrize("path", sorted(RECORDINGS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_hits_and_events_are_those_of_real_vllm(path: Path) -> None:
    head, *rounds = map(json.loads, path.read_text().splitlines())
    replay = Replay(head["block_size"], head["num_blocks"])
    requests = removals = 0
    for number, recorded in enumerate(rounds):
        if "reset" in recorded:
            assert replay.cache.reset()
            continue
        cached, batches = replay.round(recorded["requests"])
        assert sorted(map(int, cached)) == sorted(r["cached_tokens"] for r in recorded["requests"]), f"round {number}"
        assert batches == recorded["batches"], f"round {number}"
        requests += len(cached)
        removals += sum(event[0] == "removed" for batch in batches for event in batch)
    expected = {"shared_prefix": (24, 0), "duplicates": (51, 121), "bytes_hashes_b64": (28, 38)}
    assert (requests, removals) == expected[path.stem]
