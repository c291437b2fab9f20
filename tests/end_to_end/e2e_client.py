"""An OpenAI client that keeps what the gateway adds, and raw sockets for what no proper client would send."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import aiohttp

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, whole or streamed."""

    status: int
    headers: Mapping[str, str]
    raw: bytes
    broken: str = ""
    """How it broke, if it did not come to its regular end."""

    @property
    def body(self) -> Json:
        """The JSON of an answer that was not streamed."""
        return dict(json.loads(self.raw))

    @property
    def events(self) -> list[Json]:
        """The server-sent events, without the closing `[DONE]`."""
        datas = [line[6:] for line in self.raw.split(b"\n") if line.startswith(b"data: ")]
        return [json.loads(data) for data in datas if data != b"[DONE]"]

    @property
    def done(self) -> bool:
        """Whether a stream came to its regular end."""
        return not self.broken and self.raw.endswith(b"data: [DONE]\n\n")

    @property
    def usage(self) -> Json:
        """What the engine reported: in the body, or in a stream's last event."""
        streamed = self.headers.get("content-type", "").startswith("text/event-stream")
        return dict((self.events[-1] if streamed else self.body)["usage"])

    @property
    def text(self) -> str:
        """What was generated."""
        streamed = self.headers.get("content-type", "").startswith("text/event-stream")
        parts = self.events if streamed else [self.body]
        return "".join(_text(choice) for part in parts for choice in part["choices"])

    @property
    def error(self) -> Json:
        """The error in OpenAI's form."""
        return dict(self.body["error"])

    @property
    def worker(self) -> str:
        """Who served it, as the gateway says."""
        return self.headers["x-warmroute-worker"]

    @property
    def predicted(self) -> int:
        """Prompt tokens that the gateway expected to be cached."""
        return int(self.headers["x-warmroute-overlap-tokens"])

    @property
    def reported(self) -> int:
        """Prompt tokens that the engine found cached."""
        return int(self.usage["prompt_tokens_details"]["cached_tokens"])

    @property
    def request_id(self) -> str:
        """By which the gateway knows its decision."""
        return self.headers["x-request-id"]


def _text(choice: Json) -> str:
    message = choice.get("message") or choice.get("delta") or {}
    return str(message.get("content") or choice.get("text") or "")


class Client:
    """Speaks to one address; use as `async with`."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=20)
        self.http = aiohttp.ClientSession(self._url, connector=aiohttp.TCPConnector(limit=0), timeout=timeout)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.http.close()

    async def ask(self, path: str = COMPLETIONS, headers: Mapping[str, str] | None = None, **body: Any) -> Answer:
        """One request for the model `tiny`, unless the body names another; streams ask for their usage."""
        body = {"model": "tiny", "max_tokens": 4, **body}
        if body.get("stream"):
            body = {"stream_options": {"include_usage": True}, **body}
        return await self.post(path, json.dumps(body).encode(), headers)

    async def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
        """One POST of these bytes."""
        return await self._send("POST", path, body, {"content-type": "application/json", **(headers or {})})

    async def get(self, path: str) -> Answer:
        """One GET."""
        return await self._send("GET", path, None, {})

    async def _send(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        raw, broken = b"", ""
        async with self.http.request(method, path, data=body, headers=headers) as response:
            try:
                async for piece in response.content.iter_any():
                    raw += piece
            except (aiohttp.ClientError, ConnectionError) as error:
                broken = repr(error)
            return Answer(
                response.status, {name.lower(): value for name, value in response.headers.items()}, raw, broken
            )


async def exchange(url: str, sent: bytes) -> bytes:
    """Send bytes over a connection of their own and read until the other side closes it."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(sent)
        async with asyncio.timeout(20):
            return await reader.read()
    finally:
        writer.close()
