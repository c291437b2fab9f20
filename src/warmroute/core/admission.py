"""Admission, sans I/O: who is served now, who waits, who is told to come again.

    arrive -> ADMITTED ----------------------------> release
          '-> WAITING --- room came ---> ADMITTED -> release
                 |--- a better one took its place --> REFUSED (displaced)
                 |--- its deadline passed ----------> REFUSED (deadline)
                 '--- its client went away ---------> abandon
          '-> REFUSED (queue_full)

Waiting requests of one model stand in order of priority, then of arrival; a model without room never holds up another.

Invariants: no limit is exceeded (of several processes, each may let in one more at the same moment); after `advance`,
nobody waits while there is room for them; the line never has more than `queue_max`; who is refused for being one too
many is the last in line.
"""

from __future__ import annotations

import bisect
import enum
from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from warmroute.core.sharing import Sharing

SECONDS_PER_MINUTE = 60.0


class Verdict(enum.Enum):
    """Where a request stands."""

    WAITING = "waiting"
    ADMITTED = "admitted"
    REFUSED = "refused"
    OVER = "over"


class GateLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a gate lets in. None: without limit."""

    requests_max: int | None = None
    models: Mapping[str, int] = {}
    """Model -> requests at once; `*`: of each other model."""
    queue_max: int = 0
    wait_s_max: float = 0.0

    def of_model(self, model: str | None) -> int | None:
        """Requests of that model at once."""
        return self.models.get(model or "", self.models.get("*"))


class Visit:
    """One request at the gate. Ordered as the line is."""

    __slots__ = ("deadline", "decided", "model", "order", "reason", "verdict")

    def __init__(self, model: str | None, order: tuple[int, int], deadline: float) -> None:
        self.model = model
        self.order = order
        """(priority, number of arrival): lower goes first."""
        self.deadline = deadline
        self.verdict = Verdict.WAITING
        self.reason = ""
        """Why it was refused."""
        self.decided = False
        """Whether an engine was booked for it."""

    def __lt__(self, other: Visit) -> bool:
        return self.order < other.order


class Gate:
    """Counts who is inside and keeps who waits.

    `engine_room(model, booking)` says whether the engines of a model have room for one more request, beside `booking`
    that were let in and have no engine yet. With `sharing`, who is inside other processes counts too.
    """

    def __init__(
        self,
        limits: GateLimits,
        engine_room: Callable[[str | None, int], bool] | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        self.limits = limits
        self._sharing = sharing
        self.inside = 0
        self.by_model: Counter[str | None] = Counter()
        self._engine_room = engine_room
        self._booking = 0
        self._arrivals = 0
        self._lines: dict[str | None, list[Visit]] = {}
        self._waiting: dict[int, Visit] = {}
        """By number of arrival, which is also the order of deadlines: all may wait equally long."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def stands_open(self) -> bool:
        """Whether it lets in everybody at once, so that nobody need stand at it."""
        return self.limits.requests_max is None and not self.by_models

    @property
    def by_models(self) -> bool:
        """Whether it makes a difference to it which model a request is for."""
        return bool(self.limits.models) or self._engine_room is not None

    def arrive(self, model: str | None, priority: int, now: float) -> tuple[Visit, Visit | None]:
        """A request comes: its visit, and who was refused for it if it took a place in a full line."""
        self._arrivals += 1
        visit = Visit(model, (priority, self._arrivals), now + self.limits.wait_s_max)
        line = self._lines.get(model)
        if (line is None or visit < line[0]) and self.lack(model) is None:
            self._admit(visit)
            return visit, None
        bisect.insort(self._lines.setdefault(model, []), visit)
        self._waiting[visit.order[1]] = visit
        if len(self._waiting) <= self.limits.queue_max:
            return visit, None
        last = max(line[-1] for line in self._lines.values())
        self._refuse(last, "queue_full" if last is visit else "displaced")
        return visit, None if last is visit else last

    def advance(self) -> list[Visit]:
        """Let in who has room now, the first in line first."""
        admitted: list[Visit] = []
        blocked: set[str | None] = set()
        while heads := [line[0] for model, line in self._lines.items() if model not in blocked]:
            first = min(heads)
            if self.lack(first.model) is None:
                self._unline(first)
                self._admit(first)
                admitted.append(first)
            else:
                blocked.add(first.model)
        return admitted

    def booked(self, visit: Visit) -> None:
        """An engine was booked for it: from now on the engine's own load shows it."""
        if visit.verdict is Verdict.ADMITTED and not visit.decided:
            visit.decided = True
            self._booking -= 1

    def release(self, visit: Visit) -> None:
        """It is over, however it ended, or its client went away while it waited. Only the first call counts."""
        if visit.verdict is Verdict.WAITING:
            self._unline(visit)
        elif visit.verdict is Verdict.ADMITTED:
            self.booked(visit)
            self.inside -= 1
            self._share()
            self.by_model[visit.model] -= 1
            if not self.by_model[visit.model]:
                del self.by_model[visit.model]
        visit.verdict = Verdict.OVER

    def expire(self, now: float) -> list[Visit]:
        """Refuse those who have waited too long."""
        late = []
        for visit in self._waiting.values():
            if visit.deadline > now:
                break
            late.append(visit)
        for visit in late:
            self._refuse(visit, "deadline")
        return late

    def lack(self, model: str | None) -> str | None:
        """What there is no room in for a request of that model: `gateway`, `model` or `engines`; None: there is."""
        most = self.limits.requests_max
        if most is not None:
            elsewhere = 0 if self._sharing is None else self._sharing.inside()
            if self.inside + elsewhere >= most:
                return "gateway"
        of_model = self.limits.of_model(model)
        if of_model is not None and self.by_model[model] >= of_model:
            return "model"
        if self._engine_room is not None and not self._engine_room(model, self._booking):
            return "engines"
        return None

    def _admit(self, visit: Visit) -> None:
        visit.verdict = Verdict.ADMITTED
        self.inside += 1
        self._share()
        self.by_model[visit.model] += 1
        self._booking += 1

    def _share(self) -> None:
        if self._sharing is not None:
            self._sharing.put_inside(self.inside)

    def _refuse(self, visit: Visit, reason: str) -> None:
        self._unline(visit)
        visit.verdict, visit.reason = Verdict.REFUSED, reason

    def _unline(self, visit: Visit) -> None:
        del self._waiting[visit.order[1]]
        line = self._lines[visit.model]
        del line[bisect.bisect_left(line, visit)]
        if not line:
            del self._lines[visit.model]


class Charge(msgspec.Struct, frozen=True):
    """What a request takes from one bucket."""

    bucket: str
    per_min: int
    """The bucket's size, and what flows in per minute."""
    cost: float


class Rates:
    """Token buckets: each holds a minute's worth, begins full and is refilled steadily.

    A charge larger than the bucket is let through when the bucket is full; the level is then negative for a while.
    A full bucket is no bucket, so none is kept for who is not there.
    """

    def __init__(self) -> None:
        self._levels: dict[str, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._levels)

    def take(self, charges: tuple[Charge, ...], now: float) -> float:
        """Take all charges or none: 0 if taken, else after how many seconds they could be."""
        wait_s = max((self._wait_s(charge, now) for charge in charges), default=0.0)
        if wait_s <= 0:
            self.settle(charges, now)
        return max(0.0, wait_s)

    def settle(self, charges: tuple[Charge, ...], now: float) -> None:
        """Take without asking, or give back (a negative cost): what a request turned out to cost."""
        for charge in charges:
            self._levels[charge.bucket] = (self._level(charge, now) - charge.cost, now)

    def forget_full(self, limits: Mapping[str, int], now: float) -> None:
        """Drop buckets that are full by now, or that nobody is charged for any more."""
        for bucket in list(self._levels):
            per_min = limits.get(bucket)
            if per_min is None or self._level(Charge(bucket, per_min, 0), now) >= per_min:
                del self._levels[bucket]

    def _level(self, charge: Charge, now: float) -> float:
        level, at = self._levels.get(charge.bucket, (float(charge.per_min), now))
        return min(float(charge.per_min), level + (now - at) * charge.per_min / SECONDS_PER_MINUTE)

    def _wait_s(self, charge: Charge, now: float) -> float:
        missing = min(charge.cost, charge.per_min) - self._level(charge, now)
        return missing * SECONDS_PER_MINUTE / charge.per_min
