"""One rank's stream followed for a moment as the gateway would follow it, with everything that came noted down.

The production stream does the work (`WorkerStream`, index, `Router.pick`); this stands between it and the sockets and
looks at the frames on their way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from warmroute.config.tree import EventsConfig
from warmroute.core.decision import PickRequest
from warmroute.core.index import make_index
from warmroute.core.router import Router
from warmroute.core.stream_states import State
from warmroute.core.wire import ReplayBatch, ReplayEnd, decode_replay
from warmroute.errors import WireError
from warmroute.service.doctor.facts import FollowedFacts
from warmroute.service.ingest import Ingest, WorkerStream
from warmroute.service.ports import EventSink, EventSource
from warmroute.types import Fleet, ModelInfo, TokenIds, Worker

Clock = Callable[[], float]

TICK_S = 1.0
_REPLY_FRAMES_WITH_TOPIC = 4


class Watch:
    """Follows one rank. `source` is closed by `close`. Belongs to the event loop it was started on."""

    def __init__(self, worker: Worker, config: EventsConfig, clock: Clock, wall_clock: Clock) -> None:
        self._router = Router(make_index(config.orphan_blocks_max))
        ingest = Ingest(
            index=self._router.index,
            config=config,
            clock=clock,
            wall_clock=wall_clock,
            on_trust=lambda _worker, _trust: self._changed(),
            on_applied=lambda _worker: self._changed(),
        )
        self._worker = worker
        self._stream = WorkerStream(worker.id, ingest, rank=worker.rank)
        self._clock = clock
        self._wall_clock = wall_clock
        self._change = asyncio.Event()
        self._topics: set[str] = set()
        self._first_seq: int | None = None
        self._replay_ended = False

    def start(self, source: EventSource) -> None:
        """Follow `source` from now on."""
        self._stream.start(_Tapped(source, self._published, self._replied))

    def close(self) -> None:
        """Stop, and close the source."""
        self._stream.retire()

    async def settled(self, timeout_s: float) -> None:
        """Return when the stream has caught up or given that up, or when so much time has passed."""
        await self._until(lambda: self._stream.state is State.LIVE, timeout_s)

    async def batches(self, more_than: int, timeout_s: float) -> int:
        """How many batches have been applied: more than so many, or what there is after so much time."""
        await self._until(lambda: self.applied > more_than, timeout_s)
        return self.applied

    @property
    def applied(self) -> int:
        """Batches applied so far."""
        return self._stream.counts.batches

    @property
    def block_size(self) -> int | None:
        """The largest block size seen in events, or the engine's own word."""
        sizes = self._router.index.worker_sizes(self._worker.id).block_sizes
        return max(sizes, default=self._worker.block_size)

    def predicted(self, token_ids: TokenIds, model: ModelInfo) -> int:
        """How many of these tokens the rank is known to hold: events only, no claims."""
        request = PickRequest(model=model.id, token_ids=token_ids)
        decision = self._router.pick(request, Fleet([self._worker]), self._clock())
        return decision.overlap_tokens - decision.claimed_tokens

    def facts(self) -> FollowedFacts:
        """What was seen until now."""
        counts = self._stream.counts
        return FollowedFacts(
            trust=self._stream.trust,
            first_seq=self._first_seq,
            replay_ended=self._replay_ended,
            batches=counts.batches,
            rejected=dict(counts.rejected),
            unknown_media=counts.unknown_media,
            rank_mismatches=counts.rank_mismatches,
            topics=frozenset(self._topics),
            block_sizes=self._router.index.worker_sizes(self._worker.id).block_sizes,
            newest_ts=counts.last_event_ts,
            at=self._wall_clock(),
        )

    def _published(self, frames: Sequence[bytes]) -> None:
        if frames:
            self._topics.add(frames[0].decode("utf-8", "replace"))

    def _replied(self, frames: Sequence[bytes]) -> None:
        try:
            reply = decode_replay(frames)
        except WireError:
            return  # the stream counts it
        if isinstance(reply, ReplayEnd):
            self._replay_ended = True
        elif isinstance(reply, ReplayBatch):
            if len(frames) >= _REPLY_FRAMES_WITH_TOPIC:
                self._topics.add(frames[-3].decode("utf-8", "replace"))
            if self._first_seq is None:
                self._first_seq = reply.seq

    def _changed(self) -> None:
        self._change.set()

    async def _until(self, holds: Callable[[], bool], timeout_s: float) -> None:
        deadline = self._clock() + timeout_s
        while not holds() and self._clock() < deadline:
            self._change.clear()
            try:
                async with asyncio.timeout(min(TICK_S, max(0.0, deadline - self._clock()))):
                    await self._change.wait()
            except TimeoutError:
                self._stream.tick()


class _Tapped:
    """A source (the port EventSource) whose frames are shown to somebody on their way to the sink."""

    def __init__(
        self,
        source: EventSource,
        published: Callable[[Sequence[bytes]], None],
        replied: Callable[[Sequence[bytes]], None],
    ) -> None:
        self._source = source
        self._published = published
        self._replied = replied
        self.replay = source.replay
        self.end_replay = source.end_replay
        self.close = source.close

    def start(self, sink: EventSink) -> None:
        self._source.start(_TappingSink(sink, self._published, self._replied))


class _TappingSink:
    def __init__(
        self,
        sink: EventSink,
        published: Callable[[Sequence[bytes]], None],
        replied: Callable[[Sequence[bytes]], None],
    ) -> None:
        self._sink = sink
        self._published = published
        self._replied = replied
        self.connected = sink.connected
        self.disconnected = sink.disconnected
        self.replay_failed = sink.replay_failed

    def message(self, frames: Sequence[bytes]) -> None:
        self._published(frames)
        self._sink.message(frames)

    def replayed(self, frames: Sequence[bytes]) -> None:
        self._replied(frames)
        self._sink.replayed(frames)
