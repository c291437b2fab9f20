"""The run: virtual time, simulated engines, and the production router between them and the workload.

Everything that decides is the production code: `Router.pick`, `prefilled`, `release`, `applied`, the index and its
events. Simulated are the engines, the clients and the time that bytes and events take.

Invariant: a run is a function of its scenario.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any

from warmroute.app.simulation.engine import Engine, Run, Work
from warmroute.app.simulation.results import Results
from warmroute.app.simulation.scenario import FleetChange, Scenario
from warmroute.app.simulation.workloads import Conversation, Turn, tokens_of
from warmroute.core.decision import Decision, PickRequest
from warmroute.core.hashing import prefix_hash_array
from warmroute.core.index import make_index
from warmroute.core.policies.guard import Guarded
from warmroute.core.router import Router
from warmroute.core.wire.events import Event
from warmroute.errors import NoWorkerError
from warmroute.types import Endpoint, Fleet, ModelInfo, Trust, TrustState, Worker, WorkerId

MODEL = "model"
PROGRESS_EVERY = 2000


class Kind(IntEnum):
    """What happens at a point of virtual time. At equal times the lower comes first."""

    STEP_OVER = 0
    TOKENS = 1
    PIECES = 2
    EVENTS = 3
    FLEET = 4
    CONVERSATION = 5
    TURN = 6


class Asked:
    """One request, from its arrival to its last token."""

    __slots__ = ("at", "conversation", "decision", "engine", "excluded", "first_at", "number", "turn")

    def __init__(self, number: int, at: float, conversation: Conversation, turn: Turn) -> None:
        self.number = number
        self.at = at
        self.conversation = conversation
        self.turn = turn
        self.engine = 0
        self.first_at = 0.0
        self.excluded: frozenset[WorkerId] = frozenset()
        self.decision: Decision


class Cluster:
    """Engines under a router."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.router = Router(make_index(65_536), scenario.routing, scenario.policy, seed=scenario.seed)
        self.engines = [Engine(profile, scenario.block_size, n) for n, profile in enumerate(scenario.engines)]
        self.results = Results(scenario)
        self._workers = [_worker(n, profile.kv_tokens) for n, profile in enumerate(scenario.engines)]
        joining = {change.engine for change in scenario.changes if change.kind == "join"}
        self._up = [n not in joining for n in range(len(self.engines))]
        self._fleet = self._new_fleet()
        self._agenda: list[tuple[float, int, int, Any, Any]] = []
        self._entries = 0
        self._issued = 0
        self._seen: set[int] = set()
        self._pieces_at = [0.0] * len(self.engines)

    def run(self, progress: Callable[[int, float], None] | None = None) -> Results:
        """Run to the last answer. `progress` is told (requests issued, virtual seconds) now and then."""
        scenario = self.scenario
        conversations = scenario.workload(scenario.seed)
        rate = scenario.requests_per_s / self._turns_per_conversation()
        for change in scenario.changes:
            self._plan(change.at_s, Kind.FLEET, change)
        self._next_conversation(0.0, conversations, rate)
        agenda, told, now = self._agenda, 0, 0.0
        while agenda:
            now, kind, _, what, more = heapq.heappop(agenda)
            if kind == Kind.STEP_OVER:
                if what.ends_at == now:  # else it was cut short, or the engine is gone
                    self._step_over(what, now)
            elif kind == Kind.TOKENS:
                self._tokens(what, more, now)
            elif kind == Kind.PIECES:
                self._pieces(what, more[0], more[1], now)
            elif kind == Kind.EVENTS:
                self._events(what, more, now)
            elif kind == Kind.TURN:
                self._turn(what, more, now)
            elif kind == Kind.CONVERSATION:
                self._turn(what, next(what.turns), now)
                self._next_conversation(now, conversations, rate)
            else:
                self._change(what, now)
            if progress is not None and self._issued >= told + PROGRESS_EVERY:
                told = self._issued
                progress(told, now)
        self.results.finish(self.engines, now)
        if isinstance(guarded := self.router.policy, Guarded):
            self.results.undecided, self.results.why_undecided = guarded.failures.total(), guarded.last_failure
        return self.results

    def _turns_per_conversation(self) -> float:
        """Measured on the workload itself, so that the rate of requests is the one that was asked for."""
        turns = conversations = 0
        for conversation in self.scenario.workload(self.scenario.seed):
            conversations += 1
            turns += sum(1 for _ in conversation.turns)
            if turns >= 2000:
                break
        return turns / conversations

    def _plan(self, at: float, kind: Kind, what: Any, more: Any = None) -> None:
        self._entries += 1
        heapq.heappush(self._agenda, (at, kind, self._entries, what, more))

    def _next_conversation(self, now: float, conversations: Iterator[Conversation], rate: float) -> None:
        if self._issued < self.scenario.requests:
            conversation = next(conversations)
            self._plan(now + conversation.at / rate, Kind.CONVERSATION, conversation)

    # -- requests

    def _turn(self, conversation: Conversation, turn: Turn, now: float) -> None:
        if self._issued >= self.scenario.requests:
            return
        asked = Asked(self._issued, now, conversation, turn)
        self._issued += 1
        self._dispatch(asked, now)

    def _dispatch(self, asked: Asked, now: float) -> None:
        turn, conversation = asked.turn, asked.conversation
        everything = tokens_of((*turn.pieces, turn.answer))
        prompt = everything[: len(everything) - turn.answer[1]]
        request = PickRequest(model=MODEL, token_ids=prompt, session=conversation.session, exclude=asked.excluded)
        try:
            decision = self.router.pick(request, self._fleet, now)
        except NoWorkerError:
            self.results.refused += 1
            return
        decision.settle(0)
        asked.decision = decision
        number = asked.engine = int(decision.worker.id)
        engine = self.engines[number]
        work = Work(asked, everything, len(prompt), turn.answer[1])
        work.chain = _numbers(prefix_hash_array(everything, engine.block_size))
        if not asked.excluded:
            self.results.asked(asked.number, number, len(prompt), self._infinite(work))
        if engine.arrive(work, now):
            self._plan_step(engine)

    def _infinite(self, work: Work) -> int:
        """Tokens that a cache without end, shared by all engines, would have held."""
        seen, n, limit = self._seen, 0, (work.prompt_tokens - 1) // self.scenario.block_size
        for block in work.chain:
            if block not in seen or n == limit:
                break
            n += 1
        seen.update(work.chain)
        return n * self.scenario.block_size

    # -- engines

    def _plan_step(self, engine: Engine) -> None:
        if engine.ends_at is not None:
            self._plan(engine.ends_at, Kind.STEP_OVER, engine)
            self._plan_pieces(engine, 1)

    def _plan_pieces(self, engine: Engine, step: int) -> None:
        """Those of the last step of a run come when it is over."""
        if step < engine.run.steps:
            self._plan(engine.step_at(step) + self.scenario.network_s, Kind.PIECES, engine, (engine.run, step))

    def _step_over(self, engine: Engine, now: float) -> None:
        run = engine.run
        engine.step_over(now)
        if engine.generating is not None:
            self._plan(now + self.scenario.network_s, Kind.PIECES, engine, (run, 0))
        self._plan_step(engine)
        if engine.first or engine.done:
            for work in engine.first:
                asked = work.owner
                asked.first_at = now
                ttft_s = now - asked.at + self.scenario.network_s
                self.results.first(asked.number, ttft_s, asked.decision.expected_s, work.cached_tokens)
            self._plan(now + self.scenario.network_s, Kind.TOKENS, engine.first, engine.done)
            engine.first, engine.done = [], []
        if engine.events:
            self._plan(now + self.scenario.event_delay_s, Kind.EVENTS, engine, engine.events)
            engine.events = []

    def _pieces(self, engine: Engine, run: Run, step: int, now: float) -> None:
        """Every stream that is generated there gets a piece, as with the step before: the router is told of one."""
        if step <= run.steps and (work := engine.generating) is not None:
            decision = work.owner.decision
            decision.lease.piece_at = self._pieces_at[engine.number]  # that piece of it, nobody was told of
            self._pieces_at[engine.number] = now
            self.router.stepped(decision, now)
            if step and run is engine.run:
                self._plan_pieces(engine, step + 1)

    def _tokens(self, first: list[Work], done: list[Work], now: float) -> None:
        for work in first:
            self.router.prefilled(work.owner.decision, now)
        for work in done:
            asked = work.owner
            self.router.release(asked.decision, now, served=True)
            self.results.done(asked.number, now - asked.at, now - self.scenario.network_s - asked.first_at, work)
            follow_up = next(asked.conversation.turns, None)
            if follow_up is not None:
                self._plan(now + follow_up.pause_s, Kind.TURN, asked.conversation, follow_up)

    def _events(self, engine: Engine, events: list[Event], now: float) -> None:
        number = engine.number
        if self._up[number] or engine.ends_at is not None:
            self.router.index.apply(WorkerId(number), events)
            self.router.applied(WorkerId(number), now)

    # -- the fleet

    def _new_fleet(self) -> Fleet:
        return Fleet([worker for worker, up in zip(self._workers, self._up, strict=True) if up])

    def _change(self, change: FleetChange, now: float) -> None:
        number, engine = change.engine, self.engines[change.engine]
        self._up[number] = change.kind == "join"
        self._fleet = self._new_fleet()
        if change.kind != "fail":
            return
        self.router.index.drop(WorkerId(number))
        self.router.forget(WorkerId(number))
        for work in engine.abort_all():
            asked = work.owner
            self.router.release(asked.decision, now, served=False)
            if work.running:  # the client has seen a part of the answer: it cannot be sent again
                self.results.lost += 1
            else:
                asked.excluded |= {WorkerId(number)}
                self._dispatch(asked, now)


def _worker(number: int, kv_tokens: int) -> Worker:
    return Worker(
        id=WorkerId(number),
        endpoint=Endpoint(f"engine-{number}", 8000),
        models=(ModelInfo(MODEL),),
        trust=Trust(TrustState.LIVE, "simulated", 0.0),
        kv_tokens_max=kv_tokens,
    )


def _numbers(chain: Any) -> list[int]:
    return chain.tolist() if isinstance(chain, memoryview) else list(chain)
