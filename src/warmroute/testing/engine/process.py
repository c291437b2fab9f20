"""One life of an engine, from start to death: its ranks with their caches, its adapters, its counters.

A restart is a new Process on the same addresses: caches are empty and batch numbers begin at 0 again.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

from warmroute.service.ports import EventAddress
from warmroute.testing.engine.cache import PLAIN, Content, PagedCache, Pages
from warmroute.testing.engine.options import Adapters, EngineOptions, Faults
from warmroute.testing.engine.publisher import Publisher
from warmroute.testing.engine.release import Release
from warmroute.testing.engine.scheduler import Scheduler, Sequence, Step
from warmroute.testing.engine.tokenizer import pseudo_word


@dataclass(frozen=True, slots=True)
class Time:
    """Where time comes from: Unix seconds, and a way to let some pass. Tests put virtual time here."""

    now: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]


class Token(NamedTuple):
    """One generated token of one of a request's sequences."""

    sequence: int
    id: int
    last: bool
    cached_tokens: int
    """Of its prompt, found when it was first scheduled."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What is to be generated: each of `prompts` becomes `copies` sequences of `tokens_max` tokens."""

    prompts: Tokens[Tokens[int]]
    tokens_max: int
    content: Content = PLAIN
    copies: int = 1
    reads_cache: bool = True


class Rank:
    """One data-parallel rank: one cache, one queue, one event stream."""

    def __init__(self, options: EngineOptions, number: int, faults: Faults, time: Time) -> None:
        release = Release.of(options.release)
        fixed = release.root_is_fixed
        root = hashlib.sha256(b"" if fixed else f"{options.seed}/{number}".encode()).digest()
        cache = PagedCache(
            options.num_blocks,
            options.block_size,
            root=root,
            reuse_uncached_first=release.reuses_uncached_first,
        )
        self.number = number
        self.scheduler = Scheduler(
            cache,
            sequences_max=options.max_num_seqs,
            tokens_max=options.max_num_batched_tokens,
            sample=self._sample,
        )
        self.publisher = Publisher(options, number, faults) if options.events else None
        self._options = options
        self._time = time
        self._random = random.Random(f"{options.seed}/{number}")  # noqa: S311 - a simulation wants repeatable numbers
        self._work = asyncio.Event()

    async def run(self) -> None:
        """Compute step after step until cancelled."""
        scheduler = self.scheduler
        while True:
            if not scheduler.busy:
                self._work.clear()
                await self._work.wait()
            step = scheduler.schedule()
            await self._time.sleep(self._duration_s(step))
            if step.events and self.publisher and self._options.prefix_caching:
                self.publisher.publish(self._time.now(), step.events)
            scheduler.complete(step)

    async def generate(self, generation: Generation) -> AsyncGenerator[Token, None]:
        """Tokens of all sequences as they come. Leaving early aborts what is still running."""
        made: asyncio.Queue[Token] = asyncio.Queue()
        sequences: list[Sequence] = []
        reads_cache = generation.reads_cache and self._options.prefix_caching
        for prompt in generation.prompts:
            for _ in range(generation.copies):
                pages = Pages(list(prompt), generation.content)
                number = len(sequences)

                def sink(token: int, last: bool, number: int = number) -> None:
                    cached_tokens = sequences[number].cached_tokens or 0
                    made.put_nowait(Token(number, token, last, cached_tokens))

                sequences.append(Sequence(pages, len(prompt), generation.tokens_max, sink, reads_cache=reads_cache))
        for sequence in sequences:
            self.scheduler.add(sequence)
        self._work.set()
        running = len(sequences)
        try:
            while running:
                token = await made.get()
                running -= token.last
                yield token
        finally:
            for sequence in sequences:
                self.scheduler.abort(sequence)

    def _duration_s(self, step: Step) -> float:
        options = self._options
        duration = step.prefill_tokens * options.prefill_per_token_s + (step.decodes > 0) * options.decode_per_token_s
        return duration * (1 + self._random.uniform(-options.jitter, options.jitter))

    def _sample(self, tokens: list[int]) -> int:
        recent = ",".join(map(str, tokens[-8:]))
        return pseudo_word(crc32(f"{self._options.seed}/{len(tokens)}/{recent}".encode()))


class Process:
    """All ranks of one engine and what they share."""

    def __init__(self, options: EngineOptions, faults: Faults, time: Time) -> None:
        self.options = options
        self.release = Release.of(options.release)
        self.faults = faults
        self.time = time
        self.started = time.now()
        self.adapters = Adapters()
        for name in options.loras:
            self.adapters.load(name, f"adapters/{name}")
        self.ranks = tuple(Rank(options, number, faults, time) for number in range(options.data_parallel_size))
        self._tasks: list[asyncio.Task[None]] = []
        self._turn = 0

    @property
    def events(self) -> tuple[EventAddress, ...]:
        """Where each rank publishes; empty if events are off."""
        return tuple(rank.publisher.address for rank in self.ranks if rank.publisher)

    def start(self, former: Tokens[EventAddress] = ()) -> None:
        """Bind the event sockets, where they were if `former` says so, and begin to work."""
        for rank in self.ranks:
            self._tasks.append(asyncio.create_task(rank.run()))
            if rank.publisher:
                rank.publisher.bind(former[rank.number] if former else None)
                self._tasks.append(asyncio.create_task(rank.publisher.serve_replays()))
        for task in self._tasks:
            task.add_done_callback(_report)

    async def stop(self) -> None:
        """Stop at once and release the event sockets. Safe to call more than once."""
        for task in self._tasks:
            task.cancel()
        outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        for rank in self.ranks:
            if rank.publisher:
                await rank.publisher.close()
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    def rank_for(self, pinned: int | None) -> Rank:
        """The rank that a request is pinned to, else the ranks in turn. Raises IndexError for no such rank."""
        if pinned is not None:
            return self.ranks[pinned if pinned >= 0 else len(self.ranks)]
        self._turn += 1
        return self.ranks[(self._turn - 1) % len(self.ranks)]

    def content(self, model: str | None, salt: str | None, session_id: str | None) -> Content:
        """What tells the blocks of a request for `model` apart."""
        adapter = self.adapters.by_name.get(model or "")
        if adapter is None:
            return Content(salt=salt, session_id=session_id)
        source = f"{adapter.name}\0{adapter.path}" if self.release.hashes_lora_path else adapter.name
        return Content(adapter.name, adapter.number, source, salt, session_id)

    def serves(self, model: str) -> bool:
        """Whether `model` is the base model or a loaded adapter."""
        return model == self.options.model or model in self.adapters.by_name


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        task.get_loop().call_exception_handler({"message": "a simulated rank died", "exception": error, "task": task})
