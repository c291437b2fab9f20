"""One dispatched request from its decision to its last byte: load released exactly once, and what happened counted.

An `Attempt` is the Dispatch that the data plane holds. It tells the router when prefill is over and when the request
is, whatever the end was; and it leaves a trail: counters for metrics, and the last decisions for people who ask why.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from typing import Protocol

import msgspec

from warmroute.errors import ClientError, NoWorkerError
from warmroute.service.ports import Headers, Outcome
from warmroute.service.trail import Job, Trail
from warmroute.types import Endpoint

DECISIONS_KEPT_MAX = 10_000
"""Decisions kept for explanation: minutes of a busy gateway."""


class Tracking:
    """Counters over all requests, and the last decisions."""

    def __init__(self) -> None:
        # No Counters: those are counted up by way of Python.
        self.decisions: defaultdict[tuple[str, str], int] = defaultdict(int)
        """(worker name, reason) -> decisions."""
        self.outcomes: defaultdict[tuple[str, str], int] = defaultdict(int)
        """(worker name, outcome) -> ended attempts."""
        self.no_tokens: defaultdict[str, int] = defaultdict(int)
        """Why requests were routed without token ids -> requests."""
        self.prompt_tokens: defaultdict[str, int] = defaultdict(int)
        """Worker name -> prompt tokens sent there."""
        self.predicted_tokens: defaultdict[str, int] = defaultdict(int)
        """Worker name -> prompt tokens predicted to be cached there."""
        self.reported_tokens: defaultdict[str, int] = defaultdict(int)
        """Worker name -> prompt tokens that its engine reported as cached."""
        self.predictions: defaultdict[tuple[str, str], int] = defaultdict(int)
        """(worker name, `exact`, `high` or `low`) -> predictions that could be compared with the engine's report."""
        self.retries = 0
        self.avoided_in_vain = 0
        """Requests for which nobody was left but workers that were better left alone."""
        self.refused: Counter[int] = Counter()
        """HTTP status -> requests that were read well and that nobody was to serve."""
        self._trails: deque[Trail] = deque(maxlen=DECISIONS_KEPT_MAX)

    def decided(self, trail: Trail) -> None:
        """A decision was made."""
        decision, name = trail.decision, trail.decision.worker.name
        self.decisions[name, decision.reason] += 1
        if trail.no_tokens_reason is not None:
            self.no_tokens[trail.no_tokens_reason] += 1
        else:
            self.prompt_tokens[name] += decision.prompt_tokens
            self.predicted_tokens[name] += decision.overlap_tokens
        self._trails.append(trail)

    def reported(self, trail: Trail, tokens: int) -> None:
        """The engine says how many prompt tokens it took from its cache."""
        trail.reported_tokens = tokens
        name, predicted = trail.decision.worker.name, trail.decision.predicted_tokens
        self.reported_tokens[name] += tokens
        if trail.no_tokens_reason is None and predicted is not None:
            result = "exact" if predicted == tokens else "high" if predicted > tokens else "low"
            self.predictions[name, result] += 1

    def refuse(self, error: ClientError | NoWorkerError) -> None:
        """A request is answered with an error of ours."""
        self.refused[error.status if isinstance(error, ClientError) else 503] += 1

    def trail(self, request_id: str) -> Trail | None:
        """What is known of a request, if it is among the last ones; of one that was tried again, its last attempt."""
        return next((trail for trail in reversed(self._trails) if trail.request_id == request_id), None)

    def last(self, number: int) -> list[Trail]:
        """The decisions on the last requests, the newest first."""
        found: dict[str, Trail] = {}
        for trail in reversed(self._trails):
            if len(found) >= number:
                break
            found.setdefault(trail.request_id, trail)
        return list(found.values())

    def forget_worker(self, name: str) -> None:
        """A worker left: its series end, so that a thousand rollouts leave no thousand series."""
        for counter in (self.decisions, self.outcomes, self.predictions):
            for key in [key for key in counter if key[0] == name]:
                del counter[key]
        for tokens in (self.prompt_tokens, self.predicted_tokens, self.reported_tokens):
            tokens.pop(name, None)


class Tracker(Protocol):
    """Who is told how attempts go. The routing service is."""

    def answering(self, attempt: Attempt, status: int) -> None:
        """The first byte of the answer's body came."""
        ...

    def progressed(self, attempt: Attempt) -> None:
        """A further piece of the answer's body came."""
        ...

    def finished(self, attempt: Attempt, outcome: Outcome, tail: bytes, status: int | None) -> None:
        """The attempt ended; called once."""
        ...


class Attempt(msgspec.Struct, eq=False, gc=False):
    """One try to have one request served by one worker: the Dispatch that the data plane holds."""

    tracker: Tracker
    job: Job
    trail: Trail
    endpoint: Endpoint
    """Where to send it."""
    request_headers: Headers
    response_headers: Headers
    ended: bool = False

    @property
    def retriable(self) -> bool:
        """Whether it may be sent again if no byte of an answer came."""
        return self.job.retriable

    def answering(self, status: int) -> None:
        """The first byte of the answer's body came."""
        self.tracker.answering(self, status)

    def progressed(self) -> None:
        """A further piece of the answer's body came."""
        self.tracker.progressed(self)

    def finished(self, outcome: Outcome, tail: bytes = b"", status: int | None = None) -> None:
        """The attempt is over. Only the first call counts."""
        if not self.ended:
            self.ended = True
            self.tracker.finished(self, outcome, tail, status)
