"""`warmroute replay`: recordings of real engines through the code that runs in production, judged by the engines' word.

Published frames go to `WorkerStream` (dialects, stream, index), requests to `Router.pick` at the moment they were sent;
what it predicts is compared with the cached tokens that the engine reported. Only the sockets and the clock are
replaced: by the recording.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any, TypeAlias

import msgspec

from warmroute.app.recording import Admin, Published, Recording, ReplayGot, Request, Restart
from warmroute.config.tree import EventsConfig
from warmroute.core import openai
from warmroute.core.decision import Decision, PickRequest
from warmroute.core.index import make_index
from warmroute.core.openai import RoutingRequest
from warmroute.core.router import Router
from warmroute.core.stream import NO_ENDPOINT
from warmroute.core.wire import ReplayBatch, decode_batch, decode_pub, decode_replay
from warmroute.core.wire.events import BlockStored, EventBatch
from warmroute.errors import ClientError, WireError
from warmroute.service.ingest import Ingest, WorkerStream
from warmroute.service.ports import EventSink
from warmroute.types import Endpoint, Fleet, ModelInfo, Trust, TrustState, Worker, WorkerId

REPLAY_END_SEQ = b"\xff" * 8
_RESETS = frozenset({"/reset_prefix_cache", "/sleep"})


class Miss(msgspec.Struct, frozen=True):
    """One request whose prediction was not what the engine reported."""

    id: int | str
    tag: str | None
    prompt_tokens: int
    predicted: int
    reported: int
    cause: str
    detail: str


class Judged(msgspec.Struct):
    """What became of one recording."""

    file: str
    engine: str
    requests: int = 0
    exact: int = 0
    unjudged: int = 0
    """Requests that failed, or of which the engine reported nothing."""
    batches: int = 0
    events: int = 0
    rejected: dict[str, int] = msgspec.field(default_factory=dict)
    stream: dict[str, int] = msgspec.field(default_factory=dict)
    trust: dict[str, str] = msgspec.field(default_factory=dict)
    """Worker -> its trust state at the end, with the reason."""
    misses: list[Miss] = msgspec.field(default_factory=list)


class RecordedSource:
    """The event source of a recording.

    A replay is answered with what the recording holds of the engine's replay buffer at that time: batches that its own
    replays brought, and those published since. If it holds no replay of that run of the engine, none can be had.
    """

    def __init__(self, recorded: Recording, src: str) -> None:
        self._published = [r for r in recorded.records if isinstance(r, Published) and r.src == src]
        self._replays = [r for r in recorded.records if isinstance(r, ReplayGot)]
        self._restarts = [r.t for r in recorded.records if isinstance(r, Restart)]
        self._asked: int | None = None
        self._sink: EventSink | None = None

    def start(self, sink: EventSink) -> None:
        """Hand over the sink; the recording speaks to it."""
        self._sink = sink

    def replay(self, start: int) -> None:
        """Note what was asked for; `settle` answers."""
        self._asked = start

    def end_replay(self) -> None:
        """Nobody waits any more."""
        self._asked = None

    def close(self) -> None:
        """Nothing to release."""

    def settle(self, now: float) -> None:
        """Answer what was asked for."""
        while self._asked is not None and self._sink is not None:
            start, self._asked = self._asked, None
            buffered = self._buffered(now)
            if buffered is None:
                self._sink.replay_failed(NO_ENDPOINT)
                continue
            for seq in sorted(seq for seq in buffered if seq >= start):
                self._sink.replayed((b"", seq.to_bytes(8, "big"), buffered[seq]))
            self._sink.replayed((b"", REPLAY_END_SEQ, b""))

    def _buffered(self, now: float) -> dict[int, bytes] | None:
        """What the engine's replay buffer held at `now`, as far as the recording shows; None if it shows nothing."""
        begun = max((t for t in self._restarts if t <= now), default=float("-inf"))
        ended = min((t for t in self._restarts if t > now), default=float("inf"))
        held: dict[int, bytes] = {}
        for got in self._replays:
            reply = _reply(got) if begun <= got.t < ended else None
            if reply is not None:
                held[reply.seq] = bytes(reply.payload)
        if not held:
            return None
        later = set()
        for published in self._published:
            if begun <= published.t < ended:
                with suppress(WireError):
                    _, seq, payload = decode_pub(published.frames)
                    held[seq] = bytes(payload)
                    later |= {seq} if published.t > now else set()
        return {seq: payload for seq, payload in held.items() if seq not in later}


@dataclass(slots=True)
class _Running:
    request: Request
    decision: Decision
    asked: RoutingRequest
    concurrent: bool
    unannounced: int
    """Requests answered before whose blocks had not been announced when this one was sent."""


_Step: TypeAlias = tuple[float, int, Any]


@dataclass(slots=True)
class _Player:
    """Plays one recording, step by step."""

    recording: Recording
    judged: Judged
    now: float = 0.0
    streams: dict[str, WorkerStream] = field(default_factory=dict)
    sources: dict[str, RecordedSource] = field(default_factory=dict)
    running: dict[int, _Running] = field(default_factory=dict)
    fleet: Fleet = field(default_factory=Fleet)
    loaded: dict[str, int] = field(default_factory=dict)
    """Adapter -> how often it was loaded."""
    reset_pending: bool = False
    published: list[tuple[float, float]] = field(default_factory=list)
    """When each batch was received, and when the engine made it, by the same machine's clock."""

    def play(self) -> None:
        index = make_index(EventsConfig().orphan_blocks_max)
        router = Router(index)
        self.fleet = self._fleet()
        self.published = [(received, batch.ts) for received, batch in _batches(self.recording)]
        ingest = Ingest(
            index=index,
            config=EventsConfig(),
            clock=self._clock,
            wall_clock=self._clock,
            on_trust=self._on_trust,
            on_applied=lambda applied: router.applied(applied, self.now),
            on_cleared=router.forget,
            adapters=router.adapters,
            full_reports=router.full_reports,
        )
        for worker, src in zip(self.fleet.workers, self._sockets(), strict=True):
            source = RecordedSource(self.recording, src)
            stream = WorkerStream(worker.id, ingest, rank=worker.rank)
            self.streams[src], self.sources[src] = stream, source
            stream.start(source)
        for at, _, (what, item) in sorted(self._steps(), key=itemgetter(0, 1)):
            self.now = at
            self._step(router, what, item)
            for source in self.sources.values():
                source.settle(self.now)
        self._sum_up()

    def _step(self, router: Router, what: str, item: Any) -> None:
        match what, item:
            case "connect", _:
                for stream in self.streams.values():
                    stream.connected()
            case "pub", Published(src=src) as published:
                self.reset_pending = False
                self.streams[src].message(published.frames)
            case "start", Request() as request:
                self._start(router, request)
            case "end", Request() as request:
                self._end(router, request)
            case "admin", Admin() as admin:
                self._admin(router, admin)
            case "restart", Restart():
                for worker in self.fleet.workers:
                    router.forget(worker.id)
                for stream in self.streams.values():
                    stream.disconnected()
                    stream.restarted(self.now)
                    stream.connected()

    def _steps(self) -> Iterator[_Step]:
        """Everything that happened, with its time; at equal times, what was published comes before what was asked."""
        first = True
        for record in self.recording.records:
            if isinstance(record, Request):
                yield record.t0, 3, ("start", record)
                yield record.t1, 2, ("end", record)
            elif isinstance(record, Published):
                yield record.t, 1, ("pub", record)
            elif isinstance(record, Admin):
                yield record.t, 2, ("admin", record)
            elif isinstance(record, Restart):
                yield record.t, 2, ("restart", record)
            if first:
                yield float("-inf"), 0, ("connect", record)
                first = False

    def _start(self, router: Router, request: Request) -> None:
        if request.prompt_token_ids is None or request.status != 200:
            return  # nothing to judge by
        try:
            parsed = openai.parse(request.path, msgspec.json.encode(request.body))
        except ClientError:
            return
        pick = PickRequest(
            model=parsed.model,
            token_ids=request.prompt_token_ids,
            further_prompts=parsed.further_prompts,
            n=parsed.n,
            cache_salt=parsed.cache_salt,
            skips_cache_read=parsed.skips_cache_read,
            streamed=False,
            pinned=self._pinned(request),
        )
        decision = router.pick(pick, self.fleet, self.now)
        if parsed.full_report:
            router.full_reports.began(decision.worker.id)
        unannounced = router.speculation.unconfirmed(decision.worker.id)
        for other in self.running.values():
            other.concurrent = True
        self.running[id(request)] = _Running(request, decision, parsed, bool(self.running), unannounced)

    def _pinned(self, request: Request) -> WorkerId | None:
        for name, value in (request.headers or {}).items():
            if name.lower() == "x-data-parallel-rank" and len(self.fleet.workers) > 1:
                return next((w.id for w in self.fleet.workers if str(w.rank) == value), None)
        return None

    def _end(self, router: Router, request: Request) -> None:
        running = self.running.pop(id(request), None)
        if running is None:
            self.judged.unjudged += 1
            return
        if running.asked.full_report:
            router.full_reports.ended(running.decision.worker.id, self.now)
        router.prefilled(running.decision, self.now)
        router.release(running.decision, self.now, served=True)
        predicted, reported = running.decision.predicted_tokens, request.reported_tokens
        if reported is None or predicted is None:
            self.judged.unjudged += 1
            return
        self.judged.requests += 1
        if predicted == reported:
            self.judged.exact += 1
            return
        cause, detail = self._cause(running, reported)
        self.judged.misses.append(
            Miss(
                id=request.id,
                tag=request.tag,
                prompt_tokens=running.decision.prompt_tokens,
                predicted=predicted,
                reported=reported,
                cause=cause,
                detail=detail,
            )
        )

    def _admin(self, router: Router, admin: Admin) -> None:
        """What the gateway would have learned from a call that passed through it."""
        if admin.status != 200:
            return
        if admin.path in _RESETS and "false" not in admin.text:
            self.reset_pending = True
            for worker in self.fleet.workers:
                router.forget(worker.id)
            for stream in self.streams.values():
                stream.cleared_by_gateway()
        elif admin.path == "/v1/load_lora_adapter":
            name, path = openai.adapter_of(msgspec.json.encode(admin.body or {}))
            if name is not None and path is not None:
                for worker in self.fleet.workers:
                    router.adapters.loaded(worker, name, path)
            else:  # a recording that does not say what was loaded
                for model in self.fleet.models:
                    if model.parent is not None and f"'{model.id}'" in admin.text:
                        self.loaded[model.id] = self.loaded.get(model.id, 0) + 1

    def _cause(self, running: _Running, reported: int) -> tuple[str, str]:
        """Why the prediction differs, as far as anybody outside the engine can tell."""
        trust = running.decision.worker.trust
        found = ((cause, detail) for applies, cause, detail in self._causes(running, reported) if applies)
        return next(found, ("unexplained", f"the view was {trust.state}: {trust.reason}"))

    def _causes(self, running: _Running, reported: int) -> Iterator[tuple[bool, str, str]]:
        """Whether each known cause applies, the surest first."""
        request, decision, asked = running.request, running.decision, running.asked
        trust = decision.worker.trust
        yield asked.skips_cache_read, "skips_cache_read", "prompt_logprobs: the engine computes the whole prompt"
        yield asked.n > 1, "several_answers", f"n = {asked.n}: the siblings share the first one's blocks"
        yield asked.prompts > 1, "several_answers", f"{asked.prompts} prompts: the engine reports them together"
        shared = "other requests ran meanwhile; blocks are shared inside a step, events come after it"
        yield running.concurrent, "concurrent", shared
        again = self.loaded.get(asked.model, 0) > 1 and decision.overlap_tokens > reported
        hidden = f"adapter {asked.model!r} was loaded again, the recording hides from where"
        yield again, "adapter_reloaded", hidden
        late = sum(received > request.t0 > made for received, made in self.published)
        yield late > 0, "late_events", f"{late} earlier batches reached the subscriber only after it was sent"
        yield self.reset_pending, "reset_pending", "the cache was reset; the engine says so only with its next step"
        unknown = trust.state is not TrustState.LIVE and decision.overlap_tokens < reported
        yield unknown, "not_announced", f"{trust.state}: {trust.reason}"
        unpinned = len(self.fleet.workers) > 1 and self._pinned(request) is None
        yield unpinned, "other_rank", "the engine chose the data-parallel rank itself"
        silent = running.unannounced
        yield silent > 0, "late_events", f"what {silent} earlier answers left behind had not been announced yet"

    def _fleet(self) -> Fleet:
        models = tuple(self._models())
        return Fleet(
            [
                Worker(
                    id=WorkerId(rank),
                    endpoint=Endpoint("recording", 0),
                    rank=rank,
                    ranks=len(self._sockets()),
                    models=models,
                    block_size=self.recording.meta.block_size,
                    version=self.recording.meta.version,
                )
                for rank in range(len(self._sockets()))
            ]
        )

    def _sockets(self) -> list[str]:
        return sorted({r.src for r in self.recording.records if isinstance(r, Published)}) or [""]

    def _models(self) -> Iterator[ModelInfo]:
        """Every model that was asked for; those that events name as LoRA are adapters of the first that is not."""
        adapters = {
            event.lora
            for _, batch in _batches(self.recording)
            for event in batch.events
            if isinstance(event, BlockStored) and event.lora is not None
        }
        asked = dict.fromkeys(str(r.body.get("model")) for r in self.recording.records if isinstance(r, Request))
        base = next((model for model in asked if model not in adapters), "base")
        yield ModelInfo(base)
        for model in asked:
            if model != base:
                yield ModelInfo(model, parent=base if model in adapters else None)

    def _clock(self) -> float:
        return self.now

    def _on_trust(self, worker: WorkerId, trust: Trust) -> None:
        self.fleet = Fleet([replace(w, trust=trust) if w.id == worker else w for w in self.fleet.workers])

    def _sum_up(self) -> None:
        for worker, stream in zip(self.fleet.workers, self.streams.values(), strict=True):
            counts = stream.counts
            self.judged.batches += counts.batches
            self.judged.events += counts.events
            self.judged.rejected = dict(Counter(self.judged.rejected) + counts.rejected)
            self.judged.stream = dict(Counter(self.judged.stream) + counts.stream)
            self.judged.trust[worker.name] = f"{stream.trust.state}: {stream.trust.reason}"


def _batches(recorded: Recording) -> Iterator[tuple[float, EventBatch]]:
    """Every published batch that can be read, with when it was received."""
    for record in recorded.records:
        if isinstance(record, Published):
            try:
                yield record.t, decode_batch(decode_pub(record.frames)[2])
            except WireError:
                continue  # what cannot be read is counted where it is applied


def _reply(got: ReplayGot) -> ReplayBatch | None:
    """The batch that a reply brought; None if it is the end, or cannot be read."""
    try:
        reply = decode_replay(got.frames)
    except WireError:
        return None
    return reply if isinstance(reply, ReplayBatch) else None


def judge(played: Recording) -> Judged:
    """Play a recording and compare every request's prediction with what the engine reported."""
    meta = played.meta
    player = _Player(played, Judged(file=played.path, engine=meta.version or "unknown"))
    player.play()
    return player.judged
