"""What each worker has been given to do and has not finished: booked at dispatch, released at the last byte.

Only what passed through this router is counted, at once and exactly, because the engine's own metrics come seconds too
late to keep a burst from piling onto one worker. A request is in prefill until its first byte of body comes, then it
is decoding. An answer that is not streamed shows no first byte before its end, so its prefill is taken as done after
the time it was estimated to take.

Everything is kept in columns, one number per worker, because a decision reads all workers at once; the columns that it
reads lie in rows (`rows.py`). The time at which a worker's prefill queue will be empty is one of them: booked seconds
are added at dispatch, time passing takes them away, and every first byte says how far the worker really is::

    booked       |--- A ---|-- B --|---- C ----|      first byte of A at t: C will be done at t + B + C
                           ^ t                 ^ free_at

The pieces of answers also say when a step ended, and that the next began: who comes right then waits for all of it,
though nothing is queued (`steps.py`). Without this, requests would be drawn to each worker at the worst moment, when
its load falls. Where there are no streams, first and last bytes must do.

Where several processes serve together, the table publishes its sums and adds what the others publish (`sharing.py`).

Invariant: a worker's counts are the sums over its open leases, and zero without any.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable
from math import exp

import msgspec

from warmroute.core.rates import RateTable, pairs
from warmroute.core.rows import COUNTS, TIMES, Rows
from warmroute.core.sharing import Booked, Sharing, key_of, together
from warmroute.core.steps import SAME_STEP_S, Steps, follow, wait_s
from warmroute.types import LeaseId, Worker, WorkerId

RECENT_S = 20.0
"""Time constant of what `of late` means: some queues long, and short beside the swings of a day."""
NOTHING = (0.0, 0.0)
STEP_SHARE = 2 / 3
"""Of a step as it was learned, which has in it half of the one that a request finds under way, on average."""


class Lease(msgspec.Struct, eq=False, gc=False):
    """One request's claim on one worker, from dispatch to last byte."""

    id: LeaseId
    worker: WorkerId
    slot: int
    prompt_tokens: int
    uncached_tokens: int
    """Prompt tokens the worker must compute for it, as estimated at dispatch."""
    at: float
    """When it was dispatched or, where that is known, when the step was due that it could be part of."""
    mark: float
    """Seconds of prefill ever booked on the worker, this one's included."""
    observable: bool
    """Whether its first byte comes long before its end."""
    others_mark: tuple[float, float] = NOTHING
    """Tokens and pairs that other processes had ever seen computed there."""
    prefilling: bool = True
    open: bool = True
    due_s: float | None = None
    """How long after the dispatch a step was due, where nothing but generations ran."""
    begun: int = 0
    """Steps that its worker had been seen to begin before it."""
    piece_at: float = 0.0
    """When the last piece of its answer came."""


class Load:
    """One worker's line of the table, as it is now."""

    __slots__ = ("_slot", "_table")

    def __init__(self, table: LoadTable, slot: int | None) -> None:
        self._table = table
        self._slot = slot

    @property
    def requests(self) -> int:
        """Requests in flight."""
        return 0 if self._slot is None else self._table.requests[self._slot]

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens still to be computed for those in prefill."""
        return 0 if self._slot is None else self._table.prefill_tokens[self._slot]

    @property
    def decoding(self) -> int:
        """Requests past their prefill."""
        return 0 if self._slot is None else self._table.requests[self._slot] - self._table.prefilling[self._slot]

    @property
    def step_s(self) -> float:
        """Seconds of a step in which nothing but generations run, as its answers tell; 0 if they have not."""
        return 0.0 if self._slot is None else self._table.rates.generation_s[self._slot]

    def __repr__(self) -> str:
        return f"Load(requests={self.requests}, prefill_tokens={self.prefill_tokens}, decoding={self.decoding})"


class LoadTable:
    """Load per worker. The one place where leases are opened, moved on and closed."""

    def __init__(self, rates: RateTable | None = None, sharing: Sharing | None = None) -> None:
        self.rates = rates or RateTable()
        self.sharing = sharing
        self.steps = Steps()
        self._counts = Rows[int]("q", COUNTS)
        self._times = Rows[float]("d", TIMES)
        self.requests: memoryview[int]
        """Requests in flight."""
        self.prefilling: memoryview[int]
        """Requests in flight that wait for their first byte."""
        self.prefill_tokens: memoryview[int]
        """Prompt tokens to be computed for those."""
        self.kv_tokens: memoryview[int]
        """Prompt tokens of all requests in flight: what of the worker's cache cannot be evicted now, at least."""
        self.free_at: memoryview[float]
        """When what is booked is expected to be computed, or a step that is known to have begun to be over."""
        self.busy: memoryview[float]
        """Share of the last `RECENT_S` seconds or so for which prefill was booked."""
        self._make_room(1)
        self.requests_per_s = 0.0
        """Bookings of late, on all workers together."""
        self.computed_tokens: list[int] = []
        """Prompt tokens ever taken as computed."""
        self.computed_pairs: list[float] = []
        """The same in pairs of tokens."""
        self._others_mark: list[tuple[float, float]] = []
        """What other processes had seen computed when this one last saw progress."""
        self._faded_at = 0.0
        self._booked_s: list[float] = []
        self._done_s: list[float] = []
        self._progress_at: list[float] = []
        self._step_s: list[float] = []
        self._step_tokens: list[int] = []
        self._step_pairs: list[float] = []
        self._step_context: list[int] = []
        self._slots: dict[WorkerId, int] = {}
        self._unused: list[int] = []
        self._unobserved: list[tuple[float, LeaseId, Lease]] = []
        self._last_lease = 0

    def _make_room(self, workers: int) -> None:
        if self._counts.reach(workers):
            self.requests, self.prefilling, self.prefill_tokens, self.kv_tokens = self._counts.columns
        if self._times.reach(workers):
            self.free_at, self.busy = self._times.columns

    def slot(self, worker: WorkerId) -> int:
        """The worker's place in every column, given when it is first asked for; it keeps it until `keep_only`."""
        slot = self._slots.get(worker)
        if slot is None:
            slot = self._unused.pop() if self._unused else len(self._booked_s)
            if slot == len(self._booked_s):
                self._make_room(slot + 1)
                for count in self.computed_tokens, self._step_tokens, self._step_context:
                    count.append(0)
                for column in self._own_times():
                    column.append(0.0)
                self._others_mark.append(NOTHING)
                if self.sharing is not None:
                    self.sharing.name(slot, 0.0)
            self.rates.start(slot)
            self.steps.start(slot)
            self._slots[worker] = slot
        return slot

    def introduce(self, workers: Iterable[Worker]) -> None:
        """Say who these are, so that other processes know them: their ids are this process's own."""
        if self.sharing is not None:
            for worker in workers:
                slot = self.slot(worker.id)
                if not self.sharing.is_named(slot):  # fleets are many, and an id is one worker's for ever
                    self.sharing.name(slot, key_of(worker))

    def keep_only(self, workers: Iterable[WorkerId]) -> None:
        """Give up the places of all other workers that have nothing in flight."""
        for worker in self._slots.keys() - set(workers):
            slot = self._slots[worker]
            if not self.requests[slot]:
                del self._slots[worker]
                self.free_at[slot] = self.busy[slot] = 0.0
                for times in self._own_times():
                    times[slot] = 0.0
                self._others_mark[slot] = NOTHING
                self._unused.append(slot)
                if self.sharing is not None:
                    self._publish(slot)
                    self.sharing.name(slot, 0.0)

    def book(
        self, worker: WorkerId, prompt_tokens: int, uncached_tokens: int, now: float, *, prefill_observable: bool
    ) -> Lease:
        """Open a lease: `uncached_tokens` of prefill are now queued on `worker`.

        `prefill_observable` says that a first byte will tell when prefill is done (a streamed answer); if not, it is
        taken as done when it is expected to be.
        """
        self._last_lease += 1
        slot = self.slot(worker)
        seconds = self.rates.prefill_s(slot, prompt_tokens, uncached_tokens)
        due_s, step_s = self.free_at[slot] - now, self.rates.generation_s[slot] if self.requests[slot] else 0.0
        wait = wait_s(due_s, step_s, self.steps.reach_s)
        alone = not self.prefilling[slot]
        if alone:  # those behind it share its steps
            seconds += self.rates.fixed_s[slot] + self.rates.per_context_s[slot] * self.kv_tokens[slot]
            seconds = max(seconds, step_s)
        self.requests[slot] += 1
        self.prefilling[slot] += 1
        self.prefill_tokens[slot] += uncached_tokens
        self.kv_tokens[slot] += prompt_tokens
        self.free_at[slot] = free_at = now + wait + seconds
        self.busy[slot] += seconds / RECENT_S
        self.requests_per_s += 1.0 / RECENT_S
        self._booked_s[slot] = mark = self._booked_s[slot] + seconds
        number = LeaseId(self._last_lease)
        lease = Lease(number, worker, slot, prompt_tokens, uncached_tokens, now, mark, prefill_observable)
        if alone and step_s and due_s > 0.0:
            lease.at, lease.due_s, lease.begun = now + wait, due_s, self.steps.begun[slot]
        if not prefill_observable:
            heapq.heappush(self._unobserved, (free_at, number, lease))
        if self.sharing is not None:
            lease.others_mark = self.sharing.computed(slot)
            self._publish(slot)
        return lease

    def prefilled(self, lease: Lease, now: float) -> None:
        """The lease's first byte of body came: it is decoding now. No-op when that is known already."""
        if not (lease.open and lease.prefilling):
            return
        slot, steps = lease.slot, self.steps
        if lease.observable:
            begun = steps.begun[slot] - lease.begun
            if now < steps.same_until[slot]:
                begun -= 1  # of the very step that brought this byte, another one has told
            else:
                steps.begin(slot, now, self.rates.generation_s[slot])
            lease.piece_at = now
            if lease.due_s is not None:
                steps.learn(lease.due_s, begun, self.rates.generation_s[slot])
        self._begin_decoding(lease)
        if lease.observable:
            self._observe(lease, now)
        self._done_s[slot] = max(self._done_s[slot], lease.mark)
        if self.prefilling[slot]:
            self.free_at[slot] = now + self._booked_s[slot] - self._done_s[slot]
        else:
            self.free_at[slot] = now + self._generation_s(slot)
        if lease.observable:
            self._publish(slot)  # else its end follows at once

    def stepped(self, lease: Lease, now: float) -> None:
        """A further piece of the lease's answer came: a step of its worker is over, and the next has begun."""
        slot, took_s = lease.slot, now - lease.piece_at
        lease.piece_at = now
        if now < self.steps.same_until[slot] or not (lease.observable and lease.open):
            return
        if self.prefilling[slot]:
            self.steps.begin(slot, now, self.rates.generation_s[slot])
            return
        self.rates.generation_s[slot] = length_s = follow(self._generation_s(slot), took_s)
        self.steps.begin(slot, now, length_s)
        self.free_at[slot] = now + length_s

    def release(self, lease: Lease, now: float) -> None:
        """Close the lease, however it ended. No-op when it is closed already."""
        if not lease.open:
            return
        if lease.prefilling:
            self._begin_decoding(lease)
        self.requests[lease.slot] -= 1
        self.kv_tokens[lease.slot] -= lease.prompt_tokens
        lease.open = False
        if self.requests[lease.slot]:
            self.free_at[lease.slot] = max(self.free_at[lease.slot], now + self._generation_s(lease.slot))
        else:
            self.free_at[lease.slot] = min(self.free_at[lease.slot], now)
        self._publish(lease.slot)

    def pass_time(self, now: float) -> None:
        """Take as computed what no first byte will tell of and should be done by `now` seconds."""
        if now - self._faded_at >= 1.0:
            share = exp((self._faded_at - now) / RECENT_S)
            self.busy[:] = memoryview(array("d", [busy * share for busy in self.busy.tolist()]))
            self.requests_per_s *= share
            self._faded_at = now
            if self.sharing is not None:
                self.sharing.put_busy(self.busy[: len(self._booked_s)], self.requests_per_s)
        unobserved = self._unobserved
        # Those that are over already go too: every request would walk a heap of thousands that wait for their time.
        while unobserved and (unobserved[0][0] <= now or not unobserved[0][2].prefilling):
            lease = heapq.heappop(unobserved)[2]
            if lease.open and lease.prefilling:
                self._begin_decoding(lease)
                self._publish(lease.slot)

    def rows(self, now: float) -> Booked:
        """What the workers have to do at `now` seconds, for all processes. Not to be changed, nor kept."""
        self.pass_time(now)
        mine = self._counts.numbers, self._times.numbers, self.requests_per_s
        return mine if self.sharing is None else together(mine, self.sharing.others(now), now)

    def requests_of(self, worker: WorkerId) -> int:
        """Requests in flight at `worker`, of all processes."""
        slot = self._slots.get(worker)
        if slot is None:
            return 0
        return self.requests[slot] + (0 if self.sharing is None else self.sharing.requests(slot))

    def of(self, worker: WorkerId, now: float) -> Load:
        """What `worker` was given to do by this process, at `now` seconds. Read it at once: it changes."""
        self.pass_time(now)
        return Load(self, self._slots.get(worker))

    def check(self) -> None:
        """Raise AssertionError if a sum is negative, or not zero without requests."""
        for worker, slot in self._slots.items():
            requests, prefilling = self.requests[slot], self.prefilling[slot]
            tokens, kv = self.prefill_tokens[slot], self.kv_tokens[slot]
            sums_hold = 0 <= prefilling <= requests and tokens >= 0 and kv >= 0
            assert sums_hold, (worker, requests, prefilling, tokens, kv)  # noqa: S101 - what check() is for
            assert requests or not (tokens or kv), (worker, tokens, kv)  # noqa: S101

    def _generation_s(self, slot: int) -> float:
        """Seconds that a step takes in which nothing but generations run."""
        if seen := self.rates.generation_s[slot]:
            return seen
        return STEP_SHARE * self.rates.step_s(slot, (1.0, 0.0, 0.0, float(self.kv_tokens[slot])))

    def _observe(self, lease: Lease, now: float) -> None:
        """Learn from a first byte. Those that come together are one step's."""
        slot = lease.slot
        since = now - self._progress_at[slot]
        took = min(since, now - lease.at)
        tokens, context = lease.uncached_tokens, self.kv_tokens[slot]
        pairs_ = pairs(lease.prompt_tokens, lease.uncached_tokens)
        if self.sharing is not None:
            more_tokens, more_pairs = self._others_progress(lease)
            tokens, pairs_ = tokens + more_tokens, pairs_ + more_pairs
            context += self.sharing.kv_tokens(slot)
        self._progress_at[slot] = now
        if since < SAME_STEP_S:
            self._step_tokens[slot] += tokens
            self._step_pairs[slot] += pairs_
            return
        if self._step_s[slot]:
            features = 1.0, float(self._step_tokens[slot]), self._step_pairs[slot], float(self._step_context[slot])
            self.rates.observe(slot, features, self._step_s[slot])
        self._step_tokens[slot], self._step_pairs[slot] = tokens, pairs_
        self._step_s[slot] = took if took > SAME_STEP_S else 0.0  # it came before its step was due: nobody knows when
        self._step_context[slot] = context

    def _others_progress(self, lease: Lease) -> tuple[int, float]:
        """Tokens and pairs that the worker has computed for other processes since this lease's observation began."""
        assert self.sharing is not None  # noqa: S101 - asked only where there are others
        slot, seen = lease.slot, self.sharing.computed(lease.slot)
        began = lease.others_mark if lease.at >= self._progress_at[slot] else self._others_mark[slot]
        self._others_mark[slot] = seen
        if seen[0] < began[0]:  # a process has crashed, and what it had computed is not known any more
            return 0, 0.0
        return int(seen[0] - began[0]), seen[1] - began[1]

    def _publish(self, slot: int) -> None:
        if self.sharing is not None:
            booked = (
                self.requests[slot],
                self.prefilling[slot],
                self.prefill_tokens[slot],
                self.kv_tokens[slot],
                self.free_at[slot] if self.prefilling[slot] else 0.0,  # a step under way, all see for themselves
                self.busy[slot],
                self.computed_tokens[slot],
                self.computed_pairs[slot],
            )
            self.sharing.put(slot, booked, self.requests_per_s)

    def _own_times(self) -> tuple[list[float], ...]:
        """Columns that no decision reads."""
        return self._booked_s, self._done_s, self._progress_at, self._step_s, self._step_pairs, self.computed_pairs

    def _begin_decoding(self, lease: Lease) -> None:
        lease.prefilling = False
        self.prefilling[lease.slot] -= 1
        self.prefill_tokens[lease.slot] -= lease.uncached_tokens
        self.computed_tokens[lease.slot] += lease.uncached_tokens
        self.computed_pairs[lease.slot] += pairs(lease.prompt_tokens, lease.uncached_tokens)
