"""The access log: one line per request, whatever became of it, and nothing that users said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from e2e_client import COMPLETIONS, exchange
from e2e_fleet import QUICK, Stack, stack_of, until
from e2e_recording_engine import RecordingEngine

from warmroute.app.gateway import running
from warmroute.config.tree import Config, EngineConfig, GatewayConfig, LogConfig, RoutingConfig
from warmroute.testing.engine import EngineOptions

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
PROMPT = list(range(300, 400))


def logged(path: Path, **gateway: Any) -> Config:
    return replace(
        QUICK,
        log=LogConfig(access=str(path)),
        routing=RoutingConfig(policy="round_robin"),
        gateway=replace(QUICK.gateway, **gateway),
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


async def line_of(path: Path, request_id: str) -> dict[str, Any]:
    """The one line of a request."""
    await until(lambda: any(line["request_id"] == request_id for line in lines(path)), "it is logged")
    (found,) = [line for line in lines(path) if line["request_id"] == request_id]
    return found


async def test_what_a_line_says(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    async with stack_of(EngineOptions(prompt_tokens_details=True), config=logged(path)) as stack:
        await stack.client.ask(prompt=PROMPT)
        answer = await stack.client.ask(
            prompt=PROMPT, stream=True, user="secret", headers={"traceparent": PARENT, "x-request-id": "mine"}
        )
        line = await line_of(path, "mine")
        assert answer.status == 200
        assert 0 < line.pop("ttft_s") <= line.pop("duration_s")
        assert line.pop("time").endswith("Z")
        assert line == {
            "process": None,
            "request_id": "mine",
            "trace_id": TRACE,
            "key": None,
            "path": COMPLETIONS,
            "model": "tiny",
            "worker": answer.worker,
            "reason": "policy",
            "status": 200,
            "outcome": "complete",
            "retries": 0,
            "prompt_tokens": 100,
            "overlap_tokens": 96,
            "cached_tokens": 96,
            "completion_tokens": 4,
        }
        assert "secret" not in path.read_text()


async def test_every_request_has_one_line_however_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    options = EngineOptions(), EngineOptions(seed=1)
    async with stack_of(*options, config=logged(path, retries=1)) as stack:
        unknown = await stack.client.ask(prompt=PROMPT, model="nobody")
        line = await line_of(path, unknown.request_id)
        assert (line["status"], line["outcome"], line["reason"]) == (404, "refused", "model_not_found")
        await refused_by_one(stack, path)
        await refused_by_all(stack, path)
        garbage = await exchange(stack.gateway.url, b"GET /x HTTP/1.1\r\nno header\r\n\r\n")
        assert garbage.startswith(b"HTTP/1.1 400 ")
        await until(lambda: lines(path)[-1]["status"] == 400, "it is logged")
        assert (lines(path)[-1]["path"], lines(path)[-1]["reason"]) == (None, "unreadable")
        assert len(lines(path)) == 5
        assert stack.gateway.log_file is not None
        assert stack.gateway.log_file.lost == 0


async def refused_by_one(stack: Stack, path: Path) -> None:
    stack.engines[0].faults.refuse_requests = 1
    answers = [await stack.client.ask(prompt=PROMPT) for _ in range(2)]  # one of them is the refusing engine's turn
    found = [await line_of(path, answer.request_id) for answer in answers]
    assert [(line["status"], line["outcome"]) for line in found] == [(200, "complete")] * 2
    assert sorted(line["retries"] for line in found) == [0, 1]


async def refused_by_all(stack: Stack, path: Path) -> None:
    for engine in stack.engines:
        engine.faults.refuse_requests = 1
    answer = await stack.client.ask(prompt=PROMPT, headers={"x-request-id": "never"})
    assert answer.status == 503
    line = await line_of(path, "never")
    assert (line["status"], line["outcome"], line["retries"]) == (503, "refused", 1)


async def test_the_trace_goes_on_as_it_came() -> None:
    body, state = b'{"model":"tiny","prompt":[1,2,3]}', b"rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
    head = b"POST /v1/completions HTTP/1.1\r\nHost: g\r\nConnection: close\r\nContent-Length: %d\r\n" % len(body)
    trace = b"TraceParent: %b\r\ntracestate: %b\r\n" % (PARENT.encode(), state)
    async with RecordingEngine() as engine:
        config = replace(QUICK, engines=(EngineConfig(url=engine.url, events=False),), gateway=GatewayConfig(port=0))
        async with running(config) as gateway:
            await until(lambda: any(w.ready for w in gateway.membership.fleet.workers), "the engine is there")
            await exchange(gateway.url, head + trace + b"\r\n" + body)
        ((received, _),) = engine.requests
        assert b"\r\n" + trace in received


async def test_a_file_that_was_moved_away_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    async with stack_of(EngineOptions(), config=logged(path)) as stack:
        await stack.client.ask(prompt=PROMPT, headers={"x-request-id": "before"})
        await line_of(path, "before")
        path.rename(tmp_path / "access.log.1")
        assert stack.gateway.log_file is not None
        stack.gateway.log_file.look()
        await stack.client.ask(prompt=PROMPT, headers={"x-request-id": "after"})
        await line_of(path, "after")
        assert [line["request_id"] for line in lines(path)] == ["after"]
