"""Many streams through a gateway process: silent ones cost little, and who does not read harms nobody but himself."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from e2e_client import COMPLETIONS, Client
from e2e_fleet import until
from e2e_process import Command, serve

from warmroute.testing.streams import StreamEngine

STREAMS, KIB_PER_STREAM_MAX = 200, 64
"""Measured are 14 KiB (benchmarks/http/streams.py); what a stream must not cost is a buffer of its own."""
SLOW_READERS, KIB_PER_READER_MAX = 50, 512
"""Measured are 210 KiB; a gateway that reads on would hold all that the engine sends."""
DEADLINE_S = 60.0


def request(user: str) -> bytes:
    body = json.dumps({"model": "tiny", "prompt": [1, 2, 3], "stream": True, "user": user}).encode()
    return b"POST /v1/completions HTTP/1.1\r\nHost: g\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))


async def settled_kib(pid: int) -> int:
    """Its memory once that has stopped growing."""
    before, now = 0, resident_kib(pid)
    while now > before:
        before = now
        await asyncio.sleep(0.25)
        now = resident_kib(pid)
    return now


@asynccontextmanager
async def site() -> AsyncIterator[tuple[StreamEngine, Command, str]]:
    async with (
        StreamEngine() as engine,
        serve(engine.url, tokenizer__mode="off", events__enabled="false") as gateway,
    ):
        url = await gateway.says(r"(http://127\.0\.0\.1:\d+)")
        async with Client(url) as client:
            for _ in range(3000):
                if (await client.ask(prompt=[1, 2, 3])).status == 200:
                    break
                await asyncio.sleep(0.02)
        yield engine, gateway, url


async def opened(url: str, user: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    port = int(url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(user))
    return reader, writer


async def test_silent_streams_cost_little_and_end_whole() -> None:
    async with site() as (engine, gateway, url), asyncio.timeout(2 * DEADLINE_S):
        first = [await opened(url, "idle") for _ in range(20)]  # what the process needs once
        for reader, _ in first:
            await reader.readuntil(b"\n\n\r\n")
        before = await settled_kib(gateway.process.pid)
        streams = [await opened(url, "idle") for _ in range(STREAMS)]
        for reader, _ in streams:
            assert b" 200 OK" in await reader.readuntil(b"\n\n\r\n")
        assert len(engine.idle) == STREAMS + len(first)
        grown = await settled_kib(gateway.process.pid) - before
        assert grown < STREAMS * KIB_PER_STREAM_MAX
        left = [writer for _, writer in streams[:50]]
        for writer in left:
            writer.transport.abort()
        remaining = STREAMS + len(first) - len(left)
        await until(lambda: len(engine.idle) == remaining, "each that left is told to its engine", DEADLINE_S)
        engine.release()
        for reader, writer in [*first, *streams[50:]]:
            assert await reader.readuntil(b"0\r\n\r\n") == b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
            writer.close()


async def test_readers_that_do_not_read_are_held_back_and_nobody_else_is() -> None:
    async with site() as (engine, gateway, url), asyncio.timeout(2 * DEADLINE_S), Client(url) as client:
        before = await settled_kib(gateway.process.pid)
        sockets = [slow_reader(url) for _ in range(SLOW_READERS)]
        await until(lambda: len(engine.flooding) == SLOW_READERS, "all streams flow", DEADLINE_S)
        sent = -1
        while sent != engine.flooded_bytes:  # until nothing moves any more
            sent = engine.flooded_bytes
            await asyncio.sleep(0.5)
        grown = await settled_kib(gateway.process.pid) - before
        assert grown < SLOW_READERS * KIB_PER_READER_MAX
        assert len(engine.flooding) == SLOW_READERS, "the engines are held back"
        for _ in range(50):
            assert (await client.ask(COMPLETIONS, prompt=[1, 2, 3])).status == 200
        with closing(sockets.pop()) as sock:  # one begins to read, and gets more than all buffers together hold
            got = await asyncio.to_thread(drain, sock, 16 * 1024 * 1024)
        assert got >= 16 * 1024 * 1024
        for sock in sockets:
            sock.close()
        await until(lambda: not engine.flooding, "who left is told, though nothing could be written", DEADLINE_S)
        assert (await client.ask(COMPLETIONS, prompt=[1, 2, 3])).status == 200


def slow_reader(url: str) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", int(url.rpartition(":")[2])))
    sock.sendall(request("flood"))
    return sock


def drain(sock: socket.socket, enough: int) -> int:
    sock.settimeout(DEADLINE_S)
    got = 0
    while got < enough:
        piece = sock.recv(65536)
        if not piece:
            break
        got += len(piece)
    return got
