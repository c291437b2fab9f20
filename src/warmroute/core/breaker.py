"""Circuit breakers, sans I/O: an engine that keeps failing is left alone for a while, then tried with one request.

    CLOSED ----- `failures_max` failures in a row ------> OPEN
    OPEN ------- its pause is over ---------------------> HALF_OPEN
    HALF_OPEN -- an answer began or was complete -------> CLOSED, on parole: the next failure opens it again
    HALF_OPEN -- a failure -----------------------------> OPEN, for twice as long
    CLOSED ----- a complete answer ---------------------> CLOSED, all is forgotten

A failure is a connection that was refused, broke or timed out, or an answer of 500 and more; a 4xx is a success: the
engine did its work. What was sent before the breaker's last change says nothing of the engine's state after it.

Invariant: an engine that has not failed since its last complete answer has no entry, so while all is well there is
nothing to look up.
"""

from __future__ import annotations

import enum

import msgspec

from warmroute.config.tree import BreakerConfig
from warmroute.types import Endpoint


class BreakerState(enum.StrEnum):
    """Whether an engine is sent requests."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker(msgspec.Struct):
    """One engine's."""

    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    """In a row."""
    since: float = 0.0
    """When it came to its state."""
    pause_s: float = 0.0
    """How long it is open, this time or the last."""
    probed_at: float | None = None
    """When the one request was sent that tries it, half open; None: nothing is on its way."""
    opened: int = 0
    """How often it was opened since all was well."""


class Breakers:
    """All engines'. `now` and `sent_at` are seconds of one clock."""

    def __init__(self, config: BreakerConfig) -> None:
        self.opened = 0
        """How often any was opened."""
        self._config = config
        self.known: dict[Endpoint, Breaker] = {}
        """Those of engines that failed lately; empty nearly always."""

    def reconfigure(self, config: BreakerConfig) -> None:
        """Take up what is configured now; breakers that are open stay so."""
        self._config = config
        if not config.failures_max:
            self.known.clear()

    def shut(self, now: float) -> frozenset[Endpoint]:
        """The engines to send nothing to now."""
        return frozenset(endpoint for endpoint, breaker in self.known.items() if self._is_shut(breaker, now))

    def of(self, endpoint: Endpoint, now: float) -> Breaker:
        """What is known of an engine."""
        breaker = self.known.get(endpoint)
        if breaker is None:
            return Breaker()
        self._is_shut(breaker, now)
        return breaker

    def sent(self, endpoint: Endpoint, now: float) -> None:
        """A request was sent there; half open, it is the one that tries the engine."""
        breaker = self.known.get(endpoint)
        if breaker is not None and breaker.state is BreakerState.HALF_OPEN:
            breaker.probed_at = now

    def began(self, endpoint: Endpoint, sent_at: float, now: float) -> None:
        """An answer that is no failure begins: the engine works again, whatever becomes of this answer."""
        breaker = self.known.get(endpoint)
        if breaker is not None and breaker.state is not BreakerState.CLOSED and sent_at >= breaker.since:
            breaker.failures = self._config.failures_max - 1
            _enter(breaker, BreakerState.CLOSED, now)

    def succeeded(self, endpoint: Endpoint, sent_at: float) -> None:
        """An answer was complete."""
        breaker = self.known.get(endpoint)
        if breaker is not None and sent_at >= breaker.since:
            del self.known[endpoint]

    def failed(self, endpoint: Endpoint, sent_at: float, now: float) -> None:
        """It failed."""
        if not self._config.failures_max:
            return
        breaker = self.known.get(endpoint)
        if breaker is None:
            breaker = self.known[endpoint] = Breaker()
        if breaker.state is BreakerState.CLOSED:
            breaker.failures += 1
            if breaker.failures >= self._config.failures_max:
                self._open(breaker, now)
        elif breaker.state is BreakerState.HALF_OPEN and sent_at >= breaker.since:
            breaker.failures += 1
            self._open(breaker, now)

    def gave_up(self, endpoint: Endpoint, sent_at: float) -> None:
        """The client left: what was sent to try the engine said nothing."""
        breaker = self.known.get(endpoint)
        if breaker is not None and breaker.probed_at == sent_at:
            breaker.probed_at = None

    def forget(self, endpoint: Endpoint) -> None:
        """The engine is another process now, or gone."""
        self.known.pop(endpoint, None)

    def _open(self, breaker: Breaker, now: float) -> None:
        longer = 2 * breaker.pause_s if breaker.opened else self._config.open_s
        breaker.pause_s = min(longer, self._config.open_max_s)
        breaker.opened += 1
        self.opened += 1
        _enter(breaker, BreakerState.OPEN, now)

    def _is_shut(self, breaker: Breaker, now: float) -> bool:
        if breaker.state is BreakerState.OPEN and now >= breaker.since + breaker.pause_s:
            _enter(breaker, BreakerState.HALF_OPEN, now)
        if breaker.state is BreakerState.HALF_OPEN:
            # One that is on its way for longer than the pause has been lost or waits for its engine: try another.
            return breaker.probed_at is not None and now < breaker.probed_at + breaker.pause_s
        return breaker.state is BreakerState.OPEN


def _enter(breaker: Breaker, state: BreakerState, now: float) -> None:
    breaker.state, breaker.since, breaker.probed_at = state, now, None
