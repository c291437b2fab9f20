"""Who is in the fleet: engines are waited for, asked what they are, and watched.

Each engine has a task of its own, so that a slow one delays no other. An engine that is down is no error: its workers
are not ready, and are again when it answers. What is learned becomes a new `Fleet` per change; a decision sees one.
Engines may come, change and leave at any time; who decides that is `service.reconciler`.

Invariant: a worker is ready only while its engine answers, is awake and is not held.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Protocol

from warmroute.config.tree import Config, EngineConfig
from warmroute.errors import EngineError
from warmroute.service.addressing import Addresses, endpoint_of, engine_key, event_addresses
from warmroute.service.ports import CacheCounters, EngineApi, EngineFacts, EventAddress, Health
from warmroute.types import Endpoint, Fleet, ModelInfo, Trust, TrustState, Worker, WorkerId

_log = logging.getLogger(__name__)

FACTS_EVERY = 5
"""An engine's facts are asked for at every so many probes: adapters come and go, but not every second."""


class FleetListener(Protocol):
    """Who must know what membership finds. Called on the event loop; must not wait."""

    def worker_added(self, worker: Worker, address: EventAddress | None) -> None:
        """A worker that is new, or publishes elsewhere than before (after its removal); None: it has no events."""
        ...

    def worker_removed(self, worker: WorkerId) -> None:
        """Forget all that is known of this worker."""
        ...

    def worker_restarted(self, worker: WorkerId, process_start: float | None) -> None:
        """Its engine is another process now, begun at that Unix time: its cache is empty, its events start again."""
        ...

    def fleet_changed(self, fleet: Fleet) -> None:
        """The newest snapshot."""
        ...


@dataclass(slots=True)
class _Engine:
    config: EngineConfig
    endpoint: Endpoint
    workers: list[WorkerId] = field(default_factory=list)
    """In the order of `addresses`, one per rank."""
    addresses: Addresses = field(default_factory=dict)
    held: str | None = None
    """Why it gets no requests whatever it answers; None: it may get them."""
    facts: EngineFacts | None = None
    """What it said last, and what was changed through us since."""
    up: bool | None = None
    """None: not asked yet."""
    problem: str | None = None
    """The last complaint, so that each is logged once."""
    facts_due: int = 0
    """Probes until the facts are asked for again."""
    process_start: float | None = None
    failures: int = 0
    """Probes in a row that failed."""
    asleep: bool = False
    """Put to sleep by a call that passed through the gateway."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    watch: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return bool(self.up) and not self.asleep and self.held is None and self.config.weight > 0


class Membership:
    """Keeps the fleet. `run` does the work; everything else may be called at any time, on the same event loop.

    `sleep` and `clock` (monotonic, seconds) are injected, so that tests need not wait.
    """

    def __init__(
        self,
        config: Config,
        api: EngineApi,
        listener: FleetListener,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        *,
        keys: dict[Endpoint, str] | None = None,
    ) -> None:
        self.fleet = Fleet()
        self.keys: dict[Endpoint, str] = {} if keys is None else keys
        """API keys, of engines that have one; whoever shares the dict sees engines come and go."""
        self.wants_counters: Callable[[WorkerId], bool] = lambda _: False
        """Asked at each probe whether anybody wants the worker's cache counters."""
        self.on_counters: Callable[[WorkerId, CacheCounters, float], None] = lambda *_: None
        """Told of them, with when they were asked for."""
        self._config = config
        self._api = api
        self._listener = listener
        self._clock = clock
        self._sleep = sleep
        self._ids = count()
        self._workers: dict[WorkerId, Worker] = {}
        self._engines: dict[Endpoint, _Engine] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self.unasked = 0
        """Probes that could not be made: the system had no socket for them."""
        self._unasked = False
        """Whether the last probe could not be made."""
        for engine in config.engines:
            self.add(engine)

    def reconfigure(self, config: Config) -> None:
        """Take up what is configured now; the engines are the reconciler's."""
        self._config = config

    async def run(self) -> None:
        """Watch every engine until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            for engine in self._engines.values():
                self._begin_watch(engine)
            await asyncio.Event().wait()  # engines may come later

    def add(self, config: EngineConfig, held: str | None = None) -> None:
        """An engine comes; its workers are known when it has answered. `held`: why it is to get no requests yet."""
        endpoint = endpoint_of(config.url)
        engine = self._engines[endpoint] = _Engine(config, endpoint, held=held)
        self._learn_key(engine)
        if self._tasks is not None:
            self._begin_watch(engine)

    def alter(self, config: EngineConfig, held: str | None = None) -> None:
        """An engine that is known is described otherwise; only what that changes is changed."""
        engine = self._engines[endpoint_of(config.url)]
        before, engine.config = engine.config, config
        self.hold(engine.endpoint, held)
        if config == before:
            return
        self._learn_key(engine)
        if engine.facts is not None:
            self._place(engine, engine.facts)
        self.refresh(engine.endpoint)

    def hold(self, endpoint: Endpoint, reason: str | None) -> None:
        """Send an engine no more requests, for that reason, or (None) send them again. All else goes on."""
        engine = self._engines[endpoint]
        engine.held = reason
        self._set_ready(engine)

    def remove(self, endpoint: Endpoint) -> None:
        """Forget an engine, its workers and all that they held. Requests that run there are not touched."""
        engine = self._engines.pop(endpoint)
        if engine.watch is not None:
            engine.watch.cancel()
        self.keys.pop(endpoint, None)
        for worker in engine.workers:
            del self._workers[worker]
            self._listener.worker_removed(worker)
        if engine.workers:
            self._publish()

    def workers_of(self, endpoint: Endpoint) -> tuple[WorkerId, ...]:
        """An engine's workers by rank; none if it has never answered."""
        return tuple(self._engines[endpoint].workers)

    def engines(self) -> list[tuple[Endpoint, bool, str | None]]:
        """Every engine, whether it answers, and what is wrong if not; one never reached has no worker."""
        engines = self._engines.values()
        return [(engine.endpoint, bool(engine.up), None if engine.up else engine.problem) for engine in engines]

    def report_unreachable(self, endpoint: Endpoint) -> None:
        """A connection to the engine failed: send nothing there until a probe, made at once, succeeds."""
        for engine in self._at(endpoint):
            self._down(engine, "a request could not be delivered")
            engine.wake.set()

    def refresh(self, endpoint: Endpoint | None = None) -> None:
        """Ask one engine, or all, for their facts now: a model was loaded or unloaded."""
        for engine in tuple(self._engines.values()) if endpoint is None else self._at(endpoint):
            engine.facts_due = 0
            engine.wake.set()

    def adapter_changed(self, endpoint: Endpoint, name: str, root: str | None) -> None:
        """An engine has loaded the adapter `name` from `root`, or unloaded it (None): known before it is asked."""
        for engine in self._at(endpoint):
            if engine.facts is not None:
                models = tuple(model for model in engine.facts.models if model.id != name)
                base = next((model.id for model in models if model.parent is None), None)
                if root is not None and base is not None:
                    models += (ModelInfo(name, parent=base, root=root),)
                self._place(engine, replace(engine.facts, models=models))
        self.refresh(endpoint)

    def sleeps(self, endpoint: Endpoint, asleep: bool) -> None:
        """An engine was put to sleep, or woken: asleep it takes no requests."""
        for engine in self._at(endpoint):
            engine.asleep = asleep
            self._set_ready(engine)

    def asleep(self) -> frozenset[WorkerId]:
        """The workers that were put to sleep."""
        return frozenset(worker for engine in self._engines.values() if engine.asleep for worker in engine.workers)

    def name_of(self, worker: WorkerId) -> str:
        """What users know a worker by."""
        known = self._workers.get(worker)
        return str(worker) if known is None else known.name

    def set_trust(self, worker: WorkerId, trust: Trust) -> None:
        """How far a worker's view may be believed. Unknown workers are ignored: a stream may end late."""
        if worker in self._workers:
            self._workers[worker] = replace(self._workers[worker], trust=trust)
            self._publish()

    def _at(self, endpoint: Endpoint) -> tuple[_Engine, ...]:
        """The engine there, if there is one: what is reported may come after it has left."""
        engine = self._engines.get(endpoint)
        return () if engine is None else (engine,)

    def _learn_key(self, engine: _Engine) -> None:
        key = engine_key(self._config, engine.config)
        if key is None:
            self.keys.pop(engine.endpoint, None)
        else:
            self.keys[engine.endpoint] = key

    def _begin_watch(self, engine: _Engine) -> None:
        assert self._tasks is not None  # noqa: S101 - callers look
        engine.watch = self._tasks.create_task(self._watch(engine), name=f"watch {engine.endpoint.authority}")

    def _set_ready(self, engine: _Engine) -> None:
        before = [self._workers[worker].ready for worker in engine.workers]
        if any(ready is not engine.ready for ready in before):
            for worker in engine.workers:
                self._workers[worker] = replace(self._workers[worker], ready=engine.ready)
            self._publish()

    async def _watch(self, engine: _Engine) -> None:
        while True:
            engine.wake.clear()
            await self._probe(engine)
            config = self._config.membership
            well = engine.up and not engine.failures
            await self._pause(config.probe_interval_s if well else config.retry_interval_s, engine.wake)

    async def _probe(self, engine: _Engine) -> None:
        health = await self._api.health(engine.endpoint)
        if health is Health.UNASKED:
            self._exhausted()
            return
        self._unasked = False
        if health is not Health.GOOD:
            engine.failures += 1
            if health is Health.REFUSED:
                self._down(engine, "it refuses to be connected to")
            elif not engine.up or engine.failures >= self._config.membership.failures_max:
                self._down(engine, "its /health does not answer 200")
            return
        engine.failures = 0
        if any(self.wants_counters(worker) for worker in engine.workers):
            await self._read_counters(engine)
        engine.facts_due -= 1
        if engine.up and engine.facts_due >= 0 and not engine.asleep:  # it may be woken past us
            return
        engine.facts_due = FACTS_EVERY  # now, so that a refresh meanwhile is not overlooked
        known = engine.facts
        try:
            facts = await self._api.facts(engine.endpoint)
        except EngineError as error:
            engine.facts_due = 0
            if not engine.up:
                self._down(engine, str(error))
            return  # it is healthy and was known before: what is known still holds
        if engine.facts is known:  # else they may be from before what was changed meanwhile: it is asked again
            self._adopt(engine, facts)

    async def _read_counters(self, engine: _Engine) -> None:
        asked_at = self._clock()
        counters = await self._api.cache_counters(engine.endpoint)
        for rank, worker in zip(engine.addresses, engine.workers, strict=True):
            if rank in counters:
                self.on_counters(worker, counters[rank], asked_at)

    async def _pause(self, seconds: float, wake: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(self._sleep(seconds)), asyncio.ensure_future(wake.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _exhausted(self) -> None:
        """No engine is to blame, and what is known of each still holds."""
        self.unasked += 1
        if not self._unasked:
            self._unasked = True
            _log.error("engines cannot be asked how they are: there is no socket to be had. Allow more open files")

    def _down(self, engine: _Engine, problem: str) -> None:
        if engine.up is not False or engine.problem != problem:
            _log.warning("no requests go to %s: %s; it is asked again until it answers", engine.endpoint.url, problem)
        engine.up, engine.problem = False, problem
        self._set_ready(engine)

    def _adopt(self, engine: _Engine, facts: EngineFacts) -> None:
        if not engine.up:
            _log.info(
                "%s (version %s) serves %s",
                engine.endpoint.url,
                facts.version or "unknown",
                ", ".join(model.id for model in facts.models) or "no model",
            )
        engine.up, engine.problem = True, None
        restarted = None not in (engine.process_start, facts.process_start) and (
            engine.process_start != facts.process_start
        )
        if restarted:
            _log.info("%s is another process now: its cache is taken to be empty", engine.endpoint.url)
        if facts.asleep is not None or restarted:
            engine.asleep = bool(facts.asleep)
        engine.process_start = facts.process_start or engine.process_start
        self._place(engine, facts, restarted)

    def _addresses(self, engine: _Engine, facts: EngineFacts) -> Addresses:
        addresses = self._unshared(engine, event_addresses(self._config, engine.config, engine.endpoint, facts))
        if addresses != engine.addresses:
            _log_addresses(engine, addresses)
        return addresses

    def _unshared(self, engine: _Engine, addresses: Addresses) -> Addresses:
        """The addresses that no other engine publishes at: one engine's events must not be credited to two."""
        taken = {
            address.endpoint: other.endpoint.url
            for other in self._engines.values()
            if other is not engine and other.up
            for address in other.addresses.values()
            if address is not None
        }
        own = {
            rank: None if address is not None and address.endpoint in taken else address
            for rank, address in addresses.items()
        }
        for address in addresses.values():
            if own != engine.addresses and address is not None and address.endpoint in taken:
                _log.warning(
                    "%s is taken to publish at %s, as %s does already: it is routed to by load. Name its "
                    "events_endpoint in the configuration file",
                    engine.endpoint.url,
                    address.endpoint,
                    taken[address.endpoint],
                )
        return own

    def _place(self, engine: _Engine, facts: EngineFacts, restarted: bool = False) -> None:
        """Make the engine's workers what the facts say, and tell the listener what that changes."""
        engine.facts, addresses = facts, self._addresses(engine, facts)
        before, old = dict(self._workers), list(zip(engine.workers, engine.addresses.items(), strict=True))
        for gone, _ in old[len(addresses) :]:
            del self._workers[gone]
            self._listener.worker_removed(gone)
        missing = range(len(old), len(addresses))
        engine.workers = engine.workers[: len(addresses)] + [WorkerId(next(self._ids)) for _ in missing]
        engine.addresses, new = addresses, list(zip(engine.workers, addresses.items(), strict=True))
        moved = [each not in old for each in new]
        for (worker, (rank, address)), has_moved in zip(new, moved, strict=True):
            trust = self._no_trust(address) if has_moved else before[worker].trust
            self._workers[worker] = Worker(
                id=worker,
                endpoint=engine.endpoint,
                rank=rank,
                ranks=len(addresses),
                models=_since_first_seen(facts.models, before.get(worker)),
                trust=trust,
                block_size=facts.block_size,
                kv_tokens_max=facts.kv_tokens_max,
                version=facts.version,
                ready=engine.ready,
                weight=engine.config.weight,
            )
        for (worker, (_, address)), has_moved in zip(new, moved, strict=True):
            if has_moved:
                if worker in before:
                    self._listener.worker_removed(worker)
                self._listener.worker_added(self._workers[worker], address)
            elif restarted:
                self._listener.worker_restarted(worker, facts.process_start)
        if self._workers != before:
            self._publish()

    def _no_trust(self, address: EventAddress | None) -> Trust:
        reason = "it publishes no events, or is not to be listened to" if address is None else "not connected yet"
        return Trust(TrustState.BLIND, reason, self._clock())

    def _publish(self) -> None:
        self.fleet = Fleet([self._workers[worker] for engine in self._engines.values() for worker in engine.workers])
        self._listener.fleet_changed(self.fleet)


def _since_first_seen(models: tuple[ModelInfo, ...], worker: Worker | None) -> tuple[ModelInfo, ...]:
    """The models with `created` as it first was: vLLM says the time of asking, and that alone changes no fleet."""
    created = {model.id: model.created for model in worker.models} if worker else {}
    return tuple(replace(model, created=created.get(model.id, model.created)) for model in models)


def _log_addresses(engine: _Engine, addresses: Addresses) -> None:
    for rank, address in addresses.items():
        where = f"{engine.endpoint.url} rank {rank}"
        if address is None:
            _log.info("%s has no events to follow: it is routed to by load", where)
        elif address.replay_endpoint is None:
            _log.warning(
                "%s publishes at %s but has no replay: what is lost stays lost until its cache turns over. Give the "
                "engine a replay_endpoint clear of its ranks' event ports",
                where,
                address.endpoint,
            )
        else:
            _log.info("%s publishes at %s, replays at %s", where, address.endpoint, address.replay_endpoint)
