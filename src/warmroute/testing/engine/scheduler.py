"""Continuous batching: which tokens of which sequences one step computes.

Pure and synchronous: the rank's loop calls `schedule`, lets the time that the step takes pass, then calls `complete`.
Running sequences come before waiting ones; a prompt longer than the step's token budget is computed in chunks; when no
block is free, the youngest running sequence gives its blocks back and waits again.

Invariant: a sequence is in exactly one of waiting, running, gone; only running ones hold blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from warmroute.testing.engine.cache import CacheEvent, PagedCache, Pages


@dataclass(slots=True, eq=False)
class Sequence:
    """One generation: a prompt on its way to `tokens_max` generated tokens."""

    pages: Pages
    prompt_tokens: int
    tokens_max: int
    sink: Callable[[int, bool], None]
    """Called with each generated token and whether it is the last one."""
    reads_cache: bool = True
    computed: int = 0
    """Tokens whose KV is there."""
    scheduled: int = 0
    cached_tokens: int | None = None
    """Prompt tokens found in the cache when first scheduled; None: not scheduled yet."""

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.pages.tokens) - self.prompt_tokens


@dataclass(frozen=True, slots=True)
class Step:
    """What one step computes, and what the cache has to say of it."""

    sequences: tuple[Sequence, ...]
    prefill_tokens: int
    decodes: int
    """Sequences that compute a single new token."""
    events: tuple[CacheEvent, ...]


@dataclass(slots=True)
class Totals:
    """Counters since the start, in tokens unless the name says otherwise."""

    cache_queries: int = 0
    cache_hits: int = 0
    prompt: int = 0
    prompt_cached: int = 0
    generation: int = 0
    preemptions: int = 0
    finished_requests: int = 0
    aborted_requests: int = 0


class Scheduler:
    """Batches sequences over one cache. `sample` makes the next token from the tokens so far."""

    def __init__(
        self, cache: PagedCache, *, sequences_max: int, tokens_max: int, sample: Callable[[list[int]], int]
    ) -> None:
        self.cache = cache
        self.totals = Totals()
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._sequences_max = sequences_max
        self._tokens_max = tokens_max
        self._sample = sample

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Drop a sequence wherever it is; its full blocks stay cached. Nothing happens if it is gone."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        else:
            return
        self.cache.free(sequence.pages)
        self.totals.aborted_requests += 1

    def schedule(self) -> Step:
        """Decide what the next step computes; blocks are taken and announced now."""
        budget, chosen, preempted = self._tokens_max, list[Sequence](), False
        position = 0
        while position < len(self.running) and budget:
            sequence = self.running[position]
            count = min(budget, len(sequence.pages.tokens) - sequence.computed)
            while not (fits := self.cache.allocate(sequence.pages, (), sequence.computed + count)):
                preempted = True
                if self._preempt() is sequence:
                    break
            if not fits:
                break
            sequence.scheduled = count
            budget -= count
            chosen.append(sequence)
            position += 1
        if not preempted:
            self._admit(budget, chosen)
        prefill = sum(each.scheduled for each in chosen if each.scheduled > 1 or not each.generated)
        decodes = sum(1 for each in chosen if each.scheduled == 1 and each.generated)
        return Step(tuple(chosen), prefill, decodes, tuple(self.cache.take_events()))

    def complete(self, step: Step) -> None:
        """The step's time has passed: sample where everything is computed, free what is finished."""
        live = set(self.running)
        for sequence in step.sequences:
            if sequence not in live:
                continue  # aborted while the step ran
            sequence.computed += sequence.scheduled
            tokens = sequence.pages.tokens
            if sequence.computed < len(tokens):
                continue
            if not sequence.generated:
                self.totals.prompt += sequence.prompt_tokens
                self.totals.prompt_cached += sequence.cached_tokens or 0
            token = self._sample(tokens)
            tokens.append(token)
            self.totals.generation += 1
            last = sequence.generated >= sequence.tokens_max
            if last:
                self.running.remove(sequence)
                self.cache.free(sequence.pages)
                self.totals.finished_requests += 1
            sequence.sink(token, last)

    def _admit(self, budget: int, chosen: list[Sequence]) -> None:
        while self.waiting and budget and len(self.running) < self._sequences_max:
            sequence = self.waiting[0]
            pages = sequence.pages
            hits = self.cache.match(pages) if sequence.reads_cache else []
            computed = len(hits) * self.cache.block_size
            count = min(budget, len(pages.tokens) - computed)
            if not self.cache.allocate(pages, hits, computed + count):
                return
            if sequence.cached_tokens is None:
                sequence.cached_tokens = computed
                if sequence.reads_cache:
                    self.totals.cache_queries += len(pages.tokens)
                    self.totals.cache_hits += computed
            self.running.append(self.waiting.popleft())
            sequence.computed, sequence.scheduled = computed, count
            budget -= count
            chosen.append(sequence)

    def _preempt(self) -> Sequence:
        youngest = self.running.pop()
        self.cache.free(youngest.pages)
        youngest.computed = 0
        self.waiting.appendleft(youngest)
        self.totals.preemptions += 1
        return youngest
