"""One group of measurements of one implementation, in a process of its own: what `run.py` starts.

    python groups.py SUBJECT GROUP [CASE...]

Writes one JSON object a line: case, metric, value. CPU time is that of the whole process, so that threads which work
behind a call's back are counted; all of them share one CPU, where handing work over costs them least. Less is better,
whatever the metric.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from subjects import SUBJECTS
from workload import BLOCK_SIZE, Chain, chain, chain_of, token_ids


def tell(case: str, **metrics: float) -> None:
    for metric, value in metrics.items():
        print(json.dumps({"case": case, "metric": metric, "value": value}), flush=True)


def cpu_ns(call: Callable[..., object], *arguments: object, inner: int = 1) -> float:
    """Median CPU time of a call."""
    took = []
    for _ in range(15):
        start = time.process_time_ns()
        for _ in range(inner):
            call(*arguments)
        took.append((time.process_time_ns() - start) / inner)
    return statistics.median(took)


def tell_call(case: str, call: Callable[..., object], *arguments: object) -> None:
    inner = max(1, min(400, int(5e6 / cpu_ns(call, *arguments))))
    tell(case, cpu_us=cpu_ns(call, *arguments, inner=inner) / 1e3)


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def percentile(values: list[int], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def fill(subject: Any, seed: int, depth: int, worker: int, blocks: int = 128) -> None:
    stored = chain(seed, depth)
    for start, stop in stored.pieces(blocks):
        subject.apply(worker, subject.stored(stored, start, stop))


def measure_hash(new: Callable[[], Any]) -> None:
    subject = new()
    for count in (8192, 32768):
        tokens = token_ids(count, 1)
        tell_call(f"{count} tokens, list to list", subject.hash, tokens, BLOCK_SIZE)
        tell_call(f"{count} tokens, buffer to list", subject.hash, subject.tokens(tokens), BLOCK_SIZE)
        tell_call(f"{count} tokens, buffer to array", subject.hash_array, subject.tokens(tokens), BLOCK_SIZE)


def measure_ingest(new: Callable[[], Any]) -> None:
    depth, chains = 512, [chain(k + 1, 512) for k in range(400)]
    blocks = depth * len(chains)
    for per_event in (128, 16, 1):
        took = []
        for _ in range(5):
            subject = new()
            events = [
                (k % 8, subject.stored(stored, start, stop))
                for k, stored in enumerate(chains)
                for start, stop in stored.pieces(per_event)
            ]
            took.append(_apply_all(subject, events))
            assert list(subject.depths(subject.find(subject.query(chains[0]))).values()) == [depth]
        tell(f"{per_event} blocks an event", cpu_ns_per_block=statistics.median(took) / blocks)
        if hasattr(subject, "decode"):
            decoding = cpu_ns(_each, subject.decode, [event for _, event in events])
            tell(f"{per_event} blocks an event, of it decoding", cpu_ns_per_block=decoding / blocks)
    if hasattr(new(), "stored_many"):
        _measure_messages(new, chains)
    _measure_shared(new)


def _each(call: Callable[[bytes], object], events: list[bytes]) -> None:
    for event in events:
        call(event)


def _measure_messages(new: Callable[[], Any], chains: list[Chain]) -> None:
    """One block an event, as many a message as an engine has requests in a step; and the older form of events."""
    for together, release in ((1, "vllm-0.22"), (16, "vllm-0.32"), (80, "vllm-0.32")):
        took = []
        for _ in range(5):
            subject = new()
            messages = [
                (k % 8, subject.stored_many([(one, at, at + 1) for one in chains[k : k + together]], release))
                for k in range(0, len(chains), together)
                for at in range(len(chains[0].hashes))
            ]
            took.append(_apply_all(subject, messages))
        case = f"1 block an event, {together} events a message, {release}"
        tell(case, cpu_ns_per_block=statistics.median(took) / len(chains) / len(chains[0].hashes))


def _apply_all(subject: Any, events: list[tuple[int, bytes]]) -> int:
    gc.collect()
    gc.disable()
    start = time.process_time_ns()
    for worker, event in events:
        subject.apply(worker, event)
    subject.settle()
    took = time.process_time_ns() - start
    gc.enable()
    return took


def _measure_shared(new: Callable[[], Any]) -> None:
    """64 workers store the same chain, and lose it from its end."""
    stored, removed, same = [], [], chain(5, 2048)
    names = list(same.hashes)[::-1]
    for _ in range(3):
        subject = new()
        pieces = list(same.pieces(16))
        events = [(w, subject.stored(same, start, stop)) for w in range(64) for start, stop in pieces]
        stored.append(_apply_all(subject, events))
        events = [(w, subject.removed(names[start:stop])) for w in range(64) for start, stop in pieces]
        removed.append(_apply_all(subject, events))
        assert not subject.depths(subject.find(subject.query(same)))
    count = 64 * 2048
    tell("16 blocks an event, the same at 64 workers", cpu_ns_per_block=statistics.median(stored) / count)
    tell("removal, 16 blocks an event", cpu_ns_per_block=statistics.median(removed) / count)


def measure_match(new: Callable[[], Any]) -> None:
    depth, asked = 512, chain(7, 512)
    for shape in ("all hold all", "each another length"):
        for workers in (1, 8, 64, 256, 1000):
            subject = new()
            for w in range(workers):
                fill(subject, 7, depth if shape == "all hold all" else max(1, depth * (w + 1) // workers), w)
            query = subject.query(asked)
            found = subject.depths(subject.find(query))
            assert len(found) == workers, (len(found), workers)
            assert max(found.values()) == depth
            tell_call(f"{workers} workers, {shape}", subject.find, query)
            tell_call(f"{workers} workers, {shape}, as a dict", subject.find_dict, query)
    tell_call("none holds any", subject.find, subject.query(chain(99, depth)))


def measure_cold(new: Callable[[], Any]) -> None:
    """Each query is of a chain that nothing has touched for long, in an index far larger than any cache."""
    subject, chains, depth = new(), 8192, 512
    for k in range(chains):
        fill(subject, k + 1, depth, k % 64)
    waits = []
    for n in range(2000):
        asked = n * 2_654_435_761 % chains
        query = subject.query(chain(asked + 1, depth))
        start = time.perf_counter_ns()
        answer = subject.find(query)
        waits.append(time.perf_counter_ns() - start)
        assert subject.depths(answer) == {asked % 64: depth}
    tell(
        f"in {chains * depth / 1e6:.1f} M blocks",
        p50_us=percentile(waits, 0.5) / 1e3,
        p99_us=percentile(waits, 0.99) / 1e3,
    )


MEMORY = {  # case: (distinct chains of 512, workers that hold each, blocks an event, whether their hashes differ)
    "distinct": (2048, 1, 16, False),
    "distinct, 1 block an event": (2048, 1, 1, False),
    "distinct, other hashes": (2048, 1, 16, True),
    "the same at 8 workers": (256, 8, 16, False),
    "the same at 64 workers": (32, 64, 16, False),
    "the same at 8 workers, other hashes": (256, 8, 16, True),
    "the same at 64 workers, other hashes": (32, 64, 16, True),
}


def measure_memory(new: Callable[[], Any], case: str) -> None:
    """Bytes of RSS per block and worker that holds it, at a million of them."""
    chains, holders, per_event, salted = MEMORY[case]
    subject = new()
    fill(subject, 999_999, 512, 0)
    subject.settle()
    gc.collect()
    before, entries, refused = rss_bytes(), 0, 0
    for k in range(chains):
        same = chain(k + 1, 512)
        for holder in range(holders):
            worker = holder if holders > 1 else k % 16
            own = same.salted(worker) if salted else same
            for start, stop in own.pieces(per_event):
                entries += stop - start
                try:
                    subject.apply(worker, subject.stored(own, start, stop))
                except Exception:
                    refused += 1
    subject.settle()
    gc.collect()
    tell(case, bytes_per_entry=(rss_bytes() - before) / entries, events_refused=refused)
    start = time.process_time_ns()
    for worker in range(max(16, holders)):
        subject.drop(worker)
    subject.settle()
    tell(case, drop_all_ms=(time.process_time_ns() - start) / 1e6)


class Picker:
    """A routing rule that depends on nothing but the answers: least missing blocks and blocks given lately."""

    def __init__(self, workers: int) -> None:
        self._load = [0] * workers
        self._given: deque[tuple[int, int]] = deque()

    def pick(self, depths: dict[int, int], blocks: int) -> int:
        loads = self._load
        return min(range(len(loads)), key=lambda w: (blocks - depths.get(w, 0) + loads[w], w))

    def book(self, worker: int, missing: int) -> None:
        self._given.append((worker, missing))
        self._load[worker] += missing
        if len(self._given) > 64:
            worker, missing = self._given.popleft()
            self._load[worker] -= missing


class Engine:
    """One worker's cache as it really is: least recently used blocks go first, leaves before their parents."""

    def __init__(self, blocks_max: int, salt: int) -> None:
        self.held: OrderedDict[int, None] = OrderedDict()
        self._blocks_max = blocks_max
        self._salt = salt

    def leading(self, asked: Chain) -> int:
        return next((i for i, name in enumerate(asked.hashes) if name not in self.held), len(asked.hashes))

    def serve(self, subject: Any, asked: Chain, have: int) -> list[bytes]:
        """The events of serving a prompt of which the first `have` blocks are there."""
        for name in reversed(asked.hashes):
            self.held[name] = None
            self.held.move_to_end(name)
        gone = [self.held.popitem(last=False)[0] for _ in range(len(self.held) - self._blocks_max)]
        own = asked.salted(self._salt)
        events = [subject.stored(own, have, len(own.hashes))] if have < len(own.hashes) else []
        if gone:
            events.append(subject.removed(list(Chain(gone, (), ()).salted(self._salt).hashes)))
        return events


def measure_replay(new: Callable[[], Any], trace: str, case: str) -> None:
    """A trace of conversations routed by the index; each score is compared with what the worker really holds."""
    workers, blocks_max, salted = 16, 2048, case == "other hashes"
    subject, picker = new(), Picker(workers)
    engines = [Engine(blocks_max, w if salted else 0) for w in range(workers)]
    finding = applying = applied = refused = wrong = hits = blocks = 0
    settling = cpu_ns(subject.settle, inner=100)  # of itself, with nothing to wait for
    requests = [json.loads(line)["hash_ids"] for line in Path(trace).read_text().splitlines()]
    for numbers in requests:
        asked = chain_of(numbers)
        query = subject.query(asked)
        start = time.process_time_ns()
        answer = subject.find(query)
        finding += time.process_time_ns() - start
        depths = subject.depths(answer)
        real = [engine.leading(asked) for engine in engines]
        wrong += sum(depths.get(w, 0) != real[w] for w in range(workers))
        chosen = picker.pick(depths, len(numbers))
        picker.book(chosen, len(numbers) - real[chosen])
        hits += real[chosen]
        blocks += len(numbers)
        events = engines[chosen].serve(subject, asked, real[chosen])
        start = time.process_time_ns()
        for event in events:
            try:
                subject.apply(chosen, event)
            except Exception:
                refused += 1
        subject.settle()
        applying += time.process_time_ns() - start - settling
        applied += len(events)
    tell(
        case,
        find_cpu_us=finding / len(requests) / 1e3,
        event_cpu_us=applying / applied / 1e3,
        scores_wrong_percent=100 * wrong / len(requests) / workers,
        events_refused=refused,
        misses_percent=100 * (1 - hits / blocks),
    )


GROUPS: dict[str, Callable[..., None]] = {
    "hash": measure_hash,
    "ingest": measure_ingest,
    "match": measure_match,
    "cold": measure_cold,
    "memory": measure_memory,
    "replay": measure_replay,
}

if __name__ == "__main__":
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    GROUPS[sys.argv[2]](SUBJECTS[sys.argv[1]], *sys.argv[3:])
