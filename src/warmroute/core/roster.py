"""Which engines there should be: what several sources list, merged, and what is to be done about every difference.

A source (the configuration, an operator, a file, Kubernetes) lists all of its engines whenever that list changes. The
roster answers with changes to make, in order. An engine's life::

    listed by nobody --listed--> PRESENT --listed by nobody--> DRAINING --drained--> listed by nobody
                                   ^ |  ^                         |
                          altered  +-+  +---- listed again -------+

    PRESENT --another engine at the same address--> Remove, then Add: what is known of the old one is worth nothing.

Which source describes an engine says nothing of that: only a source that knew it by an identity, and lists another one
there, has seen it replaced. Whether its word is the one that counts does not matter.

Invariant: performed in order, the changes make what is present equal to what is wanted, but for engines that drain.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from warmroute.config.addresses import parse_url
from warmroute.config.tree import EngineConfig
from warmroute.types import Endpoint

CONFIG: Final = "config"
SOURCES: Final = ("admin", CONFIG, "file", "kubernetes", "service")
"""Who may list engines. Of two that list one address, the one that stands first here describes it."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One engine as a source wants it."""

    engine: EngineConfig
    identity: str = ""
    """Another one of the same source at the same address is another engine, with an empty cache: a pod's uid and
    container. Empty: the source does not know."""
    held: str | None = None
    """Why it gets no requests for now, though it is followed; None: it may get them."""


@dataclass(frozen=True, slots=True)
class Add:
    """An engine is new."""

    endpoint: Endpoint
    listed: Listed


@dataclass(frozen=True, slots=True)
class Alter:
    """An engine that is present is described, held or let go otherwise."""

    endpoint: Endpoint
    listed: Listed


@dataclass(frozen=True, slots=True)
class Drain:
    """An engine is to get no more requests; whoever drains it says `drained` when those it has are done."""

    endpoint: Endpoint
    reason: str


@dataclass(frozen=True, slots=True)
class Remove:
    """An engine is to be forgotten."""

    endpoint: Endpoint


Change: TypeAlias = Add | Alter | Drain | Remove


@dataclass(frozen=True, slots=True)
class Entry:
    """One engine that is present."""

    source: str
    listed: Listed
    """With its hold, if an operator holds it."""
    identities: Mapping[str, str]
    """By source, of those that have known it by one."""
    draining: bool = False


class Roster:
    """The table of engines. Every method that changes it returns what is to be done, in order."""

    def __init__(self, sources: Sequence[str] = SOURCES) -> None:
        self.entries: dict[Endpoint, Entry] = {}
        """What is present, draining engines included."""
        self._listings: dict[str, dict[Endpoint, Listed]] = {source: {} for source in sources}
        self._holds: dict[Endpoint, str] = {}

    def replace(self, source: str, engines: Iterable[Listed]) -> list[Change]:
        """All that `source` wants from now on. Of two equal addresses the first counts.

        Raises KeyError for an unknown source, ValueError for a URL that is none.
        """
        listing: dict[Endpoint, Listed] = {}
        for listed in engines:
            listing.setdefault(_endpoint(listed.engine.url), listed)
        known = self._listings[source]
        known.clear()
        known.update(listing)
        return self._settle()

    def listed(self, source: str) -> tuple[Listed, ...]:
        """What `source` wants now."""
        return tuple(self._listings[source].values())

    def hold(self, endpoint: Endpoint, reason: str, *, unseen: bool = False) -> list[Change]:
        """Let an address have no requests, whatever its source says, until it is released or has drained.

        `unseen`: even if nobody lists it yet.
        """
        if endpoint in self.entries or unseen:
            self._holds[endpoint] = reason
        return self._settle()

    def held(self, endpoint: Endpoint) -> bool:
        """Whether it is held so."""
        return endpoint in self._holds

    def release(self, endpoint: Endpoint) -> list[Change]:
        """Undo `hold`."""
        self._holds.pop(endpoint, None)
        return self._settle()

    def drained(self, endpoint: Endpoint) -> list[Change]:
        """A draining engine has nothing left to do; nothing happens if it drains no more."""
        entry = self.entries.get(endpoint)
        if entry is None or not entry.draining:
            return []
        del self.entries[endpoint]
        self._holds.pop(endpoint, None)
        return [Remove(endpoint)]

    def _settle(self) -> list[Change]:
        wanted = self._wanted()
        changes: list[Change] = []
        for endpoint, entry in tuple(self.entries.items()):
            if endpoint not in wanted and not entry.draining:
                self.entries[endpoint] = replace(entry, draining=True)
                changes.append(Drain(endpoint, f"it is not listed by {entry.source} any more"))
        for endpoint, (source, listed) in wanted.items():
            present = self.entries.get(endpoint)
            identities = self._identities(endpoint)
            if present is not None and _differ(present.identities, identities):
                changes.append(Remove(endpoint))
                present = None
            if present is None:
                changes.append(Add(endpoint, listed))
            else:
                identities = {**present.identities, **identities}
                if present.draining or present.listed != listed:
                    changes.append(Alter(endpoint, listed))
            self.entries[endpoint] = Entry(source, listed, identities)
        return changes

    def _identities(self, endpoint: Endpoint) -> dict[str, str]:
        listings = {source: listing.get(endpoint) for source, listing in self._listings.items()}
        return {source: listed.identity for source, listed in listings.items() if listed and listed.identity}

    def _wanted(self) -> dict[Endpoint, tuple[str, Listed]]:
        wanted: dict[Endpoint, tuple[str, Listed]] = {}
        for source, listing in self._listings.items():
            for endpoint, listed in listing.items():
                held = self._holds.get(endpoint)
                wanted.setdefault(endpoint, (source, listed if held is None else replace(listed, held=held)))
        return wanted


def _differ(before: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether a source knows another engine there than it did."""
    return any(before.get(source, identity) != identity for source, identity in now.items())


@functools.lru_cache(maxsize=16_384)
def _endpoint(url: str) -> Endpoint:
    """A thousand URLs are listed again whenever one pod changes."""
    return parse_url(url)
