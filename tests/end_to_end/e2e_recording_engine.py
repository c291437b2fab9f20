"""An engine that keeps every byte it is sent and answers the least that a gateway needs: for what must be verbatim."""

from __future__ import annotations

import asyncio
import json
from typing import Self

_ANSWERS = {
    "/health": b"",
    "/v1/models": json.dumps({"object": "list", "data": [{"id": "tiny"}]}).encode(),
    "/tokenize": json.dumps({"count": 3, "tokens": [1, 2, 3]}).encode(),
}
ANSWER = b'{"choices": [ ] ,"usage":{"big":123456789012345678901234567890,"float":1.10}}'
"""What it answers to all else: JSON that a parser and a writer would not give back as it is."""
PROBES = frozenset({"/health", "/metrics", "/version", "/kv_event_sources", "/v1/models", "/tokenize"})


class RecordingEngine:
    """Use as `async with`; `requests` holds (head, body) of all but what a gateway asks by itself."""

    def __init__(self) -> None:
        self.requests: list[tuple[bytes, bytes]] = []
        self.status = b"200 OK"
        """Of its answers, but for what a gateway asks by itself."""
        self.headers = b""
        """Header lines of the same."""
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
                body = await reader.readexactly(int(fields.get(b"content-length", 0)))
                path = head.split()[1].decode()
                if path not in PROBES:
                    self.requests.append((head, body))
                    told = b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b"
                    writer.write(told % (self.status, self.headers, len(ANSWER), ANSWER))
                    continue
                answer = _ANSWERS.get(path, b"")
                status = b"200 OK" if path in _ANSWERS else b"404 Not Found"
                writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(answer), answer))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
