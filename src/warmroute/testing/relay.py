"""A TCP relay that misbehaves: what stands between an engine and a gateway when a network has its day.

It listens on a port of its own and passes bytes on, unless it is told to stall (bytes wait, nobody is told), to cut
(connections are reset), to refuse (new connections are reset), to truncate (a connection ends after so many bytes, in
the middle of whatever they are) or to swallow (bytes vanish, the connection stays).
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 1 << 16


class Relay:
    """Passes connections to `host`:`port` on. Its faults may be changed at any time; they hold for all connections.

    Like this::

        async with Relay("127.0.0.1", 5557) as relay:
            ...  # connect to 127.0.0.1:relay.port
            relay.stall()
            relay.flow()
            relay.cut()
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        self.connections = 0
        """How many were ever accepted."""
        self.refusing = False
        self.swallowing = False
        self.truncate_after_bytes: int | None = None
        """How much of the engine's bytes a connection still passes on; then it ends."""
        self._target = (host, port)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stall(self) -> None:
        """Nothing moves from now on, in either direction; nobody is told."""
        self._flowing.clear()

    def flow(self) -> None:
        """Everything moves again, first what has waited."""
        self._flowing.set()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in tuple(self._open):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refusing:
            writer.transport.abort()
            return
        try:
            onward_reader, onward_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, onward_writer}
        for source, sink, limited in ((reader, onward_writer, False), (onward_reader, writer, True)):
            task = asyncio.ensure_future(self._pass(source, sink, limited=limited))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, limited: bool) -> None:
        try:
            while data := await reader.read(_CHUNK_BYTES):
                await self._flowing.wait()
                if self.swallowing:
                    continue
                if limited and self.truncate_after_bytes is not None:
                    data, left = data[: self.truncate_after_bytes], self.truncate_after_bytes - len(data)
                    self.truncate_after_bytes = max(0, left)
                    writer.write(data)
                    if left <= 0:
                        break
                else:
                    writer.write(data)
                await writer.drain()
        except OSError:
            pass  # One side is gone: so is the other.
        finally:
            self._open.discard(writer)
            if limited and self.truncate_after_bytes == 0:
                writer.close()
            else:
                writer.transport.abort()
