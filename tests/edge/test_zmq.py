"""The ZMQ edge over real sockets, under asyncio and uvloop: a publisher on one side, a stream on the other."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop
import zmq

from warmroute.config.tree import EventsConfig
from warmroute.core.index.contract import ApplyReport
from warmroute.core.wire.events import BlockStored, Event
from warmroute.edge.zmq import MESSAGES_PER_TURN, ZmqEventSource, zmq_event_sources
from warmroute.errors import ConfigError
from warmroute.service.ingest import Ingest, WorkerStream
from warmroute.service.ports import EventAddress
from warmroute.testing.events import DEFAULT_RELEASE, encode_batch, pub_frames, replay_end, replay_frames
from warmroute.types import TrustState, WorkerId

DEADLINE_S = 20.0
CONFIG = EventsConfig(reconnect_backoff_s=0.02, reconnect_backoff_max_s=0.1, replay_timeout_s=DEADLINE_S)
IMPATIENT = dataclasses.replace(CONFIG, replay_timeout_s=0.1)


class Publisher:
    """PUB and ROUTER as an engine has them, polled by the test itself: nothing runs behind its back."""

    def __init__(self, context: zmq.Context[Any], port: int = 0, *, buffer_steps: int = 100_000) -> None:
        self.pub, self.router = context.socket(zmq.PUB), context.socket(zmq.ROUTER)
        for socket in (self.pub, self.router):
            socket.linger = 0
            socket.sndhwm = 0
        self.pub.bind(f"tcp://127.0.0.1:{port or '*'}")
        self.router.bind("tcp://127.0.0.1:*")
        self.batches: list[bytes] = []
        self.buffer_steps = buffer_steps
        self.questions: list[int] = []

    @property
    def port(self) -> int:
        return int(self.pub.last_endpoint.decode().rpartition(":")[2])

    @property
    def replay_endpoint(self) -> str:
        return self.router.last_endpoint.decode()

    def publish(self, count: int = 1, *, lose: bool = False) -> None:
        for _ in range(count):
            seq = len(self.batches)
            event = BlockStored(block_hashes=(seq,), parent=seq - 1 if seq else None, token_ids=(seq,), block_size=1)
            self.batches.append(encode_batch([event], ts=time.time()))
            if not lose:
                self.pub.send_multipart(pub_frames("kv", seq, self.batches[-1]))

    def serve(self) -> None:
        """Answer what was asked, if something was."""
        while self.router.poll(0):
            identity, empty, start = self.router.recv_multipart()
            assert empty == b""
            self.questions.append(int.from_bytes(start, "big"))
            first = max(self.questions[-1], len(self.batches) - self.buffer_steps)
            for seq in range(first, len(self.batches)):
                frames = replay_frames(seq, self.batches[seq], topic="kv", release=DEFAULT_RELEASE)
                self.router.send_multipart([identity, *frames])
            self.router.send_multipart([identity, *replay_end()])

    def close(self) -> None:
        self.pub.close(0)
        self.router.close(0)


class HashList:
    """An index that only notes which hashes were stored since the last clear."""

    def __init__(self) -> None:
        self.stored: list[int | bytes] = []
        self.clears = 0

    def store(self, worker: WorkerId, event: Event, report: ApplyReport) -> None:
        self.stored.extend(event.block_hashes)

    def clear(self, worker: WorkerId, report: ApplyReport | None = None) -> None:
        self.stored.clear()
        self.clears += 1

    def drop(self, worker: WorkerId) -> None:
        self.stored.clear()


class Follower:
    def __init__(self, context: zmq.Context[Any], address: EventAddress, config: EventsConfig = CONFIG) -> None:
        self.index = HashList()
        ingest = Ingest(
            index=self.index,
            config=config,
            clock=asyncio.get_running_loop().time,
            wall_clock=time.time,
            on_trust=lambda _worker, _trust: None,
        )
        self.stream = WorkerStream(WorkerId(1), ingest)
        self.stream.start(zmq_event_sources(context, config)(address))

    @property
    def trust(self) -> TrustState:
        return self.stream.trust.state

    def has(self, count: int) -> bool:
        return self.trust is TrustState.LIVE and self.index.stored == list(range(count))


async def until(condition: Callable[[], bool], *publishers: Publisher) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        for publisher in publishers:
            publisher.serve()
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.002)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(coroutine)

    return run


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    with zmq.Context() as context:  # Terminating hangs if a socket was left open: then the test's timeout speaks.
        yield context


def test_joins_late_and_replays_what_was_before(run, context) -> None:
    async def main() -> None:
        publisher = Publisher(context)
        publisher.publish(50)
        follower = Follower(context, EventAddress(f"tcp://127.0.0.1:{publisher.port}", publisher.replay_endpoint, "kv"))
        assert follower.trust is TrustState.BLIND
        await until(lambda: follower.has(50), publisher)
        publisher.publish(3)
        await until(lambda: follower.has(53), publisher)
        assert publisher.questions == [0]
        follower.stream.retire()
        assert follower.index.stored == []
        publisher.close()

    run(main())


def test_fills_a_gap_from_the_replay(run, context) -> None:
    async def main() -> None:
        publisher = Publisher(context)
        follower = Follower(context, EventAddress(f"tcp://127.0.0.1:{publisher.port}", publisher.replay_endpoint))
        await until(lambda: follower.has(0), publisher)
        publisher.publish(6)
        publisher.publish(2, lose=True)
        publisher.publish(1)
        await until(lambda: follower.has(9), publisher)
        assert follower.stream.counts.stream["missed"] == 2
        assert follower.stream.counts.stream["lost"] == 0
        follower.stream.retire()
        publisher.close()

    run(main())


def test_c6_a_closed_replay_port_delays_nobody(run, context) -> None:
    async def main() -> None:
        publisher, other = Publisher(context), Publisher(context)
        publisher.publish(5)
        closed = publisher.replay_endpoint
        publisher.router.close(0)
        follower = Follower(context, EventAddress(f"tcp://127.0.0.1:{publisher.port}", closed), IMPATIENT)
        neighbour = Follower(context, EventAddress(f"tcp://127.0.0.1:{other.port}", other.replay_endpoint))
        await until(lambda: neighbour.has(0), other)
        assert follower.trust is not TrustState.LIVE
        other.publish(20)
        await until(lambda: neighbour.has(20), other)
        await until(lambda: follower.stream.counts.stream["replay_failures"] == 1)
        publisher.publish(2)
        await until(lambda: follower.index.stored == [5, 6])
        assert follower.trust is TrustState.DEGRADED
        assert "5 batches lost" in follower.stream.trust.reason
        for each in (follower, neighbour):
            each.stream.retire()
        publisher.pub.close(0)
        other.close()

    run(main())


def test_without_a_replay_endpoint_a_run_followed_from_its_start_is_live(run, context) -> None:
    async def main() -> None:
        publisher = Publisher(context)
        follower = Follower(context, EventAddress(f"tcp://127.0.0.1:{publisher.port}"))
        await until(lambda: follower.stream.counts.stream["replay_failures"] == 1)
        assert follower.trust is TrustState.BLIND
        publisher.publish(3)
        await until(lambda: follower.has(3))
        follower.stream.retire()
        publisher.close()

    run(main())


def test_reconnects_to_a_publisher_that_restarts_on_the_same_port(run, context) -> None:
    async def main() -> None:
        publisher = Publisher(context)
        port = publisher.port
        publisher.publish(9)
        replay = publisher.replay_endpoint
        follower = Follower(context, EventAddress(f"tcp://127.0.0.1:{port}", replay))
        await until(lambda: follower.has(9), publisher)
        publisher.close()
        await until(lambda: follower.trust is TrustState.DEGRADED)
        assert follower.stream.trust.reason == "disconnected"

        restarted = Publisher(context, port)
        restarted.router.bind(replay)
        restarted.publish(4)
        await until(lambda: follower.has(4), restarted)
        assert follower.stream.counts.stream["restarts"] == 1
        assert follower.index.clears == 1
        follower.stream.retire()
        restarted.close()

    run(main())


def test_a_flood_is_received_whole_and_the_loop_goes_on(run, context) -> None:
    async def main() -> None:
        publisher = Publisher(context)
        follower = Follower(context, EventAddress(f"tcp://127.0.0.1:{publisher.port}", publisher.replay_endpoint))
        await until(lambda: follower.has(0), publisher)
        turns = most = 0
        before = 0
        publisher.publish(10_000)
        while not follower.has(10_000):
            await asyncio.sleep(0)
            turns += 1
            most = max(most, len(follower.index.stored) - before)
            before = len(follower.index.stored)
            publisher.serve()
        assert most <= 2 * MESSAGES_PER_TURN
        assert turns > 10_000 / (2 * MESSAGES_PER_TURN)
        assert follower.stream.counts.stream["gaps"] == 0
        follower.stream.retire()
        publisher.close()

    run(main())


def test_a_flood_of_replies_is_received_whole(run, context) -> None:
    async def main() -> None:
        publisher = Publisher(context)
        publisher.publish(10_000, lose=True)
        follower = Follower(context, EventAddress(f"tcp://127.0.0.1:{publisher.port}", publisher.replay_endpoint))
        await until(lambda: follower.has(10_000), publisher)
        assert publisher.questions == [0]
        follower.stream.retire()
        publisher.close()

    run(main())


def test_a_sink_that_raises_does_not_stop_the_reading(run, context) -> None:
    class Sink:
        def __init__(self) -> None:
            self.seen: list[bytes] = []

        def connected(self) -> None:
            self.up = True

        def message(self, frames: list[bytes]) -> None:
            self.seen.append(frames[1])
            raise RuntimeError("a bug")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        errors: list[str] = []
        loop.set_exception_handler(lambda _loop, context: errors.append(str(context["exception"])))
        publisher, sink = Publisher(context), Sink()
        source = ZmqEventSource(EventAddress(f"tcp://127.0.0.1:{publisher.port}"), context, CONFIG)
        source.start(sink)
        await until(lambda: hasattr(sink, "up"))
        while not sink.seen:  # The subscription may reach the publisher a little after the handshake.
            publisher.publish()
            await asyncio.sleep(0.001)
        count = len(publisher.batches)
        publisher.publish(3)
        await until(lambda: bool(sink.seen) and sink.seen[-1] == (count + 2).to_bytes(8, "big"))
        assert set(errors) == {"a bug"}
        source.close()
        source.close()
        publisher.close()

    run(main())


def test_closing_within_a_call_ends_the_reading(run, context) -> None:
    class Sink:
        calls = 0

        def connected(self) -> None:
            self.up = True

        def message(self, frames: list[bytes]) -> None:
            self.calls += 1
            self.source.close()

    async def main() -> None:
        publisher, sink = Publisher(context), Sink()
        sink.source = ZmqEventSource(EventAddress(f"tcp://127.0.0.1:{publisher.port}"), context, CONFIG)
        sink.source.start(sink)
        await until(lambda: hasattr(sink, "up"))
        while not sink.calls:
            publisher.publish(5)
            await asyncio.sleep(0.001)
        assert sink.calls == 1
        publisher.close()

    run(main())


def test_a_silent_replay_fails_and_lets_go_of_its_socket(run, context) -> None:
    class Sink:
        def __init__(self) -> None:
            self.reasons: list[str] = []

        def connected(self) -> None: ...

        def replay_failed(self, reason: str) -> None:
            self.reasons.append(reason)

    async def main() -> None:
        publisher, sink = Publisher(context), Sink()
        config = EventsConfig(replay_timeout_s=0.02)
        source = ZmqEventSource(
            EventAddress(f"tcp://127.0.0.1:{publisher.port}", publisher.replay_endpoint), context, config
        )
        source.start(sink)
        source.replay(0)
        source.replay(3)  # Abandons the first; one failure is heard, not two.
        await until(lambda: bool(sink.reasons))
        assert sink.reasons == ["timeout"]
        assert source._replies is None
        source.close()
        publisher.close()

    run(main())


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://*:5557", "tcp://0.0.0.0:5557", "tcp://[::]:5557", "10.0.0.1:5557", "tcp://10.0.0.1", "tcp://:5557", ""],
)
def test_addresses_that_nobody_can_connect_to_are_refused(endpoint: str, context) -> None:
    with pytest.raises(ConfigError, match=r"events_endpoint: .*(wildcard|HOST:PORT)"):
        ZmqEventSource(EventAddress(endpoint), context, CONFIG)
    with pytest.raises(ConfigError, match="replay_endpoint"):
        ZmqEventSource(EventAddress("tcp://127.0.0.1:5557", endpoint), context, CONFIG)


class Silent:
    """A sink that keeps why replays failed."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def connected(self) -> None: ...

    def disconnected(self) -> None: ...

    def message(self, frames: list[bytes]) -> None: ...

    def replayed(self, frames: list[bytes]) -> None: ...

    def replay_failed(self, reason: str) -> None:
        self.reasons.append(reason)


@pytest.mark.parametrize("sockets", [0, 1])
def test_a_system_without_sockets_is_said_and_nothing_is_left_open(
    sockets: int, run, context, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, make = [sockets], zmq.Context.socket

    def socket(self: zmq.Context[Any], kind: int) -> Any:
        if not left[0]:
            raise zmq.ZMQError(errno.EMFILE)
        left[0] -= 1
        return make(self, kind)

    async def main() -> None:
        source = ZmqEventSource(EventAddress("tcp://127.0.0.1:5557"), context, CONFIG)
        with monkeypatch.context() as patched:
            patched.setattr(zmq.Context, "socket", socket)
            with pytest.raises(ConfigError, match=r"no socket can be had.*ulimit"):
                source.start(Silent())
        source.close()
        assert (source._events, source._monitor) == (None, None)

    run(main())


def test_a_replay_without_a_socket_has_failed(run, context, monkeypatch: pytest.MonkeyPatch) -> None:
    def socket(*_: object) -> Any:
        raise zmq.ZMQError(errno.EMFILE)

    async def main() -> None:
        publisher, sink = Publisher(context), Silent()
        address = EventAddress(f"tcp://127.0.0.1:{publisher.port}", publisher.replay_endpoint)
        source = ZmqEventSource(address, context, CONFIG)
        source.start(sink)
        with monkeypatch.context() as patched:
            patched.setattr(zmq.Context, "socket", socket)
            source.replay(0)
        await until(lambda: bool(sink.reasons))
        assert "no socket can be had" in sink.reasons[0]
        assert source._slots.counts() == {("under way",): 0, ("waiting",): 0}
        source.close()
        publisher.close()

    run(main())


def test_an_ipv6_publisher_is_reached(run, context) -> None:
    async def main() -> None:
        publisher = context.socket(zmq.PUB)
        publisher.set(zmq.IPV6, 1)
        try:
            publisher.bind("tcp://[::1]:*")
        except zmq.ZMQError:
            publisher.close(0)
            pytest.skip("no IPv6 on this machine")
        follower = Follower(context, EventAddress(publisher.last_endpoint.decode()))
        await until(lambda: follower.stream.counts.stream["replay_failures"] == 1)
        publisher.send_multipart(pub_frames("", 0, encode_batch([])))
        await until(lambda: follower.has(0) and follower.stream.counts.batches == 1)
        follower.stream.retire()
        publisher.close(0)

    run(main())
