"""How far each worker's view may be believed: what its stream says, lowered by what its predictions show.

The stream knows what it has missed, but not what was never announced. Whether predictions come true shows that: a
worker whose predictions keep failing (`core.parity`) is DEGRADED however well its stream feels, is believed as little
as its predictions were worth, and is resynchronised: all that is known of it is dropped, and rebuilt from a replay. If
that does not mend it, it is tried again later and later.

Invariant: every change of state is logged and counted once; `since` is when the state began, whatever its reason.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from warmroute.core.parity import Bounds, CounterWindow, Evidence, Parity
from warmroute.service.ports import CacheCounters
from warmroute.types import Trust, TrustState, WorkerId

_log = logging.getLogger(__name__)

RESYNC_PAUSE_S = 30.0
"""First pause before a worker whose predictions still fail is resynchronised again; doubled each time."""
RESYNC_PAUSE_MAX_S = 1800.0

_JUDGED = frozenset({TrustState.LIVE, TrustState.DEGRADED})
_BELIEVED = frozenset({TrustState.LIVE, TrustState.REPLAYING})
_BELIEF_STEP = 0.1
"""Smaller changes of belief are not worth a new fleet."""


class WorkerTrust:
    """One worker's: only `Trusts` changes it."""

    __slots__ = ("counted_at", "counters", "parity", "pause_s", "resync_at", "resyncs", "shown", "stream")

    def __init__(self, stream: Trust) -> None:
        self.stream = stream
        self.shown = stream
        self.parity = Parity()
        self.counters = CounterWindow()
        self.counted_at = 0.0
        self.resyncs = 0
        self.resync_at = float("-inf")
        self.pause_s = RESYNC_PAUSE_S

    def view(self) -> dict[str, Any]:
        """What users see of the comparison with the engine's word."""
        parity = self.parity
        return {
            "judged": parity.judged,
            "too_high": parity.high,
            "too_low": parity.low,
            "predicted_tokens": parity.predicted_tokens,
            "reported_tokens": parity.reported_tokens,
            "alarm": parity.alarm,
            "pressure": round(parity.pressure, 3),
            "belief": round(parity.belief, 3),
            "resyncs": self.resyncs,
        }


class Trusts:
    """The trust of every worker. Belongs to one event loop; `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.workers: dict[WorkerId, WorkerTrust] = {}
        self.transitions: Counter[tuple[str, str]] = Counter()
        """(worker name, state) -> how often it went there."""
        self.publish: Callable[[WorkerId, Trust], None] = _ignore
        """Told of every change; membership's, so that decisions see it."""
        self.resync: Callable[[WorkerId, str], None] = _ignore
        """Drops what is known of a worker and rebuilds it; the stream's."""
        self.name_of: Callable[[WorkerId], str] = str
        self._clock = clock

    def of(self, worker: WorkerId) -> WorkerTrust:
        """A worker's; made when it is asked for first."""
        found = self.workers.get(worker)
        if found is None:
            found = self.workers[worker] = WorkerTrust(Trust(TrustState.BLIND, "no events yet", self._clock()))
        return found

    def streamed(self, worker: WorkerId, trust: Trust) -> None:
        """What the worker's stream says of itself."""
        own = self.of(worker)
        own.stream = trust
        self._show(worker, own)

    def judged(self, worker: WorkerId, evidence: Evidence, decided_at: float) -> None:
        """What an engine reported of a request that had been predicted at `decided_at`.

        Not judged is what a view predicts that is being rebuilt, or was when it was asked; nor, of a view that is known
        to be incomplete, that there was more.
        """
        own = self.of(worker)
        stream = own.stream
        if stream.state not in _JUDGED or stream.since > decided_at:
            return
        if stream.state is not TrustState.LIVE:
            evidence = Evidence(evidence.at_least, max(evidence.at_most, evidence.reported), evidence.reported)
        failed = own.parity.judge(evidence)
        alarm, now = own.parity.alarm, self._clock()
        if alarm is None:
            own.pause_s = RESYNC_PAUSE_S if own.parity.pressure == 0 else own.pause_s
        elif failed and own.parity.pressure == 1 and now >= own.resync_at:
            own.resync_at, own.pause_s = now + own.pause_s, min(2 * own.pause_s, RESYNC_PAUSE_MAX_S)
            own.resyncs += 1
            self._show(worker, own)
            self.resync(worker, f"its predictions fail: it {alarm}")
        self._show(worker, own)

    # For engines that report nothing with an answer: their counters.

    def counts_for(self, worker: WorkerId) -> bool:
        """Whether the engine's counters will be held against what is predicted of the worker."""
        own = self.workers.get(worker)
        return own is not None and own.stream.state is not TrustState.BLIND

    def began(self, worker: WorkerId, number: int, bounds: Bounds) -> None:
        """A request was sent to the worker."""
        self.of(worker).counters.began(number, bounds)

    def ended(self, worker: WorkerId, number: int, *, served: bool, reported: bool) -> None:
        """It is over; `reported`: its answer said what was cached."""
        own = self.workers.get(worker)
        if own is not None:
            if reported:
                own.counters.reported(number)
            own.counters.ended(number, self._clock(), served=served and not reported)

    def wants_counters(self, worker: WorkerId) -> bool:
        """Whether anything happened there that only the engine's counters can tell of."""
        own = self.workers.get(worker)
        return own is not None and own.counters.due(self._clock())

    def counted(self, worker: WorkerId, counters: CacheCounters, asked_at: float) -> None:
        """The engine's counters, asked for at that time of our clock."""
        own = self.of(worker)
        evidence = own.counters.read(asked_at, counters.queries, counters.hits)
        began_at, own.counted_at = own.counted_at, asked_at
        if evidence is not None:
            self.judged(worker, evidence, began_at)

    def forget(self, worker: WorkerId) -> None:
        """The worker is gone."""
        self.workers.pop(worker, None)

    def forget_name(self, name: str) -> None:
        """Its series end with it."""
        for key in [key for key in self.transitions if key[0] == name]:
            del self.transitions[key]

    def _show(self, worker: WorkerId, own: WorkerTrust) -> None:
        trust = _lowered(own)
        before = own.shown
        if trust.state is before.state:
            trust = replace(trust, since=before.since)
            if trust.reason == before.reason and abs(trust.belief - before.belief) < _BELIEF_STEP:
                return
        else:
            trust = replace(trust, since=self._clock())
            name = self.name_of(worker)
            self.transitions[name, trust.state] += 1
            level = logging.WARNING if trust.state is TrustState.DEGRADED else logging.INFO
            _log.log(level, "%s is %s (was %s): %s", name, trust.state, before.state, trust.reason)
        own.shown = trust
        self.publish(worker, trust)


def _lowered(own: WorkerTrust) -> Trust:
    alarm = own.parity.alarm
    if alarm is None:
        return own.stream
    if own.stream.state in _BELIEVED:
        reason = f"parity: it {alarm}, as the engine reports"
        return Trust(TrustState.DEGRADED, reason, own.stream.since, own.parity.belief)
    return replace(own.stream, belief=own.parity.belief)


def _ignore(*_: object) -> None:
    pass
