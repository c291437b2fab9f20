"""What several collections find becomes one list of engines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from warmroute.config.tree import EngineConfig
from warmroute.core.pods import PodState, Sighting
from warmroute.core.roster import Listed
from warmroute.service.discovery import Discovery
from warmroute.service.reconciler import Reconciler
from warmroute.service.reflector import ClusterApi, Collection, Reflector


class Recorder:
    def __init__(self) -> None:
        self.lists: list[list[str]] = []

    def replace(self, source: str, engines: Iterable[Listed]) -> None:
        self.lists.append([listed.engine.url for listed in engines])


def sighting(name: str, **engines: str) -> Sighting:
    """Identity -> URL."""
    listed = tuple(Listed(EngineConfig(url=url), identity) for identity, url in engines.items())
    return Sighting(name, "1", name, PodState.ROUTED, engines=listed)


def found(*sightings: Sighting) -> list[str]:
    reflector = Reflector(cast("ClusterApi", None), Collection("/slices"), lambda _: sightings[0], float, float)
    recorder = Recorder()
    Discovery("service", [reflector], cast("Reconciler", recorder))
    reflector.sightings, reflector.counts["lists"] = {each.uid: each for each in sightings}, 1
    reflector.on_change()
    (listed,) = recorder.lists
    return listed


def test_a_pod_with_an_address_of_each_family_is_one_engine() -> None:
    slices = (
        sighting("v6", a="http://[fd00::1]:8000", b="http://[fd00::2]:8000"),
        sighting("v4", a="http://10.0.0.1:8000"),
    )
    assert found(*slices) == ["http://10.0.0.1:8000", "http://[fd00::2]:8000"]


def test_two_ports_of_a_pod_are_two_engines() -> None:
    slices = sighting("one", a="http://10.0.0.1:8000"), sighting("two", a="http://10.0.0.1:8001")
    assert len(found(*slices)) == 2


def test_engines_that_nobody_knows_more_of_are_told_apart_by_their_address() -> None:
    one, two = (Listed(EngineConfig(url=f"http://10.0.0.{n}:8000")) for n in (1, 2))
    assert len(found(Sighting("s", "1", "s", PodState.ROUTED, engines=(one, two)))) == 2
