"""Whatever a client and an engine say in proper HTTP/1.1, however it is framed and cut, the other side reads the same.

Both are read by h11, which is strict and none of ours: methods, targets, headers with their case and order, bodies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import h11
from hypothesis import given, settings
from hypothesis import strategies as st
from wireless import FakeTransport, lose

from warmroute.config.tree import GatewayConfig
from warmroute.edge.http.client import ClientConnection
from warmroute.edge.http.server import HttpServer
from warmroute.edge.http.upstream import EngineConnection
from warmroute.service.ports import Outcome
from warmroute.testing.http import StaticService
from warmroute.types import Endpoint

Headers = tuple[tuple[bytes, bytes], ...]
OWN = (b"connection", b"content-length", b"expect", b"host", b"http2-settings", b"keep-alive", b"proxy-", b"te", b"tr")
"""How names begin that are hop-by-hop, or frame or aim a message; `traceparent` is among them, and tested elsewhere."""
TOKEN = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
KNOWN = st.sampled_from([b"Authorization", b"X-Request-Id", b"Cookie", b"X-Odd", b"x-ODD"])
NAMES = KNOWN | st.text(TOKEN, min_size=1).map(str.encode).filter(
    lambda name: not name.lower().startswith((*OWN, b"upgrade"))
)
VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=12).map(
    lambda text: text.encode("latin-1")
)
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=5).map(tuple)
TRAILERS = st.sampled_from([b"", b"X-Sum: 1\r\n", b"A: \r\nAuthorization: evil\r\n"])
EXTENSIONS = st.sampled_from([b"", b";a", b";a=b", b';a="b;c"'])


@st.composite
def chunked(draw: st.DrawFn, body: bytes) -> bytes:
    """The body in chunks, cut anywhere."""
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=4)))
    out = b""
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        if end > start:
            size = draw(st.sampled_from([b"%x", b"%X", b"0%x"])) % (end - start)
            out += size + draw(EXTENSIONS) + b"\r\n" + body[start:end] + b"\r\n"
    return out + b"0" + draw(EXTENSIONS) + b"\r\n" + draw(TRAILERS) + b"\r\n"


@dataclass(frozen=True)
class Exchange:
    """One request and its answer, each with the bytes that say it."""

    method: bytes
    target: bytes
    headers: Headers
    body: bytes
    request: bytes
    status: int
    answer_headers: Headers
    answer_body: bytes
    answer: bytes


@st.composite
def exchanges(draw: st.DrawFn) -> Exchange:
    method = draw(st.sampled_from([b"POST", b"GET", b"PUT", b"DELETE", b"PATCH"]))
    target = draw(st.sampled_from([b"/", b"/v1/chat/completions", b"/v1/x?a=%20b&c=%C3%A9", b"/%2e%2e//a;b"]))
    headers, body = draw(HEADERS), draw(st.binary(max_size=60))
    request = b"%b %b HTTP/1.1\r\nhOST: g\r\n%b" % (method, target, lines(headers))
    if draw(st.booleans()):
        request += b"Expect: 100-continue\r\n"
    if draw(st.booleans()):
        request += b"Transfer-Encoding: chunked\r\n\r\n" + draw(chunked(body))
    else:
        headers = (*headers, (b"content-LENGTH", b"%d" % len(body)))
        request += b"content-LENGTH: %d\r\n\r\n%b" % (len(body), body)
    status, answer_headers = draw(st.sampled_from([200, 201, 400, 404, 429, 500])), draw(HEADERS)
    answer_body = draw(st.binary(max_size=60))
    answer = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n"]))
    answer += b"HTTP/1.1 %d Any Reason\r\n%b" % (status, lines(answer_headers))
    if draw(st.booleans()):
        answer += b"Transfer-Encoding: chunked\r\n\r\n" + draw(chunked(answer_body))
        answer_headers = (*answer_headers, (b"Transfer-Encoding", b"chunked"))
    else:
        answer += b"Content-Length: %d\r\n\r\n%b" % (len(answer_body), answer_body)
        answer_headers = (*answer_headers, (b"Content-Length", b"%d" % len(answer_body)))
    return Exchange(method, target, headers, body, request, status, answer_headers, answer_body, answer)


def lines(headers: Headers) -> bytes:
    return b"".join(b"%b:%b\r\n" % pair if len(pair[1]) % 2 else b"%b: \t%b \r\n" % pair for pair in headers)


class Engine:
    """The engine's end of one connection: reads requests with h11, answers each when it is whole."""

    def __init__(self, pool: Any, answers: list[Exchange], size: int) -> None:
        self.connection = EngineConnection(pool, Endpoint("10.0.0.1", 80))
        self.transport = FakeTransport()
        self.connection.connection_made(self.transport)
        self.reader = h11.Connection(h11.SERVER)
        self.answers = answers
        self.size = size
        self.body = b""

    def pump(self) -> bool:
        """Read what was written; whether there was anything."""
        data, self.transport.written = self.transport.written, b""
        if data:
            self.reader.receive_data(data)
        while (event := self.reader.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            expected = self.answers[0]
            if isinstance(event, h11.Request):
                assert (event.method, event.target) == (expected.method, expected.target)
                host, *headers = event.headers.raw_items()
                assert host == (b"Host", b"10.0.0.1:80")
                assert without_own_length(headers, expected) == list(expected.headers)
            elif isinstance(event, h11.Data):
                self.body += bytes(event.data)
            else:
                assert isinstance(event, h11.EndOfMessage)
                assert self.body == expected.body
                self.body = b""
                self._answer(self.answers.pop(0))
        return bool(data)

    def _answer(self, exchange: Exchange) -> None:
        self.reader.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
        self.reader.send(h11.EndOfMessage())
        self.reader.start_next_cycle()
        for at in range(0, len(exchange.answer), self.size):
            self.connection.data_received(exchange.answer[at : at + self.size])


def without_own_length(headers: list[tuple[bytes, bytes]], exchange: Exchange) -> list[tuple[bytes, bytes]]:
    """A body that came in chunks goes on with its length: the only header that may be added."""
    if exchange.body and not any(name == b"content-LENGTH" for name, _ in exchange.headers):
        assert headers[-1] == (b"Content-Length", b"%d" % len(exchange.body))
        return headers[:-1]
    return headers


@settings(max_examples=300, deadline=None)
@given(st.lists(exchanges(), min_size=1, max_size=4), st.integers(1, 300), st.integers(1, 300))
def test_both_sides_read_what_the_other_said(said: list[Exchange], client_size: int, engine_size: int) -> None:
    service = StaticService([Endpoint("10.0.0.1", 80)])
    server = HttpServer(service, GatewayConfig())
    engines: list[Engine] = []
    answers = list(said)

    def connect(_: Endpoint, user: Any) -> None:
        engines.append(Engine(server.pool, answers, engine_size))
        user.connected(engines[-1].connection)

    server.pool.connect = connect  # type: ignore[method-assign,assignment]
    client, transport = ClientConnection(server), FakeTransport()
    client.connection_made(transport)
    sent = b"".join(exchange.request for exchange in said)  # pipelined
    for at in range(0, len(sent), client_size):
        assert transport.reading
        client.data_received(sent[at : at + client_size])
        while any(engine.pump() for engine in engines):
            pass
    assert not transport.closing
    read_answers(transport.written, said)
    assert answers == []
    assert [dispatch.outcome for dispatch in service.dispatches] == [Outcome.COMPLETE] * len(said)
    assert len(engines) == 1, "its connection is used again"
    lose(client, None)


def read_answers(data: bytes, said: list[Exchange]) -> None:
    """A client's parser finds the answers in the order of the requests, and nothing else."""
    reader = h11.Connection(h11.CLIENT)
    reader.receive_data(data)
    for exchange in said:
        reader.send(h11.Request(method=exchange.method, target="/", headers=[("host", "g"), ("content-length", "0")]))
        reader.send(h11.EndOfMessage())
        event = reader.next_event()
        while isinstance(event, h11.InformationalResponse):
            assert event.status_code == 100, "ours, for whoever expects it; the engines' own are theirs"
            event = reader.next_event()
        assert isinstance(event, h11.Response), event
        assert (event.status_code, event.reason) == (exchange.status, b"Any Reason")
        assert list(event.headers.raw_items()) == list(exchange.answer_headers)
        body = b""
        while isinstance(event := reader.next_event(), h11.Data):
            body += bytes(event.data)
        assert isinstance(event, h11.EndOfMessage)
        assert body == exchange.answer_body
        reader.start_next_cycle()
    assert reader.trailing_data[0] == b""
