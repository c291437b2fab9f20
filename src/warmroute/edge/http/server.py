"""The HTTP front: accepts clients, watches their deadlines with one coarse sweep, and drains.

Invariant: every accepted connection is in `clients` until it is gone, so a drain knows when it is done and a close
leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from typing import Any

from warmroute.config.tree import GatewayConfig
from warmroute.edge.http.client import DRAIN_IDLE_S, ClientConnection
from warmroute.edge.http.counts import Counts
from warmroute.edge.http.exchange import Plane
from warmroute.edge.http.upstream import EnginePool
from warmroute.errors import ConfigError
from warmroute.service.ports import GatewayService, Guard

_BACKLOG = 4096
"""Connections the kernel keeps for us while the loop is busy: bursts of clients must not be refused."""

_SWEEP_S = 1.0


class HttpServer:
    """Serves `service` to HTTP clients on the running event loop."""

    def __init__(
        self,
        service: GatewayService,
        config: GatewayConfig,
        *,
        guard: Guard | None = None,
        tls: ssl.SSLContext | None = None,
        engine_tls: ssl.SSLContext | None = None,
        counts: Counts | None = None,
    ) -> None:
        self.config = config
        self.counts = Counts() if counts is None else counts
        self.pool = EnginePool(config.connect_timeout_s, self.counts, engine_tls)
        self.plane = Plane(service, self.pool, self.counts, guard)
        self._tls = tls
        self.clients: set[ClientConnection] = set()
        self.now = 0.0
        self._servers: list[asyncio.Server] = []
        self._sweeping: asyncio.TimerHandle | None = None
        self._empty: asyncio.Future[None] | None = None
        self._sweep_s = _sweep_s(config)

    def reconfigure(self, config: GatewayConfig) -> None:
        """Take up what is configured now but for the address; connections that are open keep their limits."""
        self.config = config
        self.pool.connect_timeout_s = config.connect_timeout_s
        self._sweep_s = _sweep_s(config)

    async def start(self, sockets: Sequence[socket.socket] = ()) -> int:
        """Listen, on these if there are any; the port. Raises ConfigError if the address cannot be had."""
        self._sweep()
        config = self.config
        addresses: list[dict[str, Any]] = [{"sock": each} for each in sockets]
        try:
            for address in addresses or [{"host": config.host, "port": config.port}]:
                server = await asyncio.get_running_loop().create_server(
                    lambda: ClientConnection(self),
                    backlog=_BACKLOG,
                    ssl=self._tls,
                    ssl_handshake_timeout=config.head_timeout_s if self._tls else None,
                    **address,
                )
                self._servers.append(server)
        except OSError as error:
            self._stop_sweeping()
            problem = f"cannot listen on {config.host}:{config.port}: {error}"
            raise ConfigError("gateway.port", problem, "Choose another one.") from error
        listening: socket.socket = self._servers[0].sockets[0]
        port: int = listening.getsockname()[1]
        return port

    async def drain(self) -> None:
        """Accept nothing more, and give what runs `drain_timeout_s` before it is cut.

        A client that does not know yet may send one more request on a connection that it holds open: it is served, and
        told to close. Who sends nothing for `DRAIN_IDLE_S` is closed.
        """
        self._stop_accepting()
        self.plane.draining = True
        idle_s = min(DRAIN_IDLE_S, self.config.drain_timeout_s)
        self._sweep_s = min(self._sweep_s, idle_s / 4)
        self._stop_sweeping()
        self._sweep()
        for client in self.clients:
            client.deadline = min(client.deadline, self.now + idle_s)
        if self.clients:
            self._empty = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._empty], timeout=self.config.drain_timeout_s)
        self.counts.cut_by_drain += len(self.clients)
        await self.close()

    async def close(self) -> None:
        """Cut everything at once and release every socket."""
        self._stop_accepting()
        self.plane.draining = True
        for client in list(self.clients):
            client.transport.abort()
        if self.clients:
            self._empty = asyncio.get_running_loop().create_future()
            await self._empty
        self._stop_sweeping()
        await self.pool.close()

    def opened(self, client: ClientConnection) -> None:
        """A connection was accepted."""
        self.clients.add(client)
        self.counts.clients += 1

    def closed(self, client: ClientConnection) -> None:
        """A connection is gone."""
        self.clients.discard(client)
        if not self.clients and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time()
        for client in list(self.clients):
            if client.exchange is not None:
                client.exchange.sweep(self.now, self.config, paused=client.paused)
            elif self.now >= client.deadline:
                client.expired()
        self.pool.sweep(self.now)
        self._sweeping = loop.call_later(self._sweep_s, self._sweep)

    def _stop_sweeping(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()

    def _stop_accepting(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()


def _sweep_s(config: GatewayConfig) -> float:
    timeouts_s = (config.head_timeout_s, config.keepalive_timeout_s, config.first_byte_timeout_s, config.idle_timeout_s)
    return min(_SWEEP_S, *(timeout_s / 4 for timeout_s in timeouts_s))
