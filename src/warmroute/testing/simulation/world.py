"""One plan, from beginning to end: the production event plane between model engines and a judge.

Engines publish through `Link`s into `Following`, `WorkerStream`, `Stream` and the index as they are in a gateway; the
only differences are the clock, which is virtual, and the network.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from warmroute.config.tree import EventsConfig, RoutingConfig
from warmroute.core.index import make_index
from warmroute.core.router import Router
from warmroute.core.wire.events import BlockRemoved, BlockStored, Event
from warmroute.service.following import Following
from warmroute.service.ports import EventAddress
from warmroute.testing.simulation.engine import EPOCH_S, ModelEngine
from warmroute.testing.simulation.judge import SETTLE_S, TICK_S, Judge, Violation
from warmroute.testing.simulation.link import Link
from warmroute.testing.simulation.plan import FORGERIES, REPLAY_FAULTS, Action, Plan
from warmroute.testing.simulation.virtual import VirtualTime
from warmroute.types import Endpoint, Trust, Worker, WorkerId

TROUBLE_END_S = 95.0
"""After that nothing new befalls anybody; what was set in motion ends by itself."""
_FAR = 1_000_000


@dataclass(slots=True)
class Outcome:
    """What became of a plan."""

    plan: Plan
    violation: Violation | Exception | None = None
    at: float = 0.0
    trace: list[tuple[float, int, str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """Summed over the plan's streams: batches, gaps, restarts, ..."""

    def story(self) -> list[str]:
        """The trace, a line for each event."""
        return [f"{at:8.3f} engine {engine}: {_said(word, detail)}" for at, engine, word, detail in self.trace]


def run(plan: Plan) -> Outcome:
    """Run a plan until it ends or a property does not hold."""
    world = World(plan)
    outcome = world.outcome
    try:
        world.play()
    except Exception as error:  # whatever is raised here would have been raised in a gateway
        outcome.violation, outcome.at = error, world.time.now
    for stream in world.following.streams.values():
        outcome.counts.update(stream.counts.stream, batches=stream.counts.batches, purges=stream.counts.purges)
    return outcome


class World:
    """Engines, links, judges, and the event plane between them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.time = VirtualTime()
        self.luck = random.Random(plan.seed)  # noqa: S311 - a simulation wants repeatable numbers
        self.outcome = Outcome(plan)
        self.config = EventsConfig(pending_batches_max=plan.pending_batches_max)
        self.index = make_index(self.config.orphan_blocks_max)
        self.engines = [ModelEngine(n, setup, self.time) for n, setup in enumerate(plan.setups)]
        self.links = [self._link(engine) for engine in self.engines]
        self.following = Following(
            Router(self.index, RoutingConfig()),
            lambda address: self.links[int(address.topic)],
            self.config,
            clock=lambda: self.time.now,
            wall_clock=lambda: self.time.now + EPOCH_S,
        )
        self.following.set_trust = self._trusted
        self.judges: list[Judge] = []
        for engine in self.engines:
            worker = Worker(
                id=WorkerId(engine.number), endpoint=Endpoint("engine", 1 + engine.number), rank=0, models=()
            )
            self.following.worker_added(worker, EventAddress("tcp://engine:5557", topic=str(engine.number)))
            self.judges.append(Judge(engine, self.following.streams[worker.id], self.index, self.config))

    def play(self) -> None:
        """Let everything happen. Raises Violation."""
        for action in self.plan.actions:
            self.time.call_at(action.at, lambda action=action: self._befall(action))  # type: ignore[misc]
        self._tick()
        self.time.run_until(TROUBLE_END_S)
        self._end_trouble()
        self.time.run_until(TROUBLE_END_S + SETTLE_S)
        for judge in self.judges:
            judge.settled(self.time.now)
        self.index.check()

    def _tick(self) -> None:
        self.following.tick()
        self.index.sweep(8)
        self._look()
        self.time.call_later(TICK_S, self._tick)

    def _look(self) -> None:
        for judge in self.judges:
            judge.look(self.time.now, closely=True)
            judge.match(self.luck)

    def _end_trouble(self) -> None:
        for engine, link in zip(self.engines, self.links, strict=True):
            link.calm()
            luck = random.Random(engine.number)  # noqa: S311 - a simulation wants repeatable numbers
            if not engine.up:
                engine.start()
            self._work(engine, luck, 1)  # what a reset has left unsaid is said
            if not self.plan.idle_end:
                for n in range(int(SETTLE_S // 20)):
                    self.time.call_later(5.0 + 20.0 * n, lambda e=engine, r=luck: self._work(e, r, 1))  # type: ignore[misc]

    # What befalls an engine.

    def _befall(self, action: Action) -> None:
        engine, link = self.engines[action.engine], self.links[action.engine]
        luck = random.Random(action.luck)  # noqa: S311 - a simulation wants repeatable numbers
        if not engine.up:
            return
        self._note(engine.number, action.kind, f"{action.size:g}")
        match action.kind:
            case "work":
                self._work(engine, luck, int(action.size))
            case "lose" | "garble":
                engine.work(luck, fault=action.kind)
            case "reset":
                engine.reset()
            case "restart" | "vanish":
                engine.die(silently=action.kind == "vanish")
                self.time.call_later(action.size, lambda: self._come_back(engine, luck))
            case "told":
                self.following.worker_restarted(WorkerId(engine.number), engine.run.began_wall)
            case "clock":
                engine.wall_offset_s += action.size
            case "replay":
                link.replay_faults.append((luck.choice(REPLAY_FAULTS), luck))
            case "forge":
                self._forge(engine, link, luck)
            case _:
                _spoil(link, action, luck)
        self._look()

    def _work(self, engine: ModelEngine, luck: random.Random, prompts: int) -> None:
        if engine.up:
            for _ in range(prompts):
                engine.work(luck)
            self._note(engine.number, "computed", engine.run.next_seq - 1)

    def _come_back(self, engine: ModelEngine, luck: random.Random) -> None:
        if not engine.up:
            engine.start()
            self._note(engine.number, "started", len(engine.runs) - 1)
            # Often it has work at once, and has passed the old run before anybody looks.
            self._work(engine, luck, luck.choice((0, 1, 5, engine.runs[-2].next_seq + 2)))

    def _forge(self, engine: ModelEngine, link: Link, luck: random.Random) -> None:
        kind = luck.choice(FORGERIES)
        number, here = luck.getrandbits(60) | 1 << 62, engine.run.next_seq
        said: list[Event] = [
            BlockStored(block_hashes=(number,), parent=None, token_ids=(7, 7), block_size=2),
            BlockRemoved(block_hashes=(number + 1,)),
        ]
        seqs = {"far": here + _FAR, "last": (1 << 64) - 1}
        if kind == "behind":  # One that is due now would be taken for true: nothing tells who sent it.
            due = self.following.streams[WorkerId(engine.number)].view()["next_seq"]
            if not due or not engine.setup.replays or engine.setup.buffer_steps < 1000:
                return
            seqs[kind] = luck.randrange(due)
            if seqs[kind] in engine.run.lost:
                return  # It would fill the hole for good.
            self.judges[engine.number].excuse(self.time.now)
        frames = engine.forge(seqs.get(kind, here), said if luck.random() < 0.7 else [])
        if kind == "frames":
            frames = luck.choice(([], frames[:1], frames[1:], frames * 2))
        elif kind == "number":
            frames[1] = frames[1][1:]
        elif kind == "payload":
            frames[1:] = [(here + _FAR).to_bytes(8, "big"), b"\xff\xff"]
        self._note(engine.number, "forged", kind)
        link.inject(frames, reply=luck.random() < 0.3 and kind not in {"frames", "last"})

    # What is seen.

    def _link(self, engine: ModelEngine) -> Link:
        number = engine.number

        def note(word: str, detail: Any = "") -> None:
            self._note(number, word, detail)
            if word in {"heard", "replayed"} and len(detail) > 2:
                self.judges[number].delivered(int.from_bytes(detail[-2], "big"), detail[-1])

        link = Link(engine, self.time, self.config, note)
        link.after_delivery = lambda: self.judges[number].look(self.time.now)
        return link

    def _trusted(self, worker: WorkerId, trust: Trust) -> None:
        self._note(worker, str(trust.state), trust.reason)

    def _note(self, engine: int, word: str, detail: Any = "") -> None:
        self.outcome.trace.append((self.time.now, engine, word, detail))


def _spoil(link: Link, action: Action, luck: random.Random) -> None:
    match action.kind:
        case "drop":
            link.drops += int(action.size)
        case "corrupt":
            link.corruptions += int(action.size)
        case "repeat":
            link.repeat(int(action.size))
        case "cut":
            link.cut(action.size, luck)
        case "blackout":
            link.stall(action.size)


def _said(word: str, detail: Any) -> str:
    if isinstance(detail, list):
        detail = f"batch {int.from_bytes(detail[-2], 'big')}" if len(detail) > 1 and detail[-1] else "the end"
    return f"{word} {detail}".rstrip()
