"""What each worker has been given to do and has not finished: booked at dispatch, released at the last byte.

Only what passed through this router is counted, at once and exactly, because the engine's own metrics come seconds too
late to keep a burst from piling onto one worker. A request is in prefill until its first byte of body comes, then it
is decoding. An answer that is not streamed shows no first byte before its end, so its prefill is taken as done after
the time it was estimated to take.

Invariant: a worker's load is the sum over its open leases, and zero without any.
"""

from __future__ import annotations

import heapq

from warmroute.types import LeaseId, WorkerId


class Lease:
    """One request's claim on one worker, from dispatch to last byte."""

    __slots__ = ("id", "open", "prefilling", "uncached_tokens", "worker")

    def __init__(self, lease: LeaseId, worker: WorkerId, uncached_tokens: int) -> None:
        self.id = lease
        self.worker = worker
        self.uncached_tokens = uncached_tokens
        """Prompt tokens the worker must compute for it, as estimated at dispatch."""
        self.prefilling = True
        self.open = True


class Load:
    """One worker's open leases, summed up."""

    __slots__ = ("_unobserved", "decoding", "prefill_tokens", "requests")

    def __init__(self) -> None:
        self.requests = 0
        """Requests in flight."""
        self.prefill_tokens = 0
        """Prompt tokens still to be computed for those in prefill."""
        self.decoding = 0
        """Requests past their prefill."""
        self._unobserved: list[tuple[float, LeaseId, Lease]] = []

    def __repr__(self) -> str:
        return f"Load(requests={self.requests}, prefill_tokens={self.prefill_tokens}, decoding={self.decoding})"


class LoadTable:
    """Load per worker. The one place where leases are opened, moved on and closed."""

    def __init__(self) -> None:
        self._loads: dict[WorkerId, Load] = {}
        self._last_lease = 0

    def book(
        self, worker: WorkerId, uncached_tokens: int, *, prefill_observable: bool, prefill_ends_at: float
    ) -> Lease:
        """Open a lease: `uncached_tokens` of prefill are now queued on `worker`.

        `prefill_observable` says that a first byte will tell when prefill is done (a streamed answer); if not, it is
        taken as done at `prefill_ends_at` seconds.
        """
        self._last_lease += 1
        lease = Lease(LeaseId(self._last_lease), worker, uncached_tokens)
        load = self._loads.setdefault(worker, Load())
        load.requests += 1
        load.prefill_tokens += uncached_tokens
        if not prefill_observable:
            heapq.heappush(load._unobserved, (prefill_ends_at, lease.id, lease))  # noqa: SLF001 - one unit, two classes
        return lease

    def prefilled(self, lease: Lease) -> None:
        """The lease's first byte of body came: it is decoding now. No-op when that is known already."""
        if lease.open and lease.prefilling:
            lease.prefilling = False
            load = self._loads[lease.worker]
            load.prefill_tokens -= lease.uncached_tokens
            load.decoding += 1

    def release(self, lease: Lease) -> None:
        """Close the lease, however it ended. No-op when it is closed already."""
        if not lease.open:
            return
        load = self._loads[lease.worker]
        load.requests -= 1
        if lease.prefilling:
            load.prefill_tokens -= lease.uncached_tokens
        else:
            load.decoding -= 1
        lease.open = False
        if load.requests == 0:
            del self._loads[lease.worker]

    def of(self, worker: WorkerId, now: float) -> Load:
        """What `worker` has to do at `now` seconds. Read it at once: it changes with the next booking."""
        load = self._loads.get(worker)
        if load is None:
            return _IDLE
        unobserved = load._unobserved  # noqa: SLF001
        while unobserved and unobserved[0][0] <= now:
            self.prefilled(heapq.heappop(unobserved)[2])
        return load

    def check(self) -> None:
        """Raise AssertionError if a worker without requests is kept or a sum is negative."""
        for worker, load in self._loads.items():
            sums_hold = load.requests > 0 and load.prefill_tokens >= 0 and 0 <= load.decoding <= load.requests
            assert sums_hold, (worker, load)  # noqa: S101 - what check() is for


_IDLE = Load()
