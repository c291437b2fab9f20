"""Plain heads: what the native core reads of a message, the Python readers read too, however it is cut."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_http_smuggling import AMBIGUOUS, PIECES
from wireless import lose, wired
from wires import JSON

from warmroute.core.hashing import NATIVE
from warmroute.edge.http import client as client_module
from warmroute.edge.http import exchange as exchange_module
from warmroute.edge.http.head import Framing, parse_response_head, request_bytes, response_bytes
from warmroute.edge.http.plain import read_request, relay_answer
from warmroute.errors import EngineError
from warmroute.service.ports import Dispatch, Headers, Reply, RequestHead
from warmroute.testing.http import StaticService
from warmroute.types import Endpoint

pytestmark = pytest.mark.skipif(not NATIVE, reason="the native core is not built: `pip install -e .` builds it")

OWN = ((b"x-request-id", b"r1"), (b"X-Data-Parallel-Rank", b"3"))
PLAIN = (
    b"POST /v1/x?a=%20 HTTP/1.1\r\nHost: g\r\nX-Request-ID: mine\r\nconnection: Keep-Alive\r\n"
    b"Content-Length: 3\r\n\r\nabc"
)


class Keeps(StaticService):
    """Keeps what it is asked."""

    def __init__(self) -> None:
        super().__init__([Endpoint("127.0.0.1", 1)], request_headers=OWN, response_headers=OWN)
        self.asked: list[tuple[bytes, bytes, Headers, bytes]] = []

    def dispatch(self, head: RequestHead, body: bytes) -> Dispatch | Reply:
        self.asked.append((head.method, head.target, head.headers, body))
        return super().dispatch(head, body)


def served(pieces: list[bytes], answer: list[bytes] | None = None) -> tuple[list[Any], bytes, bytes]:
    """What the service was asked, and what was written to the engine and to the client."""
    service = Keeps()
    _, client, transport, engines = wired(service)
    for piece in pieces:
        if transport.closing:
            break
        client.data_received(piece)
        while client.exchange is not None and not transport.closing:
            for part in answer or [JSON]:
                engines[-1].data_received(part)
            if client.exchange is not None:
                engines[-1].connection_lost(None)
    written = b"".join(engine.transport.written for engine in engines)  # type: ignore[attr-defined]
    lose(client, None)
    return service.asked, written, transport.written


def both(pieces: list[bytes], answer: list[bytes] | None = None) -> list[tuple[list[Any], bytes, bytes]]:
    """`served` with the native core and without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secrets.token_hex", lambda _: "0")
        found = [served(pieces, answer)]
        patch.setattr(client_module, "read_request", lambda *_: None)
        patch.setattr(exchange_module, "relay_answer", lambda *_: None)
        return [*found, served(pieces, answer)]


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


NAMES = st.sampled_from(
    [
        *(b"Host", b"host", b"Content-Length", b"content-length", b"Connection", b"Expect", b"Transfer-Encoding"),
        *(b"Upgrade", b"Proxy-Connection", b"X-Request-Id", b"x-data-parallel-rank", b"Authorization", b"A", b"a b"),
        *(b"Keep-Alive", b"Trailer", b"HTTP2-Settings", b"Proxy-Authorization", b"TE", b""),
    ]
)
VALUES = st.sampled_from(
    [
        *(b" g", b" 3", b" 3", b" 03", b" 3 ", b"3", b"  3", b"\t3", b"", b" ", b" -3", b" +3", b" 1_0", b" 3, 3"),
        *(b" keep-alive", b" Keep-Alive", b" close", b" keep-alive, x", b" 100-continue", b" chunked", b" Chunked"),
        *(b" \xe4\xff", b" a\tb", b" a\x00b", b" a\nb", b" a\rb", b" a\x7fb", b" 9999999999999999999", b" x:y"),
    ]
)
ODD = st.lists(st.tuples(NAMES, VALUES).map(b":".join), max_size=2)
USUAL = st.lists(
    st.sampled_from(
        [b"Accept: */*", b"X-Request-Id: a", b"connection: Keep-Alive", b"x: \xe4 b\tc", b"Authorization: k"]
    ),
    max_size=4,
)
REQUEST_LINES = st.sampled_from(
    [
        *[b"POST /v1/x HTTP/1.1"] * 20,
        *(b"POST / HTTP/1.0", b"GET / HTTP/1.1", b"POST  / HTTP/1.1", b"POST x HTTP/1.1", b"POST /\x7f HTTP/1.1"),
        *(b"POST /a#b HTTP/1.1", b"POST /\xe4 HTTP/1.1", b"post / HTTP/1.1", b"POST / HTTP/1.1 "),
        b"POST /?~%41&b=c,d:+ HTTP/1.1",
    ]
)
ENDS = st.sampled_from([b"\r\n"] * 60 + [b"\n", b"\r", b"\r\n ", b"\r\n\t"])


@st.composite
def heads(draw: st.DrawFn, first: st.SearchStrategy[bytes], needed: list[bytes]) -> bytes:
    odd = draw(st.one_of(st.just([]), ODD))
    lines = draw(st.permutations([*draw(USUAL), *odd, *draw(st.sampled_from([needed] * 6 + [[]]))]))
    return b"".join(line + draw(ENDS) for line in (draw(first), *lines, b""))


@settings(max_examples=400)
@given(
    heads(REQUEST_LINES, [b"Host: g", b"Content-Length: 3"]),
    st.binary(max_size=5),
    st.just(1000) | st.integers(1, 200),
)
@example(PLAIN, b"", 200)
def test_requests_mean_the_same_however_they_are_read(head: bytes, more: bytes, size: int) -> None:
    native, reference = both(cut(head + b"abc" + more, size))
    assert native == reference


@settings(max_examples=200)
@given(st.lists(PIECES, max_size=14), st.integers(1, 60))
def test_pieces_mean_the_same_however_they_are_read(pieces: list[bytes], size: int) -> None:
    native, reference = both(cut(b"".join(pieces), size))
    assert native == reference


HEAD = b"POST /x HTTP/1.1\r\nHost: g\r\n"
MESSAGES = st.sampled_from(
    [
        *(PLAIN, PLAIN, HEAD + b"Content-Length: 40\r\n\r\n" + PLAIN[:40], HEAD + b"Content-Length: 0\r\n\r\n"),
        *(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", b"GET /g HTTP/1.1\r\nHost: g\r\n\r\n"),
        HEAD + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc",
        HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(PLAIN), PLAIN),
        HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n%b" % (len(PLAIN), PLAIN),
        HEAD + b"Content-Length: %d\r\n\r\n%b" % (2 * len(PLAIN), 2 * PLAIN),
        *(b"\r\n", HEAD + b"Connection: close\r\nContent-Length: 3\r\n\r\nabc", b"nonsense\r\n\r\n"),
    ]
)


@settings(max_examples=400)
@given(st.lists(MESSAGES, max_size=4), st.lists(st.integers(1, 99), max_size=3), st.integers(0, 2**32 - 1))
def test_messages_one_behind_the_other_mean_the_same(messages: list[bytes], sizes: list[int], where: int) -> None:
    """The parser and the native core take turns on one connection, wherever its bytes are cut."""
    sent = b"".join(messages)
    begins = [match.start() for n, match in enumerate(re.finditer(b"POST|GET", sent)) if where >> n & 1]
    cuts = sorted({0, len(sent), *begins, *itertools.accumulate(sizes)})
    native, reference = both([sent[at:to] for at, to in itertools.pairwise(cuts) if sent[at:to]])
    assert native == reference


@given(heads(REQUEST_LINES, [b"Host: g", b"Content-Length: 3"]))
@example(PLAIN)
def test_a_plain_head_says_what_a_request_head_says(data: bytes) -> None:
    plain = read_request(data, 0)
    if plain is None:
        return
    lines = [line.partition(b": ") for line in data[: plain.end].split(b"\r\n")[1:-2]]
    fields = tuple((name, value) for name, _, value in lines)
    head = RequestHead(b"POST", plain.target, fields)
    found: Any = plain
    assert (found.method, found.headers, data[found.end - 4 : found.end]) == (b"POST", fields, b"\r\n\r\n")
    for name in (*head.names, b"x-request-id", b"none"):
        assert found.header(name) == head.header(name)
    body = bytes(plain.length)
    other, other_found = (each.replaced((b"x-request-id", b"accept"), b"x-key", b"k") for each in (head, found))
    assert (other_found.headers, other_found.header(b"x-key"), other_found.end) == (
        other.headers,
        b"k",
        len(b"POST  HTTP/1.1\r\n" + head.target) + sum(len(name) + len(value) + 4 for name, value in other.headers) + 2,
    )
    for own in ((), OWN):
        assert plain.message(b"e:1", own, body) == request_bytes(head, body, b"e:1", own) + body
        assert other_found.message(b"e:1", own, body) == request_bytes(other, body, b"e:1", own) + body


@pytest.mark.parametrize(
    ("name", "value"), [(b"a", b"b\r\nc: d"), (b"a\r\nb", b"c"), (b"a", b""), (b"host", b"x"), (b"", b"x")]
)
def test_nothing_but_a_header_can_be_put_into_a_plain_head(name: bytes, value: bytes) -> None:
    plain: Any = read_request(PLAIN, 0)
    with pytest.raises(ValueError, match="not a header"):
        plain.replaced((), name, value)


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_is_ambiguous_is_not_plain(name: str) -> None:
    assert read_request(AMBIGUOUS[name], 0) is None


STATUS_LINES = st.sampled_from(
    [
        *[b"HTTP/1.1 200 OK"] * 20,
        *(b"HTTP/1.1 404 Not \xe4", b"HTTP/1.1 500", b"HTTP/1.1 500 ", b"HTTP/1.1 999 x", b"HTTP/1.0 200 OK"),
        *(b"HTTP/1.1 100 Continue", b"HTTP/1.1 204 No", b"HTTP/1.1 304 No", b"HTTP/1.1 101 Up", b"HTTP/1.1 20 OK"),
        *(b"HTTP/1.1 2000 OK", b"HTTP/1.1 200OK", b"HTTP/1.1  200 OK", b"http/1.1 200 OK", b"HTTP/1.1 200 O\x00"),
    ]
)
ANSWERS = heads(STATUS_LINES, [b"Content-Length: 3"]) | heads(STATUS_LINES, [b"transfer-encoding: chunked"])


@settings(max_examples=300)
@given(ANSWERS, st.binary(max_size=5), st.booleans(), st.sampled_from([(), OWN]))
@example(b"HTTP/1.1 200 OK\r\nX-Request-Id: r2\r\ncontent-length:3 \r\n\r\n", b"abc", False, OWN)
@example(b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding:chunked\r\n\r\n", b"3", True, OWN)
def test_plain_answers_are_relayed_as_others_are(head: bytes, more: bytes, close: bool, own: Headers) -> None:
    relayed = relay_answer(head + more, own, close)
    if relayed is None:
        return
    status, length, end, out = relayed
    data = head + more
    expected = parse_response_head(data[:end], b"POST")
    assert data.find(b"\r\n\r\n") + 4 == end
    assert (status, expected.keep_alive) == (expected.status, True)
    assert length == (-1 if expected.framing is Framing.CHUNKED else expected.length)
    whole = data[end:] if length == len(data) - end else b""
    assert out == response_bytes(expected, own, chunked=length < 0, close=close) + whole


@settings(max_examples=200)
@given(ANSWERS, st.sampled_from([b"", b"abc", b"abcd", b"3\r\nabc\r\n0\r\n\r\n", b"3\r\nabc\r\n"]), st.integers(1, 100))
def test_answers_reach_the_client_alike(head: bytes, body: bytes, size: int) -> None:
    native, reference = both([PLAIN], cut(head + body, size))
    assert native == reference


@given(ANSWERS)
def test_what_is_no_answer_is_not_plain(data: bytes) -> None:
    end = data.find(b"\r\n\r\n") + 4
    try:
        parse_response_head(data[:end], b"POST")
    except EngineError:
        assert relay_answer(data, (), False) is None
