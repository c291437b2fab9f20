"""Messages between the control process and a process that serves, over a pair of Unix sockets.

Framing is sans I/O: a length of four bytes, then the message. The serving side is a protocol on its event loop, the
control side a selector's.

Invariant: the end of the channel is told exactly once; what came whole before it, is.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from typing import cast

import msgspec

from warmroute.service.fellows import Message

_LENGTH_BYTES = 4
_READ_BYTES = 1 << 18

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


def framed(message: Message) -> bytes:
    """A message as it goes over a channel."""
    body = _encode(message)
    return len(body).to_bytes(_LENGTH_BYTES) + body


class Frames:
    """Cuts what comes over a channel into messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are whole by now."""
        self._data += data
        while len(self._data) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(self._data[:_LENGTH_BYTES])
            if len(self._data) < end:
                return
            message = _decode(bytes(self._data[_LENGTH_BYTES:end]))
            del self._data[:end]
            yield message


class Channel(asyncio.Protocol):
    """The serving side."""

    def __init__(self, took: Callable[[Message], None], ended: Callable[[], None]) -> None:
        self._frames = Frames()
        self._took = took
        self._ended = ended
        self._transport: asyncio.Transport | None = None

    async def open(self, end: socket.socket) -> None:
        """Use this end of the pair."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=end)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Hand on what is whole."""
        for message in self._frames.feed(data):
            self._took(message)

    def connection_lost(self, _exc: Exception | None) -> None:
        """The control process is gone."""
        self._ended()

    def send(self, message: Message) -> None:
        """Say something to the control process."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(framed(message))


class ControlEnd:
    """The control process's side: never blocks; what cannot be written now waits."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self.socket = end
        self._frames = Frames()
        self._unsent = bytearray()

    @property
    def waiting(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._unsent)

    def send(self, message: Message) -> None:
        """Say something; a process that is gone does not hear it."""
        self._unsent += framed(message)
        self.flush()

    def flush(self) -> None:
        """Write what can be."""
        try:
            while self._unsent:
                del self._unsent[: self.socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()

    def receive(self) -> list[Message] | None:
        """What has come; None: the channel has ended."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            return None
        return list(self._frames.feed(data)) if data else None
