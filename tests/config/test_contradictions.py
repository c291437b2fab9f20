"""Settings that are fine alone and wrong together."""

from __future__ import annotations

from typing import Any

import pytest

from warmroute.config import Loaded, load
from warmroute.errors import ConfigError


def file(document: dict[str, Any]) -> Loaded:
    return load(flags={}, environ={}, document=document, file_name="w.yaml")


def refused(document: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        file(document)
    return str(caught.value)


def engine(number: int = 0, **fields: Any) -> dict[str, object]:
    return {"url": f"http://10.0.0.{number}:8000", **fields}


def test_events_that_are_asked_for_need_token_ids() -> None:
    off = {"mode": "off"}
    assert refused({"events": {"enabled": True}, "tokenizer": off}).startswith(
        "events.enabled: true (file w.yaml) needs the prompts' token ids, but tokenizer.mode is off (file w.yaml). Set "
    )
    assert file({"tokenizer": off}).config.events.enabled
    assert not file({"events": {"enabled": False}, "tokenizer": off}).config.events.enabled


def test_local_needs_a_path() -> None:
    assert refused({"tokenizer": {"mode": "local"}}).startswith(
        "tokenizer.path: none, but tokenizer.mode is local (file w.yaml). Set tokenizer.path to the folder"
    )
    assert file({"tokenizer": {"mode": "local", "path": "/m"}}).config.tokenizer.path == "/m"


def test_first_backoff_above_the_longest() -> None:
    assert refused({"events": {"reconnect_backoff_s": 31}}).startswith(
        "events.reconnect_backoff_s: 31 (file w.yaml) is above events.reconnect_backoff_max_s = 30 (default)."
    )
    assert file({"events": {"reconnect_backoff_s": 30}}).config.events.reconnect_backoff_s == 30


def test_one_port_for_events_and_replay() -> None:
    assert refused({"events": {"port": 5558}}).startswith(
        "events.replay_port: 5558 (default) is also events.port (file w.yaml). An engine publishes and replays on two"
    )
    assert file({"events": {"port": 5558, "replay_port": None}}).config.events.replay_port is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://a:8000", "http://a:8000/"),
        ("http://a:80", "http://A"),
        ("http://[::1]:1", "http://[0:0::1]:1"),
        ("http://a:443", "https://a"),
    ],
)
def test_an_engine_listed_twice(one: str, other: str) -> None:
    assert refused({"engines": ["http://b:1", one, other]}) == (
        f"engines[2].url: {other} is engines[1].url again (file w.yaml). List every engine once."
    )


@pytest.mark.parametrize(
    ("events", "replay", "ranks", "collide"),
    [
        (5557, 5558, 1, False),
        (5557, 5557, 1, True),
        (5557, 5558, 2, True),
        (5557, 5559, 2, False),
        (5557, 5567, 10, False),
        (5557, 5567, 11, True),
        (5558, 5557, 2, True),  # rank 1 replays where rank 0 publishes
        (5559, 5557, 2, False),
    ],
)
def test_replay_ports_lie_clear_of_all_ranks_event_ports(events: int, replay: int, ranks: int, collide: bool) -> None:
    addresses: dict[str, Any] = {"events_endpoint": f"tcp://a:{events}", "replay_endpoint": f"tcp://a:{replay}"}
    written = {"engines": [engine(data_parallel_size=ranks, **addresses)]}
    expected = {"engines": [engine(data_parallel_size=ranks)], "events": {"port": events, "replay_port": replay}}
    if not collide:
        assert file(written).config.engines[0].data_parallel_size == ranks
        assert file(expected).config.events.replay_port == replay
        return
    assert refused(written).startswith("engines[0].replay_endpoint: tcp://a:")
    assert "engines[0].events_endpoint of rank" in refused(written)
    assert refused(expected).startswith(f"events.replay_port: {replay} (file w.yaml)")


def test_the_default_replay_port_gives_way_with_a_note() -> None:
    """Nobody asked for 5558: such an engine is taken to have no replay, and the operator is told."""
    loaded = file({"engines": [engine(data_parallel_size=2)]})
    (note,) = loaded.notes
    assert note.startswith("engines[0] has 2 ranks: unless it says where it replays, lost batches cannot be had again,")
    assert note.endswith("because the default replay port 5558 is an event port of its ranks")


def test_addresses_of_different_engines_may_not_meet() -> None:
    engines = [
        engine(1, events_endpoint="tcp://a:5557", data_parallel_size=2),
        engine(2, events_endpoint="tcp://a:5558", data_parallel_size=1),
        engine(3, events_endpoint="tcp://b:5558"),
        engine(4, events_endpoint="ipc:///tmp/a"),
        engine(5, replay_endpoint="ipc:///tmp/a"),
    ]
    tcp, ipc = refused({"engines": engines}).splitlines()
    both = "tcp://a:5558 would be both engines[0].events_endpoint of rank 1 and engines[1].events_endpoint of rank 0."
    assert tcp.startswith(f"engines[1].events_endpoint: {both} Rank r is at port + r: put replay ports clear")
    both = "ipc:///tmp/a would be both engines[3].events_endpoint of rank 0 and engines[4].replay_endpoint of rank 0."
    assert ipc.startswith(f"engines[4].replay_endpoint: {both}")


def test_addresses_that_ranks_cannot_have() -> None:
    assert refused({"engines": [engine(events_endpoint="ipc:///tmp/a", data_parallel_size=2)]}).startswith(
        "engines[0].events_endpoint: ipc:///tmp/a has no port that 2 ranks could count up. Use tcp://HOST:PORT."
    )
    assert refused({"engines": [engine(replay_endpoint="tcp://a:65535", data_parallel_size=2)]}).startswith(
        "engines[0].replay_endpoint: tcp://a:65535 leaves no ports for 2 ranks below 65536. Choose a lower port."
    )
    assert file({"engines": [engine(events_endpoint="tcp://a:65534", data_parallel_size=2)]}).config.engines


def test_a_rule_is_silent_while_one_of_its_leaves_is_in_error() -> None:
    told = refused({"tokenizer": {"mode": "local", "path": 5}, "events": {"reconnect_backoff_s": 99}})
    assert [line.partition(":")[0] for line in told.splitlines()] == ["events.reconnect_backoff_s", "tokenizer.path"]


@pytest.mark.parametrize(
    ("tokenizer", "note"),
    [
        ({"mode": "off", "path": "/m"}, "tokenizer.path (file w.yaml) has no effect: tokenizer.mode is off"),
        ({"mode": "remote", "path": "/m"}, "tokenizer.path (file w.yaml) has no effect: tokenizer.mode is remote"),
        (
            {"mode": "local", "path": "/m", "remote_endpoint": "http://a:1"},
            "tokenizer.remote_endpoint (file w.yaml) has no effect: tokenizer.mode is local",
        ),
        ({"path": "/m"}, None),
    ],
)
def test_settings_without_effect_get_a_note(tokenizer: dict[str, str], note: str | None) -> None:
    assert file({"tokenizer": tokenizer}).notes == ((note,) if note else ())


def test_D12_events_need_token_ids_and_say_so() -> None:
    """Events off, or everything on, is well; events on without a tokenizer is refused with both names."""
    assert not file({"events": {"enabled": False}, "tokenizer": {"mode": "off"}}).config.events.enabled
    assert "tokenizer.mode" in refused({"events": {"enabled": True}, "tokenizer": {"mode": "off"}})
    assert file({"events": {"enabled": True}, "tokenizer": {"mode": "remote"}}).config.events.enabled


@pytest.mark.parametrize(
    ("document", "key"),
    [
        ({"admission": {"model_requests_max": "m=1"}}, "admission.model_requests_max"),
        ({"admission": {"key_requests_per_min": 1}, "gateway": {"keys_file": "/k"}}, "admission.key_requests_per_min"),
        ({"admission": {"key_tokens_per_min": 1}, "gateway": {"keys_file": "/k"}}, "admission.key_tokens_per_min"),
        ({"engines": [engine(events_listen="tcp://*:6557")]}, "engines[0].events_listen"),
    ],
)
def test_what_processes_cannot_keep_together(document: dict[str, Any], key: str) -> None:
    assert file(document)
    several = {**document, "gateway": {**document.get("gateway", {}), "processes": 2}}
    assert refused(several).startswith(f"{key}: given, and gateway.processes is 2 (file w.yaml). ")


def test_processes_keep_keys_limits_in_redis() -> None:
    limits = {"key_tokens_per_min": 1, "redis_url": "redis://h:6379/0"}
    assert file({"gateway": {"processes": 2, "keys_file": "/k"}, "admission": limits})
