"""A stream against a model publisher that loses, repeats, restarts and forgets: what it believes is true."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from warmroute.config.tree import EventsConfig
from warmroute.core.stream import NO_ENDPOINT, Stream
from warmroute.core.stream_states import Apply, Effect, EndReplay, Purge, Replay, SetTrust, State
from warmroute.core.wire.events import AllBlocksCleared, BlockRemoved, EventBatch
from warmroute.types import TrustState

CONNECTED, DISCONNECTED, END = "connected", "disconnected", "end"


class StreamAgainstPublisher(RuleBasedStateMachine):
    """`run` is what the engine has published, oldest first; `live` and `replies` are what is on its way to us."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = Stream(EventsConfig(pending_batches_max=8))
        self.now = 0.0
        self.runs: list[list[EventBatch]] = [[]]
        self.buffer_max = 1000
        self.live: deque[str | tuple[int, EventBatch]] = deque([CONNECTED])
        self.up = True
        self.delivered: tuple[int, EventBatch] | None = None
        self.asked: int | None = None
        self.replies: deque[str | tuple[int, EventBatch]] = deque()
        self.view: list[tuple[int, int]] = []
        self.trust = TrustState.BLIND
        self.where: dict[float, tuple[int, int]] = {}

    # The engine.

    @rule(count=st.integers(1, 4), clear=st.booleans())
    def publish(self, count: int, clear: bool) -> None:
        for _ in range(count):
            self.now += 0.001
            run = self.runs[-1]
            events = (AllBlocksCleared(),) if clear else (BlockRemoved(block_hashes=(len(run),)),)
            batch = EventBatch(ts=self.now, rank=0, events=events, mark=len(self.where) + 1)
            self.where[batch.ts] = (len(self.runs), len(run))
            if self.up:
                self.live.append((len(run), batch))
            run.append(batch)

    @rule(size=st.sampled_from([2, 5, 1000]))
    def limit_buffer(self, size: int) -> None:
        self.buffer_max = size

    @rule(what=st.sampled_from(["nothing", "nothing", "nothing", "restart", "blip"]), lost=st.booleans())
    def interrupt(self, what: str, lost: bool) -> None:
        """The engine restarts, or only the connection breaks; what was on its way may be lost."""
        if what == "nothing":
            return
        if what == "restart":
            self.runs.append([])
        if self.up:
            self.up = False
            if lost:
                self.live = deque(item for item in self.live if isinstance(item, str))
            self.live.append(DISCONNECTED)

    @precondition(lambda self: not self.up)
    @rule()
    def come_back(self) -> None:
        self.up = True
        self.live.append(CONNECTED)

    # The wire.

    @precondition(lambda self: self.live)
    @rule(count=st.integers(1, 3))
    def lose(self, count: int) -> None:
        while count and self.live and not isinstance(self.live[0], str):
            self.live.popleft()
            count -= 1

    @precondition(lambda self: self.live)
    @rule(count=st.integers(1, 5))
    def deliver(self, count: int) -> None:
        for _ in range(min(count, len(self.live))):
            item = self.live.popleft()
            if item == CONNECTED:
                self._perform(self.stream.connected(self.now))
            elif item == DISCONNECTED:
                self.delivered = None
                self._perform(self.stream.disconnected(self.now))
            else:
                self.delivered = item
                self._perform(self.stream.live(*item, self.now))

    @precondition(lambda self: self.delivered is not None)
    @rule()
    def repeat(self) -> None:
        self._perform(self.stream.live(*self.delivered, self.now))

    @precondition(lambda self: self.asked is not None and self.up and DISCONNECTED not in self.live)
    @rule(drop=st.integers(0, 6), keep_end=st.booleans())
    def serve(self, drop: int, keep_end: bool) -> None:
        """Answer the question; every `drop`-th reply is lost, the end marker too unless it is kept."""
        run = self.runs[-1]
        start = max(self.asked, len(run) - self.buffer_max)
        replies = [(seq, run[seq]) for seq in range(start, len(run))]
        self.replies = deque(reply for n, reply in enumerate(replies) if drop < 2 or n % drop != 1)
        if keep_end:
            self.replies.append(END)
        self.asked = None

    @precondition(lambda self: self.replies)
    @rule(count=st.integers(1, 5))
    def reply(self, count: int) -> None:
        for _ in range(count):
            if not self.replies:
                return
            item = self.replies.popleft()
            if isinstance(item, str):
                self._perform(self.stream.replay_ended(self.now))
            else:
                self._perform(self.stream.replayed(*item, self.now))

    @rule(reason=st.sampled_from(["timeout"] * 9 + [NO_ENDPOINT]))
    def fail(self, reason: str) -> None:
        self.asked = None
        self.replies.clear()
        self._perform(self.stream.replay_failed(reason, self.now))

    @rule(seconds=st.sampled_from([1.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self._perform(self.stream.tick(self.now))

    @rule(know_when=st.booleans())
    def be_told_of_a_restart(self, know_when: bool) -> None:
        run = self.runs[-1]
        self._perform(self.stream.restarted(self.now, run[0].ts if know_when and run else None))

    # What comes out.

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Apply(seq, batch):
                    run, number = self.where[batch.ts]
                    assert number == seq
                    if self.view:
                        assert self.view[-1] == (run, seq - 1), "in order, at most once, one run between two purges"
                    self.view.append((run, seq))
                case Purge():
                    self.view.clear()
                case Replay(start):
                    self.asked = start
                    self.replies.clear()
                case EndReplay():
                    self.asked = None
                    self.replies.clear()
                case SetTrust(state, reason):
                    assert reason
                    self.trust = state

    def _complete(self) -> bool:
        if not self.view:
            return True
        run, first = self.view[0]
        batches = self.runs[run - 1]
        cleared = any(isinstance(batches[seq].events[0], AllBlocksCleared) for _, seq in self.view)
        return first == 0 or cleared

    @invariant()
    def live_means_complete(self) -> None:
        assert self.trust is self.stream.trust
        if self.trust is TrustState.LIVE:
            assert self._complete()
        if self.view and self.stream.state is not State.CONNECTING:
            assert self.trust is not TrustState.BLIND

    def teardown(self) -> None:
        """With a faithful wire it ends in sync with the engine, whatever has been before."""
        if not self.up:
            self.come_back()
        self.buffer_max = 1000
        for _ in range(200):
            self.deliver(len(self.live)) if self.live else None
            if self.asked is not None:
                self.serve(0, True)
            while self.replies:
                self.reply(5)
            if self.stream._asked is not None and self.asked is None:
                self.fail("timeout")
            self.wait(40.0)
        run = self.runs[-1]
        assert self.stream.state is State.LIVE
        if self.view:
            assert self.view[-1] == (len(self.runs), len(run) - 1) or not self.stream._can_replay
            if self.trust is TrustState.LIVE:
                assert self._complete()
        elif run:
            assert not self.stream._can_replay
            assert self.trust is TrustState.BLIND


TestStreamAgainstPublisher = StreamAgainstPublisher.TestCase
TestStreamAgainstPublisher.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
