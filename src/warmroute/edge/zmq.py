"""One worker's event and replay sockets over ZMQ, driven by the event loop that the index belongs to.

Sockets are read by callbacks of the loop, so messages reach the sink without a task or a queue in between. ZMQ's file
descriptors are edge-triggered: they tell that something changed, once. Therefore every call into a socket that may eat
that news is followed by another look (`_look_again`), and a look reads until there is nothing left or its turn is over
(`MESSAGES_PER_TURN`, `TURN_S`), so that a flood does not hold up the loop.

Messages are read before the news of the connection and handed on after them, and what was left unread of a connection
that broke is thrown away: so a message never overtakes the news of its connection, and none outlives it. Replies come
last.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

import zmq
from zmq.utils.monitor import parse_monitor_message

from warmroute.config.tree import EventsConfig
from warmroute.core.stream import NO_ENDPOINT
from warmroute.core.wire.frames import encode_replay_request
from warmroute.errors import ConfigError
from warmroute.service.ports import EventAddress, EventSink, EventSource, EventSourceFactory

MESSAGES_PER_TURN = 256
"""How many messages of one worker are read before the loop may do something else, and for how long: a message holds one
event or hundreds, and a request that comes meanwhile waits for the turn's end."""
TURN_S = 0.0003
CONNECT_TIMEOUT_MS = 5_000
"""An address that swallows packets is tried anew after so long, not after the minutes that systems allow."""
HEARTBEAT_INTERVAL_MS = 10_000
HEARTBEAT_TIMEOUT_MS = 30_000
"""A peer that is gone without a word (its machine died) counts as disconnected after so long."""
LEFTOVERS_MAX = 100_000
"""How many messages of a broken connection are thrown away at once: some tenths of a second's work."""
MESSAGE_BYTES_MAX = 1 << 28
"""Larger messages end the connection: they come from something that is not an engine."""
WILDCARD_HOSTS = frozenset({"*", "0.0.0.0", "::", "[::]"})  # noqa: S104 - refused, not bound

_Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"
_Socket: TypeAlias = "zmq.Socket[bytes]"


def zmq_event_sources(context: _Context, config: EventsConfig, slots: ReplaySlots | None = None) -> EventSourceFactory:
    """Sources that share `context`, which its owner terminates after they are closed, and the slots for replays."""
    slots = slots or ReplaySlots(config.replays_max)

    def source(address: EventAddress) -> EventSource:
        return ZmqEventSource(address, context, config, slots)

    return source


class ReplaySlots:
    """How many replays go on at once: a fleet that comes back together is not read all at once, but in turn."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: dict[ZmqEventSource, int] = {}
        self._asking: set[ZmqEventSource] = set()

    def counts(self) -> dict[tuple[str, ...], float]:
        """How many replays go on, and how many wait for a slot."""
        return {("under way",): len(self._asking), ("waiting",): len(self._waiting)}

    def take(self, source: ZmqEventSource, start: int) -> None:
        """Have `source` ask for its batches from `start` on: at once, or when it is its turn."""
        self._waiting[source] = start
        self._next()

    def leave(self, source: ZmqEventSource) -> None:
        """`source` asks no more, or never did."""
        self._waiting.pop(source, None)
        if source in self._asking:
            self._asking.remove(source)
            self._free += 1
            self._next()

    def _next(self) -> None:
        while self._free and self._waiting:
            source, start = next(iter(self._waiting.items()))
            del self._waiting[source]
            self._free -= 1
            self._asking.add(source)
            source.ask(start)


class ZmqEventSource:
    """One worker's sockets (the port EventSource). Raises ConfigError for an address that nobody can connect to."""

    def __init__(
        self, address: EventAddress, context: _Context, config: EventsConfig, slots: ReplaySlots | None = None
    ) -> None:
        if not address.bind:
            _check(address.endpoint, "events_endpoint")
        if address.replay_endpoint is not None:
            _check(address.replay_endpoint, "replay_endpoint")
        self._address = address
        self._context = context
        self._config = config
        self._slots = slots or ReplaySlots(config.replays_max)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sink: EventSink | None = None
        self._events: _Watched | None = None
        self._unread: deque[list[bytes]] = deque()
        self._peers = 0
        self._monitor: _Watched | None = None
        self._replies: _Watched | None = None
        self._silence: asyncio.TimerHandle | None = None
        self._last_reply = 0.0
        self._look_handle: asyncio.Handle | None = None

    def __repr__(self) -> str:
        return f"ZmqEventSource({self._address.endpoint}, replaying={self._replies is not None})"

    def start(self, sink: EventSink) -> None:
        """Subscribe on the running loop, and call `sink` from now on.

        Raises ConfigError for a useless address, or if the system has no more sockets.
        """
        self._loop = asyncio.get_running_loop()
        self._sink = sink
        try:
            socket = self._socket(zmq.SUB)
            self._events = _Watched(self._loop, socket, self._look)
            socket.set(zmq.HEARTBEAT_IVL, HEARTBEAT_INTERVAL_MS)
            socket.set(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
            monitor = _had(socket.get_monitor_socket, zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
            self._monitor = _Watched(self._loop, monitor, self._look)
            socket.set(zmq.SUBSCRIBE, self._address.topic.encode())
            if self._address.bind:
                _attach(socket.bind, self._address.endpoint, "events_listen")
            else:
                _attach(socket.connect, self._address.endpoint, "events_endpoint")
        except ConfigError:
            self.close()
            raise
        self._look_again()

    def replay(self, start: int) -> None:
        """Ask for every batch from `start` on. A socket of its own, so that no reply to an older question can come."""
        self.end_replay()
        if self._loop is None or self._sink is None:
            return
        if self._address.replay_endpoint is None:
            self._loop.call_soon(self._fail_replay, NO_ENDPOINT)
            return
        self._slots.take(self, start)

    def ask(self, start: int) -> None:
        """It is this source's turn to replay."""
        if self._loop is None or self._sink is None or self._address.replay_endpoint is None:
            return
        try:
            socket = self._socket(zmq.DEALER)
            self._replies = _Watched(self._loop, socket, self._look)
            _attach(socket.connect, self._address.replay_endpoint, "replay_endpoint")
        except ConfigError as error:  # it may be another source whose end made this one's turn
            self._loop.call_soon(self._fail_replay, str(error))
            return
        socket.send_multipart(encode_replay_request(start), zmq.NOBLOCK)
        self._last_reply = self._loop.time()
        self._await_reply()
        self._look_again()

    def end_replay(self) -> None:
        """Release the replay's socket and its turn, if there are any."""
        if self._replies is not None:
            self._replies.close()
            self._replies = None
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        self._slots.leave(self)

    def close(self) -> None:
        """Release everything. May be called more than once, and from within a call to the sink."""
        self._sink = None
        self.end_replay()
        if self._look_handle is not None:
            self._look_handle.cancel()
            self._look_handle = None
        if self._events is not None:
            self._events.socket.disable_monitor()
        for watched in (self._monitor, self._events):
            if watched is not None:
                watched.close()
        self._monitor = self._events = None
        self._unread.clear()

    def _socket(self, kind: int) -> _Socket:
        socket = _had(self._context.socket, kind)
        socket.linger = 0
        socket.set(zmq.RCVHWM, 0)  # Never drop on our side: a slow reader of a replay would get holes and no end.
        socket.set(zmq.IPV6, 1)
        # ZMQ doubles the pause but does not vary it: without this a fleet would come back in step.
        first_pause_s = self._config.reconnect_backoff_s * random.uniform(1.0, 1.25)  # noqa: S311
        socket.set(zmq.RECONNECT_IVL, int(first_pause_s * 1000))
        socket.set(zmq.RECONNECT_IVL_MAX, int(self._config.reconnect_backoff_max_s * 1000))
        socket.set(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
        socket.set(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
        return socket

    # Reading.

    def _look_again(self) -> None:
        if self._look_handle is None and self._loop is not None and self._sink is not None:
            self._look_handle = self._loop.call_soon(self._look)

    def _look(self) -> None:
        """Read what is there, in order of what must be known first. The sink may replay or close meanwhile."""
        if self._look_handle is not None:
            self._look_handle.cancel()
            self._look_handle = None
        more = True  # Also if the sink raises: what is left would never be announced again.
        try:
            messages = bool(self._unread) or self._read(self._events, self._unread.append)
            news = self._read(self._monitor, self._connection_news)
            end = time.monotonic() + TURN_S
            while self._unread and self._sink is not None and time.monotonic() <= end:
                self._sink.message(self._unread.popleft())
            more = self._read(self._replies, self._reply) or messages or news or bool(self._unread)
        finally:
            if more:
                self._look_again()

    def _read(self, watched: _Watched | None, receive: Callable[[list[bytes]], None]) -> bool:
        """Read up to a turn's worth; whether there may be more."""
        if watched is None:
            return False
        end = time.monotonic() + TURN_S
        for _ in range(MESSAGES_PER_TURN):
            if watched.closed:
                return False
            # Reading the state takes in what came since; only after it said no, the descriptor will speak again.
            if not int(watched.socket.get(zmq.EVENTS)) & zmq.POLLIN:
                return False
            try:
                frames = watched.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return True
            receive(frames)
            if time.monotonic() > end:
                break
        return True

    def _connection_news(self, frames: list[bytes]) -> None:
        event = parse_monitor_message(frames)["event"]
        if self._sink is None:
            return
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._peers += 1
            self._sink.connected()
        elif event == zmq.EVENT_DISCONNECTED:
            # To a bound socket an engine may come back before its former connection is known to be gone.
            self._peers = max(0, self._peers - 1)
            if not self._peers:
                self._discard()
                self._sink.disconnected()

    def _discard(self) -> None:
        self._unread.clear()
        for _ in range(LEFTOVERS_MAX):
            try:
                if self._events is not None:
                    self._events.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return

    def _reply(self, frames: list[bytes]) -> None:
        if self._sink is not None and self._loop is not None:
            self._last_reply = self._loop.time()
            self._sink.replayed(frames)

    # A replay's silence.

    def _await_reply(self) -> None:
        if self._loop is not None:
            self._silence = self._loop.call_at(self._last_reply + self._config.replay_timeout_s, self._check_silence)

    def _check_silence(self) -> None:
        self._silence = None
        self._look()  # A busy loop comes here before it has read what has long arrived.
        if self._loop is None or self._replies is None or self._silence is not None:
            return
        if self._loop.time() - self._last_reply < self._config.replay_timeout_s:
            self._await_reply()
        else:
            self._fail_replay("timeout")

    def _fail_replay(self, reason: str) -> None:
        self.end_replay()
        if self._sink is not None:
            self._sink.replay_failed(reason)


class _Watched:
    """A socket whose descriptor the loop watches."""

    __slots__ = ("_fd", "_loop", "closed", "socket")

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: _Socket, on_readable: Callable[[], None]) -> None:
        self._loop = loop
        self.socket = socket
        self.closed = False
        self._fd = int(socket.get(zmq.FD))
        loop.add_reader(self._fd, on_readable)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._fd)
            self.socket.close(0)


def _check(endpoint: str, key: str) -> None:
    scheme, separator, rest = endpoint.partition("://")
    host = rest.rpartition(":")[0]
    if not separator or (scheme == "tcp" and (not host or not rest.rpartition(":")[2].isdigit())):
        raise ConfigError(key, f"{endpoint!r} is no ZMQ address", "Write tcp://HOST:PORT.")
    if host in WILDCARD_HOSTS:
        raise ConfigError(
            key,
            f"{endpoint!r} is where the engine listens, not where it can be reached",
            "Write the engine's host instead of the wildcard.",
        )


def _had(make: Callable[[int], _Socket], kind: int) -> _Socket:
    """A socket that is made so. Raises ConfigError if the system has none."""
    try:
        return make(kind)
    except zmq.ZMQError as error:
        problem = f"no socket can be had to follow an engine: {error}"
        raise ConfigError("events.enabled", problem, "Allow more open files (ulimit -n).") from None


def _attach(attach: Callable[[str], object], endpoint: str, key: str) -> None:
    try:
        attach(endpoint)
    except zmq.ZMQError as error:
        raise ConfigError(key, f"ZMQ cannot use {endpoint!r}: {error}", "Write tcp://HOST:PORT.") from None
