"""The data plane without sockets: transports that keep what is written, and do what a test says."""

from __future__ import annotations

import asyncio
from typing import Any

from warmroute.config.tree import GatewayConfig
from warmroute.edge.http.client import ClientConnection
from warmroute.edge.http.server import HttpServer
from warmroute.edge.http.upstream import EngineConnection
from warmroute.service.ports import GatewayService
from warmroute.types import Endpoint


class FakeSocket:
    def setsockopt(self, *_: Any) -> None: ...


class FakeTransport(asyncio.Transport):
    """Keeps what is written; a close is told to the protocol when the test says so, as a loop would."""

    def __init__(self) -> None:
        super().__init__({"socket": FakeSocket()})
        self.written = b""
        self.closing = False
        self.lost = False
        self.reading = True

    def write(self, data: Any) -> None:
        if not self.closing:
            self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_reading(self) -> bool:
        return self.reading

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...


def lose(protocol: Any, exc: Exception | None) -> None:
    if not protocol.transport.lost:
        protocol.transport.lost = protocol.transport.closing = True
        protocol.connection_lost(exc)


def wired(service: GatewayService) -> tuple[HttpServer, ClientConnection, FakeTransport, list[EngineConnection]]:
    """A server with one client, its transport, and the connections to engines that are made meanwhile."""
    server = HttpServer(service, GatewayConfig())
    engines: list[EngineConnection] = []

    def connect(endpoint: Endpoint, user: Any) -> None:
        engines.append(EngineConnection(server.pool, endpoint))
        engines[-1].connection_made(FakeTransport())
        user.connected(engines[-1])

    server.pool.connect = connect  # type: ignore[method-assign,assignment]
    client, transport = ClientConnection(server), FakeTransport()
    client.connection_made(transport)
    return server, client, transport, engines
