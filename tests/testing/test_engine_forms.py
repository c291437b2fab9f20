"""The simulated engine's messages and responses: other words for a chat, and for what its cache had."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from warmroute.core.usage import prompt_tokens
from warmroute.testing.engine import EngineOptions, SimulatedEngine

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
TALK = [{"role": "user", "content": "where is the cache that knows me, and is it warm enough"}]
BODIES: dict[str, dict[str, Any]] = {
    MESSAGES: {"system": "be brief", "messages": TALK, "max_tokens": 4},
    RESPONSES: {"instructions": "be brief", "input": TALK, "max_output_tokens": 4},
}
SAME = {"messages": [{"role": "system", "content": "be brief"}, *TALK], "max_tokens": 4}


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with SimulatedEngine(EngineOptions(model="tiny")) as engine, aiohttp.ClientSession(engine.url) as session:
        yield session


async def ask(client: aiohttp.ClientSession, path: str, **body: Any) -> tuple[int, bytes]:
    async with client.post(path, json={"model": "tiny", **body}) as response:
        return response.status, await response.read()


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
async def test_the_prompt_is_that_of_the_chat(client: aiohttp.ClientSession, path: str) -> None:
    chat = json.loads((await ask(client, CHAT, **SAME))[1])
    status, raw = await ask(client, path, **BODIES[path])
    usage = json.loads(raw)["usage"]
    assert status == 200
    assert prompt_tokens(raw) == chat["usage"]["prompt_tokens"]
    warm = usage["cache_read_input_tokens"] if path == MESSAGES else usage["input_tokens_details"]["cached_tokens"]
    assert warm == (chat["usage"]["prompt_tokens"] - 1) // 16 * 16 > 0
    assert usage["output_tokens"] == 4
    assert chat["choices"][0]["message"]["content"] in raw.decode()


@pytest.mark.parametrize(("path", "last"), [(MESSAGES, "message_stop"), (RESPONSES, "response.completed")])
async def test_a_stream_says_the_same(client: aiohttp.ClientSession, path: str, last: str) -> None:
    await ask(client, path, **BODIES[path])
    whole = (await ask(client, path, **BODIES[path]))[1]
    raw = (await ask(client, path, **BODIES[path], stream=True))[1]
    events = [block.split(b"\ndata: ") for block in raw.split(b"\n\n") if block]
    assert [name for name, data in events] == [b"event: " + json.loads(data)["type"].encode() for _, data in events]
    deltas = [json.loads(data).get("delta") for _, data in events]
    texts = [delta if isinstance(delta, str) else delta.get("text", "") for delta in deltas if delta]
    body = json.loads(whole)
    told = body["content"] if path == MESSAGES else body["output"][0]["content"]
    assert "".join(texts) == told[0]["text"]
    assert events[-1][0] == b"event: " + last.encode()
    assert prompt_tokens(raw) == prompt_tokens(whole)


async def test_what_it_does_not_understand_it_says(client: aiohttp.ClientSession) -> None:
    status, raw = await ask(client, RESPONSES, input="x", previous_response_id="resp_1")
    assert (status, json.loads(raw)["error"]["code"]) == (501, 501)
    hidden = {"tool_choice": {"type": "none"}, "tools": [{"name": "f", "input_schema": {}}]}
    status, raw = await ask(client, MESSAGES, messages=TALK, max_tokens=1, **hidden)
    assert (status, json.loads(raw)["type"], set(json.loads(raw)["error"])) == (501, "error", {"type", "message"})


async def test_an_answer_that_came_to_its_end() -> None:
    options = EngineOptions(model="tiny", output_tokens=3)
    async with SimulatedEngine(options) as engine, aiohttp.ClientSession(engine.url) as client:
        body = json.loads((await ask(client, RESPONSES, input="x"))[1])
        assert (body["status"], body["usage"]["output_tokens"]) == ("completed", 3)
        assert body["output"][0]["status"] == "completed"
