"""From an HTTP request to a dispatch: parse, get tokens, pick, and say what the data plane is to do.

The one implementation of the port `GatewayService`. It answers at once where nothing must be waited for, so that a
request with token ids costs no task. It refuses only what is the client's fault; that tokens or events are missing
never fails a request.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Awaitable, Callable, Mapping
from itertools import count

import msgspec

from warmroute.config.tree import BreakerConfig, GatewayConfig
from warmroute.core import forms, openai, usage
from warmroute.core.breaker import Breakers
from warmroute.core.decision import Decision, PickRequest
from warmroute.core.openai import RoutingRequest
from warmroute.core.parity import Bounds, Evidence
from warmroute.core.router import Router
from warmroute.errors import ClientError, NoWorkerError
from warmroute.service.access_log import AccessLog, key_name, trace_id
from warmroute.service.agreements import Agreements, Made
from warmroute.service.avoidance import Avoided
from warmroute.service.membership import Membership
from warmroute.service.ports import Dispatch, Headers, LocalReply, Outcome, Reply, RequestHead
from warmroute.service.tokens import Tokenized, Tokens, Waiting
from warmroute.service.tracking import Attempt, Tracking
from warmroute.service.trail import Job, Trail
from warmroute.service.trust import Trusts
from warmroute.types import Worker, WorkerId

PREFIX_ROUTED = forms.PATHS
"""Paths whose requests are routed by what the workers have cached."""

RESETS_CACHE = frozenset({"/reset_prefix_cache", "/sleep"})
"""Paths after which the engine that served them has an empty cache; it publishes that only with its next step."""

LOADS_ADAPTER = "/v1/load_lora_adapter"
CHANGES_MODELS = frozenset({LOADS_ADAPTER, "/v1/unload_lora_adapter"})
"""Paths after which the engine that served them serves other models."""

SLEEP, WAKE_UP, IS_SLEEPING = "/sleep", "/wake_up", "/is_sleeping"

RANK_HEADER = b"x-data-parallel-rank"
"""vLLM's: the client wants this data-parallel rank."""
NAME_BYTES_MAX = 256
"""Of a request's id and of a session's name, which are kept by the ten and the hundred thousand."""
WORKER_HEADER = b"x-warmroute-worker"
"""Ours: the client wants this worker, by the name that `/workers` and the same header of an answer give it."""

_NOBODY: frozenset[WorkerId] = frozenset()
SERVER_ERROR = 500
"""Statuses from here on are the engine's failures."""

CANDIDATES_KEPT_MAX = 32
"""Candidates that are kept of a decision for explanation: the chosen one and the cheapest."""


class Routing:
    """Decides for every request that the gateway gets."""

    def __init__(
        self,
        router: Router,
        membership: Membership,
        tokens: Tokens,
        config: GatewayConfig,
        clock: Callable[[], float],
    ) -> None:
        self.router = router
        self.tracking = Tracking()
        self.trusts = Trusts(clock)
        self.agreements = Agreements(clock)
        self._membership = membership
        self._tokens = tokens
        self._config = config
        self._clock = clock
        self.breakers = Breakers(BreakerConfig(failures_max=0))
        """What becomes of requests is told to these."""
        self.avoidances: list[Avoided] = []
        """Who says which workers to leave out if possible."""
        self._local: dict[str, LocalReply] = {}
        self._instance = uuid.uuid4().hex
        self._numbers = count(1)
        self.on_reset: Callable[[WorkerId], None] = lambda _: None
        """Told when a worker's cache was reset by a request that passed through."""
        self.removed_blocks: Callable[[WorkerId], int] = lambda _: 0
        """How many blocks a worker has announced as removed, ever."""
        self.access_log: AccessLog | None = None

    def reconfigure(self, config: GatewayConfig) -> None:
        """Take up what is configured now."""
        self._config = config

    def answer_locally(self, replies: Mapping[str, LocalReply]) -> None:
        """Let GETs of these paths be answered by the gateway itself; a path that ends in `/` stands for all below."""
        self._local.update(replies)

    def dispatch(self, head: RequestHead, body: bytes) -> Dispatch | Reply | Awaitable[Dispatch | Reply]:
        """Decide what becomes of a request. Raises ClientError or NoWorkerError, at once or when awaited."""
        try:
            return self._decide(head, body)
        except (ClientError, NoWorkerError) as error:
            self.tracking.refuse(error)
            raise

    def _decide(self, head: RequestHead, body: bytes) -> Dispatch | Reply | Awaitable[Dispatch | Reply]:
        path = head.target.partition(b"?")[0].decode("latin-1")
        if path in PREFIX_ROUTED and head.method == b"POST":
            request = forms.parse(path, body)
            if request is not None:
                return self._route(head, request)
        if path.startswith("/admin/"):
            raise ClientError(
                403, "The gateway is administered on a listener of its own: set admin.port.", code="admin"
            )
        if head.method in (b"GET", b"HEAD"):
            reply = self._local.get(path) or self._local.get(path[: path.rfind("/") + 1])
            if reply is not None:
                return reply(head.target.decode("latin-1"))
        return self._pass_through(head, path, body)

    def retry(self, dispatch: Dispatch) -> Dispatch | None:
        """Another worker for a request that ended UNREACHABLE or REFUSED; None: it must not be tried again.

        Raises NoWorkerError if there is nobody left who could serve it.
        """
        assert isinstance(dispatch, Attempt)  # noqa: S101 - the data plane hands back what it got
        job = dispatch.job
        tried = job.pick.exclude | {dispatch.trail.decision.worker.id}
        if not job.retriable or len(tried) > self._config.retries:
            self._log(dispatch, b"", status=502)
            return None
        again = msgspec.structs.replace(job, pick=msgspec.structs.replace(job.pick, exclude=tried))
        try:
            attempt = self._attempt(again)
        except NoWorkerError as error:
            self.tracking.refuse(error)
            self._log(dispatch, b"", status=503)
            raise
        self.tracking.retries += 1
        return attempt

    def answering(self, attempt: Attempt, status: int) -> None:
        """The first byte of an answer's body came."""
        trail = attempt.trail
        trail.status = status
        if status < SERVER_ERROR and self.breakers.known:
            self.breakers.began(trail.decision.worker.endpoint, trail.decision.at, self._clock())
        if _computed(status):
            self.router.prefilled(trail.decision, self._clock())

    def progressed(self, attempt: Attempt) -> None:
        """A further piece of the answer's body came."""
        self.router.stepped(attempt.trail.decision, self._clock())

    def finished(self, attempt: Attempt, outcome: Outcome, tail: bytes, status: int | None = None) -> None:
        """Release what was booked, and note how it ended; `status`: of an answer that came all at once."""
        trail, decision = attempt.trail, attempt.trail.decision
        trail.outcome = outcome
        if status is not None:
            self.answering(attempt, status)
        if attempt.job.full_report:
            self.router.full_reports.ended(decision.worker.id, self._clock())
        self.router.release(decision, self._clock(), served=_computed(trail.status))
        decision.claims = decision.chain = ()  # kept for explanation: without the hashes of its whole prompt
        if self._membership.fleet.get(decision.worker.id) is not None:  # of one forgotten meanwhile nothing is kept
            self._note(attempt, outcome, tail)

    def _note(self, attempt: Attempt, outcome: Outcome, tail: bytes) -> None:
        """What the end of an attempt says of its worker and its engine."""
        trail, worker = attempt.trail, attempt.trail.decision.worker
        alike = attempt.job.made is None or self._alike(attempt.job.made, trail, usage.prompt_tokens(tail))
        reported = usage.cached_tokens(tail)
        if trail.number:
            self.trusts.ended(worker.id, trail.number, served=_computed(trail.status), reported=reported is not None)
        if reported is not None:
            self.tracking.reported(trail, reported)
            if alike:
                self._judge(attempt.job, trail, reported)
        if outcome is Outcome.COMPLETE and trail.status == 200:
            self._acted(attempt.job, worker, tail)
        self.tracking.outcomes[worker.name, outcome] += 1
        if self.breakers.known or outcome is not Outcome.COMPLETE or not _computed(trail.status):
            self._judge_engine(trail, outcome)
        if self.access_log is not None and not outcome.retried:
            self._log(attempt, tail)
        if outcome is Outcome.UNREACHABLE:
            self._membership.report_unreachable(worker.endpoint)
        elif outcome is Outcome.ENGINE_LOST:  # one answer broke; whether the engine did, it is asked at once
            self._membership.refresh(worker.endpoint)

    def _alike(self, made: Made, trail: Trail, counted: int | None) -> bool:
        """Whether the engine, if it computed a prompt and has told of it, had the one that was made here."""
        if not _computed(trail.status) or (counted is None and trail.outcome is not Outcome.COMPLETE):
            return False
        return self.agreements.compare(made, counted)

    def _log(self, attempt: Attempt, tail: bytes, *, status: int | None = None) -> None:
        """The request is over; `status`: what the gateway answers if the engine has not."""
        outcome = attempt.trail.outcome
        if self.access_log is not None and outcome is not None:
            self.access_log.ended(attempt, outcome, tail, attempt.trail.status or status)

    def _judge_engine(self, trail: Trail, outcome: Outcome) -> None:
        """Tell the engine's breaker. What a client or this machine is at fault for is none of the engine's."""
        engine, sent_at = trail.decision.worker.endpoint, trail.decision.at
        if outcome in (Outcome.CLIENT_GONE, Outcome.UNASKED):
            self.breakers.gave_up(engine, sent_at)
        elif outcome is not Outcome.COMPLETE or (trail.status is not None and trail.status >= SERVER_ERROR):
            self.breakers.failed(engine, sent_at, self._clock())
        else:
            self.breakers.succeeded(engine, sent_at)

    def _judge(self, job: Job, trail: Trail, reported: int) -> None:
        """Hold the prediction against the engine's word, if both are of the same prompt and nothing excuses it."""
        decision = trail.decision
        if not job.plain or job.pick.token_ids is None:
            return
        confirmed = decision.overlap_tokens - decision.claimed_tokens
        block_size = decision.candidates.block_size if decision.overlap_tokens else 1
        removed = self.removed_blocks(decision.worker.id) - trail.removed_before
        if 0 < confirmed - reported <= removed * block_size:
            confirmed = reported  # it may have been evicted between the decision and the engine's own look
        self.trusts.judged(decision.worker.id, Evidence(confirmed, decision.overlap_tokens, reported), decision.at)

    def _acted(self, job: Job, worker: Worker, tail: bytes) -> None:
        """An engine did what was asked: take it for known before it is announced."""
        if job.path in RESETS_CACHE and b"false" not in tail:  # what it could not do, it answers with 200 as well
            for each in self._membership.fleet.workers:
                if each.endpoint == worker.endpoint:  # the engine resets all of its ranks
                    self.on_reset(each.id)
            if job.path == SLEEP:
                self._membership.sleeps(worker.endpoint, asleep=True)
        elif job.path == WAKE_UP:
            self._membership.sleeps(worker.endpoint, asleep=False)
            self._membership.refresh(worker.endpoint)
        elif job.path in CHANGES_MODELS:
            name, source = job.adapter
            if job.path == LOADS_ADAPTER and name is not None and source is not None:
                for each in self._membership.fleet.workers:
                    if each.endpoint == worker.endpoint:
                        self.router.adapters.loaded(each, name, source)
            if name is not None:
                root = source if job.path == LOADS_ADAPTER else None
                self._membership.adapter_changed(worker.endpoint, name, root)

    def _route(self, head: RequestHead, request: RoutingRequest) -> Dispatch | Awaitable[Dispatch]:
        serving = self._membership.fleet.serving(request.model)
        if not serving:
            raise self._unknown_model(request.model)
        asked = serving[0]
        if not asked.ready:
            asked = next((worker for worker in serving if worker.ready), asked)
        paused = None if request.shape is None else self.agreements.paused(request)
        found = paused or self._tokens.ask(request, asked.endpoint)
        if isinstance(found, Tokenized):
            return self._attempt(self._job(head, request, found))
        return self._route_text(head, request, found)

    async def _route_text(self, head: RequestHead, request: RoutingRequest, waiting: Waiting) -> Dispatch:
        found = await waiting()
        try:
            return self._attempt(self._job(head, request, found))
        except NoWorkerError as error:
            self.tracking.refuse(error)
            raise

    def _pass_through(self, head: RequestHead, path: str, body: bytes) -> Dispatch:
        """Route by load: to a worker of the model that the body names, or to any if it names none."""
        model = openai.model_of(body)
        if model is not None and not self._membership.fleet.serving(model):
            raise self._unknown_model(model)
        pinned = self._pinned(head)
        wakes = path in (WAKE_UP, IS_SLEEPING)
        if wakes and pinned is None:
            pinned = min(self._membership.asleep(), default=None)
        pick = PickRequest(
            model=model,
            prompt_bytes=len(body),
            streamed=False,
            pinned=pinned,
            even_unready=pinned is not None,
            rank=_rank(head),
        )
        return self._attempt(
            Job(
                pick=pick,
                request_id=self._request_id(head),
                no_tokens_reason="path",
                retriable=model is not None or head.method in (b"GET", b"HEAD"),
                path=path,
                adapter=openai.adapter_of(body) if path in CHANGES_MODELS else (None, None),
                authorize=head.header(b"authorization") is None,
                trace_id=None if self.access_log is None else trace_id(head),
                key=None if self.access_log is None else key_name(head),
            )
        )

    def _job(self, head: RequestHead, request: RoutingRequest, found: Tokenized) -> Job:
        config, made = self.router.config, None
        if request.shape is not None:
            found, made = self.agreements.believed(request, found)
        session = head.header(config.session_header.encode())
        policy = head.header(b"routing-strategy") if config.overrides else None
        pick = PickRequest(
            model=request.model,
            token_ids=found.token_ids,
            prompt_bytes=len(request.body),
            further_prompts=request.further_prompts,
            n=request.n,
            cache_salt=request.cache_salt,
            skips_cache_read=request.skips_cache_read,
            streamed=request.stream,
            rank=_rank(head),
            priority=request.priority,
            session=None if session is None else _name_of(session),
            policy=None if policy is None else policy.decode("latin-1"),
            pinned=self._pinned(head) if config.overrides else None,
        )
        return Job(
            pick=pick,
            request_id=self._request_id(head),
            path=request.path,
            no_tokens_reason=found.reason,
            made=made,
            full_report=request.full_report,
            plain=request.n == 1 and request.prompts == 1,
            authorize=head.header(b"authorization") is None,
            trace_id=None if self.access_log is None else trace_id(head),
            key=None if self.access_log is None else key_name(head),
        )

    def _attempt(self, job: Job) -> Attempt:
        decision = self._pick(job.pick)
        decision.settle(CANDIDATES_KEPT_MAX)  # at once: the memory is warm for the next
        worker = decision.worker.id
        if self.breakers.known:
            self.breakers.sent(decision.worker.endpoint, decision.at)
        trail = Trail(job.request_id, decision, job.no_tokens_reason)
        if job.pick.token_ids is not None:
            trail.removed_before = self.removed_blocks(worker)
        self.tracking.decided(trail)
        if job.full_report:
            self.router.full_reports.began(worker)
        if job.path in PREFIX_ROUTED and self.trusts.counts_for(worker):
            trail.number = next(self._numbers)
            self.trusts.began(worker, trail.number, _bounds(job, decision))
        return Attempt(self, job, trail, decision.worker.endpoint, *self._headers(job, decision))

    def _pick(self, pick: PickRequest) -> Decision:
        fleet, now = self._membership.fleet, self._clock()
        avoided = _NOBODY
        for avoidance in self.avoidances:
            avoided |= avoidance(now)
        if avoided:
            elsewhere = msgspec.structs.replace(pick, exclude=pick.exclude | avoided)
            try:
                return self.router.pick(elsewhere, fleet, now)
            except NoWorkerError:  # a doubtful worker is better than none
                self.tracking.avoided_in_vain += 1
        return self.router.pick(pick, fleet, now)

    def _headers(self, job: Job, decision: Decision) -> tuple[Headers, Headers]:
        request_id = (b"x-request-id", job.request_id.encode("latin-1"))
        worker = decision.worker
        to_engine: Headers = (request_id,)
        if worker.ranks > 1:
            to_engine += ((RANK_HEADER, b"%d" % worker.rank),)
        if job.authorize and (key := self._membership.keys.get(worker.endpoint)) is not None:
            to_engine += ((b"authorization", b"Bearer " + key.encode()),)
        if not self._config.decision_headers:
            return to_engine, (request_id,)
        return to_engine, (
            request_id,
            (WORKER_HEADER, worker.name.encode("latin-1")),
            (b"x-warmroute-overlap-tokens", b"%d" % _first(decision.predicted_tokens, decision.overlap_tokens)),
        )

    def _request_id(self, head: RequestHead) -> str:
        """The client's, or one of our own: unique without asking the system for randomness per request."""
        given = head.header(b"x-request-id")
        if given and len(given) <= NAME_BYTES_MAX:
            return given.decode("latin-1")
        return f"{self._instance}-{next(self._numbers):x}"

    def _pinned(self, head: RequestHead) -> WorkerId | None:
        name = head.header(WORKER_HEADER)
        if name is None:
            return None
        for worker in self._membership.fleet.workers:
            if worker.name.encode("latin-1") == name:
                return worker.id
        raise ClientError(
            404, f"There is no worker {name.decode('latin-1')!r}; /workers lists them.", code="worker_not_found"
        )

    def _unknown_model(self, model: str) -> ClientError | NoWorkerError:
        known = [info.id for info in self._membership.fleet.models]
        if not known:
            return NoWorkerError("no engine has answered yet, so no model is known; try again shortly")
        return ClientError(
            404,
            f"The model `{model}` does not exist. Models served here: {', '.join(sorted(known))}.",
            code="model_not_found",
            param="model",
        )


def _first(value: int | None, other: int) -> int:
    return other if value is None else value


def _name_of(session: bytes) -> str:
    """What a session is known by: its name, or the hash of one that is longer than is kept."""
    return session.decode("latin-1") if len(session) <= NAME_BYTES_MAX else hashlib.sha256(session).hexdigest()


def _rank(head: RequestHead) -> int | None:
    """The data-parallel rank that the client wants; what is no number is the engine's to refuse."""
    value = head.header(RANK_HEADER)
    return int(value) if value is not None and value.isdigit() else None


def _bounds(job: Job, decision: Decision) -> Bounds:
    """What the request adds to the engine's counters: every answer to every prompt is looked up."""
    pick = job.pick
    if pick.skips_cache_read:
        return Bounds(0, 0, 0)
    if pick.token_ids is None or pick.further_prompts is None or pick.further_prompts:
        return Bounds(0, 0, None)
    confirmed = decision.overlap_tokens - decision.claimed_tokens
    at_most = decision.overlap_tokens + (pick.n - 1) * _first(decision.predicted_tokens, 0)
    return Bounds(pick.n * confirmed, at_most, pick.n * decision.prompt_tokens)


def _computed(status: int | None) -> bool:
    """Whether an engine has computed the prompt, as its answer so far says: a refusal leaves nothing in its cache."""
    return status is not None and status < 400
