"""One simulated engine: continuous batching with chunked prefill over a paged prefix cache, on virtual time.

What vLLM's v1 scheduler does, in its observable terms. A step carries one token of every generation and, within its
token budget, pieces of prompts: first those begun, then waiting ones in order of arrival, as long as their blocks fit.
A prompt's cached blocks are looked up when its first piece is scheduled, and its own can be found from then on. If
running requests outgrow the cache, the one that came last is preempted and computed again.

Steps in which only generations run are not simulated one by one: nothing changes until one of them ends or a request
arrives, and the time of k such steps is a quadratic in k.

Invariant: the engine is a function of its arrivals; it draws nothing at random.
"""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Sequence
from math import ceil, sqrt
from typing import Any, cast

from warmroute.app.simulation.cache import BlockCache
from warmroute.app.simulation.profiles import Profile
from warmroute.core.wire.events import BlockRemoved, BlockStored, Event
from warmroute.types import Medium


class Work:
    """One request inside an engine."""

    __slots__ = (
        "cached_tokens",
        "chain",
        "computed",
        "decode_from",
        "finish_step",
        "generated",
        "number",
        "output_tokens",
        "owner",
        "pinned",
        "prompt_tokens",
        "running",
        "tokens",
    )

    def __init__(self, owner: Any, tokens: array[int], prompt_tokens: int, output_tokens: int) -> None:
        self.owner = owner
        self.tokens = tokens
        """Prompt and answer."""
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.chain: Sequence[int] = ()
        """Hashes of the full blocks of `tokens`."""
        self.computed = 0
        """Prompt tokens that need no computing any more."""
        self.cached_tokens = -1
        """Those of them that were found cached when it was first scheduled."""
        self.pinned = 0
        """Leading blocks of the chain that it holds by content."""
        self.generated = 0
        self.decode_from = 0
        self.finish_step = 0
        self.number = 0
        self.running = False


class Run:
    """Steps that follow one another without a change; if it is cut short, it has fewer than it was to have."""

    __slots__ = ("steps",)

    def __init__(self) -> None:
        self.steps = 0


class Engine:
    """The owner calls `arrive` and, at `ends_at`, `step_over`; then it takes what `first`, `done` and `events` hold."""

    def __init__(self, profile: Profile, block_size: int, number: int = 0) -> None:
        self.number = number
        self.profile = profile
        self.block_size = block_size
        self.cache = BlockCache(profile.kv_tokens // block_size, profile.host_kv_tokens // block_size)
        self.waiting: deque[Work] = deque()
        self.prefilling: list[Work] = []
        self.ends_at: float | None = None
        """When the step (or run of steps) under way ends; None: idle."""
        self.first: list[Work] = []
        """Requests whose first token came with the last step."""
        self.done: list[Work] = []
        self.events: list[Event] = []
        self.preemptions = 0
        self.busy_s = 0.0
        self._decoding: list[tuple[int, int, Work]] = []
        self._decode_steps = 0
        self._context = 0
        self._chunks: list[tuple[Work, int]] = []
        self._begun_at = 0.0
        self.run = Run()
        """What is under way."""
        self._numbers = 0
        self._load_s = 0.0

    @property
    def running(self) -> int:
        """Requests that have been scheduled and are not done."""
        return len(self.prefilling) + len(self._decoding)

    def arrive(self, sequence: Work, now: float) -> bool:
        """A request comes; whether `ends_at` has changed."""
        self.waiting.append(sequence)
        if self.ends_at is None:
            self._begin(now)
            return True
        return self._cut_short(now)

    def step_over(self, now: float) -> None:
        """The step under way ends now; begin the next."""
        self.busy_s += now - self._begun_at
        batch, steps = len(self._decoding), self.run.steps
        self._decode_steps += steps
        self._context += batch * steps
        self.cache.private += batch * steps / self.block_size
        for sequence, tokens in self._chunks:
            self._computed(sequence, tokens)
        decoding = self._decoding
        while decoding and decoding[0][0] <= self._decode_steps:
            self._finish(heapq.heappop(decoding)[2])
        while not self.cache.make_room() and self.running > 1:
            self._preempt()
        self._announce_evictions()
        self._begin(now)

    def abort_all(self) -> list[Work]:
        """The engine dies: what it had."""
        lost = [*self.waiting, *self.prefilling, *(sequence for _, _, sequence in self._decoding)]
        self.waiting.clear()
        self.prefilling.clear()
        self._decoding.clear()
        self.ends_at = None
        self.run.steps = 0
        return lost

    def step_at(self, step: int) -> float:
        """When the `step`th step of the run under way ends, if nothing cuts it short."""
        return self._begun_at + self._run_s(step)

    @property
    def generating(self) -> Work | None:
        """One of the requests that are past their first token, if there is one."""
        return self._decoding[0][2] if self._decoding else None

    # -- steps

    def _begin(self, now: float) -> None:
        self._schedule()
        self._begun_at = now
        self.run = Run()
        batch, profile = len(self._decoding), self.profile
        if self._chunks:
            prompt_tokens = sum(tokens for _, tokens in self._chunks)
            attended = sum(n * (s.computed + n / 2) for s, n in self._chunks)
            arithmetic = max(profile.weights_s, (prompt_tokens + batch) * profile.token_s)
            seconds = profile.overhead_s + arithmetic + profile.attention_s * attended
            seconds += self._context * profile.context_s + self._load_s
            self._load_s = 0.0
            self.run.steps = 1
            self.ends_at = now + seconds
        elif batch:
            self.run.steps = max(1, self._decoding[0][0] - self._decode_steps)
            grown = self.cache.capacity - self.cache.in_use
            if grown * self.block_size < self.run.steps * batch:  # to the brim, and see who must go
                self.run.steps = max(1, int(grown * self.block_size / batch))
            self.ends_at = now + self._run_s(self.run.steps)
        else:
            self.ends_at = None

    def _run_s(self, steps: int) -> float:
        """Seconds of so many steps of nothing but the generations there are."""
        batch, profile = len(self._decoding), self.profile
        first = profile.overhead_s + max(profile.weights_s, batch * profile.token_s) + self._context * profile.context_s
        return steps * first + profile.context_s * batch * steps * (steps - 1) / 2

    def _cut_short(self, now: float) -> bool:
        """End a run of steps with the step that is under way now, because a request came."""
        if self._chunks or self.run.steps == 1 or len(self.waiting) > 1:
            return False
        batch, profile, past = len(self._decoding), self.profile, now - self._begun_at
        first = profile.overhead_s + max(profile.weights_s, batch * profile.token_s) + self._context * profile.context_s
        half = profile.context_s * batch / 2
        steps = (
            past / first if half == 0 else (sqrt((first - half) ** 2 + 4 * half * past) - (first - half)) / (2 * half)
        )
        whole = min(self.run.steps, max(1, ceil(steps)))
        if whole == self.run.steps:
            return False
        self.run.steps = whole
        self.ends_at = max(now, self._begun_at + self._run_s(whole))
        return True

    def _schedule(self) -> None:
        """Give the next step its pieces of prompts."""
        budget = self.profile.batch_tokens - len(self._decoding)
        chunks: list[tuple[Work, int]] = []
        for sequence in self.prefilling:
            tokens = min(budget, sequence.prompt_tokens - sequence.computed)
            if tokens > 0:
                self._cache(sequence, tokens)
                chunks.append((sequence, tokens))
                budget -= tokens
        while self.waiting and budget > 0 and self.running < self.profile.sequences_max:
            sequence = self.waiting[0]
            if not self._admit(sequence):
                break
            self.waiting.popleft()
            tokens = min(budget, sequence.prompt_tokens - sequence.computed)
            self._cache(sequence, tokens)
            chunks.append((sequence, tokens))
            budget -= tokens
            self.prefilling.append(sequence)
        self._chunks = chunks

    def _admit(self, sequence: Work) -> bool:
        """Look up what is cached and take the blocks, if they fit."""
        cache, size = self.cache, self.block_size
        limit = min((sequence.prompt_tokens - 1) // size, len(sequence.chain))
        on_gpu, in_host = cache.match(sequence.chain, limit)
        held = (on_gpu + in_host) * size
        private = (sequence.prompt_tokens - held) / size + 1
        taken = cache.needs(sequence.chain, on_gpu) + in_host + private
        if cache.in_use + taken > cache.capacity and self.running:
            return False
        if in_host:
            self._load_s += in_host * size * self.profile.host_token_s
            self._stored(sequence, on_gpu, on_gpu + in_host)
        cache.pin(sequence.chain[: on_gpu + in_host])
        cache.private += private
        cache.make_room()
        self._announce_evictions()  # before what is stored anew
        sequence.pinned = on_gpu + in_host
        sequence.computed = held
        if sequence.cached_tokens < 0:
            sequence.cached_tokens = held
        self._numbers += 1
        sequence.number = self._numbers
        return True

    def _cache(self, sequence: Work, tokens: int) -> None:
        """The next step will compute this piece of a prompt: who is scheduled after it finds its full blocks already.

        Source: vLLM's KVCacheManager.allocate_slots, which caches blocks as it gives them out.
        """
        full = min((sequence.computed + tokens) // self.block_size, len(sequence.chain))
        if full > sequence.pinned:
            self._stored(sequence, sequence.pinned, full)
            self.cache.pin(sequence.chain[sequence.pinned : full])
            self.cache.private -= full - sequence.pinned
            sequence.pinned = full

    def _computed(self, sequence: Work, tokens: int) -> None:
        """A piece of a prompt was computed; with the last one, a token came."""
        sequence.computed += tokens
        if sequence.computed < sequence.prompt_tokens:
            return
        self.prefilling.remove(sequence)
        if not sequence.running:  # not one that was preempted
            self.first.append(sequence)
            sequence.running = True
            sequence.generated = 1
        sequence.decode_from = self._decode_steps
        sequence.finish_step = self._decode_steps + sequence.output_tokens - sequence.generated
        sequence.finish_step = max(self._decode_steps, sequence.finish_step)
        self._context += sequence.prompt_tokens
        heapq.heappush(self._decoding, (sequence.finish_step, sequence.number, sequence))

    def _finish(self, sequence: Work) -> None:
        self._leave(sequence)
        chain, prompt_blocks = sequence.chain, sequence.pinned
        self.cache.unpin(chain[:prompt_blocks])
        if len(chain) > prompt_blocks:  # the answer's blocks, and the one between
            self._stored(sequence, prompt_blocks, len(chain))
            self.cache.add_free(chain[prompt_blocks:])
        self.done.append(sequence)

    def _leave(self, sequence: Work) -> None:
        """Account for a generation that ends or is preempted."""
        produced = self._decode_steps - sequence.decode_from
        size = self.block_size
        self._context -= sequence.prompt_tokens + produced
        self.cache.private -= produced / size
        self.cache.private -= (sequence.prompt_tokens / size + 1) - sequence.pinned
        if not self.prefilling and not self._decoding:
            self.cache.private = 0.0  # nothing runs: no rounding is left behind
        sequence.generated += produced

    def _preempt(self) -> None:
        """Whoever was scheduled last gives its blocks back and waits again, in front."""
        self.preemptions += 1
        if self.prefilling:
            sequence = self.prefilling.pop()
            self.cache.private -= (sequence.prompt_tokens / self.block_size + 1) - sequence.pinned
        else:
            entry = max(self._decoding, key=lambda each: each[1])
            self._decoding.remove(entry)
            heapq.heapify(self._decoding)
            sequence = entry[2]
            self._leave(sequence)
            sequence.prompt_tokens += sequence.generated - 1  # what it said so far is computed again
            sequence.output_tokens -= sequence.generated - 1
            sequence.generated = 1
        self.cache.unpin(sequence.chain[: sequence.pinned])
        sequence.pinned = sequence.computed = 0
        self.waiting.appendleft(sequence)

    # -- events

    def _stored(self, sequence: Work, start: int, end: int) -> None:
        """Announce those of these blocks that are not there, run by run."""
        chain, size, missing = sequence.chain, self.block_size, self.cache.missing
        while start < end:
            run = end
            if len(missing(chain[start:end])) != end - start:
                while start < end and not missing(chain[start : start + 1]):
                    start += 1
                run = start
                while run < end and missing(chain[run : run + 1]):
                    run += 1
            if run > start:
                tokens = sequence.tokens[start * size : run * size]  # a buffer does as well as a tuple, and costs less
                self.events.append(
                    BlockStored(
                        block_hashes=tuple(chain[start:run]),
                        parent=chain[start - 1] if start else None,
                        token_ids=cast("tuple[int, ...]", tokens),
                        block_size=size,
                    )
                )
            start = run

    def _announce_evictions(self) -> None:
        cache = self.cache
        if cache.offloaded:
            for block in cache.offloaded:
                self.events.append(
                    BlockStored(
                        block_hashes=(block,), parent=None, token_ids=(), block_size=self.block_size, medium=Medium.CPU
                    )
                )
            cache.offloaded = []
        if cache.evicted:
            self.events.append(BlockRemoved(block_hashes=tuple(cache.evicted)))
            cache.evicted = []
        if cache.host_evicted:
            self.events.append(BlockRemoved(block_hashes=tuple(cache.host_evicted), medium=Medium.CPU))
            cache.host_evicted = []
