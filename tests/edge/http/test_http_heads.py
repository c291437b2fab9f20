"""Heads and bodies sans I/O: garbage is refused or understood, and how bytes are cut never matters."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.edge.http.body import body_of
from warmroute.edge.http.head import (
    Framing,
    error_reply,
    parse_response_head,
    reply_bytes,
    request_bytes,
    response_bytes,
)
from warmroute.errors import EngineError
from warmroute.service.ports import RequestHead

TOKEN = st.from_regex(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,12}", fullmatch=True)
VALUE = st.from_regex(rb"([!-~\x80-\xff]([\t -~\x80-\xff]{0,20}[!-~\x80-\xff])?)?", fullmatch=True)
HEADERS = st.lists(st.tuples(TOKEN.map(lambda name: b"X-" + name), VALUE), max_size=8)


@given(st.binary(max_size=200), st.sampled_from([b"GET", b"HEAD"]))
def test_garbage_is_refused_or_parses(data: bytes, method: bytes) -> None:
    for candidate in (data, b"HTTP/1.1 200 OK\r\n" + data + b"\r\n\r\n"):
        try:
            head = parse_response_head(candidate, method)
        except EngineError:
            continue
        assert candidate.endswith(b"\r\n\r\n")
        assert b"\0" not in candidate
        assert candidate.count(b"\n") == candidate.count(b"\r\n") == candidate.count(b"\r")
        assert 102 <= head.status <= 999 or head.status == 100


@given(HEADERS)
def test_answer_headers_go_through_with_their_bytes(headers: list[tuple[bytes, bytes]]) -> None:
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    head = parse_response_head(b"HTTP/1.1 200 OK\r\n" + lines + b"Content-Length: 5\r\n\r\n", b"GET")
    assert (head.framing, head.length, head.keep_alive) == (Framing.LENGTH, 5, True)
    out = response_bytes(head, (), chunked=False, close=False)
    assert out == b"HTTP/1.1 200 OK\r\n" + lines + b"Content-Length: 5\r\n\r\n"


@given(HEADERS, st.binary(max_size=20))
def test_request_headers_go_through_with_their_bytes(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    head = RequestHead(b"POST", b"/x", (*headers, (b"Content-Length", b"%d" % len(body))))
    lines = b"".join(b"%b: %b\r\n" % header for header in head.headers)
    assert request_bytes(head, body, b"e:1", ()) == b"POST /x HTTP/1.1\r\nHost: e:1\r\n" + lines + b"\r\n"


@pytest.mark.parametrize(
    ("start", "fields", "framing", "keep_alive"),
    [
        (b"HTTP/1.1 200", b"", Framing.UNTIL_CLOSE, False),
        (b"HTTP/1.1 200", b"Content-Length: 0\r\n", Framing.NONE, True),
        (b"HTTP/1.1 200", b"Content-Length: 3\r\nContent-Length: 3\r\n", Framing.LENGTH, True),
        (b"HTTP/1.1 200", b"Content-Length: 3\r\nConnection: Close\r\n", Framing.LENGTH, False),
        (b"HTTP/1.0 200", b"Content-Length: 3\r\n", Framing.LENGTH, False),
        (b"HTTP/1.0 200", b"Content-Length: 3\r\nConnection: Keep-Alive\r\n", Framing.LENGTH, True),
        (b"HTTP/1.1 200", b"transfer-encoding: Chunked\r\n", Framing.CHUNKED, True),
        (b"HTTP/1.1 204", b"", Framing.NONE, True),
        (b"HTTP/1.1 304", b"Content-Length: 3\r\n", Framing.NONE, True),
    ],
)
def test_framing(start: bytes, fields: bytes, framing: Framing, keep_alive: bool) -> None:
    head = parse_response_head(start + b" Fine\r\n" + fields + b"\r\n", b"POST")
    assert (head.framing, head.keep_alive) == (framing, keep_alive)


CHUNKS = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


def chunked(chunks: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def fed(framing: Framing, length: int, wire: bytes, cuts: list[int], *, chunks: bool) -> tuple[bytes, bool]:
    body = body_of(framing, length, chunks=chunks)
    edges = sorted({0, len(wire), *(cut % (len(wire) + 1) for cut in cuts)})
    got = b""
    for start, end in itertools.pairwise(edges):
        assert not body.ended
        got += body.take(wire[start:end])
    return got, body.ended


@given(CHUNKS, st.lists(st.integers(0, 1000)), st.booleans(), st.data())
def test_chunked_bodies_end_with_their_last_byte_however_cut(
    chunks: list[bytes], cuts: list[int], understood: bool, data: st.DataObject
) -> None:
    wire = chunked(chunks)
    got, ended = fed(Framing.CHUNKED, 0, wire, cuts, chunks=understood)
    assert ended
    assert got == (wire if understood else b"".join(chunks))
    short = wire[: data.draw(st.integers(0, len(wire) - 1))]
    assert not fed(Framing.CHUNKED, 0, short, cuts, chunks=understood)[1]


@given(st.binary(min_size=1), st.binary(max_size=20), st.lists(st.integers(0, 1000)))
def test_bodies_with_a_length_end_there(content: bytes, excess: bytes, cuts: list[int]) -> None:
    assert fed(Framing.LENGTH, len(content), content, cuts, chunks=True) == (content, True)
    body = body_of(Framing.LENGTH, len(content), chunks=True)
    assert body.take(content + excess) == content
    assert body.excess is bool(excess)


def test_own_errors_have_openais_form() -> None:
    reply = error_reply(503, "none", code="no_worker", headers=((b"X-Request-Id", b"r1"),))
    made = dict(error_reply(400, "none").headers)[b"x-request-id"]
    assert len(made) == 16
    assert made != dict(error_reply(400, "none").headers)[b"x-request-id"]
    assert reply_bytes(reply, close=True) == (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 82\r\n"
        b"X-Request-Id: r1\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
        b'{"error":{"message":"none","type":"server_error","param":null,"code":"no_worker"}}'
    )
