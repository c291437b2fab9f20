"""Bodies of answers, sans I/O: what of an engine's bytes goes on to the client, and where the body ends.

Invariant: however the bytes are cut into pieces, what goes on is the same, and `ended` turns true with the body's last
byte. Bytes behind the end never go on.
"""

from __future__ import annotations

from typing import Protocol

import httptools

from warmroute.edge.http.head import Framing
from warmroute.errors import EngineError

# The parser gets this head instead of the engine's; `close` makes it refuse bytes behind the message's end.
_CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"


class Body(Protocol):
    """One answer's body, piece by piece."""

    ended: bool
    excess: bool
    """Whether bytes came behind the end: the engine's connection cannot be trusted with another request."""
    ends_by_close: bool
    """Whether a clean close by the engine is the body's regular end."""

    def take(self, data: bytes) -> bytes:
        """What goes on to the client of the next bytes from the engine. Raises EngineError if they are malformed."""
        ...


class _Message:
    """What the parser calls back: apart from the body, so that no reference cycle is left for the collector."""

    __slots__ = ("ended",)

    def __init__(self) -> None:
        self.ended = False

    def on_message_complete(self) -> None:
        self.ended = True


class _CollectedMessage(_Message):
    __slots__ = ("_pieces",)

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__()
        self._pieces = pieces

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)


class LengthBody:
    """A body of so many bytes."""

    __slots__ = ("_left", "ended", "excess")
    ends_by_close = False

    def __init__(self, length: int) -> None:
        self._left = length
        self.ended = length == 0
        self.excess = False

    def take(self, data: bytes) -> bytes:
        """Everything, up to the length."""
        left = self._left
        self._left = left - len(data)
        if self._left > 0:
            return data
        self.ended = True
        if self._left < 0:
            self.excess = True
            self._left = 0
            return data[:left]
        return data


class ChunkedBody:
    """A chunked body that goes on as it is: the parser only tells where it ends."""

    __slots__ = ("_message", "_parser", "ended")
    ends_by_close = False
    excess = False  # refused instead: where the end lies in the bytes is not known

    def __init__(self) -> None:
        self._message: _Message = _Message()
        self._parser = self._begin()
        self.ended = False

    def _begin(self) -> httptools.HttpResponseParser:
        parser = httptools.HttpResponseParser(self._message)
        parser.feed_data(_CHUNKED_HEAD)
        return parser

    def take(self, data: bytes) -> bytes:
        """Everything, if it is well formed."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise EngineError(f"a malformed chunk: {error}") from error
        self.ended = self._message.ended
        return data


class DechunkedBody(ChunkedBody):
    """A chunked body whose bare data goes on, for HTTP/1.0 clients, which do not know chunks."""

    __slots__ = ("_pieces",)

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        super().__init__()

    def _begin(self) -> httptools.HttpResponseParser:
        self._message = _CollectedMessage(self._pieces)
        return super()._begin()

    def take(self, data: bytes) -> bytes:
        """The chunks' data."""
        super().take(data)
        found = b"".join(self._pieces)
        self._pieces.clear()
        return found


class UntilCloseBody:
    """A body that ends with the connection."""

    __slots__ = ("ended", "excess")
    ends_by_close = True

    def __init__(self) -> None:
        self.ended = self.excess = False

    def take(self, data: bytes) -> bytes:
        """Everything."""
        return data


def body_of(framing: Framing, length: int, *, chunks: bool) -> Body:
    """The body that `framing` announces; `chunks` says whether the client understands them."""
    if framing is Framing.CHUNKED:
        return ChunkedBody() if chunks else DechunkedBody()
    return UntilCloseBody() if framing is Framing.UNTIL_CLOSE else LengthBody(length)
