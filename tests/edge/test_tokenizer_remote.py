from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from warmroute.core import openai
from warmroute.core.openai import RoutingRequest
from warmroute.edge.tokenizer_remote import CONCURRENCY_MAX, RemoteTokenizer, tokenize_body
from warmroute.errors import TokenizeError
from warmroute.testing.engine.options import EngineOptions
from warmroute.testing.engine.simulated import SimulatedEngine
from warmroute.types import Endpoint

Serve = Callable[..., Awaitable[Endpoint]]


def chat(messages: Any = None, **fields: Any) -> RoutingRequest:
    body = {"model": "tiny", "messages": messages or [{"role": "user", "content": "hi"}], **fields}
    return openai.parse("/v1/chat/completions", json.dumps(body).encode())


def completion(**fields: Any) -> RoutingRequest:
    return openai.parse("/v1/completions", json.dumps({"model": "tiny", "prompt": "hi", **fields}).encode())


def sent(request: RoutingRequest) -> Any:
    return json.loads(tokenize_body(request))


def test_a_completion_is_sent_as_its_text() -> None:
    assert sent(completion()) == {"model": "tiny", "prompt": "hi"}
    assert sent(completion(prompt=["a", "b"], add_special_tokens=False)) == {
        "model": "tiny",
        "prompt": "a",
        "add_special_tokens": False,
    }


def test_fields_that_change_the_prompt_are_handed_on_and_no_others() -> None:
    fields = {
        "tools": [{"type": "function", "function": {"name": "f", "odd": 1}}],
        "add_generation_prompt": False,
        "continue_final_message": True,
        "chat_template": "{{ messages }}",
        "chat_template_kwargs": {"a": 1},
        "add_special_tokens": True,
    }
    request = chat(**fields, temperature=0.5, stream=True, user="x", add_nothing=None)
    assert sent(request) == {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], **fields}


def test_f6_parts_and_numbers_reach_the_engine_as_they_were_written() -> None:
    messages = b'[ {"role":"user", "content":[{"type":"text","text":"\\u00e9"}],"n":12345678901234567890123,"f":1.50} ]'
    body = b'{"model":"tiny","messages":' + messages + b',"seed":1}'
    request = openai.parse("/v1/chat/completions", body)
    assert tokenize_body(request) == b'{"model":"tiny","messages":' + messages + b"}"


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low", "enable_thinking": True}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False}),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False, "reasoning_effort": "high"}},
            {"reasoning_effort": "low", "enable_thinking": False},
        ),
        ({"documents": [{"text": "d"}], "chat_template_kwargs": {"a": 1}}, {"documents": [{"text": "d"}], "a": 1}),
    ],
)
def test_what_the_chat_endpoint_makes_template_arguments(fields: dict[str, Any], arguments: dict[str, Any]) -> None:
    assert sent(chat(**fields))["chat_template_kwargs"] == arguments


@pytest.mark.parametrize(
    ("message", "reasoning"),
    [
        ({"reasoning_content": "old"}, "old"),
        ({"reasoning_content": "old", "reasoning": "new"}, "new"),
        ({"reasoning_content": "old", "reasoning": None}, "old"),
        ({"reasoning_content": None, "reasoning": "new"}, "new"),
    ],
)
def test_the_older_name_of_reasoning(message: dict[str, Any], reasoning: str) -> None:
    found = sent(chat([{"role": "assistant", "content": "y", **message}]))["messages"]
    assert found == [{"role": "assistant", "content": "y", "reasoning": reasoning}]


async def test_ids_come_from_the_requests_engine_or_from_the_one_address(session: aiohttp.ClientSession) -> None:
    async with SimulatedEngine(EngineOptions(model="tiny")) as engine:
        expected = await reference(session, engine.url, {"model": "tiny", "prompt": "hi"})
        here = RemoteTokenizer(session, None, 5.0)
        assert list(await here.tokens(completion(), engine.endpoint)) == expected
        fixed = RemoteTokenizer(session, engine.url + "/", 5.0)
        assert list(await fixed.tokens(completion(), Endpoint("127.0.0.1", 1))) == expected
        request = chat(cache_salt="s")
        expected = await reference(session, engine.url, {"model": "tiny", "messages": sent(request)["messages"]})
        assert list(await here.tokens(request, engine.endpoint)) == expected


async def reference(session: aiohttp.ClientSession, url: str, body: Any) -> list[int]:
    async with session.post(f"{url}/tokenize", json=body) as response:
        tokens: list[int] = (await response.json())["tokens"]
        return tokens


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, "refused"),
        (404, "refused"),
        (501, "refused"),
        (302, "refused"),
        (500, "engine_error"),
        (503, "engine_error"),
    ],
)
async def test_f2_f4_a_refusal_is_an_error_and_is_not_asked_again(
    session: aiohttp.ClientSession, serve: Serve, status: int, reason: str
) -> None:
    paths = []

    async def refuse(request: web.Request) -> web.Response:
        paths.append(request.path)
        return web.Response(status=status, text="no", headers={"location": "/elsewhere"})

    with pytest.raises(TokenizeError, match=f"answered {status}: no") as error:
        await RemoteTokenizer(session, None, 5.0).tokens(completion(), await serve(refuse))
    assert (error.value.reason, paths) == (reason, ["/tokenize"])


@pytest.mark.parametrize("answer", ["", "[]", "{}", '{"tokens": "x"}', '{"tokens": [-1]}', '{"tokens": [4294967296]}'])
async def test_an_answer_that_is_no_list_of_ids(session: aiohttp.ClientSession, serve: Serve, answer: str) -> None:
    async def respond(_: web.Request) -> web.Response:
        return web.Response(text=answer)

    with pytest.raises(TokenizeError) as error:
        await RemoteTokenizer(session, None, 5.0).tokens(completion(), await serve(respond))
    assert error.value.reason == "bad_answer"


async def test_nobody_listens(session: aiohttp.ClientSession, unused_tcp_port: int) -> None:
    with pytest.raises(TokenizeError) as error:
        await RemoteTokenizer(session, None, 5.0).tokens(completion(), Endpoint("127.0.0.1", unused_tcp_port))
    assert error.value.reason == "unreachable"


async def test_no_answer_in_time(session: aiohttp.ClientSession, serve: Serve) -> None:
    async def never(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(TokenizeError) as error:
        await RemoteTokenizer(session, None, 0.01).tokens(completion(), await serve(never))
    assert error.value.reason == "timeout"


async def test_a_connection_that_ended_meanwhile_is_made_anew(session: aiohttp.ClientSession, serve: Serve) -> None:
    asked = 0

    async def close_first(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if asked == 1:
            assert request.transport is not None
            request.transport.close()
        return web.json_response({"tokens": [4]})

    assert await RemoteTokenizer(session, None, 5.0).tokens(completion(), await serve(close_first)) == [4]
    assert asked == 2


async def test_requests_under_way_are_bounded_and_connections_kept(
    session: aiohttp.ClientSession, serve: Serve
) -> None:
    running = most = 0
    peers = set()

    async def slow(request: web.Request) -> web.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        peers.add(request.transport and request.transport.get_extra_info("peername"))
        await request.read()
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1
        return web.json_response({"tokens": [1]})

    endpoint = await serve(slow)
    tokenizer = RemoteTokenizer(session, None, 30.0)
    await asyncio.gather(*(tokenizer.tokens(completion(), endpoint) for _ in range(4 * CONCURRENCY_MAX)))
    assert 1 < most <= CONCURRENCY_MAX
    assert len(peers) <= CONCURRENCY_MAX


async def test_cancelled_in_the_middle_it_gives_its_place_back(session: aiohttp.ClientSession, serve: Serve) -> None:
    arrived, patient = asyncio.Event(), False

    async def wait_once(_: web.Request) -> web.Response:
        arrived.set()
        if not patient:
            await asyncio.Event().wait()
        return web.json_response({"tokens": [1]})

    endpoint = await serve(wait_once)
    tokenizer = RemoteTokenizer(session, None, 30.0)
    for _ in range(2):
        tasks = [asyncio.create_task(tokenizer.tokens(completion(), endpoint)) for _ in range(CONCURRENCY_MAX + 1)]
        await arrived.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    patient = True
    assert await tokenizer.tokens(completion(), endpoint) == [1]
