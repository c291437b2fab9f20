"""What the gateway refuses, through its whole depth: whose fault it is, in OpenAI's form, and nobody else is harmed."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from e2e_client import CHAT, COMPLETIONS, Json, exchange
from e2e_fleet import QUICK, Stack, before, config_for, stack_of, until

from warmroute.config.tree import EngineConfig, GatewayConfig
from warmroute.testing.engine import EngineOptions

BAD_BODIES = [
    pytest.param(COMPLETIONS, b"", id="nothing"),
    pytest.param(COMPLETIONS, b'{"model": "tiny", "prompt": ', id="cut short"),
    pytest.param(COMPLETIONS, b"[]", id="no object"),
    pytest.param(COMPLETIONS, b"\xff\xfe{}", id="no text"),
    pytest.param(COMPLETIONS, b"[" * 100_000, id="nested without end"),
    pytest.param(COMPLETIONS, b'{"prompt": "x"}', id="no model"),
    pytest.param(CHAT, b'{"model": null, "messages": []}', id="null as a model"),
    pytest.param(COMPLETIONS, b'{"model": 7, "prompt": "x"}', id="a number as a model"),
    pytest.param(CHAT, b'{"model": "tiny"}', id="no messages"),
    pytest.param(CHAT, b'{"model": "tiny", "messages": "hello"}', id="messages that are none"),
    pytest.param(COMPLETIONS, b'{"model": "tiny", "prompt": {}}', id="a prompt that is none"),
]


def assert_openai_error(error: Json, kind: str = "invalid_request_error") -> None:
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == kind
    assert len(error["message"]) > 10


@pytest.mark.parametrize(("path", "body"), BAD_BODIES)
async def test_a_body_that_no_engine_could_take(stack: Stack, path: str, body: bytes) -> None:
    answer = await stack.client.post(path, body)
    assert answer.status == 400
    assert_openai_error(answer.error)
    assert "x-warmroute-worker" not in answer.headers  # no engine was bothered
    assert (await stack.client.ask(prompt=[1, 2, 3])).status == 200


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/v1/embeddings"])
async def test_a_model_that_nobody_serves(stack: Stack, path: str) -> None:
    body = {"model": "gpt-none", "prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    answer = await stack.client.post(path, json.dumps(body).encode())
    assert answer.status == 404
    assert_openai_error(answer.error, "not_found_error")
    assert (answer.error["code"], answer.error["param"]) == ("model_not_found", "model")
    assert answer.error["message"] == "The model `gpt-none` does not exist. Models served here: sql, tiny."


async def test_what_only_the_engine_can_judge_is_its_to_refuse(stack: Stack) -> None:
    too_long = await stack.client.ask(prompt=[5] * 9000)
    assert (too_long.status, too_long.error["type"]) == (400, "BadRequestError")
    assert too_long.worker
    odd = await stack.client.post(COMPLETIONS, b'{"model": "tiny", "prompt": [1, "a", 2.5], "max_tokens": 1}')
    assert (odd.status, odd.error["type"]) == (400, "BadRequestError")
    page = (await stack.client.get("/metrics")).raw.decode()
    assert 'outcome="complete"' in page
    assert 'outcome="engine_lost"' not in page
    assert 'outcome="unreachable"' not in page


async def test_a_body_over_the_limit() -> None:
    config = replace(QUICK, gateway=GatewayConfig(port=0, max_body_bytes=1000))
    async with stack_of(EngineOptions(), config=config) as stack:
        announced = await stack.client.post(COMPLETIONS, b'{"model": "tiny", "prompt": "' + b"x" * 1000 + b'"}')
        assert announced.status == 413
        assert_openai_error(announced.error)
        chunked = await exchange(
            stack.gateway.url,
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001,
        )
        assert chunked.startswith(b"HTTP/1.1 413 ")
        assert (await stack.client.ask(prompt=[1, 2, 3])).status == 200
        page = (await stack.client.get("/metrics")).raw.decode()
        assert 'warmroute_data_plane_total{event="refused:413"} 2.0' in page


async def test_a_head_over_the_limit(stack: Stack) -> None:
    answer = await exchange(stack.gateway.url, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")


SLOW = [
    pytest.param(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Le", id="in its head"),
    pytest.param(b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{"model": ', id="in its body"),
]


@pytest.mark.parametrize("sent", SLOW)
async def test_a_client_that_does_not_finish(sent: bytes) -> None:
    config = replace(QUICK, gateway=GatewayConfig(port=0, head_timeout_s=0.1))
    async with stack_of(EngineOptions(), config=config) as stack:
        answer = await exchange(stack.gateway.url, sent)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert_openai_error(json.loads(answer.partition(b"\r\n\r\n")[2])["error"])


METHODS = [(b"TRACE", 405), (b"BREW", 501), (b"PROPFIND", 501)]


@pytest.mark.parametrize(("method", "status"), METHODS)
async def test_a_method_that_is_not_served(stack: Stack, method: bytes, status: int) -> None:
    answer = await exchange(stack.gateway.url, method + b" /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert_openai_error(
        json.loads(answer.partition(b"\r\n\r\n")[2])["error"],
        "invalid_request_error" if status == 405 else "server_error",
    )


@pytest.mark.parametrize("method", ["PUT", "DELETE", "GET"])
async def test_a_method_that_the_engine_does_not_serve(stack: Stack, method: str) -> None:
    async with stack.client.http.request(method, COMPLETIONS) as response:
        assert response.status == 405
        assert response.headers["x-warmroute-worker"]


async def test_a_request_that_could_be_read_in_two_ways(stack: Stack) -> None:
    both = (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    answer = await exchange(stack.gateway.url, both)
    assert re.match(rb"HTTP/1\.1 400 ", answer)


async def test_nobody_there_is_said_so_with_when_to_come_again() -> None:
    told = [EngineConfig(url="http://127.0.0.1:9")]
    async with before([], config_for(told), ready=0) as stack:
        await until(lambda: stack.gateway.membership, "the gateway is up")
        for answer in (
            await stack.client.ask(prompt=[1, 2, 3]),
            await stack.client.ask(CHAT, messages=[{"role": "user", "content": "x"}]),
            await stack.client.get("/v1/absent"),
        ):
            assert answer.status == 503
            assert_openai_error(answer.error, "server_error")
            assert int(answer.headers["retry-after"]) >= 1
        assert (await stack.client.get("/health")).status == 200
        ready = await stack.client.get("/ready")
        assert (ready.status, ready.body["ready"]) == (503, False)


async def test_errors_of_our_own_carry_the_request_id(stack: Stack) -> None:
    for given in ("mine-1", None):
        headers = {"x-request-id": given} if given else {}
        answer = await stack.client.ask(model="nobody", headers=headers)
        assert answer.status == 404
        assert answer.request_id == given if given else answer.request_id
