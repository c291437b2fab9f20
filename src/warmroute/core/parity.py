"""Whether a worker's predictions come true: what was predicted against what the engine reports, as a sequential test.

An engine says with an answer, or in its counters, how many prompt tokens it took from its cache. One wrong prediction
means little: requests of one instant, events that are late, blocks that were evicted meanwhile. Predictions that keep
failing mean that the view is wrong, whatever the stream believes of itself.

Two CUSUM tests (Page's) run per worker, one against predicting too much and one against predicting too little. Each
judged prediction that fails adds ln(p1 / p0), each that holds subtracts ln((1 - p0) / (1 - p1)), never below zero, with
p0 = 0.1 the share of failures that is put up with and p1 = 0.5 the one that is looked for. Lorden's bound gives the
limit its meaning: at a share of p0, on average at least e^limit judged predictions lie between two false alarms.

Invariant: an alarm begins when a sum reaches its limit and ends when the sum is back at zero.
"""

from __future__ import annotations

import enum
from math import inf, log

import msgspec

_P0, _P1 = 0.1, 0.5
_FAILED = log(_P1 / _P0)
_HELD = log((1 - _P0) / (1 - _P1))
HIGH_LIMIT = log(1e4)
"""Predicting too much sends requests to a worker that has nothing for them: six failures in a row are enough."""
LOW_LIMIT = log(1e6)
"""Predicting too little only misses chances, and is what other clients' requests look like: nine in a row."""
TOLERANCE = 0.1
"""A prediction holds if it is wrong by no more than this share: one block of a long prompt is no reason to rebuild."""
SETTLED_S = 0.5
"""Engines count what a request found a little after they have answered it."""
REQUESTS_MAX = 10_000
"""Requests remembered between two readings; beyond it the window begins anew."""
_MEMORY = 0.2
"""Weight of the newest observation in `belief`."""


class Evidence(msgspec.Struct, frozen=True, gc=False):
    """What was predicted, and what the engine reported; in tokens."""

    at_least: int
    """What events had confirmed: the engine cannot have taken less, if the view was right."""
    at_most: int
    """What was thought to be there at best, claims of requests under way included."""
    reported: int


class Alarm(enum.StrEnum):
    """Predictions keep failing."""

    HIGH = "predicts too much"
    LOW = "predicts too little"


class _Cusum:
    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.sum = 0.0
        self.alarmed = False

    def observe(self, failed: bool) -> None:
        self.sum = min(self.limit, max(0.0, self.sum + (_FAILED if failed else -_HELD)))
        self.alarmed = self.sum >= self.limit or (self.alarmed and self.sum > 0)


class Parity:
    """One worker's predictions, judged one after the other."""

    def __init__(self) -> None:
        self.judged = self.high = self.low = 0
        """Observations, and those of them that were too high and too low."""
        self.predicted_tokens = self.reported_tokens = 0
        """Sums over all observations."""
        self.belief = 1.0
        """Share of the predicted tokens that the engine had, lately."""
        self._too_high, self._too_low = _Cusum(HIGH_LIMIT), _Cusum(LOW_LIMIT)

    def judge(self, evidence: Evidence) -> bool:
        """Take up an observation; whether it failed. One that could not have failed changes no test."""
        at_least, at_most, reported = evidence.at_least, evidence.at_most, evidence.reported
        too_high = at_least - reported > TOLERANCE * at_least
        too_low = reported - at_most > TOLERANCE * reported
        self.judged += 1
        self.high += too_high
        self.low += too_low
        self.predicted_tokens += at_most
        self.reported_tokens += reported
        if at_least > 0:
            self._too_high.observe(too_high)
            self.belief += _MEMORY * (min(1.0, reported / at_least) - self.belief)
        if reported > 0:
            self._too_low.observe(too_low)
        return too_high or too_low

    @property
    def alarm(self) -> Alarm | None:
        """What is wrong with the predictions; too much before too little."""
        if self._too_high.alarmed:
            return Alarm.HIGH
        return Alarm.LOW if self._too_low.alarmed else None

    @property
    def pressure(self) -> float:
        """How near an alarm is: 0 nothing speaks for one, 1 it is there."""
        return max(test.sum / test.limit for test in (self._too_high, self._too_low))


class Bounds(msgspec.Struct, frozen=True, gc=False):
    """One request's share in the engine's counters, as predicted; in tokens."""

    at_least: int
    at_most: int
    queried: int | None
    """Tokens it was looked up with; None: not known, and `at_most` means nothing."""


class _Counted(msgspec.Struct, gc=False):
    bounds: Bounds
    inside: bool
    """Whether it began after the last reading."""
    ended_at: float = inf
    served: bool = False


class CounterWindow:
    """What the engine's counters must have counted between two readings, for engines that report nothing per answer.

    A request that ran across a reading may have been counted before or after it, so it bounds the sum from above only.
    Requests of other clients add to the counters: they cannot make a prediction look too high, and are seen by the
    tokens looked up, so that none is taken for too low because of them.
    """

    def __init__(self) -> None:
        self._read: tuple[float, float] | None = None
        self._requests: dict[int, _Counted] = {}
        self._waiting = False

    def began(self, number: int, bounds: Bounds) -> None:
        """A request was sent."""
        if len(self._requests) >= REQUESTS_MAX:
            self._requests.clear()
            self._read = None
        self._requests[number] = _Counted(bounds, inside=True)

    def ended(self, number: int, now: float, *, served: bool) -> None:
        """It is over; `served` is false if the engine has not computed it, as far as is known."""
        request = self._requests.get(number)
        if request is not None:
            request.ended_at, request.served = now, served
            if self._read is None:  # before a first reading there is nothing to hold it against
                del self._requests[number]
            self._waiting = self._waiting or served

    @property
    def queries(self) -> float | None:
        """Tokens looked up, as read last; None: not read yet."""
        return None if self._read is None else self._read[0]

    def due(self, now: float) -> bool:
        """Whether a reading is worth its while: what it can be held against outweighs what lies across it."""
        if self._read is None or not self._waiting:
            return self._waiting
        across, inside = 0, 0
        for request in self._requests.values():
            across += request.ended_at > now - SETTLED_S
            inside += self._judgeable(request, now - SETTLED_S)
        return inside >= max(1, across)

    def reported(self, number: int) -> None:
        """The engine has told of this one itself."""
        request = self._requests.get(number)
        if request is not None:
            request.bounds = Bounds(0, request.bounds.at_most, request.bounds.queried)

    def read(self, asked_at: float, queries: float, hits: float) -> Evidence | None:
        """The counters, asked for at `asked_at`: what they say of the time since the last reading, if they do."""
        before, self._read = self._read, (queries, hits)
        requests = self._requests.values()
        settled = asked_at - SETTLED_S
        inside = [r.bounds.at_least for r in requests if self._judgeable(r, settled)]
        at_most = sum(r.bounds.at_most for r in requests)
        queried = [r.bounds.queried for r in requests]
        self._requests = {number: r for number, r in self._requests.items() if r.ended_at > settled}
        for request in self._requests.values():
            request.inside = False
        self._waiting = False
        if before is None or not inside or queries < before[0] or hits < before[1]:
            return None  # the first reading, or of another process, or nothing happened in between
        counted, looked_up = int(hits - before[1]), queries - before[0]
        if None in queried or looked_up > sum(each or 0 for each in queried):
            at_most = max(at_most, counted)
        return Evidence(sum(inside), at_most, counted)

    @staticmethod
    def _judgeable(request: _Counted, settled: float) -> bool:
        return request.inside and request.served and request.ended_at <= settled
