from __future__ import annotations

import asyncio
import errno
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from warmroute.edge.engine_api import ANSWER_BYTES_MAX, HttpEngineApi, _facts, cache_counters, event_sources
from warmroute.errors import EngineError
from warmroute.service.ports import EngineFacts, EventAddress, Health
from warmroute.testing.engine.options import EngineOptions
from warmroute.testing.engine.simulated import SimulatedEngine
from warmroute.types import Endpoint, ModelInfo

Serve = Callable[..., Awaitable[Endpoint]]

MODELS = (
    '{"object": "list", "data": ['
    '{"id": "base", "object": "model", "created": 5, "owned_by": "vllm", "root": "/m", "parent": null,'
    ' "max_model_len": 2048, "permission": [{"id": "p"}]},'
    '{"id": "sql", "object": "model", "created": 6, "owned_by": "vllm", "parent": "base"}]}'
)
METRICS = """# HELP process_start_time_seconds Start time
process_start_time_seconds 1.79522962593e+09
vllm:cache_config_info{_block_size_resolved="True",block_size="32",hash_block_size="None",engine="0"} 1.0
"""


def answering(pages: Mapping[str, str | int]) -> object:
    async def respond(request: web.Request) -> web.Response:
        page = pages.get(request.path, 404)
        return web.Response(status=page) if isinstance(page, int) else web.Response(text=page)

    return respond


async def facts_of(session: aiohttp.ClientSession, serve: Serve, pages: Mapping[str, str | int]) -> EngineFacts:
    endpoint = await serve(answering(pages))
    return await HttpEngineApi(session, 5.0).facts(endpoint)


async def test_all_that_an_engine_says(session: aiohttp.ClientSession, serve: Serve) -> None:
    sources = '{"0": {"endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5567", "topic": "kv"}}'
    pages = {
        "/v1/models": MODELS,
        "/kv_event_sources": sources,
        "/version": '{"version": "0.32.0"}',
        "/metrics": METRICS,
    }
    assert await facts_of(session, serve, pages) == EngineFacts(
        models=(ModelInfo("base", None, 2048, 5, root="/m"), ModelInfo("sql", "base", None, 6)),
        event_sources={0: EventAddress("tcp://127.0.0.1:5557", "tcp://127.0.0.1:5567", "kv")},
        version="0.32.0",
        block_size=32,
        process_start=1.79522962593e09,
    )


@pytest.mark.parametrize("rest", [{}, {"/kv_event_sources": 403, "/version": 500, "/metrics": 401}])
async def test_only_the_models_must_be_there(
    session: aiohttp.ClientSession, serve: Serve, rest: dict[str, str | int]
) -> None:
    facts = await facts_of(session, serve, {"/v1/models": '{"data": [{"id": "m"}]}', **rest})
    assert facts == EngineFacts((ModelInfo("m"),), None)


async def test_nonsense_where_it_is_optional_counts_as_absent(session: aiohttp.ClientSession, serve: Serve) -> None:
    pages = {
        "/v1/models": '{"data": []}',
        "/kv_event_sources": "<html>",
        "/version": "[]",
        "/metrics": 'process_start_time_seconds soon\nvllm:cache_config_info{block_size="None"} 1',
    }
    assert await facts_of(session, serve, pages) == EngineFacts((), None)


ODD_METRICS = st.lists(
    st.one_of(
        st.builds(
            "{}{{{}}} {}".format,
            st.sampled_from(
                [
                    "vllm:prefix_cache_hits",
                    "vllm:cache_config_info",
                    "vllm:engine_sleep_state",
                    "process_start_time_seconds",
                ]
            ),
            st.lists(
                st.builds(
                    '{}="{}"'.format,
                    st.sampled_from(["engine", "block_size", "num_gpu_blocks", "sleep_state"]),
                    st.sampled_from(["0", "16", "9" * 5000, "-1", "x", "awake", "1.5"]),
                )
            ).map(",".join),
            st.sampled_from(["1", "1.2.3", "e", "NaN", "inf", "1e999", ".", "-"]),
        ),
        st.text(max_size=20),
    )
).map("\n".join)


@given(
    metrics=ODD_METRICS,
    sources=st.sampled_from(['{"0": {}}', '{"99999999999999999999": {}}', '{"-1": {"endpoint": ":"}}']),
)
def test_whatever_pages_say_is_understood_or_left_out(metrics: str, sources: str) -> None:
    page = metrics.encode("utf-8", "replace")
    found = _facts(Endpoint("h", 1), b'{"data": []}', sources.encode(), b'{"version": 1}', page)
    assert found.process_start is None or found.process_start == found.process_start, "it can be compared"
    assert found.kv_tokens_max is None or 0 < found.kv_tokens_max < 2**63
    for counters in cache_counters(page).values():
        assert counters.queries < float("inf")


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        (404, "answered /v1/models with 404: it is starting, or no engine; check the URL"),
        (503, "answered /v1/models with 503"),
        (401, "wants a key"),
        (302, "answered /v1/models with 302"),
        ("<html>", "no list of models"),
        ('{"data": [{"id": 5}]}', "no list of models"),
        ("x" * (ANSWER_BYTES_MAX + 1), "more than"),
    ],
)
async def test_who_answers_wrongly_is_named_with_what_to_do(
    session: aiohttp.ClientSession, serve: Serve, page: str | int, sentence: str
) -> None:
    with pytest.raises(EngineError, match=sentence) as error:
        await facts_of(session, serve, {"/v1/models": page})
    assert "http://127.0.0.1:" in str(error.value)


async def test_nobody_there(session: aiohttp.ClientSession, unused_tcp_port: int) -> None:
    api, endpoint = HttpEngineApi(session, 5.0), Endpoint("127.0.0.1", unused_tcp_port)
    with pytest.raises(EngineError, match=r"cannot be reached .* check that the engine runs there"):
        await api.facts(endpoint)
    assert await api.health(endpoint) is Health.REFUSED
    assert await api.cache_counters(endpoint) == {}


async def test_no_socket_to_ask_with(session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(*_: object, **__: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", make)
    assert await HttpEngineApi(session, 5.0).health(Endpoint("127.0.0.1", 1)) is Health.UNASKED


async def test_somebody_who_does_not_speak_http(session: aiohttp.ClientSession) -> None:
    async def hiss(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\x01SSH-2.0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(hiss, "127.0.0.1", 0)
    async with server:
        endpoint = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
        with pytest.raises(EngineError, match="cannot be reached"):
            await HttpEngineApi(session, 5.0).facts(endpoint)


async def test_no_answer_in_time(session: aiohttp.ClientSession, serve: Serve) -> None:
    async def never(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    api, endpoint = HttpEngineApi(session, 0.01), await serve(never)
    with pytest.raises(EngineError, match=r"/v1/models did not answer within 0\.01 s"):
        await api.facts(endpoint)
    assert await api.health(endpoint) is Health.FAILING


@pytest.mark.parametrize(
    ("status", "health"), [(200, Health.GOOD), (500, Health.FAILING), (503, Health.FAILING), (404, Health.FAILING)]
)
async def test_health(session: aiohttp.ClientSession, serve: Serve, status: int, health: Health) -> None:
    async def respond(request: web.Request) -> web.Response:
        return web.Response(status=status if request.path == "/health" else 418)

    assert await HttpEngineApi(session, 5.0).health(await serve(respond)) is health


@pytest.mark.parametrize(
    ("host", "said", "found"),
    [
        ("10.0.0.7", "tcp://*:5557", "tcp://10.0.0.7:5557"),
        ("10.0.0.7", "tcp://0.0.0.0:5557", "tcp://10.0.0.7:5557"),
        ("engine.local", "tcp://[::]:5557", "tcp://engine.local:5557"),
        ("10.0.0.7", "tcp://:::5557", "tcp://10.0.0.7:5557"),
        ("fd00::1", "tcp://*:5557", "tcp://[fd00::1]:5557"),
        ("10.0.0.7", "tcp://10.9.9.9:5557", "tcp://10.9.9.9:5557"),
        ("127.0.0.1", "tcp://127.0.0.1:5557", "tcp://127.0.0.1:5557"),
        ("localhost", "tcp://[::1]:5557", "tcp://[::1]:5557"),
        ("10.0.0.7", "tcp://127.0.0.1:5557", None),
        ("10.0.0.7", "tcp://localhost:5557", None),
        ("127.0.0.1", "ipc:///tmp/kv", "ipc:///tmp/kv"),
        ("10.0.0.7", "ipc:///tmp/kv", None),
    ],
)
def test_addresses_are_made_reachable_or_dropped(host: str, said: str, found: str | None) -> None:
    body = b'{"0": {"endpoint": "%s", "replay_endpoint": "tcp://*:1"}}' % said.encode()
    sources = event_sources(body, Endpoint(host, 8000))
    assert sources is not None
    assert sources.get(0) and sources[0].endpoint == found if found else sources == {}


def test_a_replay_on_anothers_loopback_is_dropped_alone() -> None:
    body = b'{"3": {"endpoint": "tcp://*:1", "replay_endpoint": "tcp://127.0.0.1:2"}}'
    assert event_sources(body, Endpoint("10.0.0.7", 1)) == {3: EventAddress("tcp://10.0.0.7:1", None)}


@pytest.mark.parametrize(
    "source",
    [
        '{"enable_kv_cache_events": false, "endpoint": "tcp://*:1"}',
        '{"publisher": "null", "endpoint": "tcp://*:1"}',
        "{}",
    ],
)
def test_a_rank_that_publishes_nothing_is_left_out(source: str) -> None:
    assert event_sources(b'{"0": %s}' % source.encode(), Endpoint("h", 1)) == {}


async def test_a_simulated_engine_with_two_ranks_and_an_adapter(session: aiohttp.ClientSession) -> None:
    options = EngineOptions(data_parallel_size=2, loras=("sql",), block_size=32)
    async with SimulatedEngine(options) as engine:
        api = HttpEngineApi(session, 5.0)
        facts = await api.facts(engine.endpoint)
        assert facts.event_sources is not None
        assert [facts.event_sources[rank] for rank in (0, 1)] == list(engine.events)
        assert [(model.id, model.parent) for model in facts.models] == [("tiny", None), ("sql", "tiny")]
        assert facts.block_size == 32
        assert facts.process_start is not None
        assert await api.health(engine.endpoint) is Health.GOOD


async def test_an_inspection_reads_each_page_once(session: aiohttp.ClientSession, serve: Serve) -> None:
    asked = Counter[str]()
    pages = {"/health": "", "/v1/models": MODELS, "/metrics": METRICS, "/version": '{"version": "0.32.0"}'}

    async def respond(request: web.Request) -> web.Response:
        asked[request.path] += 1
        page = pages.get(request.path)
        return web.Response(status=404) if page is None else web.Response(text=page)

    found = await HttpEngineApi(session, 5.0).inspect(await serve(respond))
    assert found.engine is not None
    assert (found.engine.block_size, found.cache["block_size"], found.version) == (32, "32", "0.32.0")
    assert set(asked.values()) == {1}
    assert asked.keys() >= {*pages, "/kv_event_sources", "/server_info", "/get_server_info"}


async def test_a_restarted_engine_is_known_by_its_process_start(session: aiohttp.ClientSession) -> None:
    async with SimulatedEngine() as engine:
        api = HttpEngineApi(session, 5.0)
        before = await api.facts(engine.endpoint)
        await engine.restart()
        after = await api.facts(engine.endpoint)
        assert before.process_start != after.process_start
        assert before.event_sources == after.event_sources
