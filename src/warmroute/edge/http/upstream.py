"""Connections to the engines: kept alive, reused last in first out, closed before the engine would close them.

Invariant: a connection is either idle in its pool, with nothing to read and nothing left to write, or owned by exactly
one exchange. Bytes or an end that come while it is idle remove it at once.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Protocol, cast

from warmroute.edge.http.counts import Counts
from warmroute.errors import EXHAUSTED
from warmroute.types import Endpoint

IDLE_MAX_S = 3.5
"""Idle connections are closed after so long, give or take a sweep: uvicorn, under vLLM and SGLang, closes them after
5 s, and a request sent at that very moment would be lost."""

# A host that vanished without a word is noticed after 15 + 3 * 5 s instead of never: answers may take minutes.
_KEEPALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


_RECEIVE_BUFFER_BYTES = 64 * 1024
"""Of an engine's connection, in the kernel, which doubles it: what comes of a stream that nobody reads stays with the
engine. By itself it would grow to tens of MiB, and what one read brings, with it."""


class EngineUser(Protocol):
    """Who uses an engine connection: an exchange."""

    def connected(self, engine: EngineConnection) -> None:
        """A fresh connection that was asked for is there."""
        ...

    def connect_failed(self, reason: str, *, here: bool = False) -> None:
        """It could not be made in time; `here`: since this machine has no socket for it."""
        ...

    def engine_closed(self, *, clean: bool) -> None:
        """The engine closed the connection, cleanly or by a reset."""
        ...


class EngineConnection(asyncio.Protocol):
    """One connection to one engine."""

    __slots__ = ("_paused", "_pool", "authority", "endpoint", "idle_since", "receive", "reused", "transport", "user")

    def __init__(self, pool: EnginePool, endpoint: Endpoint) -> None:
        self._pool = pool
        self.endpoint = endpoint
        self.authority = endpoint.authority.encode()
        self.user: EngineUser | None = None
        self.receive: Callable[[bytes], None] = self._unasked
        """Takes the bytes that come: the state of the exchange that owns this connection."""
        self.reused = False
        self.idle_since = 0.0
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready to be used."""
        self.transport = cast("asyncio.Transport", transport)
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        for option, value in _KEEPALIVE:
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def data_received(self, data: bytes) -> None:
        """Hand on."""
        self.receive(data)

    def eof_received(self) -> bool:
        """The engine is done: nothing that is left to write would be answered."""
        self.transport.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the exchange, or leave the pool."""
        user = self.user
        self._detach()
        self.receive = _ignore  # no method of ours: what has ended is not to wait for the collector of cycles
        if user is not None:
            user.engine_closed(clean=exc is None)
        else:
            self._pool.discard(self)

    def pause_reading(self) -> None:
        """Stop taking the answer from the engine: the client is slower."""
        if not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Take on."""
        if self._paused:
            self._paused = False
            self.transport.resume_reading()

    def release(self) -> None:
        """The exchange is over and the connection may serve another one."""
        transport = self.transport
        if self._paused:
            self.resume_reading()
        if transport.is_closing() or transport.get_write_buffer_size():
            self.abort()  # an answer before the request was written whole: the rest must not become the next request
        else:
            self._detach()
            self._pool.put(self)

    def abort(self) -> None:
        """Close at once: an engine that is computing sees its client gone."""
        self._detach()
        self.transport.abort()

    def attach(self, user: EngineUser, receive: Callable[[bytes], None]) -> None:
        """Belong to one exchange from now on."""
        self.user = user
        self.receive = receive

    def _detach(self) -> None:
        self.user = None
        self.receive = self._unasked

    def _unasked(self, _data: bytes) -> None:
        self.transport.abort()  # bytes nobody asked for: the next answer could not be told from them


def _ignore(_data: bytes) -> None:
    pass


class EnginePool:
    """The connections to all engines."""

    def __init__(self, connect_timeout_s: float, counts: Counts, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.connect_timeout_s = connect_timeout_s
        self._counts = counts
        self._idle: dict[str, list[EngineConnection]] = {}  # by URL: an endpoint's own hash is computed in Python
        self._tasks: set[asyncio.Task[None]] = set()
        self.now = 0.0
        """Coarse time in seconds, set by every sweep."""

    def __len__(self) -> int:
        return sum(map(len, self._idle.values()))

    def take(self, endpoint: Endpoint) -> EngineConnection | None:
        """The idle connection to an engine that was used last, or None."""
        idle = self._idle.get(endpoint.url)
        while idle:
            engine = idle.pop()
            if not engine.transport.is_closing():
                engine.reused = True
                return engine
        return None

    def put(self, engine: EngineConnection) -> None:
        """Keep for the next request."""
        engine.idle_since = self.now
        idle = self._idle.get(engine.endpoint.url)
        if idle is None:
            idle = self._idle[engine.endpoint.url] = []
        idle.append(engine)

    def discard(self, engine: EngineConnection) -> None:
        """Forget a connection that ended; it need not be known here."""
        idle = self._idle.get(engine.endpoint.url, [])
        if engine in idle:
            idle.remove(engine)

    def connect(self, endpoint: Endpoint, user: EngineUser) -> asyncio.Task[None]:
        """Make a fresh connection for `user`; cancel the task if it is not wanted any more."""
        task = asyncio.get_running_loop().create_task(self._connect(endpoint, user))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _connect(self, endpoint: Endpoint, user: EngineUser) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.connect_timeout_s):
                _, engine = await loop.create_connection(
                    lambda: EngineConnection(self, endpoint),
                    endpoint.host,
                    endpoint.port,
                    ssl=(self._tls or True) if endpoint.tls else None,
                )
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that cannot be one
            self._counts.connect_failures += 1
            reason = "timed out" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            user.connect_failed(reason, here=isinstance(error, OSError) and error.errno in EXHAUSTED)
            return
        self._counts.engine_connections += 1
        if engine.transport.is_closing():
            user.connect_failed("closed the connection at once")
        else:
            user.connected(engine)

    def sweep(self, now: float) -> None:
        """Close what has been idle for too long. The oldest are first: last in, first out."""
        self.now = now
        for url, idle in list(self._idle.items()):
            kept = [engine for engine in idle if now - engine.idle_since < IDLE_MAX_S]
            for engine in idle:
                if now - engine.idle_since >= IDLE_MAX_S:
                    engine.abort()
            if kept:
                self._idle[url] = kept
            else:
                del self._idle[url]

    async def close(self) -> None:
        """Close all idle connections and give up those being made."""
        for engine in [engine for idle in self._idle.values() for engine in idle]:
            engine.abort()
        self._idle.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
