"""The port EventSource over a hostile network on virtual time: one engine's event and replay connections.

What ZMQ over TCP promises holds here too, and nothing more: within a connection messages come in order, those beyond
the publisher's limit are dropped without a word, those of a broken connection may be lost, or be read after the news of
the next one. A peer that is silent for `HEARTBEAT_S` counts as gone.

    engine --offer--> [in flight, at most hwm] --> sink.message          connected, disconnected: news of the same
    engine <--replay request-- ; replies, end --> sink.replayed          a connection of its own for each question
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

from warmroute.config.tree import EventsConfig
from warmroute.service.ports import EventSink
from warmroute.testing.simulation.engine import ModelEngine
from warmroute.testing.simulation.virtual import VirtualTime

HEARTBEAT_S = 40.0
"""As the ZMQ edge is set: a ping every 10 s, given up 30 s after the first that stays unanswered."""
NO_ENDPOINT = "no_endpoint"
_CHUNK = 4
"""Replies that arrive together."""

Note = Callable[..., None]
Frames = list[bytes]


class Link:
    """One engine's connections. The faults that are set are used up as messages come by."""

    def __init__(self, engine: ModelEngine, time: VirtualTime, config: EventsConfig, note: Note) -> None:
        self.engine = engine
        self.drops = 0
        self.corruptions = 0
        self.replay_faults: deque[tuple[str, random.Random]] = deque()
        self.after_delivery: Callable[[], None] = lambda: None
        """Called after each call into the sink: whoever judges looks then."""
        self._time = time
        self._config = config
        self._note = note
        self._sink: EventSink | None = None
        self._luck = random.Random(engine.number)  # noqa: S311 - a simulation wants repeatable numbers
        self._connection = 0
        self._up = False
        self._subscribed = False
        self._reachable_at = 0.0
        self._stalled_until = 0.0
        self._in_flight: deque[Frames] = deque()
        self._arrives = 0.0
        self._recent: deque[Frames] = deque(maxlen=8)
        self._backoff_s = config.reconnect_backoff_s
        self._question = 0
        self._replies_lost = 0
        self._last_reply = 0.0
        engine.subscriber = self

    # The port EventSource.

    def start(self, sink: EventSink) -> None:
        """Connect, and go on trying; after a `close`, as a socket of its own."""
        self._sink = sink
        self.engine.subscriber = self
        self._time.call_later(self._delay(), self._connect)

    def replay(self, start: int) -> None:
        """Ask; a question still open is dropped."""
        self._question += 1
        question = self._question
        if not self.engine.setup.replays:
            self._time.call_later(0.0, lambda: self._fail(question, NO_ENDPOINT))
            return
        start.to_bytes(8, "big")  # what the edge does with it
        self._last_reply = self._time.now
        self._time.call_at(self._when(), lambda: self._serve(question, start))
        self._time.call_later(self._config.replay_timeout_s, lambda: self._check_silence(question))

    def end_replay(self) -> None:
        """The question is answered."""
        self._question += 1

    def close(self) -> None:
        """Nothing is delivered any more."""
        self._break()
        self._sink = None
        self._question += 1
        self.engine.subscriber = None

    # What befalls it.

    def cut(self, seconds: float, luck: random.Random) -> None:
        """The connection breaks; some of what was on its way is read all the same, before or after the news."""
        self._reachable_at = max(self._reachable_at, self._time.now + seconds)
        self._lose_replies()
        if not self._up:
            return
        arrived = list(self._in_flight)[: luck.randint(0, len(self._in_flight))]
        before = luck.randint(0, len(arrived))
        self._break()
        for frames in arrived[:before]:
            self._deliver(frames)
        self._tell_disconnected()
        late = arrived[before:] if self.engine.setup.replays else []
        if late:  # More than the port allows: what was received and not read comes after the news, perhaps of the next.
            self._time.call_later(luck.choice((0.0, 1.0, 4.0)), lambda: self._deliver_all(late))

    def stall(self, seconds: float) -> None:
        """Nothing moves for a while."""
        self._stalled_until = max(self._stalled_until, self._time.now + seconds)
        self._give_up_after_silence()

    def engine_died(self, *, silently: bool) -> None:
        """The engine's process ended."""
        self._recent.clear()
        if silently:
            self._subscribed = False
            self._in_flight.clear()
            self._lose_replies()
            self._reachable_at = max(self._reachable_at, self._time.now)
            self._give_up_after_silence()
        else:
            self.cut(0.0, self._luck)

    def calm(self) -> None:
        """No more trouble: faults that were set and not used are forgotten."""
        self.drops = self.corruptions = 0
        self.replay_faults.clear()

    def inject(self, frames: Frames, *, reply: bool = False) -> None:
        """Deliver something that nobody sent."""
        if self._sink is not None and self._up:
            (self._sink.replayed if reply else self._sink.message)(frames)
            self.after_delivery()

    def repeat(self, count: int) -> None:
        """Deliver the last messages once more."""
        for frames in list(self._recent)[-count:]:
            self.inject(frames)

    # The event connection.

    def offer(self, frames: Frames) -> None:
        """A message is published."""
        if not self._subscribed:
            return
        if self.drops or len(self._in_flight) >= self.engine.setup.hwm:
            self.drops = max(0, self.drops - 1)
            self._note("dropped", frames)
            return
        self._in_flight.append(frames)
        self._arrives = max(self._arrives, self._when())
        connection = self._connection
        self._time.call_at(self._arrives, lambda: self._arrive(connection))

    def _arrive(self, connection: int) -> None:
        if connection != self._connection or not self._in_flight:
            return
        if self._time.now < self._stalled_until:
            self._time.call_at(self._stalled_until, lambda: self._arrive(connection))
            return
        self._deliver(self._in_flight.popleft())

    def _deliver(self, frames: Frames) -> None:
        if self._sink is None:
            return
        if self.corruptions:
            self.corruptions -= 1
            self.engine.run.corrupted = True
            frames = [*frames[:2], frames[2][: len(frames[2]) // 2]]
        else:
            self._recent.append(frames)
        self._note("heard", frames)
        self._sink.message(frames)
        self.after_delivery()

    def _deliver_all(self, messages: list[Frames]) -> None:
        for frames in messages:
            self._deliver(frames)
        self._recent.clear()

    def _connect(self) -> None:
        if self._sink is None or self._up:
            return
        if not self._can_move() or self._time.now < self._reachable_at:
            self._time.call_later(self._backoff_s, self._connect)
            self._backoff_s = min(2 * self._backoff_s, self._config.reconnect_backoff_max_s)
            return
        self._backoff_s = self._config.reconnect_backoff_s
        self._connection += 1
        self._up, self._arrives = True, 0.0
        self._note("connected")
        connection = self._connection
        # The subscription reaches the publisher a little later: what it publishes meanwhile is not for us.
        self._time.call_later(self._delay(), lambda: self._subscribe(connection))
        self._tell_connected()

    def _tell_connected(self) -> None:
        if self._sink is not None:
            self._sink.connected()
            self.after_delivery()

    def _subscribe(self, connection: int) -> None:
        if connection == self._connection and self.engine.up:
            self._subscribed = True

    def _break(self) -> None:
        self._recent.clear()
        self._connection += 1
        self._up = self._subscribed = False
        self._in_flight.clear()
        self._time.call_later(self._backoff_s, self._connect)

    def _tell_disconnected(self) -> None:
        self._note("disconnected")
        if self._sink is not None:
            self._sink.disconnected()
            self.after_delivery()

    def _give_up_after_silence(self) -> None:
        connection = self._connection
        since = self._time.now

        def check() -> None:
            silent = not self.engine.up or self._stalled_until > self._time.now or self.engine.run.began > since
            if self._up and connection == self._connection and silent:
                self._break()
                self._tell_disconnected()

        self._time.call_later(HEARTBEAT_S, check)

    # The replay connection.

    def _serve(self, question: int, start: int) -> None:
        if question != self._question or question == self._replies_lost:
            return
        if not self._can_move() or self._time.now < self._reachable_at:  # The socket keeps it until it is connected.
            self._time.call_later(1.0, lambda: self._serve(question, start))
            return
        replies = self.engine.replay(start)
        fault, luck = self.replay_faults.popleft() if self.replay_faults else ("", self._luck)
        pause_s = 0.0
        if fault:
            self._note("replay goes wrong", fault)
            replies, pause_s = _spoiled(replies, fault, luck), 3.0 if fault == "slow" else 0.0
        when = self._when()
        for first in range(0, len(replies), _CHUNK):
            chunk = replies[first : first + _CHUNK]
            self._time.call_at(when, lambda chunk=chunk: self._reply(question, chunk))  # type: ignore[misc]
            when += self._delay() * 0.1 + pause_s

    def _reply(self, question: int, chunk: list[Frames]) -> None:
        if self._time.now < self._stalled_until:
            self._time.call_at(self._stalled_until, lambda: self._reply(question, chunk))
            return
        for frames in chunk:
            if question == self._question != self._replies_lost and self._sink is not None:
                self._last_reply = self._time.now
                self._note("replayed", frames)
                self._sink.replayed(frames)
                self.after_delivery()

    def _check_silence(self, question: int) -> None:
        if question == self._question:
            due = self._last_reply + self._config.replay_timeout_s
            if self._time.now >= due:
                self._fail(question, "timeout")
            else:
                self._time.call_at(due, lambda: self._check_silence(question))

    def _fail(self, question: int, reason: str) -> None:
        if question == self._question and self._sink is not None:
            self._question += 1
            self._note("replay failed", reason)
            self._sink.replay_failed(reason)
            self.after_delivery()

    def _lose_replies(self) -> None:
        """Its connection broke with it: a DEALER does not send again, so only silence tells."""
        self._replies_lost = self._question

    # Time.

    def _can_move(self) -> bool:
        return self.engine.up and self._time.now >= self._stalled_until

    def _delay(self) -> float:
        return self._luck.random() * self.engine.setup.delay_s

    def _when(self) -> float:
        return max(self._time.now, self._stalled_until) + self._delay()


def _spoiled(replies: list[Frames], fault: str, luck: random.Random) -> list[Frames]:
    """What is left of a replay."""
    replies, end = replies[:-1], replies[-1]
    kept, at = luck.randint(0, len(replies)), luck.randint(0, len(replies))
    match fault:
        case "silent":
            return []
        case "lossy":  # Beyond the router's limit, as a slow reader gets it: holes, and no end.
            return [reply for n, reply in enumerate(replies) if n < kept or luck.random() < 0.5]
        case "cut short":
            return replies[:kept]
        case "twice":
            replies = [reply for reply in replies for _ in range(2)]
        case "garbage":
            replies = [*replies[:at], [b"", b"\0" * 7, b"?"], [b"?"], *replies[at:]]
        case "shuffled":
            luck.shuffle(replies)
    return [*replies, end]
