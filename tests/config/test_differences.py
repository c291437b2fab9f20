"""What two configurations differ in is either taken up or named, and nothing is forgotten."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from warmroute.config import Config, EngineConfig
from warmroute.config.differences import LIMITS, LIVE, differences, take_up
from warmroute.config.leaves import LEAVES, Leaf
from warmroute.config.tree import AdmissionConfig, GatewayConfig, MembershipConfig

A, B = EngineConfig(url="http://a:1"), EngineConfig(url="http://b:1")


def other(leaf: Leaf) -> Any:
    """A value that the leaf does not have by default; whether it is in range does not matter here."""
    if leaf.kind is bool:
        return not leaf.default
    return {int: 7_777, float: 7.5}.get(leaf.kind, "other") if leaf.key != "engines" else (A,)


def changed(leaf: Leaf) -> Config:
    config: Any = Config()
    *path, name = leaf.key.split(".")
    parts = [config]
    for section in path:
        parts.append(getattr(parts[-1], section))
    new = replace(parts.pop(), **{name: other(leaf)})
    for section in reversed(path):
        new = replace(parts.pop(), **{section: new})
    return new  # type: ignore[no-any-return]


@pytest.mark.parametrize("key", LEAVES)
def test_every_leaf_is_taken_up_or_named(key: str) -> None:
    old, new = Config(), changed(LEAVES[key])
    for gated in (False, True):
        (found,) = differences(old, new, gated=gated)
        assert found.key == key
        assert found.live is (key in LIVE or (gated and key in LIMITS))
        result = take_up(old, new, [found])
        assert result == (new if found.live else old)
        assert differences(result, new, gated=gated) == ([] if found.live else [found])


def test_live_leaves_exist() -> None:
    assert LEAVES.keys() >= LIVE | LIMITS


def test_what_is_live_is_taken_up_beside_what_is_not() -> None:
    old = Config(gateway=GatewayConfig(retries=1, port=1))
    new = Config(gateway=GatewayConfig(retries=2, port=2), admission=AdmissionConfig(requests_max=5))
    found = differences(old, new, gated=False)
    assert [(str(each), each.live) for each in found] == [
        ("gateway.port: 1 -> 2", False),
        ("gateway.retries: 1 -> 2", True),
        ("admission.requests_max: null -> 5", False),
    ]
    assert take_up(old, new, found) == Config(gateway=GatewayConfig(retries=2, port=1))


def test_engines_are_told_apart_and_keys_are_not_shown() -> None:
    old, new = Config(engines=(A, B)), Config(engines=(replace(B, api_key="secret"), EngineConfig(url="http://c:1")))
    (found,) = differences(old, new, gated=False)
    assert str(found) == "engines: 2 engines -> +http://c:1, ~http://b:1, -http://a:1"
    (found,) = differences(Config(), Config(membership=MembershipConfig(api_key="secret")), gated=False)
    assert "secret" not in str(found)
    (found,) = differences(Config(engines=(A, B)), Config(engines=(B, A)), gated=False)
    assert found.new == "in another order"
