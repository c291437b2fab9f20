"""One client's connection: requests in, one at a time and in order, answers out.

Invariant: bytes are parsed strictly; what is ambiguous is refused and the connection closed, so an engine never sees a
message that somebody in between could have read in another way. Of each message one reader takes all: `plain`, if the
head is whole and such that it could not be refused, else the parser. At most one exchange runs; a pipelined request
waits, and nothing more is read meanwhile.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Mapping
from typing import Final, Protocol, cast

import httptools

from warmroute.config.tree import GatewayConfig
from warmroute.edge.http.exchange import Exchange, Plane, Request
from warmroute.edge.http.head import CONTINUE, error_reply, origin_form, reply_bytes
from warmroute.edge.http.plain import plain, read_request
from warmroute.errors import ClientError
from warmroute.service.ports import Headers, Reply, RequestHead

_WRITE_BUFFER_BYTES_HIGH = 64 * 1024
"""With so much unsent, the engine's stream is paused."""
_WRITE_BUFFER_BYTES_LOW = 16 * 1024

DRAIN_IDLE_S = 1.0
"""While draining, a connection is closed after so long without a request: longer than any client takes to notice that
its connection has closed, or to send what it was about to."""

_LINGER_S = 2.0
"""How long a closing connection may take to deliver its last bytes, and the client to notice, before it is cut."""

_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
_FORBIDDEN = frozenset({b"CONNECT", b"TRACE"})
_CHECKED = frozenset({b"content-length", b"expect", b"host", b"transfer-encoding", b"upgrade"})


_HEADERS_OF: Final[Mapping[int, Headers]] = {
    401: ((b"WWW-Authenticate", b"Bearer"),),
    405: ((b"Allow", b", ".join(sorted(_METHODS))),),
}


class _Refused(Exception):  # noqa: N818 - not an error of ours: it leaves the parser's callbacks
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        self.reply = error_reply(status, message, code=code, headers=_HEADERS_OF.get(status, ()))


class Server(Protocol):
    """Who owns the client connections."""

    now: float
    """Coarse time in seconds."""
    config: GatewayConfig
    plane: Plane

    def opened(self, client: ClientConnection) -> None:
        """A connection was accepted."""
        ...

    def closed(self, client: ClientConnection) -> None:
        """A connection is gone."""
        ...


class ClientConnection(asyncio.Protocol):
    """One accepted connection. `deadline` counts only while no exchange runs."""

    __slots__ = (
        "_advancing", "_body", "_body_bytes", "_closing", "_config", "_continue_owed", "_headers", "_http11",
        "_in_body", "_keep_alive", "_last", "_method", "_missing_bytes", "_names", "_parser", "_parsing", "_pending",
        "_plain", "_plane", "_request", "_resumed_framing", "_server", "_target", "_unread_bytes", "deadline",
        "exchange", "paused", "transport",
    )  # fmt: skip

    transport: asyncio.Transport
    _request: Request
    """The last request that was begun."""
    _plain: Request
    """The request that lacks `_missing_bytes` of its body."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._config = server.config
        self._plane = server.plane
        self._parser = httptools.HttpRequestParser(self)
        self._pending: deque[Request | Reply] = deque()
        """Requests read and not begun, or the refusal that ends the connection."""
        self.exchange: Exchange | None = None
        self.paused = False
        self._advancing = False
        self._closing = False
        self._last = False
        """Whether the connection's last request was read: what follows is ignored."""
        self._parsing = False
        """Whether a message is under way in the parser."""
        self._missing_bytes = 0
        """Of the body of a plain request."""
        self._unread_bytes = 0
        """Bytes since the last progress of a message: what bounds heads, trailers and chunk extensions."""
        self._reset_message()

    def _reset_message(self) -> None:
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._in_body = False
        self._continue_owed = False
        self._resumed_framing = b""
        """How the body is framed that the parser will not read because of an Upgrade header."""

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES_HIGH, low=_WRITE_BUFFER_BYTES_LOW)
        self.deadline = self._server.now + self._config.keepalive_timeout_s
        self._server.opened(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        """The client is gone, and so is what ran for it."""
        self._closing = True
        self._pending.clear()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()
        del self._parser  # it points back at us: nothing that has ended is to wait for the collector of cycles
        self._server.closed(self)

    def eof_received(self) -> bool:
        """A client that shuts down its side while its request runs is taken for gone: most that do are."""
        if self.exchange is not None:
            self.transport.abort()
        return False

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self.paused = True
        if self.exchange is not None:
            self.exchange.pause()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.paused = False
        if self.exchange is not None:
            self.exchange.resume()
        elif self._pending:
            self._advance()

    def data_received(self, data: bytes) -> None:
        """Parse, then begin what was read whole."""
        if self._closing:
            return  # lingering: the refusal must not be lost to a reset for unread bytes
        if self._in_body or not self._target:
            self.deadline = self._server.now + self._config.head_timeout_s
        if not self._parsing and not self._last:
            data = self._take_plain(data)
        if data:
            self._unread_bytes += len(data)
            refusal = self._feed(data)
            if refusal is not None:
                self._refuse_next(refusal)
        if self._pending:
            self._advance()
            if self._pending:
                self.transport.pause_reading()

    def _take_plain(self, data: bytes) -> bytes:
        """Take the requests whose heads are plain, up to one that is not: what is left is for the parser."""
        config, at = self._config, 0
        if self._missing_bytes:
            self._body.append(data[: self._missing_bytes])
            at = min(self._missing_bytes, len(data))
            self._missing_bytes -= at
            if self._missing_bytes:
                return b""
            request = self._plain
            request.body = b"".join(self._body)
            del self._plain
            self._reset_message()
            self._pend(request)
        while at < len(data):
            read = read_request(data, at)
            if read is None or read.length > config.max_body_bytes or read.end > config.max_head_bytes:
                return data[at:]
            head = cast("RequestHead", read)  # it has all of one that is looked at
            try:
                if self._plane.guard is not None:
                    head = self._guarded(head)
            except _Refused as refused:
                self._refuse_next(refused.reply)
                break
            begin = at + read.end
            at = begin + read.length
            request = Request(head, data[begin:at], True, True, plain(head))
            if len(data) < at:
                self._plain, self._missing_bytes = request, at - len(data)
                self._target, self._in_body, self._body = read.target, True, [request.body]
                break
            self._pend(request)
        return b""

    def _feed(self, data: bytes) -> Reply | None:
        """What is to be answered if `data` must be refused."""
        reply: Reply | None = None
        try:
            self._parser.feed_data(data)
            if self._unread_bytes > self._config.max_head_bytes:
                reply = error_reply(431, f"Heads, trailers and chunk extensions: {self._config.max_head_bytes} bytes.")
        except httptools.HttpParserUpgrade as upgrade:
            reply = self._feed_after_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, _Refused):
                raise
            reply = error.__context__.reply
        except httptools.HttpParserInvalidMethodError:
            reply = error_reply(501, "The method of the request is not known.")
        except httptools.HttpParserError as error:
            if self._last:
                return None  # bytes behind the last request that this connection will serve
            reply = error_reply(400, f"The request is not valid HTTP/1.1: {error}.")
        return reply

    def _feed_after_upgrade(self, rest: bytes) -> Reply | None:
        """Read on in HTTP/1.1, which we do not leave; the first parser takes what follows for another protocol."""
        self._parser = httptools.HttpRequestParser(self)
        if self._resumed_framing:
            target = self._target
            self._parser.feed_data(b"POST * HTTP/1.1\r\n%b\r\n\r\n" % self._resumed_framing)
            self._target = target
            self._resumed_framing = b""
        return self._feed(rest) if rest else None

    # The parser's callbacks

    def on_message_begin(self) -> None:
        """The first byte of a message."""
        self._parsing = True

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which is dropped."""
        if not self._in_body:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Refuse what will not be served before its body is read."""
        if self._in_body:
            return  # the head that resumes a body after an ignored upgrade
        parser = self._parser
        version, method = parser.get_http_version(), parser.get_method()
        if method not in _METHODS:
            raise _Refused(405 if method in _FORBIDDEN else 501, f"The method {method.decode()} is not served.")
        if version not in {"1.1", "1.0"}:
            raise _Refused(505, f"HTTP/{version} is not served; use HTTP/1.1.")
        if self._unread_bytes > self._config.max_head_bytes:
            size = len(self._target) + sum(len(name) + len(value) + 4 for name, value in self._headers)
            if size > self._config.max_head_bytes:
                raise _Refused(431, f"The request's head is larger than {self._config.max_head_bytes} bytes.")
        if not self._target.startswith(b"/"):
            self._target = origin_form(self._target)
        if self._plane.guard is not None:
            self._headers = list(self._guarded(RequestHead(method, self._target, tuple(self._headers))).headers)
        self._names = names = [name.lower() for name, _ in self._headers]
        checked = [(name, self._headers[at][1]) for at, name in enumerate(names) if name in _CHECKED]
        if len(checked) != 2 or checked[0][0] != b"host" or checked[1][0] != b"content-length":
            self._check_rare(checked, version)
        elif len(checked[1][1]) > 18 or int(checked[1][1]) > self._config.max_body_bytes:
            raise self._body_too_large()
        self._method, self._http11 = method, version == "1.1"
        self._keep_alive = self._http11 and parser.should_keep_alive()
        self._in_body = True
        self._unread_bytes = 0

    def _guarded(self, head: RequestHead) -> RequestHead:
        guard = self._plane.guard
        try:
            return head if guard is None else guard.admit(head)
        except ClientError as error:
            raise _Refused(error.status, error.message, error.code) from None

    def _check_rare(self, checked: list[tuple[bytes, bytes]], version: str) -> None:
        """The headers that frame or aim a request, where they are not simply one Host and one Content-Length."""
        fields = dict(checked)
        if len(fields) < len(checked):
            raise _Refused(400, "The request repeats a header that may come only once.")
        if b"host" not in fields and version == "1.1":
            raise _Refused(400, "The request has no Host header.")
        coding = fields.get(b"transfer-encoding")
        if coding is not None and version == "1.0":
            raise _Refused(400, "HTTP/1.0 has no Transfer-Encoding.")
        if coding is not None and coding.lower() != b"chunked":
            raise _Refused(501, "The only transfer coding that is served is chunked.")
        length = fields.get(b"content-length", b"0")
        if len(length) > 18 or int(length) > self._config.max_body_bytes:
            raise self._body_too_large()
        if self._parser.should_upgrade() and (coding is not None or int(length)):
            self._resumed_framing = b"Content-Length: " + length if coding is None else b"Transfer-Encoding: chunked"
        expect = fields.get(b"expect")
        if expect is None or version == "1.0":
            return
        if expect.lower() != b"100-continue":
            raise _Refused(417, "The only expectation that is met is 100-continue.")
        if coding is not None or int(length):
            if self.exchange is None and not self._pending:
                self.transport.write(CONTINUE)
            else:
                self._continue_owed = True

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._unread_bytes = 0
        self._body_bytes += len(data)
        if self._body_bytes > self._config.max_body_bytes:
            raise self._body_too_large()
        self._body.append(data)

    def _body_too_large(self) -> _Refused:
        return _Refused(413, f"The request's body is larger than {self._config.max_body_bytes} bytes.")

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._resumed_framing:
            return  # so thinks the parser that took the body for another protocol
        body = self._body
        whole = body[0] if len(body) == 1 else b"".join(body)
        head = RequestHead(self._method, self._target, tuple(self._headers), self._names)
        self._pend(Request(head, whole, self._keep_alive, self._http11))
        self._last = not self._keep_alive
        self._parsing = False
        self._reset_message()

    # One exchange after the other

    def _pend(self, request: Request) -> None:
        self._pending.append(request)
        self._plane.counts.requests += 1
        self._unread_bytes = 0

    def _refuse_next(self, refusal: Reply) -> None:
        self._count(refusal)
        self._pending.append(refusal)

    def _advance(self) -> None:
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._pending and self.exchange is None and not self._closing and not self.paused:
                item = self._pending.popleft()
                if isinstance(item, Reply):
                    self._refuse(item)
                    break
                self._request = item
                self.exchange = Exchange(self._plane, self, item)
                self.exchange.start()
        finally:
            self._advancing = False

    def answer(self, reply: Reply) -> None:
        """Send an answer of our own; the exchange is over."""
        close = not self._request.keep_alive or self._plane.draining
        self.transport.write(reply_bytes(reply, close=close, bodiless=self._request.head.method == b"HEAD"))
        self.finished(close=close)

    def finished(self, *, close: bool) -> None:
        """The answer was written whole; the exchange is over."""
        self.exchange = None
        self._request.body = b""  # or an idle connection would keep it
        if close:
            self._close()
            return
        timeout_s = self._config.head_timeout_s if self._target else self._config.keepalive_timeout_s
        if self._plane.draining:
            timeout_s = min(timeout_s, DRAIN_IDLE_S)
        self.deadline = self._server.now + timeout_s
        if self._pending:
            self._advance()
        if not self._pending and not self.transport.is_reading():
            self.transport.resume_reading()
        if self._continue_owed and self.exchange is None:
            self._continue_owed = False
            self.transport.write(CONTINUE)

    def cut(self, *, reset: bool) -> None:
        """The answer cannot be completed: close so that nobody takes it for whole; the exchange is over."""
        self.exchange = None
        if reset:  # a mere close would be this body's regular end
            sock: socket.socket = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._closing = True
            self.transport.abort()
        else:
            self._close()

    def expired(self) -> None:
        """The deadline passed."""
        if self._closing:
            self.transport.abort()
        elif self._target or self._unread_bytes:
            late = error_reply(408, "The request did not come in time.")
            self._count(late)
            self._refuse(late)
        else:
            self._close()

    def _count(self, refusal: Reply) -> None:
        """A request is refused before anybody could look at it."""
        self._plane.counts.refused[refusal.status] += 1
        if self._plane.log is not None:
            request_id = next(value for name, value in refusal.headers if name.lower() == b"x-request-id")
            self._plane.log.refused(refusal.status, "unreadable", None, request_id.decode("latin-1"))

    def _refuse(self, reply: Reply) -> None:
        """Answer, and read on for a moment: unread bytes would turn the close into a reset that eats the answer."""
        self.transport.write(reply_bytes(reply, close=True))
        self._closing = True
        self.deadline = self._server.now + _LINGER_S
        if self.transport.can_write_eof():
            self.transport.write_eof()
        if not self.transport.is_reading():
            self.transport.resume_reading()

    def _close(self) -> None:
        self._closing = True
        self.deadline = self._server.now + _LINGER_S
        self.transport.close()
