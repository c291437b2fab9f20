"""The life of one worker's event stream: what to apply, what to ask again, and how far the result may be believed.

A state machine without I/O: inputs are what happened and when, outputs are effects for the caller to perform in order.
`stream_states.TRANSITIONS` is all of its moves.

Promises, held by a property test against a publisher that loses, repeats and restarts:

- Batches of one run of an engine are applied in order and at most once; between two purges, those of one run only.
- The trust state is LIVE only if every batch of the run since its start (or since the cache was last cleared) has been
  applied and every event in them could be read, up to the newest that is known to exist.
- A silent engine is asked whether it has more, and is LIVE only as long as it answers (if its replay ever did).

A run is recognised by its *anchor*: a replay after a reconnect or a gap starts one batch before the first missing one,
and that batch must be the one that was applied. Sequence numbers alone cannot tell a run from the one after it.
"""

from __future__ import annotations

from warmroute.config.tree import EventsConfig
from warmroute.core.stream_memory import Question, Received, Unreadable, View
from warmroute.core.stream_states import (
    TRANSITIONS,
    Apply,
    Cause,
    Count,
    Counted,
    Effect,
    EndReplay,
    Purge,
    Replay,
    SetTrust,
    State,
)
from warmroute.core.wire.events import Batch
from warmroute.types import TrustState

NO_ENDPOINT = "no_endpoint"
"""The reason of a failed replay when the engine has no replay socket: asking again is useless."""
PROBE_FIRST_S = 1.0
"""The first question after a connection: what was published while the subscription was on its way is not missed."""
_TRIES_MAX = 3
"""How often a hole is asked for again without any progress."""


class Stream:
    """One worker's stream. Every input returns the effects it has, to be performed in order before the next input.

    `now` is in seconds of any clock that never goes back. `stagger`, in [0, 1), spreads the retries of many streams.
    """

    def __init__(self, config: EventsConfig, stagger: float = 0.0) -> None:
        self.state = State.CONNECTING
        self.trust = TrustState.BLIND
        self._config = config
        self._stagger, self._effects = stagger, list[Effect]()
        self._trust_reason = ""
        self._view = View()
        # The subscription.
        self._pending: dict[int, Received] = {}
        self._dropped = False
        """Whether batches came since the last question that could not be kept."""
        self._live_seq, self._live_ts = -1, 0.0
        self._heard_at = 0.0
        self._probe_at = 0.0
        self._doubt: str | None = None
        # The replay under way, and those to come.
        self._asked: Question | None = None
        self._unverified = False
        self._tries = self._tried_from = 0
        self._can_replay = True
        self._has_replayed = False
        self._retry_at: float | None = None
        self._backoff_s = config.reconnect_backoff_s
        self._now = 0.0

    def __repr__(self) -> str:
        return f"Stream({self.state}, {self.trust}, expected={self.expected}, pending={len(self._pending)})"

    # Inputs.

    def connected(self, now: float) -> list[Effect]:
        """The subscription is up: what is published from now on arrives."""
        self._now = now
        if self.state is not State.DEAD:
            if self.state is not State.CONNECTING:
                self._disconnect()
            self._connect()
        return self._flush()

    def disconnected(self, now: float) -> list[Effect]:
        """The transport went away."""
        self._now = now
        if self.state not in {State.CONNECTING, State.DEAD}:
            self._disconnect()
        return self._flush()

    def live(self, seq: int, batch: Batch, now: float) -> list[Effect]:
        """A published batch came."""
        self._now = now
        return self._heard(seq, batch)

    def replayed(self, seq: int, batch: Batch, now: float) -> list[Effect]:
        """A replayed batch came."""
        self._now = now
        return self._reply(seq, batch)

    def undecodable(
        self, seq: int | None, reason: str, now: float, *, replayed: bool = False, mark: int = 0
    ) -> list[Effect]:
        """A message came whose payload, with that mark, (or, with `seq` None, whose frames) could not be read."""
        self._now = now
        self._count("undecodable")
        if seq is None:
            return self._flush()
        received = Unreadable(reason, mark)
        return self._reply(seq, received) if replayed else self._heard(seq, received)

    def replay_ended(self, now: float) -> list[Effect]:
        """The replay's end marker came."""
        self._now, question = now, self._asked
        if question is not None:
            self._end_replay()
            self._has_replayed, self._doubt = True, None
            self._backoff_s = self._config.reconnect_backoff_s
            if question.rebuild:
                pass  # There is nothing to rebuild from.
            elif question.anchored and not question.answered:
                # The engine has never got as far as the anchor: it is another run, or it remembers nothing.
                self._restart("the engine has no such batch any more")
            elif self.state is State.LIVE:
                # What it proves was so when it was asked.
                self._probe_at = max(self._heard_at, question.at) + self._config.probe_idle_s
            else:
                self._probe_at = now + PROBE_FIRST_S
                self._catch_up()
            self._tell()
        return self._flush()

    def replay_failed(self, reason: str, now: float) -> list[Effect]:
        """The replay that was asked for cannot be had, or fell silent before its end."""
        self._now, question = now, self._asked
        if question is not None:
            self._count("replay_failures")
            self._forget_replay()
            self._can_replay = self._can_replay and reason != NO_ENDPOINT
            if self.state is not State.LIVE:
                self._plan_rebuild()
                if question.answered:
                    self._ask_again(f"replay: {reason}")
                else:
                    self._do_without(question.anchored, f"no replay: {reason}")
            elif question.rebuild:
                self._plan_rebuild()
            else:
                self._stay_unproven(question)
        return self._flush()

    def restarted(self, now: float, process_start: float | None = None) -> list[Effect]:
        """Somebody else saw that the engine is a new process, begun at `process_start` (Unix seconds, if known)."""
        self._now = now
        news = process_start is None or self._view.first_ts < process_start
        if news and self.state is not State.DEAD and self._view.holds:
            self._restart("the engine is a new process")
        return self._flush()

    def resync(self, now: float, reason: str) -> list[Effect]:
        """Somebody has found the view to be wrong: drop it, and rebuild it from a replay."""
        self._now = now
        if self.state is not State.DEAD and self._view.holds:
            self._count("resyncs")
            self._start_over(reason, Cause.DOUBTED)
        return self._flush()

    def tainted(self, reason: str, now: float, *, curable: bool = True) -> list[Effect]:
        """Something in an applied batch was not applied: the view is incomplete. `curable`: a replay could bring it."""
        self._now = now
        self._view.find_flaw(self.expected or 0, reason, curable=curable)
        self._tell()
        return self._flush()

    def tick(self, now: float) -> list[Effect]:
        """Time passes. Due about once a second: rebuilds a view that has a flaw, and probes a silent engine."""
        self._now = now
        if self.state is State.LIVE and self._asked is None and self._can_replay:
            flawed = self._view.flaw is not None or self.expected is None
            if flawed and self._retry_at is None and (self._view.rebuilds_left or self.expected is None):
                self._view.rebuilds_left -= self.expected is not None
                self._plan_rebuild()
            if self._retry_at is not None and now >= self._retry_at:
                self._retry_at = None
                if flawed:
                    self._ask(0, rebuild=True)
            elif self.expected is not None and now >= self._probe_at:
                self._ask(self._view.anchor)
        return self._flush()

    def retire(self) -> list[Effect]:
        """The worker is gone for good."""
        if self.state is not State.DEAD:
            self._end_replay()
            self._pending.clear()
            self._move(Cause.RETIRED)
        return self._flush()

    # Receiving.

    def _heard(self, seq: int, received: Received) -> list[Effect]:
        if self.state is State.CONNECTING:
            self._count("strays")  # Left over from a connection that is gone: a replay brings it, if it still matters.
        elif self.state is not State.DEAD:
            self._receive(seq, received, live=True)
            if self._doubt is not None and self.state is State.LIVE and self._asked is None:
                self._ask(self._view.anchor)
            self._tell()
        return self._flush()

    def _reply(self, seq: int, received: Received) -> list[Effect]:
        question = self._asked
        if question is not None:
            first, question.answered = not question.answered, True
            if question.rebuild and not self._begin_rebuild(question, seq):
                return self._flush()
            # The engine's buffer no longer reaches back to where the replay was to begin.
            hole = first and seq > question.start and self._is_hole(seq, question)
            if self.state is State.LIVE and (hole or self.expected is None or seq >= self.expected):
                self._count("tails")
                self._move(Cause.JUMPED)
                self._tries = 0
            if hole:
                self._skip_to(seq, "the engine's replay buffer was too short")
            self._receive(seq, received, live=False)
            self._tell()
        return self._flush()

    def _begin_rebuild(self, question: Question, seq: int) -> bool:
        """The replay begins with batch `seq`: replace the view, unless that would not make it better."""
        if self.expected is not None and seq and seq >= self._view.since:
            self._end_replay()
            return False
        question.rebuild = False
        self._move(Cause.REBUILT)
        self._purge("rebuilt from a replay", 0)
        return True

    def _is_hole(self, seq: int, question: Question) -> bool:
        # Where an anchor was asked for and did not come, even the very next batch may be of another run.
        return self.expected is None or seq > self.expected or (seq == self.expected and question.anchored)

    def _receive(self, seq: int, received: Received, *, live: bool) -> None:
        known, mark = self._mark(seq), received.mark
        past = self._view.is_past(seq)
        ts = self._view.last_ts if isinstance(received, Unreadable) else received.ts
        if known is not None:
            another_run = known != mark
        elif past:  # Too long ago to be compared: a repetition is older than what followed.
            another_run = ts >= self._view.last_ts
        else:
            another_run = live and seq < self._live_seq and ts >= self._live_ts
        if another_run:
            self._restart("the sequence went back" if live else "the replay is of another run")
            if not live:
                return  # The replay that was just asked for brings it again.
        elif known is not None or past:
            if live:
                self._count("duplicates")
            else:
                self._unverified = self._unverified and seq + 1 != self.expected
                self._drain()
            return
        if live:
            self._live_seq, self._live_ts = seq, ts
            self._heard_at, self._probe_at = self._now, self._now + self._config.probe_idle_s
        self._accept(seq, received)

    def _accept(self, seq: int, received: Received) -> None:
        if self.expected is None:
            self._join(seq, "nothing replayed what was published before")
        if seq == self.expected and not self._unverified:
            self._apply(seq, received)
            if self._asked is not None and self._asked.rebuild:
                self._hold(seq, received)
            else:
                self._drain()
            return
        if self.state is State.LIVE:
            self._count("gaps")
            self._count("missed", seq - (self.expected or 0))
            self._move(Cause.JUMPED)
            self._tries = 0
            if self._asked is not None and self._asked.rebuild:
                self._retry_at = 0.0  # As soon as the gap is filled.
            self._abandon_replay()
            self._ask(self._view.anchor)
        self._hold(seq, received)

    def _hold(self, seq: int, received: Received) -> None:
        if len(self._pending) < self._config.pending_batches_max:
            self._pending[seq] = received
            return
        self._count("overflows")
        if self.state is State.LIVE:  # A rebuild that cannot keep up; the view as it is stays.
            self._abandon_replay()
        else:
            self._dropped = True  # The next question brings it again.

    def _apply(self, seq: int, received: Received) -> None:
        self._view.take(seq, received)
        if not isinstance(received, Unreadable):
            self._effects.append(Apply(seq, received))

    def _mark(self, seq: int) -> int | None:
        """The mark of a batch that is applied or held back; None if nothing is known of it."""
        received = self._pending.get(seq)
        return self._view.mark(seq) if received is None else received.mark

    def _drain(self) -> None:
        while self._pending and self.expected is not None and not self._unverified:
            received = self._pending.pop(self.expected, None)
            if received is None:
                return
            self._apply(self.expected, received)

    # Connecting, replaying, and starting over.

    def _connect(self) -> None:
        self._move(Cause.CONNECTED)
        self._heard_at = self._now
        self._tries = 0
        if self.expected is None:
            self._view.purge(0)
        self._unverified = self._view.holds
        self._ask(self._view.anchor)
        self._tell()

    def _disconnect(self) -> None:
        self._move(Cause.DISCONNECTED)
        self._abandon_replay()
        self._pending.clear()
        self._live_seq = -1
        self._doubt = None
        self._tell()

    def _ask(self, start: int, *, rebuild: bool = False) -> None:
        self._asked = Question(start, self.expected or 0, self._now, rebuild)
        self._dropped = False
        self._count("replays")
        self._effects.append(Replay(start))

    def _forget_replay(self) -> None:
        if self._asked is not None and self._asked.rebuild:
            self._pending.clear()
        self._asked = None

    def _plan_rebuild(self) -> None:
        self._retry_at = self._now + self._backoff_s * (1 + self._stagger)
        self._backoff_s = min(2 * self._backoff_s, self._config.reconnect_backoff_max_s)

    def _stay_unproven(self, probe: Question) -> None:
        """A probe has failed: unless the stream has gone on meanwhile, nobody knows what the engine holds now."""
        self._probe_at = self._now + self._config.probe_idle_s
        if self._has_replayed and self._heard_at <= probe.at:
            self._doubt = "silent, and its replay does not answer any more"
            self._probe_at = self._now + self._backoff_s
            self._backoff_s = min(2 * self._backoff_s, self._config.reconnect_backoff_max_s)
        else:
            self._doubt = None
        self._tell()

    def _abandon_replay(self) -> None:
        if self._asked is not None:
            self._end_replay()

    def _end_replay(self) -> None:
        if self._asked is not None:
            self._effects.append(EndReplay())
        self._forget_replay()

    def _catch_up(self) -> None:
        """A replay is complete: go live, unless there are batches behind a hole."""
        self._pending = {seq: received for seq, received in self._pending.items() if seq >= (self.expected or 0)}
        self._unverified = False
        self._drain()
        if self._pending or self._dropped:
            self._ask_again("the replay had a hole")
        else:
            self._move(Cause.CAUGHT_UP)

    def _ask_again(self, why: str) -> None:
        if (self.expected or 0) > self._tried_from:
            self._tried_from = self.expected or 0
            self._tries = 0
        if self._tries < _TRIES_MAX and self._can_replay:
            self._tries += 1
            self._ask(self._view.anchor)
        else:
            self._give_up(why)

    def _do_without(self, anchored: bool, why: str) -> None:
        """No replay can be had. Go on with what is certain."""
        if self._pending:
            self._give_up(why)
        elif anchored or not self._view.holds:
            self._purge(why, None)
            self._move(Cause.GAVE_UP)
        else:  # The run has been followed from its first batch.
            self._move(Cause.GAVE_UP)
        self._tell()

    def _give_up(self, why: str) -> None:
        """Start anew behind the last hole: what was known before it may be stale, and must not be credited."""
        start = max(self._pending, default=None)
        while start is not None and start - 1 in self._pending:
            start -= 1
        if start is None or (self._dropped and not self._can_replay):
            self._purge(why, None)
        else:
            self._skip_to(start, why)
            self._drain()
        self._pending.clear()
        if self._dropped and self.expected is not None:  # There are newer ones, as is known.
            self._ask(self._view.anchor)
        else:
            self._move(Cause.GAVE_UP)
        self._tell()

    def _skip_to(self, seq: int, why: str) -> None:
        lost = max(0, seq - (self.expected or 0))
        self._purge(why, None)
        self._join(seq, why, lost)
        self._pending = {number: received for number, received in self._pending.items() if number >= seq}

    def _join(self, seq: int, why: str, lost: int | None = None) -> None:
        lost = seq if lost is None else lost
        if lost:
            self._count("lost", lost)
        self._view.join(seq, f"{lost or 'no'} batches lost: {why}")

    def _restart(self, reason: str) -> None:
        self._count("restarts")
        self._live_seq = -1
        self._view.new_run()
        self._start_over(reason)

    def _start_over(self, reason: str, cause: Cause = Cause.RESTARTED) -> None:
        self._forget_replay()
        self._pending.clear()  # Of the former run, or the replay brings it again.
        self._tries = self._tried_from = 0
        self._purge(reason, 0)
        if self.state is not State.CONNECTING:
            self._move(cause)
            self._ask(0)
        self._tell()

    def _purge(self, reason: str, expected: int | None) -> None:
        if self._view.holds:
            self._effects.append(Purge(reason))
        self._view.purge(expected)
        self._unverified, self._doubt = False, None

    # What is known, and saying so.

    @property
    def pending(self) -> int:
        """How many batches wait for older ones."""
        return len(self._pending)

    @property
    def expected(self) -> int | None:
        """Number of the next batch to apply; None: whichever comes first."""
        return self._view.expected

    def _tell(self) -> None:
        state, reason = self._believed()
        if state is not self.trust or reason != self._trust_reason:
            self.trust, self._trust_reason = state, reason
            self._effects.append(SetTrust(state, reason))

    def _believed(self) -> tuple[TrustState, str]:
        if self.state is State.LIVE:
            if self.expected is None:
                return TrustState.BLIND, "nothing published since the subscription, and no replay"
            imperfect = self._view.flaw or self._doubt
            return (TrustState.LIVE, "in sync") if imperfect is None else (TrustState.DEGRADED, imperfect)
        if self.state in {State.CONNECTING, State.DEAD}:
            return (TrustState.DEGRADED if self._view.holds else TrustState.BLIND), "disconnected"
        return TrustState.REPLAYING, {
            State.REPLAYING: "subscribed, replaying what was published before",
            State.GAP: "batches are missing, replaying them",
            State.RESYNC: "purged, replaying from the start",
        }[self.state]

    def _move(self, cause: Cause) -> None:
        self.state = TRANSITIONS[self.state][cause]

    def _count(self, name: Counted, n: int = 1) -> None:
        self._effects.append(Count(name, n))

    def _flush(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects
