"""Engines that are found: each source's collections become one list for the reconciler.

Invariant: a source lists what all of its collections say, each engine once, and only when each of them has been listed:
what is not known yet is not taken for gone.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from warmroute.core.roster import Listed
from warmroute.service.reconciler import Reconciler
from warmroute.service.reflector import Reflector


class Discovery:
    """One source: its reflectors, and what they found. Belongs to one event loop."""

    def __init__(self, source: str, reflectors: Sequence[Reflector], reconciler: Reconciler) -> None:
        self.source = source
        self.reflectors = tuple(reflectors)
        self._reconciler = reconciler
        for reflector in self.reflectors:
            reflector.on_change = self._changed

    async def run(self) -> None:
        """Follow the cluster until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for reflector in self.reflectors:
                tasks.create_task(reflector.run(), name=f"follow {reflector.collection}")

    def in_step(self) -> bool:
        """Whether all of it is followed now."""
        return all(reflector.problem is None for reflector in self.reflectors)

    def view(self) -> dict[str, Any]:
        """What users see of the source."""
        return {
            "source": self.source,
            "in_step": self.in_step(),
            "collections": [reflector.view() for reflector in self.reflectors],
        }

    def _changed(self) -> None:
        if any(reflector.counts["lists"] == 0 for reflector in self.reflectors):
            return
        seen = {uid: sighting for reflector in self.reflectors for uid, sighting in reflector.sightings.items()}
        in_order = sorted(seen.values(), key=lambda sighting: sighting.name)
        engines: dict[tuple[str, str], Listed] = {}
        for listed in (listed for sighting in in_order for listed in sighting.engines):
            engines.setdefault(_which(listed), listed)
        self._reconciler.replace(self.source, engines.values())


def _which(listed: Listed) -> tuple[str, str]:
    """Equal for two addresses of one engine: a pod on two networks has one of each, and a slice for each."""
    address, _, port = listed.engine.url.rpartition(":")
    return listed.identity or address, port


def counted(discoveries: Sequence[Discovery]) -> Counter[tuple[str, ...]]:
    """(source, event) -> what happened while following, for metrics."""
    found: Counter[tuple[str, ...]] = Counter()
    for discovery in discoveries:
        for reflector in discovery.reflectors:
            found.update({(discovery.source, event): n for event, n in reflector.counts.items()})
    return found


def in_step(discoveries: Sequence[Discovery]) -> dict[tuple[str, ...], float]:
    """(source,) -> 1 if it is followed now."""
    return {(discovery.source,): float(discovery.in_step()) for discovery in discoveries}


def objects(discoveries: Sequence[Discovery]) -> Counter[tuple[str, ...]]:
    """(source, state) -> how many objects there are of it."""
    return Counter(
        (discovery.source, sighting.state.value)
        for discovery in discoveries
        for reflector in discovery.reflectors
        for sighting in reflector.sightings.values()
    )
