"""One worker's way from published bytes to the index: decode, let the stream decide, perform its effects.

An index that takes arrays gets a whole batch in one call, as the native decoder has read it. What that one declines,
and every batch for another index, is decoded in Python and applied event by event.

Invariant: whatever an engine publishes, nothing is raised into the event source, and everything that was not applied
has a name and a number in `counts`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import msgspec

from warmroute.config.tree import EventsConfig
from warmroute.core.adapters import Adapters
from warmroute.core.full_reports import FullReports, repeats
from warmroute.core.index.contract import ApplyReport, PrefixIndex
from warmroute.core.stream import Stream
from warmroute.core.stream_states import Apply, Count, Effect, EndReplay, Purge, Replay, SetTrust, State
from warmroute.core.wire import ReplayEnd, decode_batch, decode_natively, decode_pub, decode_replay
from warmroute.core.wire.events import Batch, BlockRemoved, BlockStored, Event, EventBatch
from warmroute.core.wire.native import payload_mark
from warmroute.errors import WireError
from warmroute.service.ports import EventSource
from warmroute.types import Trust, TrustState, WorkerId

if TYPE_CHECKING:
    from warmroute.core.wire.native import NativeBatch

OUTGROWN = "it holds more than events.worker_blocks_max: the ends of its oldest prefixes are left out"
"""Why a worker is DEGRADED whose view has reached its limit: until it clears its cache or restarts."""

Clock = Callable[[], float]
OnTrust = Callable[[WorkerId, Trust], None]
OnApplied = Callable[[WorkerId], None]


@dataclass(slots=True)
class IngestCounts:
    """What one worker's stream has done since it was started. Metrics read it; only `WorkerStream` writes it."""

    messages: int = 0
    """Published messages received, readable or not."""
    batches: int = 0
    """Event batches applied."""
    events: int = 0
    """Events applied."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Events and messages that could not be read or applied, by reason."""
    stream: Counter[str] = field(default_factory=Counter)
    """The stream's own: gaps, missed, lost, restarts, duplicates, undecodable, overflows, replays, replay_failures."""
    purges: int = 0
    """How often everything known of the worker was forgotten."""
    unknown_media: int = 0
    """Events on a medium that no dialect knows."""
    repeated: int = 0
    """Blocks announced again by a full report, without another copy: not counted."""
    rank_mismatches: int = 0
    """Batches that named another data-parallel rank than the socket they came on stands for."""
    applied: ApplyReport = field(default_factory=ApplyReport)
    """What the index reported, summed up."""
    last_seq: int | None = None
    """Number of the newest batch applied."""
    last_event_ts: float | None = None
    """When the engine made it, in Unix seconds of its clock."""
    lag_s: float | None = None
    """How old it was when it was applied, by our wall clock; wrong by the difference of the two clocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingest:
    """What the streams of all workers share: where events go, what time it is, who is told."""

    index: PrefixIndex
    config: EventsConfig
    clock: Clock
    """Monotonic, in seconds."""
    wall_clock: Clock
    """Unix seconds: only to say how old an event was."""
    on_trust: OnTrust
    """Called at once whenever a worker's trust changes."""
    on_applied: OnApplied = lambda _worker: None
    """Called after each batch that was applied."""
    on_cleared: OnApplied = lambda _worker: None
    """Called when all that was known of a worker's cache has been forgotten."""
    full_reports: FullReports = field(default_factory=FullReports)
    """Which workers may be announcing what they hold already."""
    adapters: Adapters = field(default_factory=Adapters)
    """Under which keys blocks of LoRA adapters are to be kept."""


@runtime_checkable
class ArrayIndex(PrefixIndex, Protocol):
    """An index that takes batches as the native decoder has read them."""

    def add_batch(self, worker: WorkerId, batch: NativeBatch, report: ApplyReport) -> None:
        """Apply a batch's events to `worker`, in order, adding to `report`. Never raises because of what they say."""
        ...


class WorkerStream:
    """Follows one worker's events (the port EventSink). Belongs to one event loop; `tick` is due about once a second.

    `rank` is the data-parallel rank its socket stands for. `stagger` in [0, 1) spreads the retries of many workers.
    """

    def __init__(self, worker: WorkerId, ingest: Ingest, *, rank: int = 0, stagger: float = 0.0) -> None:
        self.worker = worker
        self.rank = rank
        self.counts = IngestCounts()
        self.trust = Trust(TrustState.BLIND, "not connected yet", ingest.clock())
        self._ingest = ingest
        self._index = ingest.index
        self._arrays = ingest.index if isinstance(ingest.index, ArrayIndex) else None
        self._clock = ingest.clock
        self._stream = Stream(ingest.config, stagger)
        self._source: EventSource | None = None
        self._outgrown = False

    def __repr__(self) -> str:
        return f"WorkerStream(worker={self.worker}, {self._stream!r})"

    @property
    def state(self) -> State:
        """Where the stream is."""
        return self._stream.state

    @property
    def pending(self) -> int:
        """Batches that wait for older ones: at most `events.pending_batches_max`."""
        return self._stream.pending

    def view(self) -> dict[str, Any]:
        """What users see of the stream: its state and its counts."""
        counts = self.counts
        return {
            "state": self._stream.state,
            "next_seq": self._stream.expected,
            "pending_batches": self._stream.pending,
            "last_event_ts": counts.last_event_ts,
            "lag_s": None if counts.lag_s is None else round(counts.lag_s, 4),
            "messages": counts.messages,
            "batches": counts.batches,
            "events": counts.events,
            "purges": counts.purges,
            "rejected": dict(counts.rejected),
            "unknown_media": counts.unknown_media,
            "repeated": counts.repeated,
            "rank_mismatches": counts.rank_mismatches,
        } | dict(counts.stream)

    def start(self, source: EventSource) -> None:
        """Follow `source` from now on; it is closed by `leave` and `retire`."""
        self._source = source
        source.start(self)

    def leave(self) -> None:
        """Close the source: another one is to be followed."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def tick(self) -> None:
        """Time has passed: see to retries and to a worker that has been silent for long."""
        self._perform(self._stream.tick(self._clock()))

    def restarted(self, process_start: float | None = None) -> None:
        """The engine is a new process, begun at `process_start` (Unix seconds), as its metrics say."""
        self._perform(self._stream.restarted(self._clock(), process_start))

    def resync(self, reason: str) -> None:
        """The view was found to be wrong: drop it, and rebuild it from a replay."""
        self._perform(self._stream.resync(self._clock(), reason))

    def cleared_by_gateway(self) -> None:
        """A reset of the cache passed through the gateway: engines announce it only with their next step."""
        self._clear()

    def retire(self) -> None:
        """The worker is gone for good: close its source and free what it held."""
        self._perform(self._stream.retire())
        self.leave()
        self._index.drop(self.worker)

    # The port EventSink.

    def connected(self) -> None:
        """The subscription is up."""
        self._perform(self._stream.connected(self._clock()))

    def disconnected(self) -> None:
        """The transport went away."""
        self._perform(self._stream.disconnected(self._clock()))

    def message(self, frames: Sequence[bytes]) -> None:
        """One published message."""
        self.counts.messages += 1
        try:
            _, seq, payload = decode_pub(frames)
        except WireError as error:
            self._unreadable(None, error)
            return
        try:
            batch = self._decode(payload)
        except WireError as error:
            self._unreadable(seq, error, payload)
        else:
            self._perform(self._stream.live(seq, batch, self._clock()))

    def replayed(self, frames: Sequence[bytes]) -> None:
        """One reply of a replay."""
        try:
            reply = decode_replay(frames)
        except WireError as error:
            self._unreadable(None, error)
            return
        if isinstance(reply, ReplayEnd):
            self._perform(self._stream.replay_ended(self._clock()))
            return
        try:
            batch = self._decode(reply.payload)
        except WireError as error:
            self._unreadable(reply.seq, error, reply.payload, replayed=True)
        else:
            self._perform(self._stream.replayed(reply.seq, batch, self._clock()))

    def replay_failed(self, reason: str) -> None:
        """The replay cannot be had."""
        self._perform(self._stream.replay_failed(reason, self._clock()))

    def _decode(self, payload: bytes | memoryview) -> Batch:
        by_event = self._arrays is None or self._ingest.adapters.renames(self.worker) or self._may_repeat()
        batch = None if by_event else decode_natively(payload)
        return decode_batch(payload) if batch is None else batch

    # Effects.

    def _unreadable(
        self, seq: int | None, error: WireError, payload: bytes | memoryview = b"", *, replayed: bool = False
    ) -> None:
        self.counts.rejected[error.reason] += 1
        now, mark = self._clock(), payload_mark(payload)
        self._perform(self._stream.undecodable(seq, error.reason, now, replayed=replayed, mark=mark))

    def _perform(self, effects: Sequence[Effect]) -> None:
        failure: str | None = None
        for effect in effects:
            match effect:
                case Apply(seq, batch):
                    failure = self._apply(seq, batch) or failure
                case Count(name, n):
                    self.counts.stream[name] += n
                case SetTrust(state, reason):
                    self.trust = Trust(state, reason, self._clock())
                    self._ingest.on_trust(self.worker, self.trust)
                case Purge():
                    self.counts.purges += 1
                    self._clear()
                case Replay(start):
                    if self._source is not None:
                        self._source.replay(start)
                case EndReplay():
                    if self._source is not None:
                        self._source.end_replay()
        # Only now: effects are performed in order, and these have effects of their own.
        if self._outgrown:
            self._outgrown = False
            self._perform(self._stream.tainted(OUTGROWN, self._clock(), curable=False))
        if failure is not None:
            self._perform(self._stream.tainted(failure, self._clock()))

    def _apply(self, seq: int, batch: Batch) -> str | None:
        """Apply a batch; what went wrong, if something did."""
        counts = self.counts
        counts.batches += 1
        counts.last_seq, counts.last_event_ts = seq, batch.ts
        counts.lag_s = self._ingest.wall_clock() - batch.ts
        counts.unknown_media += batch.unknown_media
        counts.rank_mismatches += batch.rank != self.rank
        for rejected in batch.rejected:
            counts.rejected[rejected.reason] += 1
        outgrown = counts.applied.outgrown
        failure = self._apply_events(batch) if isinstance(batch, EventBatch) else self._apply_arrays(batch)
        self._outgrown = self._outgrown or counts.applied.outgrown > outgrown
        self._ingest.on_applied(self.worker)
        return None if failure is None else f"applying {failure[0]} of batch {seq} failed: {failure[1]}"

    def _apply_events(self, batch: EventBatch) -> tuple[str, str] | None:
        failure: tuple[str, str] | None = None
        for event in batch.events:
            try:
                self._apply_event(event)
            except Exception as error:  # A bug of ours in one event must not cost the next.
                self.counts.rejected["apply_failed"] += 1
                failure = "an event", f"{type(error).__name__}: {error}"
            else:
                self.counts.events += 1
        return failure

    def _apply_arrays(self, batch: Batch) -> tuple[str, str] | None:
        arrays = cast("ArrayIndex", self._arrays)  # nothing else is decoded natively
        try:
            arrays.add_batch(self.worker, cast("NativeBatch", batch), self.counts.applied)
        except Exception as error:  # A bug of ours in one batch must not cost the next.
            self.counts.rejected["apply_failed"] += 1
            return "some event", f"{type(error).__name__}: {error}"
        else:
            self.counts.events += batch.n_events
            return None
        finally:
            if batch.has_clear:
                self._ingest.on_cleared(self.worker)

    def _apply_event(self, event: Event) -> None:
        # One call an event, so that a failure costs one event; the report is summed up in place.
        if isinstance(event, BlockStored):
            if event.lora is not None and (key := self._ingest.adapters.key(self.worker, event.lora)) != event.lora:
                event = msgspec.structs.replace(event, lora=key)
            if self._may_repeat() and repeats(event, self.worker, self._index):
                self.counts.repeated += len(event.block_hashes)
                return
            self._index.store(self.worker, event, self.counts.applied)
        elif isinstance(event, BlockRemoved):
            self._index.remove(self.worker, event, self.counts.applied)
        else:
            self._clear()

    def _may_repeat(self) -> bool:
        return self._ingest.full_reports.expected(self.worker, self._clock())

    def _clear(self) -> None:
        self._index.clear(self.worker, self.counts.applied)
        self._ingest.on_cleared(self.worker)
