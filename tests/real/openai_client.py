"""An OpenAI client for the tests: what was answered, by whom, what was predicted and what was reported."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, a stream's events put together."""

    status: int
    headers: dict[str, str]
    body: Json
    raw: bytes = b""
    events: int = 0
    """How many server-sent events came, `[DONE]` included."""
    done: bool = True
    """Whether it came to its regular end."""
    broken: str = field(default="")
    """What ended it otherwise."""

    @property
    def worker(self) -> str:
        """The engine that served it."""
        return self.headers["x-warmroute-worker"]

    @property
    def request_id(self) -> str:
        """By which the gateway knows its decision."""
        return self.headers.get("x-request-id", "")

    @property
    def predicted(self) -> int:
        """Prompt tokens that the gateway expected to be cached."""
        return int(self.headers["x-warmroute-overlap-tokens"])

    @property
    def reported(self) -> int:
        """Prompt tokens that the engine found cached."""
        details = self.body["usage"]["prompt_tokens_details"]
        return int(details["cached_tokens"]) if details else 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return int(self.body["usage"]["prompt_tokens"])

    @property
    def text(self) -> str:
        """What was generated."""
        choice = self.body["choices"][0]
        return str((choice.get("message") or {}).get("content") or choice.get("text") or "")


class Client:
    """Speaks to a gateway or to an engine; use as `async with`. Waits for `before` before each request."""

    def __init__(self, url: str, before: Callable[[], Awaitable[None]] | None = None) -> None:
        self._url = url
        self._before = before

    async def __aenter__(self) -> Self:
        connections = aiohttp.TCPConnector(limit=0)
        self.http = aiohttp.ClientSession(self._url, connector=connections, timeout=aiohttp.ClientTimeout(90))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.http.close()

    async def ask(self, path: str, body: Json, **headers: str) -> Answer:
        """One request, streamed if its body says so. A stream that breaks after it began is an answer, too.

        `headers` are written with underscores.
        """
        if self._before is not None:
            await self._before()
        body = {"model": "tiny", "temperature": 0, **body}
        if body.get("stream"):
            return await self._stream(path, {**body, "stream_options": {"include_usage": True}})
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.http.post(path, json=body, headers=sent) as answer:
            raw = await answer.read()
            return Answer(answer.status, _headers(answer), json.loads(raw), raw)

    async def get(self, path: str) -> Answer:
        """One GET."""
        async with self.http.get(path) as answer:
            raw = await answer.read()
            return Answer(answer.status, _headers(answer), json.loads(raw), raw)

    async def _stream(self, path: str, body: Json) -> Answer:
        lines: list[bytes] = []
        broken = ""
        async with self.http.post(path, json=body) as answer:
            try:
                lines.extend([line async for line in answer.content])
            except (aiohttp.ClientPayloadError, ConnectionError) as error:
                broken = repr(error)
            status, headers = answer.status, _headers(answer)
        datas = [line[6:].strip() for line in lines if line.startswith(b"data: ")]
        done = bool(datas) and datas[-1] == b"[DONE]"
        merged: Json = {"choices": [{"text": ""}]} if status == 200 else json.loads(b"".join(lines))
        for data in datas[:-1] if done else datas:
            event = json.loads(data)
            for choice in event["choices"]:
                merged["choices"][0]["text"] += (choice.get("delta") or {}).get("content") or choice.get("text") or ""
            if event.get("usage"):
                merged["usage"] = event["usage"]
        return Answer(status, headers, merged, b"".join(lines), len(datas), done, broken)


def _headers(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.headers.items()}
