"""Other forms than chats before real engines: what is predicted of them is what the engines report.

vLLM is the judge twice: `cache_read_input_tokens` and `cached_tokens` of the answers against the gateway's predictions,
and the prompts that its render endpoints show against those that are made here of the same bodies.
"""

# ruff: noqa: T201  (what was missed and why is printed: pytest shows it when a test fails)

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from form_bodies import Bodies
from gateway_process import GatewayProcess, is_live
from openai_client import Client, Json
from prompts import TOOLS, Prompts
from vllm_engine import VllmEngine

from warmroute.core import forms
from warmroute.core.forms import MESSAGES, RESPONSES
from warmroute.edge.tokenizer_local import LocalTokenizer
from warmroute.edge.tokenizer_remote import RemoteTokenizer
from warmroute.errors import TokenizeError
from warmroute.types import Endpoint

Engines = Sequence[VllmEngine]

_CACHED = re.compile(rb'"(?:cached_tokens|cache_read_input_tokens)"\s*:\s*(\d+)')


@dataclass(frozen=True, slots=True)
class Asked:
    """One request and what came of it."""

    status: int
    predicted: int
    reported: int
    raw: bytes
    request_id: str

    @property
    def text(self) -> str:
        """What was generated, of an answer that was not streamed."""
        body = json.loads(self.raw)
        parts = body["content"] if "content" in body else body["output"][0]["content"]
        return str(parts[0]["text"])


async def ask(client: Client, path: str, body: Json, **more: Any) -> Asked:
    limit = "max_tokens" if path == MESSAGES else "max_output_tokens"
    async with client.http.post(path, json={"model": "tiny", "temperature": 0, limit: 3, **body, **more}) as answer:
        raw = await answer.read()
        assert answer.status == 200, raw
        cached = _CACHED.findall(raw)
        assert cached, raw
        predicted = int(answer.headers["x-warmroute-overlap-tokens"])
        return Asked(answer.status, predicted, int(cached[-1]), raw, answer.headers["x-request-id"])


# Bodies by what they are made of: each call gives another prompt of the same kind.


def plain(path: str, prompts: Prompts) -> Json:
    text = prompts.text(60)
    return {"messages": [{"role": "user", "content": text}]} if path == MESSAGES else {"input": text}


def system(path: str, prompts: Prompts) -> Json:
    key = "system" if path == MESSAGES else "instructions"
    return {key: prompts.text(40), **plain(path, prompts)}


def talk(path: str, prompts: Prompts) -> Json:
    turns = [{"role": role, "content": prompts.text(25)} for role in ("user", "assistant", "user")]
    return {"messages" if path == MESSAGES else "input": turns}


def parts(path: str, prompts: Prompts) -> Json:
    kind = "text" if path == MESSAGES else "input_text"
    content = [{"type": kind, "text": prompts.unicode_text(30)} for _ in range(3)]
    return {"messages" if path == MESSAGES else "input": [{"role": "user", "content": content}]}


def tools(path: str, prompts: Prompts) -> Json:
    functions = [tool["function"] for tool in TOOLS]
    question, arguments, found = prompts.text(20), {"place": prompts.text(3), "n": 1.50}, prompts.text(20)
    if path == MESSAGES:
        call = {"type": "tool_use", "id": "toolu_1", "name": "find_route", "input": arguments}
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": found}]}
        turns: list[Json] = [{"role": "user", "content": question}]
        turns += [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
        offered = [{**f, "input_schema": f["parameters"], "parameters": None} for f in functions]
        return {"tools": offered, "messages": turns}
    call = {"type": "function_call", "call_id": "c1", "name": "find_route", "arguments": json.dumps(arguments)}
    result = {"type": "function_call_output", "call_id": "c1", "output": found}
    offered = [{"type": "function", **function} for function in functions]
    return {"tools": offered, "input": [{"role": "user", "content": question}, call, result]}


def thoughts(path: str, prompts: Prompts) -> Json:
    question, thought, answer, more = (prompts.text(20) for _ in range(4))
    turns: list[Json] = [{"role": "user", "content": question}]
    if path == MESSAGES:
        blocks = [{"type": "thinking", "thinking": thought, "signature": "s"}, {"type": "text", "text": answer}]
        return {"messages": [*turns, {"role": "assistant", "content": blocks}, {"role": "user", "content": more}]}
    reasoning = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": thought}]}
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": answer}]}
    return {"input": [*turns, reasoning, said, {"role": "user", "content": more}]}


KINDS: list[Callable[[str, Prompts], Json]] = [plain, system, talk, parts, tools, thoughts]


@pytest.mark.parametrize("tokenizer", ["remote", "local"])
async def test_second_requests_are_predicted_exactly(cold: Engines, tmp_path: Path, tokenizer: str) -> None:
    arguments = ("--tokenizer.path", str(cold[0].options.model)) if tokenizer == "local" else ()
    prompts, missed = Prompts(31), []
    with GatewayProcess(cold, tmp_path / "gateway.log", *arguments) as gateway:
        async with Client(gateway.url) as client:
            for path in (MESSAGES, RESPONSES):
                for kind in KINDS:
                    await ask(client, path, kind(path, prompts))  # proves the kind
                    body = kind(path, prompts)
                    asked = [await ask(client, path, body, stream=stream) for stream in (False, False, True)]
                    print(path, kind.__name__, [(each.predicted, each.reported) for each in asked])
                    # What proves a kind claims nothing: an event that comes after its answer is missed by the next.
                    early = asked[0].predicted < asked[0].reported
                    judged = asked[early:]
                    missed += [gateway.why(each.request_id) for each in judged if each.predicted != each.reported]
                    assert asked[1].reported > 0, (path, kind.__name__)
                    assert asked[2].reported > 0, (path, kind.__name__)
        assert not missed, missed
        assert all(map(is_live, gateway.workers().values()))
        text = await _metrics(gateway)
        assert 'result="different"' not in text
        assert 'result="unreported"' not in text


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
async def test_conversations_that_grow_are_predicted_exactly(gateway: GatewayProcess, path: str) -> None:
    prompts = Prompts(32)
    field = "messages" if path == MESSAGES else "input"
    async with Client(gateway.url) as client:
        await ask(client, path, talk(path, prompts))
        turns = talk(path, prompts)[field]
        for turn in range(4):
            asked = await ask(client, path, {field: turns})
            assert asked.predicted == asked.reported, gateway.why(asked.request_id)
            assert turn == 0 or asked.reported > 0
            turns += [{"role": "assistant", "content": asked.text}, {"role": "user", "content": prompts.text(15)}]


async def test_prompts_are_those_that_the_engine_renders(cold: Engines) -> None:
    """Random bodies: whatever is made of them here is what the engine itself makes of them."""
    (engine, *_), bodies, seen = cold, Bodies(33), Counter[str]()
    local = LocalTokenizer(str(engine.options.model))
    where = Endpoint("127.0.0.1", engine.port)
    async with Client(engine.url) as client:
        remote = RemoteTokenizer(client.http, engine.url, 60)
        for number in range(300):
            path = (MESSAGES, RESPONSES)[number % 2]
            body = json.dumps(bodies.messages() if path == MESSAGES else bodies.responses()).encode()
            headers = {"content-type": "application/json"}
            async with client.http.post(f"{path}/render", data=body, headers=headers) as answer:
                rendered = (await answer.json())["token_ids"] if answer.status == 200 else None
            request = forms.parse(path, body)
            assert request is not None
            assert request.opaque is None, (request.opaque, body)
            for name, tokenizer in (("local", local), ("remote", remote)):
                try:
                    made = list(await tokenizer.tokens(request, where))
                except TokenizeError as error:
                    seen[f"{path} {name} {error.reason}"] += 1
                    continue
                seen[f"{path} {name} {'refused by the engine' if rendered is None else 'made'}"] += 1
                assert rendered is None or made == rendered, (name, body, request.body)
    local.close()
    print(seen)
    assert min(seen[f"{path} {name} made"] for path in (MESSAGES, RESPONSES) for name in ("local", "remote")) > 60, seen


async def _metrics(gateway: GatewayProcess) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{gateway.url}/metrics") as answer:
        return await answer.text()
