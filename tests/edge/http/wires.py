"""A gateway between a raw client and raw engines: every byte on both sides is in the test's hands."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from warmroute.config.tree import GatewayConfig
from warmroute.edge.http.server import HttpServer
from warmroute.service.ports import GatewayService
from warmroute.testing.http import StaticDispatch, StaticService
from warmroute.types import Endpoint

JSON = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{"ok":true}'


async def until(true: Callable[[], object]) -> None:
    """Wait for what the event loop is about to do; the test's timeout is the deadline."""
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - what is waited for has no event to offer
            await asyncio.sleep(0.001)


class Wire:
    """One raw connection, at either end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(60):
            return await self.reader.readuntil(mark)

    async def exactly(self, size: int) -> bytes:
        async with asyncio.timeout(60):
            return await self.reader.readexactly(size)

    async def rest(self) -> bytes:
        async with asyncio.timeout(60):
            return await self.reader.read()

    async def message(self) -> tuple[bytes, bytes]:
        """Head and body of one message with a length."""
        head = await self.until(b"\r\n\r\n")
        fields = dict(line.lower().replace(b" ", b"").split(b":", 1) for line in head.split(b"\r\n")[1:] if line)
        return head, await self.exactly(int(fields.get(b"content-length", b"0")))

    def abort(self) -> None:
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()


@dataclass
class Engine:
    """A server whose every connection is handed to the test."""

    endpoint: Endpoint
    accepted: asyncio.Queue[Wire] = field(default_factory=asyncio.Queue)
    connections: int = 0

    async def accept(self) -> Wire:
        async with asyncio.timeout(60):
            return await self.accepted.get()


@dataclass
class World:
    """What one test starts; everything is stopped at its end."""

    cleanups: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)

    async def engine(self) -> Engine:
        engine = Engine(Endpoint("127.0.0.1", 0))

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            engine.connections += 1
            wire = Wire(reader, writer)
            self.wires.append(wire)
            engine.accepted.put_nowait(wire)

        server = await asyncio.start_server(accepted, "127.0.0.1", 0)
        engine.endpoint = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])

        async def stop() -> None:
            server.close()

        self.cleanups.append(stop)
        return engine

    async def gateway(self, service: GatewayService, **config: Any) -> tuple[HttpServer, int]:
        server = HttpServer(service, GatewayConfig(port=0, **config))
        port = await server.start()
        self.cleanups.append(server.close)
        return server, port

    async def client(self, port: int) -> Wire:
        wire = Wire(*await asyncio.open_connection("127.0.0.1", port))
        self.wires.append(wire)
        return wire

    async def stage(self, **config: Any) -> Stage:
        """One engine, the gateway and one client."""
        engine = await self.engine()
        service = StaticService([engine.endpoint])
        server, port = await self.gateway(service, **config)
        return Stage(engine, service, server, port, await self.client(port))


@dataclass
class Stage:
    engine: Engine
    service: StaticService
    server: HttpServer
    port: int
    client: Wire

    @property
    def dispatch(self) -> StaticDispatch:
        (dispatch,) = self.service.dispatches
        return dispatch
