"""Message heads, sans I/O: an engine's head from bytes, and the heads to send on from the ones that came in.

Invariant: a header that is not hop-by-hop and not ours to set goes on with its bytes, case and order; a header that
frames a message is understood or the message is refused, so no two parties ever disagree where a message ends.
"""

from __future__ import annotations

import enum
import re
import secrets
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from warmroute.errors import EngineError
from warmroute.service.ports import Headers, Reply, RequestHead

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Connection may name any header as hop-by-hop; these it cannot take away: framing, target and credentials of a request.
_UNNAMEABLE = frozenset({b"authorization", b"content-length", b"content-type", b"host"})
_FRAMES = frozenset({b"connection", b"content-length", b"transfer-encoding"})
_NOT_FOR_ENGINES = _HOP_BY_HOP | {b"host", b"expect", b"http2-settings"}

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ((\d{3})(?: [^\x00-\x08\x0a-\x1f\x7f]*)?)\r\n")
_HEADER_LINES = re.compile(rb"(?:" + _TOKEN + rb"+:[^\x00-\x08\x0a-\x1f\x7f]*+\r\n)*+\r\n")

_SERVER = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Framing(enum.Enum):
    """How the end of an engine's answer is known."""

    NONE = "none"
    """There is no body: HEAD, 204, 304, or a length of 0."""
    LENGTH = "length"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until_close"


@dataclass(slots=True)
class ResponseHead:
    """An engine's answer up to its body: final (status >= 200) or interim."""

    status: int
    status_text: bytes
    """Status and reason as they came: `200 OK`."""
    lines: list[tuple[bytes, bytes]]
    """Header lines that go on, verbatim with their CRLF, each with its lower-case name."""
    framing: Framing
    length: int
    """Bytes of the body if `framing` is LENGTH, else 0."""
    keep_alive: bool
    """Whether the engine will take another request on this connection."""


def origin_form(target: bytes) -> bytes:
    """What is asked for, without the server that a target in absolute form names as well (RFC 9112, 3.2.2)."""
    server = _SERVER.match(target)
    if server is None:
        return target
    path = target[server.end() :]
    return path if path.startswith(b"/") else b"/" + path


def connection_tokens(value: bytes) -> frozenset[bytes]:
    """What a Connection header names, in lower case."""
    return frozenset(token.strip(b" \t") for token in value.lower().split(b","))


def request_bytes(head: RequestHead, body: bytes, authority: bytes, headers: Headers) -> bytes:
    """The head to send to an engine at `authority`, with `headers` set; the body follows it as it is."""
    dropped = _NOT_FOR_ENGINES.union([name.lower() for name, _ in headers])
    names = head.names
    if b"connection" in names:
        for name, (_, value) in zip(names, head.headers, strict=True):
            if name == b"connection":
                dropped = dropped.union(connection_tokens(value) - _UNNAMEABLE)
    lines = [b"%b %b HTTP/1.1\r\nHost: %b" % (head.method, head.target, authority)]
    lines += [b": ".join(header) for name, header in zip(names, head.headers, strict=True) if name not in dropped]
    lines += [b": ".join(header) for header in headers]
    if body and (b"content-length" not in names or b"content-length" in dropped):
        lines.append(b"Content-Length: %d" % len(body))
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


def parse_response_head(data: bytes, method: bytes) -> ResponseHead:
    """Read one head, `data` being everything up to and with its empty line, of an answer to a `method` request.

    Raises EngineError if it is not HTTP/1 or does not say unmistakably where its body ends.
    """
    start = _STATUS_LINE.match(data)
    if start is None:
        raise EngineError("the engine's answer does not begin with an HTTP/1 status line")
    lines: list[tuple[bytes, bytes]] = []
    length: bytes | None = None
    codings: list[bytes] = []
    tokens: frozenset[bytes] = frozenset()
    if _HEADER_LINES.fullmatch(data, start.end()) is None:
        raise EngineError("the engine's answer has a header line that is not one")
    for line in data[start.end() : -2].splitlines(keepends=True):
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in _FRAMES:
            value = value.strip()
            if name == b"transfer-encoding":
                codings.append(value.lower())
            elif name == b"connection":
                tokens |= connection_tokens(value)
            elif length is None:
                length = value
            elif length != value:
                raise EngineError("the engine's answer has two different Content-Length headers")
            else:
                continue
        if name not in _HOP_BY_HOP:
            lines.append((name, line))
    if tokens:
        lines = [entry for entry in lines if entry[0] not in tokens or entry[0] in _UNNAMEABLE]
    status = int(start[3])
    if status == 101 or status < 100:
        raise EngineError(f"the engine's answer has status {status}, which nothing asked for")
    framing, size = _framing(status, method, length, codings)
    keep_alive = b"close" not in tokens and (start[1] == b"1" or b"keep-alive" in tokens)
    return ResponseHead(
        status, start[2], lines, framing, size, keep_alive and not (method == b"HEAD" or framing is Framing.UNTIL_CLOSE)
    )


def _framing(status: int, method: bytes, length: bytes | None, codings: list[bytes]) -> tuple[Framing, int]:
    if codings and (codings != [b"chunked"] or length is not None):
        raise EngineError(f"the engine's answer has a framing that is not plain: {codings!r}, length {length!r}")
    if length is not None and not (length.isdigit() and len(length) < 19):
        raise EngineError(f"the engine's answer has a Content-Length that is no number: {length[:40]!r}")
    if method == b"HEAD" or status < 200 or status in {204, 304}:
        return Framing.NONE, 0
    if codings:
        return Framing.CHUNKED, 0
    if length is None:
        return Framing.UNTIL_CLOSE, 0
    size = int(length)
    return (Framing.LENGTH if size else Framing.NONE), size


def response_bytes(head: ResponseHead, headers: Headers, *, chunked: bool, close: bool) -> bytes:
    """The head to send to the client, with `headers` set; `chunked` and `close` say how its body will be framed."""
    own = {name.lower() for name, _ in headers}
    if head.status == HTTPStatus.NO_CONTENT:
        own.add(b"content-length")  # RFC 9110, section 8.6: a client could wait for a body
    lines = [b"HTTP/1.1 %b\r\n" % head.status_text]
    lines += [line for name, line in head.lines if name not in own]
    lines += [b"%b: %b\r\n" % header for header in headers]
    if chunked:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    lines.append(b"Connection: close\r\n\r\n" if close else b"\r\n")
    return b"".join(lines)


def reply_bytes(reply: Reply, *, close: bool, bodiless: bool = False) -> bytes:
    """An answer of our own; `bodiless` for HEAD requests."""
    reason = HTTPStatus(reply.status).phrase.encode() if reply.status in _STATUSES else b""
    lines = [
        b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n"
        % (reply.status, reason, reply.content_type, len(reply.body))
    ]
    lines += [b"%b: %b\r\n" % header for header in reply.headers]
    lines.append(b"Connection: close\r\n\r\n" if close else b"\r\n")
    if not bodiless:
        lines.append(reply.body)
    return b"".join(lines)


_STATUSES = frozenset(int(status) for status in HTTPStatus)

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def error_reply(
    status: int, message: str, *, code: str | None = None, param: str | None = None, headers: Headers = ()
) -> Reply:
    """An error in OpenAI's form. A server's error says when to come again, so that clients back off alike.

    It carries an `x-request-id` as every answer does: a new one if `headers` bring none.
    """
    if all(name.lower() != b"x-request-id" for name, _ in headers):
        headers = (*headers, (b"x-request-id", secrets.token_hex(8).encode()))
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    body = msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})
    if status == HTTPStatus.SERVICE_UNAVAILABLE and not any(name == b"Retry-After" for name, _ in headers):
        headers = (*headers, (b"Retry-After", b"1"))
    return Reply(status, body, headers=headers)
