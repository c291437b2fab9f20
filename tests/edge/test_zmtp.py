"""What listens at an address: real ZMQ sockets, things that are none, and nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq

from warmroute.edge.zmtp import identify
from warmroute.service.doctor.facts import Listening, PeerFacts

MakeSocket = Callable[[int], zmq.Socket[bytes]]
Serve = Callable[[Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]], Awaitable[str]]


@pytest.fixture
def make_socket() -> Iterator[MakeSocket]:
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        yield lambda kind: stack.enter_context(context.socket(kind))


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    servers: list[asyncio.Server] = []

    async def start(answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> str:
        servers.append(await asyncio.start_server(answer, "127.0.0.1", 0))
        return f"tcp://127.0.0.1:{servers[-1].sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(("kind", "name"), [(zmq.PUB, "PUB"), (zmq.ROUTER, "ROUTER"), (zmq.REP, "REP")])
async def test_the_kind_of_socket(make_socket: MakeSocket, kind: int, name: str) -> None:
    socket = make_socket(kind)
    socket.bind("tcp://127.0.0.1:*")
    address = socket.getsockopt_string(zmq.LAST_ENDPOINT)
    found = await identify(address, 5.0)
    assert found == PeerFacts(address, Listening.OPEN, name)
    assert (found.publishes, found.replays) == (name == "PUB", name == "ROUTER")


async def test_sockets_in_the_file_system(make_socket: MakeSocket, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/events"
    assert (await identify(address, 5.0)).listening is Listening.REFUSED
    make_socket(zmq.PUB).bind(address)
    assert (await identify(address, 5.0)).publishes


async def test_a_socket_that_wants_credentials(make_socket: MakeSocket) -> None:
    socket = make_socket(zmq.PUB)
    socket.plain_server = True
    socket.bind("tcp://127.0.0.1:*")
    found = await identify(socket.getsockopt_string(zmq.LAST_ENDPOINT), 5.0)
    assert found.listening is Listening.FOREIGN


async def test_something_else(serve: Serve) -> None:
    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    for answer in (http, hangs_up):
        assert (await identify(await serve(answer), 5.0)).listening is Listening.FOREIGN


async def test_one_that_says_nothing(serve: Serve) -> None:
    ended = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.close()

    address = await serve(silent)
    assert (await identify(address, 0.05)).listening is Listening.SILENT
    ended.set()


async def test_nobody() -> None:
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        socket.bind("tcp://127.0.0.1:*")
        address = socket.getsockopt_string(zmq.LAST_ENDPOINT)
    assert (await identify(address, 5.0)).listening is Listening.REFUSED


async def test_no_such_host(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await identify("tcp://nowhere.invalid:5557", 20.0)).listening in (Listening.UNRESOLVED, Listening.SILENT)


@pytest.mark.parametrize("address", ["tcp://*:5557", "10.0.0.1:5557", "tcp://10.0.0.1", "inproc://a"])
async def test_no_address(address: str) -> None:
    with pytest.raises(ValueError, match=r"is |has "):
        await identify(address, 1.0)
