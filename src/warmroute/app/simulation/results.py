"""What a run came to."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import correlation

from warmroute.app.simulation.engine import Engine, Work
from warmroute.app.simulation.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one run; times in seconds."""

    policy: str
    engines: int
    requests: int
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    ttft_expected_mean_s: float
    """What the router expected when it decided."""
    ttft_correlation: float
    """Of what was expected with what happened, request by request; 0 if either never varied."""
    itl_mean_s: float
    """Mean over requests of the mean time between two tokens."""
    itl_p99_s: float
    e2e_mean_s: float
    output_tokens_per_s: float
    requests_per_s: float
    hit_rate: float
    """Share of the prompt tokens that engines took from their caches."""
    hit_rate_infinite: float
    """The same for one cache without end, shared by all engines."""
    load_spread: float
    """Most requests of any engine, relative to the mean."""
    work_spread: float
    """Most busy seconds of any engine, relative to the mean."""
    utilisation: float
    """Mean share of the time that engines were busy."""
    preemptions: int
    refused: int
    lost: int
    undecided: int
    """Times that a policy of one's own did not decide: the default did."""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


class Results:
    """Every request's figures while the run goes on; then the summary."""

    def __init__(self, scenario: Scenario) -> None:
        n = scenario.requests
        self.scenario = scenario
        self.policy = scenario.policy.name if scenario.policy else scenario.routing.policy
        self.refused = 0
        self.lost = 0
        self.undecided = 0
        self.why_undecided: str | None = None
        """The last time, in words."""
        self._from = int(n * scenario.warmup)
        self._ttft_s = array("d", bytes(8 * n))
        self._expected_s = array("d", bytes(8 * n))
        self._itl_s = array("d")
        self._e2e_s = array("d")
        self.engine_requests = [0] * len(scenario.engines)
        self._prompt = self._hit = self._infinite = self._output = 0
        self.end_s = 0.0
        """Virtual seconds that the run took."""
        self._busy: list[float] = []
        self._preemptions = 0

    def asked(self, number: int, engine: int, prompt_tokens: int, infinite_tokens: int) -> None:
        """A request arrived and was sent to an engine."""
        if number >= self._from:
            self.engine_requests[engine] += 1
            self._prompt += prompt_tokens
            self._infinite += infinite_tokens

    def first(self, number: int, ttft_s: float, expected_s: float, cached_tokens: int) -> None:
        """Its first token came; it was expected after so many seconds."""
        self._ttft_s[number], self._expected_s[number] = ttft_s, expected_s
        if number >= self._from:
            self._hit += cached_tokens

    def done(self, number: int, e2e_s: float, generating_s: float, work: Work) -> None:
        """Its last token came."""
        if number < self._from:
            return
        self._e2e_s.append(e2e_s)
        output = work.owner.turn.answer[1]
        self._output += output
        if output > 1:
            self._itl_s.append(generating_s / (output - 1))

    def finish(self, engines: Sequence[Engine], now: float) -> None:
        """The run is over."""
        self.end_s = now
        self._busy = [engine.busy_s for engine in engines]
        self._preemptions = sum(engine.preemptions for engine in engines)

    def ttft_s(self) -> list[float]:
        """All that count, sorted."""
        return sorted(s for s in self._ttft_s[self._from :] if s > 0)

    def summary(self) -> Summary:
        """The figures."""
        span_s = max(1e-9, self.end_s)
        ttft, itl, e2e = self.ttft_s(), sorted(self._itl_s), self._e2e_s
        n = len(self.scenario.engines)
        answered = [number for number in range(self._from, len(self._ttft_s)) if self._ttft_s[number] > 0]
        expected, happened = [[column[number] for number in answered] for column in (self._expected_s, self._ttft_s)]
        return Summary(
            policy=self.policy,
            engines=n,
            requests=len(ttft),
            ttft_mean_s=_mean(ttft),
            ttft_p50_s=quantile(ttft, 0.5),
            ttft_p90_s=quantile(ttft, 0.9),
            ttft_p99_s=quantile(ttft, 0.99),
            ttft_expected_mean_s=_mean(expected),
            ttft_correlation=_correlation(expected, happened),
            itl_mean_s=_mean(itl),
            itl_p99_s=quantile(itl, 0.99),
            e2e_mean_s=_mean(e2e),
            output_tokens_per_s=self._output / span_s / (1 - self.scenario.warmup),
            requests_per_s=len(ttft) / span_s / (1 - self.scenario.warmup),
            hit_rate=self._hit / max(1, self._prompt),
            hit_rate_infinite=self._infinite / max(1, self._prompt),
            load_spread=max(self.engine_requests) * n / max(1, sum(self.engine_requests)),
            work_spread=max(self._busy) * n / max(1e-9, sum(self._busy)),
            utilisation=sum(self._busy) / n / span_s,
            preemptions=self._preemptions,
            refused=self.refused,
            lost=self.lost,
            undecided=self.undecided,
        )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which that share lies; 0 of nothing."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def _correlation(a: Sequence[float], b: Sequence[float]) -> float:
    varied = len(a) > 1 and min(a) < max(a) and min(b) < max(b)
    return correlation(a, b) if varied else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
