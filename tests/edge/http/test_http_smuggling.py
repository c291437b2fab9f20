"""No two parties may read one message in two ways: what is ambiguous reaches no engine. Raw sockets, and a fuzzer."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wireless import lose, wired
from wires import JSON, Stage, World

from warmroute.config.tree import GatewayConfig
from warmroute.core.keys import digest_of, parse_keys
from warmroute.edge.http.server import HttpServer
from warmroute.service.access import Access
from warmroute.testing.http import StaticService
from warmroute.types import Endpoint

HEAD = b"POST / HTTP/1.1\r\nHost: g\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: g\r\n\r\n"

AMBIGUOUS = {
    "CL.TE": HEAD + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "TE.CL": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n" + SMUGGLED + b"\r\n0\r\n\r\n",
    "TE.TE": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "TE hidden by a tab": HEAD + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
    "TE hidden by a fold": HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "TE hidden by a vertical tab": HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "TE behind a bare LF": HEAD + b"A: b\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE behind a bare CR": HEAD + b"A: b\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE in quotes": HEAD + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "TE identity": HEAD + b"Transfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc",
    "equal lengths": HEAD + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "lengths of two cases": HEAD + b"Content-Length: 3\r\ncontent-length: 40\r\n\r\nabc" + SMUGGLED,
    "hexadecimal length": HEAD + b"Content-Length: 0x3\r\n\r\nabc",
    "length with words": HEAD + b"Content-Length: 3 4\r\n\r\nabc",
    "empty length": HEAD + b"Content-Length: \r\n\r\n" + SMUGGLED,
    "negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "other digits": HEAD + b"Content-Length: \xef\xbc\x93\r\n\r\nabc",
    "fold at the beginning": b"POST / HTTP/1.1\r\n Host: g\r\n\r\n",
    "fold after a length": HEAD + b"Content-Length: 3\r\n 4\r\n\r\nabc",
    "space in a name": HEAD + b"Content Length: 3\r\n\r\nabc",
    "NUL in a name": HEAD + b"Content-Length\0: 3\r\n\r\nabc",
    "NUL in a target": b"POST /\0 HTTP/1.1\r\nHost: g\r\n\r\n",
    "LF for an end": HEAD + b"Content-Length: 3\r\n\n" + b"abc",
    "two versions": b"POST / HTTP/1.1 HTTP/1.1\r\nHost: g\r\n\r\n",
    "version in lower case": b"POST / http/1.1\r\nHost: g\r\n\r\n",
    "version without a minor": b"POST / HTTP/1\r\nHost: g\r\n\r\n",
    "chunk size with a sign": CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n",
    "negative chunk size": CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
    "chunk size with 0x": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "chunk size with a space": CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n",
    "space before a chunk size": CHUNKED + b" 3\r\nabc\r\n0\r\n\r\n",
    "empty chunk size": CHUNKED + b"\r\nabc\r\n0\r\n\r\n",
    "chunk size beyond 64 bits": CHUNKED + b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    "LF in a chunk extension": CHUNKED + b"3;a=b\nabc\r\n0\r\n\r\n",
    "CR in a chunk extension": CHUNKED + b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "NUL in a chunk extension": CHUNKED + b"3;a\0b\r\nabc\r\n0\r\n\r\n",
    "chunk without an end": CHUNKED + b"3\r\nabc0\r\n\r\n",
    "LF behind the last chunk": CHUNKED + b"3\r\nabc\r\n0\n\n",
    "fold in a trailer": CHUNKED + b"3\r\nabc\r\n0\r\nA: b\r\n c\r\n\r\n",
    "length in a trailer line without a name": CHUNKED + b"3\r\nabc\r\n0\r\n: 3\r\n\r\n",
}


@pytest.mark.parametrize("name", AMBIGUOUS)
async def test_ambiguous_requests_reach_no_engine(stage: Stage, name: str) -> None:
    await stage.client.send(AMBIGUOUS[name])
    head, _ = await stage.client.message()
    assert head[:13] in (b"HTTP/1.1 400 ", b"HTTP/1.1 501 ", b"HTTP/1.1 505 "), head
    assert b"Connection: close\r\n" in head
    assert await stage.client.rest() == b"", "nothing behind it is taken for a request"
    assert (stage.engine.connections, stage.service.dispatches) == (0, [])


async def test_trailers_cannot_add_headers(stage: Stage) -> None:
    await stage.client.send(CHUNKED + b"3\r\nabc\r\n0\r\nX-Warmroute-Key: root\r\nAuthorization: Bearer x\r\n\r\n")
    head, body = await (await stage.engine.accept()).message()
    assert body == b"abc"
    assert head.lower().count(b"content-length") == 1
    assert b"root" not in head
    assert b"Bearer" not in head


async def test_an_upgrade_is_not_passed_on(stage: Stage) -> None:
    await stage.client.send(
        b"GET / HTTP/1.1\r\nHost: g\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMA\r\n\r\n" + SMUGGLED
    )
    wire = await stage.engine.accept()
    head, _ = await wire.message()
    assert b"pgrade" not in head
    assert b"h2c" not in head
    await wire.send(JSON)
    await stage.client.message()
    head, _ = await wire.message()
    assert head.startswith(b"GET /smuggled"), "a pipelined request, not another protocol's bytes"


@pytest.mark.parametrize("value", [b"a\r\nX-Evil: 1", b"a\nX-Evil: 1", b"a\rX-Evil: 1", b"a\0b"])
@pytest.mark.parametrize("name", [b"X-Request-Id", b"Authorization", b"X-Data-Parallel-Rank"])
async def test_no_header_can_be_injected(stage: Stage, name: bytes, value: bytes) -> None:
    await stage.client.send(HEAD + name + b": " + value + b"\r\nContent-Length: 0\r\n\r\n")
    if b"\r\n" in value:  # then it is a header of its own, as the client may send
        head, _ = await (await stage.engine.accept()).message()
        assert head.count(b"X-Evil") == 1
    else:
        head, _ = await stage.client.message()
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"Evil" not in head


async def test_connection_cannot_name_the_keys_header_away(world: World) -> None:
    engine = await world.engine()
    server = HttpServer(
        StaticService([engine.endpoint]),
        GatewayConfig(port=0),
        guard=Access(parse_keys(f"alice {digest_of('s')}", "k")),
    )
    port = await server.start()
    world.cleanups.append(server.close)
    client = await world.client(port)
    await client.send(HEAD + b"Authorization: Bearer s\r\nConnection: x-warmroute-key\r\nContent-Length: 0\r\n\r\n")
    head, _ = await (await engine.accept()).message()
    assert b"x-warmroute-key" not in head, "hidden from the engine, which only notes it"
    assert server.plane.guard is not None


PIECES = st.sampled_from(
    [
        *(
            b"POST / HTTP/1.1\r\n",
            b"GET /a HTTP/1.1\r\n",
            b"POST / HTTP/1.0\r\n",
            b"Host: g\r\n",
            b"\r\n",
            b"\n",
            b"\r",
        ),
        *(
            b"Content-Length: 3\r\n",
            b"content-length:5\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"transfer-encoding:x\r\n",
        ),
        *(
            b"Connection: close\r\n",
            b"Connection: upgrade\r\nUpgrade: h2c\r\n",
            b"Expect: 100-continue\r\n",
            b"A: b\r\n",
        ),
        *(
            b"abc",
            b"3\r\nabc\r\n",
            b"0\r\n\r\n",
            b"0\r\n",
            b"3;x=y\r\nabc\r\n",
            b" ",
            b"\t",
            b"\0",
            b":",
            b"5\r\n",
            b"hello",
        ),
    ]
)


@settings(max_examples=400)
@given(st.lists(PIECES, max_size=14), st.integers(1, 30))
@example(
    [b"POST / HTTP/1.1\r\n", b"Host: g\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n", b"3\r\nabc\r\n0\r\n\r\n"], 7
)
def test_engines_read_as_many_requests_as_were_dispatched(pieces: list[bytes], size: int) -> None:
    """An independent and strict reader of what reaches the engine finds exactly our requests, with our bodies."""
    service = StaticService([Endpoint("127.0.0.1", 1)])
    _, client, transport, engines = wired(service)
    sent = b"".join(pieces)
    for at in range(0, len(sent), size):
        if transport.closing:
            break
        client.data_received(sent[at : at + size])
        while client.exchange is not None:
            engines[-1].data_received(JSON)
    written = b"".join(engine.transport.written for engine in engines)  # type: ignore[attr-defined]
    lose(client, None)
    assert read_by_h11(written) == len(service.dispatches)


def read_by_h11(data: bytes) -> int:
    """How many requests an engine's parser finds; fails if anything is left over or unclear."""
    found = 0
    connection = h11.Connection(h11.SERVER)
    if data:
        connection.receive_data(data)
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            found += 1
            names = [name for name, _ in event.headers]
            assert b"transfer-encoding" not in names
            assert names.count(b"content-length") <= 1
        elif isinstance(event, h11.EndOfMessage):
            connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
            connection.start_next_cycle()
        elif event is h11.NEED_DATA:
            assert connection.trailing_data[0] == b""
            return found
        else:
            assert isinstance(event, h11.Data), event
