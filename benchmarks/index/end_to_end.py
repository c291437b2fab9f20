"""Events over a real ZMQ socket from another process until a query sees them, and what queries meanwhile wait.

    python end_to_end.py

The whole way of the gateway: socket, stream, decoder, index, on one event loop that also answers queries. Writes lines
as `groups.py` does.
"""

from __future__ import annotations

import asyncio
import json
import struct
import subprocess
import sys
import time
from typing import Any

import uvloop
import zmq
from groups import fill, percentile, tell
from subjects import Warmroute
from workload import chain

from warmroute.config.tree import EventsConfig
from warmroute.edge.zmq import zmq_event_sources
from warmroute.service.ingest import Ingest, WorkerStream
from warmroute.service.ports import EventAddress
from warmroute.types import WorkerId

PHASES = {  # name: (messages, blocks an event, events a message, messages a second; 0: as fast as can be)
    "flood, 16 blocks an event": (20_000, 16, 1, 0),
    "flood, 1 block an event, 16 events a message": (20_000, 1, 16, 0),
    "1000 messages/s, 16 blocks an event": (5_000, 16, 1, 1000),
}
QUERY_EVERY_S = 0.002
DEPTH = 512
WORKER = WorkerId(1_000)


def messages(name: str) -> list[bytes]:
    """Payloads without their time: that is set when they are sent."""
    count, blocks, events, _ = PHASES[name]
    subject, payloads = Warmroute(), []
    for k in range(count * blocks // DEPTH):
        chains = [chain(1_000_000 + k * events + e, DEPTH) for e in range(events)]
        for start, stop in chains[0].pieces(blocks):
            payload = subject.stored_many([(one, start, stop) for one in chains])
            assert payload[:2] == b"\x93\xcb"
            payloads.append(payload[10:])
    return payloads


def publish(name: str) -> None:
    """The engine: says where it is and how much it has, waits for a line, sends."""
    payloads, rate = messages(name), PHASES[name][3]
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        socket.set(zmq.SNDHWM, 0)
        socket.set(zmq.LINGER, 60_000)
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        print(json.dumps([port, len(payloads)]), flush=True)
        sys.stdin.readline()
        begin = time.perf_counter()
        for seq, payload in enumerate(payloads):
            while rate and time.perf_counter() < begin + seq / rate:
                time.sleep(0.0001)
            ts = struct.pack(">d", time.time())
            socket.send_multipart([b"kv", seq.to_bytes(8, "big"), b"\x93\xcb" + ts + payload])
        sys.stdin.readline()


def ask() -> None:
    """The client: writes the time, every so often, until it is stopped."""
    due = time.monotonic()
    while True:
        due = max(due + QUERY_EVERY_S, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
        sys.stdout.buffer.write(struct.pack("q", time.monotonic_ns()))
        sys.stdout.buffer.flush()


class Queries:
    """Answers a query for each time the client wrote: how long that took, and how long after the time it was done."""

    def __init__(self, subject: Any) -> None:
        self.took_ns: list[int] = []
        self.waited_ns: list[int] = []
        self._subject = subject
        self._query = subject.query(chain(7, DEPTH))
        self._client = subprocess.Popen([sys.executable, __file__, "ask"], stdout=subprocess.PIPE, bufsize=0)
        asyncio.get_running_loop().add_reader(self._client.stdout, self._answer)

    def _answer(self) -> None:
        assert self._client.stdout is not None
        for (asked,) in struct.iter_unpack("q", self._client.stdout.read(8 * 1024)):
            start = time.monotonic_ns()
            assert len(self._subject.find(self._query)) == 64
            done = time.monotonic_ns()
            self.took_ns.append(done - start)
            self.waited_ns.append(done - asked)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._client.stdout)
        self._client.kill()
        self._client.communicate()


async def follow(name: str, engine: subprocess.Popen[str]) -> None:
    assert engine.stdin is not None
    assert engine.stdout is not None
    port, count = json.loads(engine.stdout.readline())
    subject, lags, done = Warmroute(), [], asyncio.Event()
    for worker in range(64):
        fill(subject, 7, DEPTH, worker)

    def applied(_worker: WorkerId) -> None:
        lags.append(int((time.time() - (stream.counts.last_event_ts or 0)) * 1e9))
        if stream.counts.batches == count:
            done.set()

    with zmq.Context() as context:
        config = EventsConfig()
        ingest = Ingest(
            index=subject.index,
            config=config,
            clock=time.monotonic,
            wall_clock=time.time,
            on_trust=lambda _worker, _trust: connected.set(),
            on_applied=applied,
        )
        connected, stream = asyncio.Event(), WorkerStream(WORKER, ingest)
        stream.start(zmq_event_sources(context, config)(EventAddress(f"tcp://127.0.0.1:{port}")))
        await connected.wait()
        await asyncio.sleep(0.5)  # the subscription is on its way
        queries = Queries(subject)
        begin, begin_cpu = time.perf_counter(), time.process_time()
        engine.stdin.write("go\n")
        engine.stdin.flush()
        await asyncio.wait_for(done.wait(), 300)
        took, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
        queries.stop()
        assert stream.counts.stream["gaps"] == 0
        _, blocks, events, rate = PHASES[name]
        last = chain(1_000_000 + count * blocks // DEPTH * events - 1, DEPTH)
        assert subject.depths(subject.find(subject.query(last))) == {WORKER: DEPTH}
        stream.retire()
    tell(name, cpu_us_per_message=cpu / count * 1e6, query_p99_us=percentile(queries.took_ns, 0.99) / 1e3)
    tell(name, query_from_client_p50_us=percentile(queries.waited_ns, 0.5) / 1e3)
    tell(name, query_from_client_p99_us=percentile(queries.waited_ns, 0.99) / 1e3)
    if rate:
        tell(name, visible_p50_us=percentile(lags, 0.5) / 1e3, visible_p99_us=percentile(lags, 0.99) / 1e3)
    else:
        tell(
            name, wall_ns_per_block=took / count / blocks / events * 1e9, wall_us_per_event=took / count / events * 1e6
        )


def main() -> None:
    for name in PHASES:
        command = [sys.executable, __file__, "publish", name]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as engine:
            uvloop.run(follow(name, engine))
            engine.communicate("done\n", timeout=60)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["publish", name]:
            publish(name)
        case ["ask"]:
            ask()
        case _:
            main()
