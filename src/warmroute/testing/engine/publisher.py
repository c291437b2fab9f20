"""One rank's event sockets: PUB for the batches as they come, ROUTER for those that were missed.

Invariant: numbers begin at 0 and each batch takes the next one, whether or not anybody gets to see it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import zmq
import zmq.asyncio

from warmroute.service.ports import EventAddress
from warmroute.testing.engine.cache import CacheEvent
from warmroute.testing.engine.options import EngineOptions, Faults
from warmroute.testing.engine.release import Release
from warmroute.testing.engine.wire import EventEncoder

_END = b"\xff" * 8
_GARBAGE = b"\xc1 not msgpack"
_FOREIGN: tuple[Any, ...] = ("BlockDreamt", 1, None)


class Publisher:
    """Publishes the batches of one rank and answers replays, as the options' release does."""

    def __init__(self, options: EngineOptions, rank: int, faults: Faults) -> None:
        release = Release.of(options.release)
        self._encoder = EventEncoder(
            release.layout, options.events_form or release.layout.form, options.hash_form or release.hash_form, rank
        )
        self._options = options
        self._rank = rank
        self._faults = faults
        self._topic = options.topic.encode()
        self._head = (self._topic,) if release.layout.replay_topic else ()
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=options.buffer_steps)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._pub = self._context.socket(zmq.PUB)
        self._pub.set_hwm(100_000)
        self.replays = options.replay
        self._router: zmq.asyncio.Socket = zmq.asyncio.Context(self._context).socket(zmq.ROUTER)
        self._router.set_hwm(release.replay_hwm)
        self.next_seq = 0
        self.address = EventAddress("")

    def bind(self, former: EventAddress | None = None) -> None:
        """Bind both sockets: where `former` was, or where the options say. Raises zmq.ZMQError if that is taken."""
        options = self._options
        if former is None:
            events = self._publish_at(options.host, options.events_port and options.events_port + self._rank)
            replay_port = options.replay_port and options.replay_port + self._rank
            replay = _bind(self._router, options.host, replay_port) if self.replays else None
            self.address = EventAddress(events, replay, options.topic)
        else:
            (self._pub.bind if options.events_bind else self._pub.connect)(former.endpoint)
            if former.replay_endpoint is not None:
                self._router.bind(former.replay_endpoint)
            self.address = former

    def _publish_at(self, host: str, port: int) -> str:
        if self._options.events_bind:
            return _bind(self._pub, host, port)
        self._pub.connect(f"tcp://{host}:{port}")
        return f"tcp://{host}:{port}"

    def publish(self, ts: float, events: tuple[CacheEvent, ...]) -> None:
        """Send one step's events, unless a fault wants otherwise."""
        if self._faults.happens("swallow_batches"):
            return
        seq, self.next_seq = self.next_seq, self.next_seq + 1
        if self._faults.happens("lose_batches"):
            return
        foreign = (_FOREIGN,) if self._faults.happens("foreign_events") else ()
        payload = self._encoder.batch(ts, events, foreign=foreign)
        if self._faults.happens("garble_batches"):
            payload = _GARBAGE
        self._buffer.append((seq, payload))
        if not self._faults.happens("drop_batches"):
            self._pub.send_multipart((self._topic, seq.to_bytes(8, "big"), payload))

    async def serve_replays(self) -> None:
        """Answer replay requests until cancelled. Requests of another shape get no answer, as in vLLM."""
        while True:
            frames = await self._router.recv_multipart()
            if len(frames) != 3 or frames[1] or self._faults.happens("silent_replays"):
                continue
            start = int.from_bytes(frames[2], "big")
            for seq, payload in list(self._buffer):
                if seq >= start:
                    await self._router.send_multipart((frames[0], b"", *self._head, seq.to_bytes(8, "big"), payload))
            end_head = (b"",) * len(self._head)
            await self._router.send_multipart((frames[0], b"", *end_head, _END, b""))

    async def close(self) -> None:
        """Release the sockets at once; what was not sent yet is lost."""
        self._pub.close(linger=0)
        self._router.close(linger=0)
        await asyncio.to_thread(self._context.term)


def _bind(socket: zmq.Socket[Any], host: str, port: int) -> str:
    socket.bind(f"tcp://{host}:{port or '*'}")
    return socket.getsockopt_string(zmq.LAST_ENDPOINT).replace("//0.0.0.0:", "//127.0.0.1:")
