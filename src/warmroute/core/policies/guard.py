"""A policy that fails must not fail requests.

Wraps a policy that is not ours. When it raises, or answers with anything but one number per candidate, ours decides
that request; when it is slow, ours decides all requests for a while, so long that the slow one gets at most a hundredth
of the time. Both are counted.

Invariant: nothing here raises, `costs` always gives one number that is not NaN per candidate, and the wrapped policy
hears of its own decisions only.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Sequence

from warmroute.core.policies.contract import Candidates, Policy
from warmroute.types import PrefixHash, WorkerId

REST_FACTOR = 100
"""Rest after a slow answer, in multiples of the time it took."""


class Guarded:
    """`policy`, with `fallback` behind it; `timer` tells seconds, None: time is not watched."""

    def __init__(self, policy: Policy, fallback: Policy, seconds_max: float, timer: Callable[[], float] | None) -> None:
        self.name = policy.name
        self.policy = policy
        self.failures: Counter[str] = Counter()
        """`raised`, `invalid`, `slow` (late answers), `resting` (requests it was not asked about) -> number."""
        self.last_failure: str | None = None
        """What it was, in words."""
        self.decider: Policy = self
        """Who named the last costs: this, or the fallback."""
        self._fallback = fallback
        self._seconds_max = seconds_max
        self._timer = timer or (lambda: 0.0)
        self._rests_until = float("-inf")

    def costs(self, candidates: Candidates) -> Sequence[float]:
        """The policy's costs, or the fallback's."""
        start = self._timer()
        if start < self._rests_until:
            self.failures["resting"] += 1
            return self._fall_back(candidates)
        try:
            costs = array("d", self.policy.costs(candidates))
            problem = _problem(costs, len(candidates.workers))
        except (Exception, SystemExit) as error:  # who calls sys.exit() in here means nobody else's requests
            self.failures["raised"] += 1
            self.last_failure = f"{type(error).__name__}: {error}"
            return self._fall_back(candidates)
        took = self._timer() - start
        if took > self._seconds_max:
            self.failures["slow"] += 1
            self.last_failure = f"took {took * 1e3:.3g} ms, more than {self._seconds_max * 1e3:.3g} ms"
            self._rests_until = start + took * REST_FACTOR
        if problem is not None:
            self.failures["invalid"] += 1
            self.last_failure = problem
            return self._fall_back(candidates)
        self.decider = self
        return costs

    def chosen(self, candidates: Candidates, winner: int) -> None:
        """Pass it on to a policy that remembers."""
        self._tell("chosen", candidates, winner)

    def ended(self, worker: WorkerId, chain: Sequence[PrefixHash]) -> None:
        """The same, when the request is over."""
        self._tell("ended", worker, chain)

    def forget(self, worker: WorkerId) -> None:
        """The same, when what a worker holds is gone."""
        self._tell("forget", worker)

    def _tell(self, method: str, *what: object) -> None:
        listen = getattr(self.policy, method, None)
        if listen is None:
            return
        try:
            listen(*what)
        except (Exception, SystemExit) as error:
            self.failures["raised"] += 1
            self.last_failure = f"{type(error).__name__}: {error}"

    def _fall_back(self, candidates: Candidates) -> Sequence[float]:
        self.decider = self._fallback
        return self._fallback.costs(candidates)


def _problem(costs: Sequence[float], n: int) -> str | None:
    if len(costs) != n:
        return f"named {len(costs)} costs for {n} candidates"
    total = sum(costs)  # raises if one is no number
    return "named a cost that is NaN" if total != total and any(c != c for c in costs) else None  # noqa: PLR0124
