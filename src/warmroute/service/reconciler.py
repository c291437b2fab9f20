"""Makes the fleet what the sources of engines list: the one place where engines come and go while the gateway runs.

Sources call `replace` with all of their engines whenever that list changes; operators `hold` and `release` single ones.
`core.roster` decides what follows from it, membership performs it. An engine that nobody lists any more drains: it gets
no new requests, those that it has may end, then it is forgotten with all that it held.

Invariant: no request is ever cut here, and nothing is kept of an engine that was removed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, assert_never

from warmroute.config.tree import Config
from warmroute.core.roster import CONFIG, Add, Alter, Change, Drain, Listed, Remove, Roster
from warmroute.service.membership import Membership
from warmroute.types import Endpoint, WorkerId

_log = logging.getLogger(__name__)


class Reconciler:
    """Performs what the roster decides. Belongs to one event loop; `tick` is due about once a second.

    `in_flight` says how many requests a worker has. The engines of `config` are membership's already.
    """

    def __init__(
        self,
        config: Config,
        membership: Membership,
        in_flight: Callable[[WorkerId], int],
        clock: Callable[[], float],
    ) -> None:
        self.roster = Roster()
        self.changes: Counter[tuple[str, ...]] = Counter()
        """(kind of change,) -> how often it was made."""
        self.on_removed: Callable[[Endpoint], None] = lambda _: None
        """Told every engine that is forgotten."""
        self.on_released: Callable[[Endpoint], None] = lambda _: None
        """Told of an engine that was held and has drained: if it comes again, it is not held any more."""
        self._membership = membership
        self._in_flight = in_flight
        self._clock = clock
        self._patience_s = config.membership.drain_timeout_s
        self._deadlines: dict[Endpoint, float] = {}
        self.roster.replace(CONFIG, map(Listed, config.engines))

    def replace(self, source: str, engines: Iterable[Listed]) -> None:
        """All engines that `source` (one of `core.roster.SOURCES`) wants from now on. Raises ValueError for a URL."""
        self._perform(self.roster.replace(source, engines))
        self.tick()  # what drains with nothing to do is forgotten at once

    def reconfigure(self, config: Config) -> None:
        """Take up what is configured now; for the engines, `replace`."""
        self._patience_s = config.membership.drain_timeout_s

    def listed(self, source: str) -> tuple[Listed, ...]:
        """What `source` wants now: to add or take away one engine, replace this."""
        return self.roster.listed(source)

    def hold(self, endpoint: Endpoint, reason: str, *, unseen: bool = False) -> None:
        """Send an engine no more requests, whatever its source says, until it is released or leaves.

        `unseen`: even if it has yet to come.
        """
        self._perform(self.roster.hold(endpoint, reason, unseen=unseen))

    def release(self, endpoint: Endpoint) -> None:
        """Undo `hold`."""
        self._perform(self.roster.release(endpoint))

    def in_flight(self, endpoint: Endpoint) -> int:
        """Requests that an engine has now."""
        return sum(map(self._in_flight, self._membership.workers_of(endpoint)))

    def tick(self) -> None:
        """Forget what has drained."""
        now = self._clock()
        for endpoint, deadline in tuple(self._deadlines.items()):
            left = self.in_flight(endpoint)
            if left and now < deadline:
                continue
            if left:
                _log.warning("%s is forgotten with %d requests that still run there", endpoint.url, left)
                self.changes["drain_timeout",] += 1
            held = self.roster.held(endpoint)
            self._perform(self.roster.drained(endpoint))
            if held and not self.roster.held(endpoint):
                self.on_released(endpoint)

    def view(self) -> dict[Endpoint, dict[str, Any]]:
        """What users see of each engine: who lists it, and why it gets no requests if it is held or drains."""
        return {
            endpoint: {"source": entry.source, "held": entry.listed.held, "draining": entry.draining}
            for endpoint, entry in self.roster.entries.items()
        }

    def _perform(self, changes: Sequence[Change]) -> None:
        for change in changes:
            self.changes[type(change).__name__.lower(),] += 1
            match change:
                case Add(endpoint, listed):
                    _log.info("%s comes into the fleet", endpoint.url)
                    self._membership.add(listed.engine, listed.held)
                case Alter(endpoint, listed):
                    self._deadlines.pop(endpoint, None)
                    self._membership.alter(listed.engine, listed.held)
                case Drain(endpoint, reason):
                    _log.info("%s drains: %s", endpoint.url, reason)
                    self._membership.hold(endpoint, reason)
                    self._deadlines[endpoint] = self._clock() + self._patience_s
                case Remove(endpoint):
                    _log.info("%s has left the fleet", endpoint.url)
                    self._deadlines.pop(endpoint, None)
                    self._membership.remove(endpoint)
                    self.on_removed(endpoint)
                case _:
                    assert_never(change)
