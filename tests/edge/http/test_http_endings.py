"""However a request ends, at whichever step, its dispatch is finished exactly once and nothing is left behind.

Virtual transports instead of sockets: every order of events that a loop can bring is played, among them those that
sockets show once in a month.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from wireless import lose, wired

from warmroute.service.ports import Dispatch, Outcome
from warmroute.testing.http import StaticService
from warmroute.types import Endpoint

ANSWERS = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabcdef",
    b"HTTP/1.1 200 OK\r\n\r\nabc",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"nonsense\r\n\r\n",
)
REQUEST = b"POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 1\r\n\r\nx"


class Endless(StaticService):
    def retry(self, dispatch: Dispatch) -> Dispatch | None:
        return self._next() if len(self.dispatches) < 3 else None


@given(
    st.sampled_from(ANSWERS),
    st.integers(1, 40),
    st.lists(
        st.sampled_from(
            ["engine", "engine_eof", "engine_reset", "client_lost", "client_eof", "pause", "resume", "send", "drain"]
        ),
        max_size=25,
    ),
)
def test_every_dispatch_is_finished_once(answer: bytes, size: int, events: list[str]) -> None:
    service = Endless([Endpoint("127.0.0.1", 1)])
    server, client, transport, engines = wired(service)
    client.data_received(REQUEST)
    at = 0
    for event in events:
        engine = engines[-1]
        wire: Any = engine.transport
        if event == "engine" and not wire.lost and not wire.closing:
            engine.data_received(answer[at : at + size] or b"excess")
            at = at + size if at < len(answer) else 0
        elif event == "engine_eof" and not wire.lost:
            at = 0
            engine.eof_received()
            lose(engine, None)
        elif event == "engine_reset":
            at = 0
            lose(engine, ConnectionResetError())
        elif event == "client_lost":
            lose(client, ConnectionResetError())
        elif event == "client_eof" and not transport.lost:
            client.eof_received()
        elif event == "pause" and not client.paused and not transport.lost:
            client.pause_writing()
        elif event == "resume" and client.paused and not transport.lost:
            client.resume_writing()
        elif event == "send" and not transport.lost and not transport.closing and transport.reading:
            client.data_received(REQUEST)
        elif event == "drain":
            server.plane.draining = True
            if client.exchange is None:
                client.expired()
        for each in engines:  # a loop tells what was closed, soon
            if each.transport.is_closing():
                lose(each, None)
        if transport.closing:
            lose(client, None)
    lose(client, None)
    assert all(dispatch.outcome is not None for dispatch in service.dispatches)
    complete = sum(dispatch.outcome is Outcome.COMPLETE for dispatch in service.dispatches)
    assert complete == 0 or answer.endswith((b"0\r\n\r\n", b"abcdef", b"abc", b"Content\r\n\r\n"))
    assert not server.clients
    assert all(engine.user is None for engine in engines)
    idle = [engine for engine in engines if not engine.transport.is_closing()]
    assert len(server.pool) == len(idle), "a connection is pooled, or closed"
    assert all(engine.transport.is_reading() for engine in idle)
    assert server.counts.service_failures == 0, "nothing was told twice or out of order"
