"""Keeps a copy of a collection in the cluster: lists it once, then follows its changes for as long as it runs.

What is followed is resumed where it broke off, without listing again; only a server that has forgotten that place (410)
makes it list anew, after a pause of random length, so that many gateways do not do so at once. While the server is
away, what was known last stays in force, and that is said: logged once, counted, shown.

Invariant: `sightings` is what the collection was at `version`, whatever was missed between: an object that a new list
does not have is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from warmroute.core.pods import Sighting
from warmroute.errors import WarmrouteError

_log = logging.getLogger(__name__)

BACKOFF_S, BACKOFF_MAX_S = 1.0, 30.0
"""First and longest pause before the server is asked again; a half to all of it, by chance. It doubles until a watch
brings something, or lasts."""
WATCH_S = 300.0
"""So long a watch is asked for at least; up to twice as long, by chance, so that resumptions spread."""
SHORT_S = 1.0
"""A watch that ends sooner and brought nothing is no watch: pause before the next."""

RESUMABLE = frozenset({"unreachable", "timeout", "broken", "login", "429", "500", "502", "503"})
"""Errors after which to go on where it broke off. After others (an event that is none, a version that the server does
not know, a refusal) only a new list is certain."""


class ClusterError(WarmrouteError):
    """The cluster's API cannot be had, or refuses. `reason` is a short stable word for metrics."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class ExpiredError(ClusterError):
    """The server has forgotten the place from which to go on (410): list again."""


@dataclass(frozen=True, slots=True)
class Collection:
    """What is watched."""

    path: str
    """Of the API, `/api/v1/namespaces/default/pods`."""
    label_selector: str | None = None

    def __str__(self) -> str:
        return self.path if self.label_selector is None else f"{self.path} ({self.label_selector})"


@dataclass(frozen=True, slots=True)
class Listing:
    """All objects of a collection, as JSON, at a version."""

    objects: Sequence[bytes]
    version: str


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change: ADDED, MODIFIED, DELETED; or BOOKMARK, which brings a version alone."""

    kind: str
    object: bytes
    version: str


class ClusterApi(Protocol):
    """The port to the API server."""

    async def list(self, collection: Collection) -> Listing:
        """All objects. Raises ClusterError."""
        ...

    def watch(self, collection: Collection, version: str, timeout_s: float) -> AsyncIterator[Sequence[WatchEvent]]:
        """Nothing once it is open, then changes after `version`, as they come, for about so long.

        Raises ExpiredError and other ClusterErrors.
        """
        ...


class Reflector:
    """One collection's copy. `chance` gives numbers from 0 to 1; `clock` is monotonic, in seconds."""

    def __init__(
        self,
        api: ClusterApi,
        collection: Collection,
        read: Callable[[bytes], Sighting],
        clock: Callable[[], float],
        chance: Callable[[], float],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.collection = collection
        self.sightings: dict[str, Sighting] = {}
        """By uid: a pod that was made again under its name is another one."""
        self.on_change: Callable[[], None] = lambda: None
        """Told whenever `sightings` changed."""
        self.counts: Counter[str] = Counter()
        self.problem: str | None = "not listed yet"
        """Why what is known may be old; None: it is in step."""
        self.since = clock()
        """Since when it is as it is."""
        self._api = api
        self._read = read
        self._clock = clock
        self._chance = chance
        self._sleep = sleep
        self._version: str | None = None
        self._pause_s = BACKOFF_S
        self._told: set[tuple[str, str]] = set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                if self._version is None:
                    await self._list()
                began, events = self._clock(), self.counts["events"]
                await self._follow(self._version or "")
                if self._clock() - began < SHORT_S and self.counts["events"] == events:
                    self.counts["short_watches"] += 1
                    await self._pause()
                else:
                    self._pause_s = BACKOFF_S
            except ExpiredError as error:
                self.counts["expired"] += 1
                _log.info("%s is listed again: %s", self.collection, error)
                self._version = None
                await self._pause()
            except ClusterError as error:
                self.counts[f"error_{error.reason}"] += 1
                if error.reason not in RESUMABLE:
                    self._version = None
                if error.reason != "broken" or self._version is None:  # watches end; if it has gone, the next shows it
                    self._lost(str(error))
                await self._pause()

    def view(self) -> dict[str, Any]:
        """What users see of it."""
        states = Counter(sighting.state.value for sighting in self.sightings.values())
        left_out = {s.name: s.reason for s in self.sightings.values() if s.reason is not None}
        return {
            "collection": str(self.collection),
            "in_step": self.problem is None,
            "problem": self.problem,
            "since_s": round(self._clock() - self.since, 3),
            "objects": dict(states),
            "no_requests": left_out,
        } | dict(self.counts)

    async def _list(self) -> None:
        listing = await self._api.list(self.collection)
        self.counts["lists"] += 1
        sightings = {seen.uid: seen for raw in listing.objects if (seen := self._sight(raw)) is not None}
        self._version = listing.version
        self._in_step()
        changed = sightings != self.sightings
        self.sightings = sightings
        if changed or self.counts["lists"] == 1:  # that there is nothing is news too, the first time
            self.on_change()

    async def _follow(self, version: str) -> None:
        self.counts["watches"] += 1
        async for events in self._api.watch(self.collection, version, WATCH_S * (1 + self._chance())):
            self._in_step()
            changed = False
            if events:  # that it opens says little: a server may fail right after
                self._pause_s = BACKOFF_S
            for event in events:
                self.counts["events"] += 1
                changed |= self._apply(event)
                self._version = event.version or self._version
            if changed:
                self.on_change()

    def _apply(self, event: WatchEvent) -> bool:
        """Take up one change; whether anything is different now."""
        if event.kind == "BOOKMARK":
            self.counts["bookmarks"] += 1
            return False
        seen = self._sight(event.object)
        if seen is None:
            return False
        if event.kind == "DELETED":
            return self.sightings.pop(seen.uid, None) is not None
        before, self.sightings[seen.uid] = self.sightings.get(seen.uid), seen
        return before is None or before.engines != seen.engines

    def _sight(self, raw: bytes) -> Sighting | None:
        try:
            seen = self._read(raw)
        except ValueError as error:
            self.counts["unreadable"] += 1
            self._tell("an object", f"cannot be read: {error}")
            return None
        if seen.state == "invalid" and seen.reason is not None:
            self._tell(seen.name, seen.reason)
        for note in seen.notes:
            self._tell(seen.name, note)
        return seen

    def _tell(self, name: str, what: str) -> None:
        """Log once what is wrong with an object."""
        if (name, what) not in self._told and len(self._told) < 1000:  # of more there is the count
            self._told.add((name, what))
            _log.warning("%s in %s: %s", name, self.collection, what)

    def _in_step(self) -> None:
        if self.problem is not None:
            _log.info("%s is followed: %d objects", self.collection, len(self.sightings))
            self.problem, self.since = None, self._clock()

    def _lost(self, problem: str) -> None:
        if self.problem is None or self.problem == "not listed yet":
            _log.warning(
                "%s cannot be followed, the last known %d objects stay in force: %s",
                self.collection,
                len(self.sightings),
                problem,
            )
            self.since = self._clock()
        self.problem = problem

    async def _pause(self) -> None:
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, BACKOFF_MAX_S)
        await self._sleep(pause_s * (1 + self._chance()) / 2)
