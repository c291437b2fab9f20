"""A model engine: run after run of a cache and a publisher with a replay buffer, as vLLM has them.

It remembers what its cache held after every batch, and since when: that is what a view is judged by.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from warmroute.core.wire.events import Event
from warmroute.testing.events import RELEASES, encode_batch, pub_frames, replay_end, replay_frames
from warmroute.testing.simulation.cache import Held, ModelCache
from warmroute.testing.simulation.plan import Setup
from warmroute.testing.simulation.virtual import VirtualTime
from warmroute.types import BlockHash

EPOCH_S = 1_700_000_000.0
_GARBAGE = b"\xc1 not msgpack"


class Subscriber(Protocol):
    """Where published messages go."""

    def offer(self, frames: list[bytes]) -> None:
        """Take one, or lose it."""
        ...

    def engine_died(self, *, silently: bool) -> None:
        """The connections end; silently: nobody is told."""
        ...


@dataclass(slots=True)
class Run:
    """One life of the engine's process."""

    began: float
    began_wall: float
    cache: ModelCache
    states: list[tuple[float, Held]]
    """Since when the cache held what: at the start, and after batch 0, 1, ..."""
    buffer: deque[tuple[int, bytes]]
    """What can be replayed."""
    next_seq: int = 0
    unreadable: set[int] = field(default_factory=set)
    """Batches that nobody can read, the lost ones among them."""
    lost: set[int] = field(default_factory=set)
    """Batches that were never published."""
    cleared: int = 0
    """The first batch from which on everything is known without what came before."""
    corrupted: bool = False
    """Whether a batch was spoiled on its way: only a replay of all can mend that without losing anything else."""
    died: float | None = None

    def superseded(self, state: int) -> float | None:
        """When something was published after which the cache was not in this state any more; None: not yet."""
        later = (n for n in range(state + 1, len(self.states)) if n - 1 not in self.lost)
        first = next(later, None)
        return self.died if first is None else self.states[first][0]


class ModelEngine:
    """One worker's engine. `subscriber` is told of what is published while it is connected."""

    def __init__(self, number: int, setup: Setup, time: VirtualTime) -> None:
        self.number = number
        self.setup = setup
        self.release = RELEASES[setup.release]
        self.subscriber: Subscriber | None = None
        self.runs: list[Run] = []
        self.wall_offset_s = EPOCH_S
        self.forged: set[BlockHash] = set()
        """Hashes that were put into its mouth."""
        self._time = time
        self._last_ts = 0.0
        self.start()

    @property
    def run(self) -> Run:
        """The newest run."""
        return self.runs[-1]

    @property
    def up(self) -> bool:
        """Whether there is a process."""
        return self.run.died is None

    def wall_clock(self) -> float:
        """Unix seconds, as this engine's machine has them; never the same twice."""
        ts = self._time.now + self.wall_offset_s
        self._last_ts = ts if ts != self._last_ts else ts + 1e-5
        return self._last_ts

    def start(self) -> None:
        """A new process with an empty cache."""
        setup, now = self.setup, self._time.now
        salt = 0 if setup.fixed_root else len(self.runs)
        offloads = "medium" in self.release.stored
        cache = ModelCache(setup.blocks_max, salt, setup.hash_form, offloads=offloads)
        buffer: deque[tuple[int, bytes]] = deque(maxlen=setup.buffer_steps)
        self.runs.append(Run(now, self.wall_clock(), cache, [(now, {})], buffer))

    def die(self, *, silently: bool) -> None:
        """The process ends."""
        self.run.died = self._time.now
        if self.subscriber is not None:
            self.subscriber.engine_died(silently=silently)

    def reset(self) -> None:
        """Reset the cache."""
        self.run.cache.reset()

    def work(self, luck: random.Random, fault: str = "") -> None:
        """Compute a prompt and publish what came of it, or `lose` the batch, or `garble` it."""
        run = self.run
        events = run.cache.step(luck)
        seq, run.next_seq = run.next_seq, run.next_seq + 1
        run.states.append((self._time.now, dict(run.cache.held)))
        if any(type(event).__name__ == "AllBlocksCleared" for event in events) and not fault:
            run.cleared = seq
        if fault:
            run.unreadable.add(seq)
        if fault == "lose":
            run.lost.add(seq)
            return
        payload = _GARBAGE if fault else self._encode(events)
        run.buffer.append((seq, payload))
        if self.subscriber is not None:
            self.subscriber.offer(pub_frames("kv", seq, payload))

    def replay(self, start: int) -> list[list[bytes]]:
        """What the replay socket answers, with the end marker."""
        name = self.setup.release
        replies = [
            replay_frames(seq, payload, topic="kv", release=name) for seq, payload in self.run.buffer if seq >= start
        ]
        return [*replies, replay_end(release=name)]

    def forge(self, seq: int, events: list[Event]) -> list[bytes]:
        """A message in this engine's name."""
        for event in events:
            self.forged.update(getattr(event, "block_hashes", ()))
        return pub_frames("kv", seq, self._encode(events))

    @property
    def recoverable(self) -> bool:
        """Whether everything that the cache holds now can still be learned from the replay."""
        run = self.run
        first = run.buffer[0][0] if run.buffer else run.next_seq
        enough = first <= (0 if run.corrupted else run.cleared)
        return self.setup.replays and enough and not any(seq >= run.cleared for seq in run.unreadable)

    def _encode(self, events: list[Event]) -> bytes:
        return encode_batch(events, release=self.setup.release, ts=self.wall_clock())
