"""Very many streams: what a silent one costs in memory and CPU, and whether slow readers harm anybody else.

    python benchmarks/http/streams.py [--streams 10000] [--slow 1000] [--normal 50] [--idle-s 10] [--out FILE.json]
    python benchmarks/http/streams.py --waves 15 --streams 2000    what stays when all leave, time after time

Gateway, engine (`warmroute.testing.streams`) and clients are a process each, so that each has the file descriptors
that the system allows one process; the gateway needs two per stream and gets as many processes as that takes. Memory
is what the kernel says of the gateway's processes (shared pages divided among them), CPU is theirs from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import resource
import socket
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvloop
from measuring import cpu_s, free_ports, resident_mib, running

from warmroute.testing.streams import StreamEngine

SPARE = 300
"""File descriptors of a process that are none of its streams'."""
PATH = "/v1/completions"
SMALL_BUFFER = 4096
"""What a slow reader's kernel takes before it stops the gateway's writes."""
OPENING = 200
"""Streams that are opened at a time."""


def request(user: str) -> bytes:
    body = json.dumps({"model": "tiny", "prompt": [1, 2, 3], "stream": user != "json", "user": user}).encode()
    return b"POST %b HTTP/1.1\r\nHost: g\r\nContent-Length: %d\r\n\r\n%b" % (PATH.encode(), len(body), body)


async def connect(port: int, user: str, *, small: bool = False) -> socket.socket:
    """Send one request; the socket, without having read anything."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)
    if small:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    await loop.sock_connect(sock, ("127.0.0.1", port))
    await loop.sock_sendall(sock, request(user))
    return sock


async def open_streams(port: int, number: int) -> list[socket.socket]:
    """So many silent streams, each past its first event."""
    loop, room = asyncio.get_running_loop(), asyncio.Semaphore(OPENING)

    async def one() -> socket.socket:
        async with room:
            sock = await connect(port, "idle")
            got = await loop.sock_recv(sock, 4096)
            while b"\n\n\r\n" not in got:
                got += await loop.sock_recv(sock, 4096)
            if b" 200 OK" not in got[:20]:
                raise SystemExit(f"a stream was refused: {got[:300]!r}")
            return sock

    return await asyncio.gather(*(one() for _ in range(number)))


async def ask_often(port: int, clients: int, seconds: float) -> list[float]:
    """What so many clients wait for short answers, in seconds, each asking again at once."""
    until, waited = time.monotonic() + seconds, []

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (began := time.monotonic()) < until:
            writer.write(request("json"))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            waited.append(time.monotonic() - began)
            await asyncio.sleep(0.02)
        writer.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    return waited


def milliseconds(waited: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(waited, n=100)
    return {"p50_ms": round(cuts[49] * 1e3, 2), "p99_ms": round(cuts[98] * 1e3, 2), "requests": len(waited)}


async def settled_mib(pid: int) -> float:
    """The memory once it has stopped growing."""
    before, now = 0.0, resident_mib(pid)
    while now > before + 0.5:
        await asyncio.sleep(1.0)
        before, now = max(before, now), resident_mib(pid)
    return now


async def idle_streams(port: int, pid: int, number: int, seconds: float) -> dict[str, Any]:
    alone, began = await settled_mib(pid), cpu_s(pid)
    await asyncio.sleep(seconds)
    alone_cpu = (cpu_s(pid) - began) / seconds
    opened = time.monotonic()
    sockets = await open_streams(port, number)
    took = time.monotonic() - opened
    held, began = await settled_mib(pid), cpu_s(pid)
    await asyncio.sleep(seconds)
    cpu = (cpu_s(pid) - began) / seconds
    for sock in sockets:
        sock.close()
    await asyncio.sleep(2.0)
    return {
        "streams": number,
        "opened_per_s": round(number / took),
        "mib_before": round(alone, 1),
        "mib": round(held, 1),
        "kib_per_stream": round((held - alone) * 1024 / number, 2),
        "mib_after": round(await settled_mib(pid), 1),
        "cpu_share_before": round(alone_cpu, 4),
        "cpu_share": round(cpu, 4),
    }


async def waves(port: int, pid: int, number: int, count: int) -> dict[str, Any]:
    """So many streams that leave at once, time after time: the memory held during each wave and left after it."""
    held, left = [], [await settled_mib(pid)]
    for _ in range(count):
        sockets = await open_streams(port, number)
        held.append(resident_mib(pid))
        for sock in sockets:
            sock.close()
        await asyncio.sleep(1.0)
        left.append(await settled_mib(pid))
        print(f"{number} streams: {held[-1]:.1f} MiB, when they have left {left[-1]:.1f}", flush=True)
    return {"streams": number, "mib": [round(mib, 1) for mib in held], "mib_after": [round(mib, 1) for mib in left]}


async def slow_readers(port: int, pid: int, number: int, normal: int) -> dict[str, Any]:
    await ask_often(port, normal, 1.0)
    alone = milliseconds(await ask_often(port, normal, 5.0))
    before = await settled_mib(pid)
    sockets = [await connect(port, "flood", small=True) for _ in range(number)]
    held, began = await settled_mib(pid), cpu_s(pid)
    await asyncio.sleep(3.0)
    cpu = (cpu_s(pid) - began) / 3.0
    beside = milliseconds(await ask_often(port, normal, 5.0))
    still = await settled_mib(pid)
    for sock in sockets:
        sock.close()
    await asyncio.sleep(2.0)
    return {
        "slow_readers": number,
        "mib_before": round(before, 1),
        "mib": round(held, 1),
        "mib_later": round(still, 1),
        "kib_per_reader": round((still - before) * 1024 / number, 1),
        "mib_after": round(await settled_mib(pid), 1),
        "cpu_share": round(cpu, 4),
        "normal_clients": normal,
        "alone": alone,
        "beside_slow_readers": beside,
    }


def raise_limit() -> int:
    """All file descriptors that we may have."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


async def engine() -> None:
    async with StreamEngine() as started:
        print(started.url, flush=True)
        await asyncio.Event().wait()


async def measure(port: int, pid: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    await until_ready(port)
    if options.waves:
        return [await waves(port, pid, options.streams, options.waves)]
    results = [await idle_streams(port, pid, options.streams, options.idle_s)]
    print(json.dumps(results[-1], indent=1), flush=True)
    results.append(await slow_readers(port, pid, options.slow, options.normal))
    print(json.dumps(results[-1], indent=1), flush=True)
    return results


async def until_ready(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            await ask_often(port, 1, 0.0)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request("json"))
            if b" 200 " in await reader.readline():
                return
            writer.close()
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise SystemExit("the gateway does not answer")
        await asyncio.sleep(0.2)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--streams", type=int, default=10_000)
    options.add_argument("--slow", type=int, default=1_000)
    options.add_argument("--normal", type=int, default=50)
    options.add_argument("--idle-s", type=float, default=10.0)
    options.add_argument("--waves", type=int, default=0)
    options.add_argument("--out", type=Path)
    options.add_argument("--engine", action="store_true", help="be the engine; the benchmark starts it so")
    chosen = options.parse_args()
    limit = raise_limit()
    if chosen.engine:
        uvloop.run(engine())
        return
    processes = math.ceil(2.2 * chosen.streams / (limit - SPARE)) if 2 * chosen.streams > limit - SPARE else 1
    print(f"{limit} file descriptors a process: the gateway has {processes}")
    (port,) = free_ports(1)
    with ExitStack() as stack:
        command = [sys.executable, __file__, "--engine"]
        backend = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(backend.terminate)
        assert backend.stdout is not None
        serve = [sys.executable, "-m", "warmroute", "serve", "--engine", backend.stdout.readline().strip()]
        serve += ["--log.level", "error", "--events.enabled", "false", "--tokenizer.mode", "off"]
        serve += ["--gateway.port", str(port), "--gateway.processes", str(processes)]
        gateway = stack.enter_context(running(serve))
        results = uvloop.run(measure(port, gateway.pid, chosen))
    if chosen.out is not None:
        chosen.out.write_text(json.dumps({"processes": processes, "results": results}, indent=1) + "\n")


main()
