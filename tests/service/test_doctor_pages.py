"""What engines' pages say of their setup, page by page."""

from __future__ import annotations

import pytest

from warmroute.service.doctor.facts import SaidSource
from warmroute.service.doctor.pages import read_pages
from warmroute.service.ports import EngineFacts
from warmroute.types import ModelInfo

VLLM = EngineFacts((ModelInfo("tiny"),), None, "0.32.0", 16)
SGLANG = EngineFacts((ModelInfo("tiny", owned_by="sglang"),), None)
UNKNOWN = EngineFacts((ModelInfo("tiny", owned_by="me"),), None)
METRICS = b"""# HELP
vllm:cache_config_info{block_size="16",enable_prefix_caching="False",engine="0",prefix_caching_hash_algo="xxhash"} 1.0
vllm:cache_config_info{block_size="16",enable_prefix_caching="False",engine="1",prefix_caching_hash_algo="xxhash"} 1.0
"""
SERVER_INFO = b"""{"model_path": "m", "api_key": "secret", "page_size": 64, "disable_radix_cache": true, "dp_size": 4,
"version": "0.5.20", "kv_events_config": "{\\"publisher\\": \\"zmq\\", \\"endpoint\\": \\"tcp://*:5557\\"}"}"""


def test_vllms_metrics() -> None:
    said = read_pages(VLLM, None, METRICS, ())
    assert (said.software, said.version, said.ranks, said.sources) == ("vllm", "0.32.0", 2, None)
    assert said.cache["enable_prefix_caching"] == "False"
    assert said.cache["prefix_caching_hash_algo"] == "xxhash"


def test_vllms_event_sources() -> None:
    page = (
        b'{"0": {"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:5557",'
        b' "replay_endpoint": null, "buffer_steps": 10000, "hwm": 100000,'
        b' "max_queue_size": 100000, "topic": "kv"}, "1": {"publisher": "null"}}'
    )
    said = read_pages(VLLM, page, None, ())
    assert said.sources == {
        0: SaidSource("tcp://*:5557", None, "kv", "zmq", True, 10_000),
        1: SaidSource(publisher="null"),
    }
    assert said.ranks == 2
    assert read_pages(VLLM, b"{}", None, ()).sources == {}


def test_vllm_in_development_mode_says_it_in_its_configuration() -> None:
    on = b'{"vllm_config": {"kv_events_config": {"enable_kv_cache_events": false, "endpoint": "tcp://*:5557"}}}'
    assert read_pages(VLLM, None, None, (on,)).sources == {0: SaidSource("tcp://*:5557", enabled=False)}
    assert read_pages(VLLM, None, None, (b'{"vllm_config": {"kv_events_config": null}}',)).sources == {}
    assert read_pages(VLLM, b"{}", None, (on,)).sources == {}, "what was resolved says more than what was asked for"


def test_sglangs_arguments() -> None:
    said = read_pages(SGLANG, None, None, (None, SERVER_INFO))
    assert (said.software, said.version, said.ranks) == ("sglang", "0.5.20", 4)
    assert said.sources == {0: SaidSource("tcp://*:5557", publisher="zmq")}
    assert said.cache == {"enable_prefix_caching": "False"}
    assert said.engine is not None
    assert said.engine.block_size == 64
    assert "secret" not in repr(said)
    assert read_pages(SGLANG, None, None, (b'{"page_size": 1, "kv_events_config": null}',)).sources == {}


@pytest.mark.parametrize("page", [b"", b"[]", b"<html>", b'{"a": 1}', b'{"0": 5}', b"\xff"])
def test_pages_that_are_not_understood_say_nothing(page: bytes) -> None:
    said = read_pages(UNKNOWN, page, page, (page, page))
    assert (said.software, said.version, said.sources, said.cache, said.ranks) == (None, None, None, {}, None)
