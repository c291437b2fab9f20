"""Events over a real ZMQ socket from another process until a query sees them, and what queries meanwhile wait.

    python end_to_end.py [PHASE...]

Two ways: *gateway* is what `warmroute serve` does (`edge/zmq.py`, `service/ingest.py`: socket, stream, decoder, index,
on one event loop that also answers queries); *bare* is the least that any program must do (receive, decode, apply, in
a loop). Writes lines as `groups.py` does. CPU time is that of the following process, ZMQ's own thread included. The
engine is a process of its own; its time to send is shown too, as it can be what a flood's wall time is made of.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
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

CHAINS, DEPTH = 512, 512


@dataclass(frozen=True, slots=True)
class Phase:
    """How an engine publishes `CHAINS` chains. After each pass but the last it clears its cache: all is new again."""

    blocks: int
    """An event."""
    events: int
    """A message."""
    passes: int
    messages_per_s: int = 0
    """0: as fast as can be."""

    @property
    def messages(self) -> int:
        return CHAINS * DEPTH // self.blocks // self.events * self.passes + self.passes - 1

    @property
    def blocks_in_all(self) -> int:
        return CHAINS * DEPTH * self.passes


PHASES = {
    "1 block an event, 1 event a message": Phase(1, 1, 1),
    "1 block an event, 16 events a message": Phase(1, 16, 4),
    "1 block an event, 128 events a message": Phase(1, 128, 8),
    "16 blocks an event, 1 event a message": Phase(16, 1, 4),
    "128 blocks an event, 1 event a message": Phase(128, 1, 12),
    "16 blocks an event, 1000 messages/s": Phase(16, 1, 1, 1000),
}
QUERY_EVERY_S = 0.002
BARE_TURN_S = 0.0003
QUERIED, OTHER_WORKERS, WORKER = 7, 64, WorkerId(1_000)
CLEAR = b"\x91\x81\xa4type\xb0AllBlocksCleared\x00"
HEAD = b"\x93\xcb"  # of a batch: an array of three, of which the first is a float, its time


def messages(phase: Phase) -> list[bytes]:
    """One pass of payloads, each from behind its time: that is set when it is sent."""
    subject, payloads = Warmroute(), []
    for k in range(0, CHAINS, phase.events):
        chains = [chain(1_000_000 + k + e, DEPTH) for e in range(phase.events)]
        for start, stop in chains[0].pieces(phase.blocks):
            payload = subject.stored_many([(one, start, stop) for one in chains])
            assert payload.startswith(HEAD)
            payloads.append(payload[10:])
    return payloads


def publish(phase: Phase) -> None:
    """The engine: says where it is, waits for a line, sends, says how long that took, waits to be ended."""
    payloads = messages(phase)
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        socket.set(zmq.SNDHWM, 0)
        socket.set(zmq.LINGER, 60_000)
        print(socket.bind_to_random_port("tcp://127.0.0.1"), flush=True)
        sys.stdin.readline()
        begin = time.perf_counter()
        passes = iter(([*payloads, CLEAR] * phase.passes)[:-1])
        for seq, payload in enumerate(passes):
            while phase.messages_per_s and time.perf_counter() < begin + seq / phase.messages_per_s:
                time.sleep(0.0001)
            ts = struct.pack(">d", time.time())
            socket.send_multipart((b"kv", seq.to_bytes(8, "big"), HEAD + ts + payload))
        print(time.perf_counter() - begin, flush=True)
        sys.stdin.readline()


def ask() -> None:
    """The client: waits for a line; writes the time, every so often, until it is stopped."""
    sys.stdin.readline()
    due = time.monotonic()
    while True:
        due = max(due + QUERY_EVERY_S, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
        sys.stdout.buffer.write(struct.pack("q", time.monotonic_ns()))
        sys.stdout.buffer.flush()


class Queries:
    """Answers a query for each time the client wrote: how long that took, and how long after the time it was done."""

    def __init__(self, subject: Warmroute) -> None:
        self.took_ns: list[int] = []
        self.waited_ns: list[int] = []
        self._subject = subject
        self._query = subject.query(chain(QUERIED, DEPTH))
        self._client = subprocess.Popen(
            [sys.executable, __file__, "ask"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        self.fd = self._client.stdout.fileno()
        self.begin = functools.partial(self._client.stdin.write, b"go\n")

    def answer(self) -> None:
        """Once the client has written."""
        for (asked,) in struct.iter_unpack("q", os.read(self.fd, 8 * 1024)):
            start = time.monotonic_ns()
            assert len(self._subject.find_dict(self._query)) == OTHER_WORKERS
            done = time.monotonic_ns()
            self.took_ns.append(done - start)
            self.waited_ns.append(done - asked)

    def stop(self) -> None:
        self._client.kill()
        self._client.communicate()


class Follower:
    """What both ways have in common: an index that 64 workers have told of the queried chain, and what is measured."""

    def __init__(self, way: str, name: str) -> None:
        self.case, self.phase = f"{way}: {name}", PHASES[name]
        self.subject = Warmroute()
        self.lags_ns: list[int] = []
        for worker in range(OTHER_WORKERS):
            fill(self.subject, QUERIED, DEPTH, worker)
        self.queries = Queries(self.subject)

    def begin(self, engine: subprocess.Popen[str]) -> None:
        assert engine.stdin is not None
        self._begin, self._begin_cpu = time.perf_counter(), time.process_time()
        self.queries.begin()
        engine.stdin.write("go\n")
        engine.stdin.flush()

    def end(self, engine: subprocess.Popen[str]) -> None:
        took, cpu = time.perf_counter() - self._begin, time.process_time() - self._begin_cpu
        self.queries.stop()
        assert engine.stdout is not None
        sent_s = float(engine.stdout.readline())
        last = self.subject.query(chain(1_000_000 + CHAINS - 1, DEPTH))
        assert self.subject.depths(self.subject.find(last)) == {WORKER: DEPTH}
        phase, queries = self.phase, self.queries
        tell(self.case, cpu_us_per_message=cpu / phase.messages * 1e6, cpu_ns_per_block=cpu / phase.blocks_in_all * 1e9)
        if phase.messages_per_s:
            tell(self.case, visible_p50_us=percentile(self.lags_ns, 0.5) / 1e3)
            tell(self.case, visible_p99_us=percentile(self.lags_ns, 0.99) / 1e3)
        else:
            tell(self.case, wall_ns_per_block=took / phase.blocks_in_all * 1e9)
            tell(self.case, engine_wall_ns_per_block=sent_s / phase.blocks_in_all * 1e9)
        tell(self.case, query_p99_us=percentile(queries.took_ns, 0.99) / 1e3)
        tell(self.case, query_from_client_p50_us=percentile(queries.waited_ns, 0.5) / 1e3)
        tell(self.case, query_from_client_p99_us=percentile(queries.waited_ns, 0.99) / 1e3)


async def follow_as_gateway(name: str, port: int, engine: subprocess.Popen[str]) -> None:
    follower, connected, done = Follower("gateway", name), asyncio.Event(), asyncio.Event()
    loop, config = asyncio.get_running_loop(), EventsConfig()
    count = follower.phase.messages

    def applied(_worker: WorkerId) -> None:
        follower.lags_ns.append(int((time.time() - (stream.counts.last_event_ts or 0)) * 1e9))
        if stream.counts.batches == count:
            done.set()

    with zmq.Context() as context:
        ingest = Ingest(
            index=follower.subject.index,
            config=config,
            clock=time.monotonic,
            wall_clock=time.time,
            on_trust=lambda _worker, _trust: connected.set(),
            on_applied=applied,
        )
        stream = WorkerStream(WORKER, ingest)
        stream.start(zmq_event_sources(context, config)(EventAddress(f"tcp://127.0.0.1:{port}")))
        await connected.wait()
        await asyncio.sleep(0.5)  # the subscription is on its way
        loop.add_reader(follower.queries.fd, follower.queries.answer)
        follower.begin(engine)
        await asyncio.wait_for(done.wait(), 300)
        loop.remove_reader(follower.queries.fd)
        follower.end(engine)
        assert stream.counts.stream["gaps"] == 0
        stream.retire()


def follow_barely(name: str, port: int, engine: subprocess.Popen[str]) -> None:
    follower = Follower("bare", name)
    subject, left, queries = follower.subject, follower.phase.messages, follower.queries
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.set(zmq.RCVHWM, 0)
        socket.set(zmq.SUBSCRIBE, b"")
        socket.connect(f"tcp://127.0.0.1:{port}")
        time.sleep(0.5)  # the subscription is on its way
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(queries.fd, zmq.POLLIN)
        follower.begin(engine)
        while left:
            ready = dict(poller.poll(300_000))
            if queries.fd in ready:
                queries.answer()
            for payload in received(socket) if socket in ready else ():
                subject.apply(WORKER, payload)
                left -= 1
                if follower.phase.messages_per_s:
                    follower.lags_ns.append(int((time.time() - struct.unpack(">d", payload[2:10])[0]) * 1e9))
        follower.end(engine)


def received(socket: zmq.Socket[bytes]) -> Iterator[bytes]:
    """Payloads that are there, a turn's worth of them at most."""
    end = time.monotonic() + BARE_TURN_S
    with contextlib.suppress(zmq.Again):
        while time.monotonic() < end:
            yield socket.recv_multipart(zmq.NOBLOCK)[2]


def follow(name: str, follow_one: Any) -> None:
    command = [sys.executable, __file__, "publish", name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout is not None
        follow_one(name, int(engine.stdout.readline()), engine)
        engine.communicate("done\n", timeout=60)


def main(names: list[str]) -> None:
    for name in names or PHASES:
        follow(name, lambda *given: uvloop.run(follow_as_gateway(*given)))
        follow(name, follow_barely)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["publish", phase_name]:
            publish(PHASES[phase_name])
        case ["ask"]:
            ask()
        case phase_names:
            main(phase_names)
