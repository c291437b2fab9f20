"""An engine of endless streams: silent ones by the thousand, and floods that only the reader's pace holds back.

What a request's `user` says is what it gets: `silent` nothing at all, `idle` one event and then silence until
`release`, `flood` events as fast as they are taken, up to `FLOOD_BYTES`; anything else a short JSON answer at once.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Self, cast

FLOOD_BYTES = 64 * 1024 * 1024
_EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'
_CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
_FLOOD = b"%x\r\n%b\r\n" % (len(_EVENT) * 512, _EVENT * 512)
_END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_MODELS = json.dumps({"object": "list", "data": [{"id": "tiny"}]}).encode()
_ANSWER = (
    b'{"object":"chat.completion","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
)
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)


class StreamEngine:
    """Use as `async with`; `url` is what a gateway is told."""

    def __init__(self) -> None:
        self.idle: set[StreamConnection] = set()
        """Connections whose stream is silent."""
        self.silent: set[StreamConnection] = set()
        """Connections whose request has no answer."""
        self.flooding: set[StreamConnection] = set()
        self.connections: set[StreamConnection] = set()
        self.flooded_bytes = 0

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: StreamConnection(self), "127.0.0.1", 0, backlog=4096)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in list(self.connections):
            connection.transport.abort()

    def release(self) -> None:
        """Bring all silent streams to their regular end."""
        for connection in self.idle:
            connection.transport.write(_END)
        self.idle.clear()


class StreamConnection(asyncio.Protocol):
    """One connection of a gateway."""

    __slots__ = ("_buffer", "_engine", "_left", "_writable", "transport")

    def __init__(self, engine: StreamEngine) -> None:
        self._engine = engine
        self._buffer = b""
        self._left = 0
        self._writable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for requests."""
        self.transport = cast("asyncio.Transport", transport)
        self._engine.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the loop's
        """Whatever was running is over."""
        for known in (self._engine.connections, self._engine.idle, self._engine.silent, self._engine.flooding):
            known.discard(self)

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n") + 4) >= 4:
            length = _LENGTH.search(self._buffer, 0, end)
            size = end + (int(length[1]) if length else 0)
            if len(self._buffer) < size:
                return
            head, body, self._buffer = self._buffer[:end], self._buffer[end:size], self._buffer[size:]
            self._answer(head.split(b" ", 2)[1], body)

    def pause_writing(self) -> None:
        """The gateway takes no more."""
        self._writable = False

    def resume_writing(self) -> None:
        """It does again."""
        self._writable = True
        self._flood()

    def _answer(self, path: bytes, body: bytes) -> None:
        if not body:
            known = {b"/health": b"", b"/v1/models": _MODELS}
            self._whole(b"200 OK" if path in known else b"404 Not Found", known.get(path, b""))
        elif b'"flood"' in body:
            self.transport.write(_STREAM_HEAD)
            self._left = FLOOD_BYTES
            self._engine.flooding.add(self)
            self._flood()
        elif b'"idle"' in body:
            self.transport.write(_STREAM_HEAD + _CHUNK)
            self._engine.idle.add(self)
        elif b'"silent"' in body:
            self._engine.silent.add(self)
        else:
            self._whole(b"200 OK", _ANSWER)

    def _whole(self, status: bytes, body: bytes) -> None:
        head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self.transport.write(head % (status, len(body)) + body)

    def _flood(self) -> None:
        while self._left > 0 and self._writable and not self.transport.is_closing():
            self._left -= len(_FLOOD)
            self._engine.flooded_bytes += len(_FLOOD)
            self.transport.write(_FLOOD)
            if self._left <= 0:
                self._engine.flooding.discard(self)
                self.transport.write(_END)
