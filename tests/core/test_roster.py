from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from warmroute.config.tree import EngineConfig
from warmroute.core.roster import SOURCES, Add, Alter, Change, Drain, Listed, Remove, Roster
from warmroute.types import Endpoint

A, B = Endpoint("10.0.0.1", 8000), Endpoint("10.0.0.2", 8000)


def listed(endpoint: Endpoint, identity: str = "", held: str | None = None, topic: str | None = None) -> Listed:
    return Listed(EngineConfig(url=endpoint.url, topic=topic), identity, held)


def test_an_engine_comes_changes_drains_and_is_forgotten() -> None:
    roster = Roster()
    assert roster.replace("file", [listed(A)]) == [Add(A, listed(A))]
    assert roster.replace("file", [listed(A)]) == []
    assert roster.replace("file", [listed(A, topic="kv")]) == [Alter(A, listed(A, topic="kv"))]
    assert roster.drained(A) == []
    (drain,) = roster.replace("file", [])
    assert drain == Drain(A, "it is not listed by file any more")
    assert roster.replace("file", []) == []
    assert roster.drained(A) == [Remove(A)]
    assert roster.entries == {}


def test_one_that_is_listed_again_while_it_drains_stays() -> None:
    roster = Roster()
    roster.replace("file", [listed(A)])
    roster.replace("file", [])
    assert roster.replace("file", [listed(A)]) == [Alter(A, listed(A))]
    assert roster.drained(A) == []


def test_another_engine_at_the_same_address_takes_nothing_over() -> None:
    roster = Roster()
    roster.replace("kubernetes", [listed(A, "pod-1")])
    assert roster.replace("kubernetes", [listed(A, "pod-2")]) == [Remove(A), Add(A, listed(A, "pod-2"))]
    roster.replace("kubernetes", [])
    assert roster.replace("kubernetes", [listed(A, "pod-3")]) == [Remove(A), Add(A, listed(A, "pod-3"))]


def test_of_two_sources_the_stronger_describes_an_engine_and_the_other_keeps_it() -> None:
    roster = Roster()
    roster.replace("kubernetes", [listed(A, topic="k")])
    assert roster.replace("config", [listed(A, topic="c")]) == [Alter(A, listed(A, topic="c"))]
    assert roster.replace("config", []) == [Alter(A, listed(A, topic="k"))]
    assert roster.entries[A].source == "kubernetes"


def test_who_describes_an_engine_says_nothing_of_which_engine_it_is() -> None:
    roster = Roster()
    roster.replace("config", [listed(A)])
    assert roster.replace("kubernetes", [listed(A, "pod-1")]) == []
    assert roster.replace("service", [listed(A, "uid-1")]) == []
    assert roster.replace("config", []) == [Alter(A, listed(A, "pod-1"))]
    assert roster.replace("kubernetes", []) == [Alter(A, listed(A, "uid-1"))]
    assert roster.replace("config", [listed(A)]) == [Alter(A, listed(A))]
    assert roster.replace("service", []) == []


def test_a_source_whose_word_does_not_count_may_see_an_engine_replaced() -> None:
    roster = Roster()
    roster.replace("config", [listed(A)])
    roster.replace("kubernetes", [listed(A, "pod-1")])
    assert roster.replace("kubernetes", [listed(A, "pod-2")]) == [Remove(A), Add(A, listed(A))]
    roster.replace("kubernetes", [])
    assert roster.replace("kubernetes", [listed(A, "pod-3")]) == [Remove(A), Add(A, listed(A))]


def test_an_operators_hold_outlasts_what_sources_say_but_not_the_engine() -> None:
    roster = Roster()
    roster.replace("file", [listed(A)])
    assert roster.hold(A, "maintenance") == [Alter(A, listed(A, held="maintenance"))]
    assert roster.replace("file", [listed(A)]) == []
    assert roster.release(A) == [Alter(A, listed(A))]
    roster.hold(A, "maintenance")
    assert roster.hold(B, "nobody there") == []
    roster.replace("file", [])
    roster.drained(A)
    assert roster.replace("file", [listed(A), listed(B)]) == [Add(A, listed(A)), Add(B, listed(B))]


def test_of_equal_addresses_in_one_list_the_first_counts() -> None:
    roster = Roster()
    assert roster.replace("file", [listed(A, topic="1"), listed(A, topic="2")]) == [Add(A, listed(A, topic="1"))]


def test_what_is_no_url_or_no_source_changes_nothing() -> None:
    roster = Roster()
    roster.replace("file", [listed(A)])
    with pytest.raises(ValueError, match="http"):
        roster.replace("file", [Listed(EngineConfig(url="tcp://x"))])
    with pytest.raises(KeyError):
        roster.replace("gossip", [])
    assert roster.listed("file") == (listed(A),)


ENDPOINTS = st.sampled_from([Endpoint("10.0.0.1", port) for port in range(8000, 8005)])
LISTED = st.builds(listed, ENDPOINTS, st.sampled_from(["", "1", "2"]), st.sampled_from([None, "not ready"]))


class Performed(RuleBasedStateMachine):
    """Whoever performs the changes in order has what is wanted, and is never told to do what cannot be done."""

    def __init__(self) -> None:
        super().__init__()
        self.roster = Roster()
        self.present: dict[Endpoint, Listed | None] = {}  # None: draining
        self.listings: dict[str, dict[Endpoint, Listed]] = {}
        self.holds: dict[Endpoint, str] = {}

    def perform(self, changes: list[Change]) -> None:
        for change in changes:
            assert (change.endpoint in self.present) is not isinstance(change, Add)
            match change:
                case Add(endpoint, one) | Alter(endpoint, one):
                    self.present[endpoint] = one
                case Drain(endpoint, _):
                    assert self.present[endpoint] is not None
                    self.present[endpoint] = None
                case Remove(endpoint):
                    if self.present.pop(endpoint) is None and endpoint not in self.roster.entries:
                        self.holds.pop(endpoint, None)

    @rule(source=st.sampled_from(SOURCES), engines=st.lists(LISTED, max_size=5))
    def lists(self, source: str, engines: list[Listed]) -> None:
        by_endpoint: dict[Endpoint, Listed] = {}
        for one in engines:
            by_endpoint.setdefault(Endpoint("10.0.0.1", int(one.engine.url[-4:])), one)
        self.listings[source] = by_endpoint
        self.perform(self.roster.replace(source, engines))

    @rule(endpoint=ENDPOINTS)
    def holds_one(self, endpoint: Endpoint) -> None:
        if endpoint in self.present:
            self.holds[endpoint] = "operator"
        self.perform(self.roster.hold(endpoint, "operator"))

    @rule(endpoint=ENDPOINTS)
    def releases(self, endpoint: Endpoint) -> None:
        self.holds.pop(endpoint, None)
        self.perform(self.roster.release(endpoint))

    @rule(endpoint=ENDPOINTS)
    def drained(self, endpoint: Endpoint) -> None:
        self.perform(self.roster.drained(endpoint))

    @invariant()
    def present_is_what_is_wanted(self) -> None:
        wanted: dict[Endpoint, Listed] = {}
        for source in SOURCES:
            for endpoint, one in self.listings.get(source, {}).items():
                wanted.setdefault(endpoint, one)
        live = {endpoint: one for endpoint, one in self.present.items() if one is not None}
        assert live.keys() == wanted.keys()
        for endpoint, one in live.items():
            expected = wanted[endpoint]
            assert (one.engine, one.identity) == (expected.engine, expected.identity)
            assert one.held == self.holds.get(endpoint, expected.held)
        assert {e for e, entry in self.roster.entries.items() if entry.draining} == self.present.keys() - live.keys()


TestPerformed = Performed.TestCase
