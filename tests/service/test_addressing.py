"""What an engine's configuration says of where it is, where it publishes, and what opens it."""

from __future__ import annotations

from typing import Any

import pytest

from warmroute.config.tree import Config, EngineConfig, EventsConfig, MembershipConfig
from warmroute.errors import ConfigError
from warmroute.service.addressing import endpoint_of, engine_key, event_addresses
from warmroute.service.ports import EngineFacts, EventAddress
from warmroute.types import Endpoint, ModelInfo

A = Endpoint("10.0.0.1", 8000)
B = Endpoint("10.0.0.2", 8000)
MODEL = ModelInfo("m")
PUB = EventAddress("tcp://10.0.0.1:5557", "tcp://10.0.0.1:5567", "kv")


@pytest.mark.parametrize(
    ("engine", "said", "found"),
    [
        ({}, None, [("tcp://10.0.0.1:5557", "tcp://10.0.0.1:5558", "")]),
        ({}, {}, [None]),
        ({}, {0: PUB}, [("tcp://10.0.0.1:5557", "tcp://10.0.0.1:5567", "kv")]),
        ({"data_parallel_size": 2}, {1: PUB}, [None, ("tcp://10.0.0.1:5557", "tcp://10.0.0.1:5567", "kv")]),
        ({"data_parallel_size": 2}, None, [("tcp://10.0.0.1:5557", None, ""), ("tcp://10.0.0.1:5558", None, "")]),
        ({"events": False}, {0: PUB, 1: PUB}, [None, None]),
        ({}, {1: PUB}, {1: ("tcp://10.0.0.1:5557", "tcp://10.0.0.1:5567", "kv")}),
        (
            {"events_endpoint": "tcp://nat:7000", "replay_endpoint": "tcp://nat:7100", "topic": "t"},
            {0: PUB, 1: PUB},
            [("tcp://nat:7000", "tcp://nat:7100", "t"), ("tcp://nat:7001", "tcp://nat:7101", "t")],
        ),
        ({"events_endpoint": "tcp://nat:7000"}, {}, [("tcp://nat:7000", None, "")]),
        ({"events_endpoint": "ipc:///run/kv", "data_parallel_size": 2}, {}, [("ipc:///run/kv", None, ""), None]),
    ],
)
def test_where_the_ranks_of_an_engine_publish(engine: dict[str, Any], said: Any, found: list[Any]) -> None:
    addresses = event_addresses(Config(), EngineConfig(url=A.url, **engine), A, EngineFacts((MODEL,), said))
    each = found if isinstance(found, dict) else dict(enumerate(found))
    assert addresses == {rank: None if one is None else EventAddress(*one) for rank, one in each.items()}


def test_defaults_for_ipv6_and_with_events_off() -> None:
    v6 = Endpoint("fd00::1", 8000)
    engine = EngineConfig(url=v6.url)
    address = event_addresses(Config(), engine, v6, EngineFacts((), None))[0]
    assert address == EventAddress("tcp://[fd00::1]:5557", "tcp://[fd00::1]:5558", "")
    off = Config(events=EventsConfig(enabled=False))
    assert event_addresses(off, engine, v6, EngineFacts((), {0: PUB})) == {0: None}


def test_urls() -> None:
    assert endpoint_of("http://h:81") == Endpoint("h", 81)
    assert endpoint_of("https://h/") == Endpoint("h", 443, tls=True)
    assert endpoint_of("http://[::1]:9") == Endpoint("::1", 9)
    for url in ("h:81", "ftp://h", "http://h:99999", "http://h/v1", "http://:80", ""):
        with pytest.raises(ConfigError, match="Write http://HOST:PORT"):
            endpoint_of(url)


def test_keys_are_the_engines_own_or_the_common_one() -> None:
    engines = (EngineConfig(url=A.url, api_key="own"), EngineConfig(url=B.url))
    common = Config(membership=MembershipConfig(api_key="all"))
    assert [engine_key(Config(), engine) for engine in engines] == ["own", None]
    assert [engine_key(common, engine) for engine in engines] == ["own", "all"]
    assert "own" not in repr(engines)
