"""The gateway's composition root: every object that `warmroute serve` is made of, on one screen.

Constructor calls and one TaskGroup; no containers, no registries.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import aiohttp
import zmq

from warmroute.app.discovery import Sources
from warmroute.app.limiting import Limiting
from warmroute.app.listeners import Listeners, tls_to_engines
from warmroute.app.own_policy import load_policy
from warmroute.app.reload import decode_config, prepare
from warmroute.app.seat import Seat
from warmroute.app.tokenizing import local_tokenizer
from warmroute.config.tree import Config
from warmroute.core.breaker import Breakers, BreakerState
from warmroute.core.index import make_index
from warmroute.core.policies.guard import Guarded
from warmroute.core.router import Router
from warmroute.edge.channel import Channel
from warmroute.edge.engine_api import HttpEngineApi
from warmroute.edge.log_file import LogFile
from warmroute.edge.metrics import Metrics
from warmroute.edge.tokenizer_remote import RemoteTokenizer
from warmroute.edge.zmq import ReplaySlots, zmq_event_sources
from warmroute.errors import ConfigError
from warmroute.service.access_log import AccessLog
from warmroute.service.administration import (
    Administration,
    EngineChange,
    Operated,
    decode_change,
    encode_change,
)
from warmroute.service.avoidance import Saturation, shut_workers
from warmroute.service.fellows import Fellows, Kind, Message
from warmroute.service.following import Following
from warmroute.service.membership import Membership
from warmroute.service.reconciler import Reconciler
from warmroute.service.routing import Routing
from warmroute.service.status import Status
from warmroute.service.sweeping import sweep_forever
from warmroute.service.tokens import Tokens
from warmroute.types import Endpoint, Fleet, TrustState, WorkerId

TICK_S = 1.0
LOOK_S = 0.02
"""How often those in line are let in if another process has made room: it says so to nobody."""


class Gateway:
    """The running gateway, as far as its owner needs it."""

    def __init__(
        self,
        config: Config,
        session: aiohttp.ClientSession,
        context: zmq.Context[zmq.Socket[bytes]],
        engine_tls: ssl.SSLContext | None = None,
        seat: Seat | None = None,
    ) -> None:
        clock = time.monotonic
        self.config = config
        self.seat = seat or Seat()
        index = make_index(config.events.orphan_blocks_max, config.events.blocks_max, config.events.worker_blocks_max)
        self.router = Router(
            index,
            config.routing,
            load_policy(config.routing.policy),
            timer=time.perf_counter,
            seed=self.seat.process,
            sharing=self.seat.sharing(),
        )
        self.slots = ReplaySlots(config.events.replays_max)
        sources = zmq_event_sources(context, config.events, self.slots)
        self.following = Following(self.router, sources, config.events, clock, time.time)
        keys: dict[Endpoint, str] = {}  # kept by membership
        api = HttpEngineApi(session, config.membership.probe_timeout_s, keys)
        self.membership = Membership(config, api, self.following, clock, keys=keys)
        self.reconciler = Reconciler(config, self.membership, self._in_flight, clock)
        self.sources = Sources(config, self.reconciler)
        remote = RemoteTokenizer(session, config.tokenizer.remote_endpoint, config.tokenizer.timeout_s, keys)
        self.tokens = Tokens(config.tokenizer, clock, local_tokenizer(config.tokenizer), remote)
        self.breakers = Breakers(config.breaker)
        self.routing = Routing(self.router, self.membership, self.tokens, config.gateway, clock)
        self.routing.breakers = self.breakers
        self.routing.avoidances.append(shut_workers(self.breakers, self._fleet))
        self.trusts = self.routing.trusts
        self.limiting = self._limiting(clock)
        self.log_file = None if config.log.access is None else LogFile(config.log.access, "log.access")
        self.administration = Administration(self.routing, Operated(self.reconciler), self._tell_change)
        self.listeners = Listeners(config, engine_tls, clients=self.limiting.service, operators=self.administration)
        self.limiting.ask_for_keys(self.listeners.keys)
        self.server = self.listeners.clients
        streams = self.following.streams
        self.status = Status(self.router, self.membership, streams, self.trusts, self.routing.tracking, clock)
        self.metrics = self._metrics()
        self.status.listed = self.reconciler.view
        self.status.discovered = self.sources.view
        self.status.breaker = lambda endpoint: self.breakers.of(endpoint, clock()).state
        self.channel: Channel | None = None
        self.fellows = Fellows(self.seat.process, self._tell)
        replies = self.status.replies() | {"/metrics": self.metrics.reply}
        self.routing.answer_locally(replies if self.seat.processes == 1 else self.fellows.for_all(replies))
        self._connect()
        self._keep_access_log()
        self.port = 0
        self._prepared: tuple[bytes, Callable[[Gateway], None]] | None = None
        """The configuration that the control process asked about last, ready to be put in place."""
        self.ending = asyncio.Event()
        """Set when the control process wants this one to end, or has ended itself."""
        self._changed = asyncio.Event()

    def _metrics(self) -> Metrics:
        metrics = Metrics(
            self.routing, self.membership, self.following.streams, self.tokens, self.server.counts, time.monotonic
        )
        self._expose(metrics)
        metrics.count("fellows_silent", "Answers of other processes that did not come", (), self._silent)
        metrics.process = self.seat.process if self.seat.processes > 1 else None
        return metrics

    def _keep_access_log(self) -> None:
        if self.log_file is None:
            return
        log = AccessLog(self.log_file.write, time.monotonic, time.time)
        log.process = self.seat.process if self.seat.processes > 1 else None
        self.routing.access_log = self.listeners.clients.plane.log = log
        if self.listeners.operators is not None:
            self.listeners.operators.plane.log = log

    def _connect(self) -> None:
        """Tell everybody who must hear of what."""
        self.reconciler.on_removed = self._engine_removed
        self.reconciler.on_released = lambda endpoint: self._tell_change(EngineChange("release", endpoint.url))
        self.routing.on_reset = self.following.cleared
        self.routing.removed_blocks = self.following.removed_blocks
        self.following.on_removed = self._removed
        self.following.set_trust = self.trusts.streamed
        self.following.on_fleet = self._fleet_changed
        self.trusts.publish = self.membership.set_trust
        self.trusts.resync = self.following.resync
        self.trusts.name_of = self.membership.name_of
        self.membership.wants_counters = self.trusts.wants_counters
        self.membership.on_counters = self.trusts.counted

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return Endpoint(self.config.gateway.host, self.port, tls=self.config.tls.certificate is not None).url

    @property
    def admin_url(self) -> str | None:
        """Where operators reach it, if not there too."""
        port = self.listeners.admin_port
        return None if port is None else Endpoint(self.config.admin.host, port, tls=self.config.admin.tls).url

    async def run(self) -> None:
        """Watch engines, follow events, compare tokenizers, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.membership.run(), name="membership")
            tasks.create_task(self.sources.run(), name="discovery")
            tasks.create_task(self._tick(), name="tick")
            if self.seat.processes > 1:
                tasks.create_task(self._look(), name="look")
            tasks.create_task(sweep_forever(self.router.index), name="sweep")
            tasks.create_task(self._verify_tokenizer(), name="verify tokenizer")

    async def open(self) -> None:
        """Take clients, and be one of several if this process is. Raises ConfigError if it cannot listen."""
        if self.seat.channel is not None:
            self.fellows.on |= {
                Kind.DRAIN: lambda _: self.ending.set(),
                Kind.PREPARE: self._prepare,
                Kind.COMMIT: self._commit,
                Kind.ENGINE: lambda message: self.administration.fleet.follow(decode_change(message.body)),
            }
            self.administration.reload = self.fellows.reload
            self.channel = Channel(self.fellows.took, self.ending.set)
            await self.channel.open(self.seat.channel)
        if self.seat.patience_s:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.seat.patience_s):
                    await self.until_ready(max(1, len(self.config.engines)))
        self.port = await self.listeners.start(self.seat.clients, self.seat.operators)
        self.fellows.tell(Kind.READY)

    async def until_ready(self, workers: int = 1) -> None:
        """Wait until so many workers can be routed to and no stream is still catching up."""
        settled = {TrustState.LIVE, TrustState.DEGRADED}
        while True:
            ready = [w for w in self.membership.fleet.workers if w.ready]
            if len(ready) >= workers and all(w.trust.state in settled for w in ready):
                return
            await self._changed.wait()

    def look_at_files(self) -> None:
        """Take up keys and certificates that changed, and follow a log that was moved away."""
        self.listeners.tick()
        if self.log_file is not None:
            self.log_file.look()

    def _prepare(self, message: Message) -> None:
        try:
            self._prepared = message.body, prepare(decode_config(message.body))
        except ConfigError as error:
            self.fellows.tell(Kind.PREPARED, number=message.number, status=1, body=str(error).encode())
        else:
            self.fellows.tell(Kind.PREPARED, number=message.number)

    def _commit(self, message: Message) -> None:
        prepared, self._prepared = self._prepared, None
        if prepared is None or prepared[0] != message.body:  # it was not there when the others were asked
            prepared = message.body, prepare(decode_config(message.body))
        prepared[1](self)

    def _tell_change(self, change: EngineChange) -> None:
        self.fellows.tell(Kind.ENGINE, body=encode_change(change))

    def _tell(self, message: Message) -> None:
        if self.channel is not None:
            self.channel.send(message)

    def _lines_lost(self) -> dict[tuple[str, ...], float]:
        return {(): float(self.log_file.lost if self.log_file is not None else 0)}

    def _silent(self) -> dict[tuple[str, ...], float]:
        return {(): float(self.fellows.silent)}

    def _fleet(self) -> Fleet:
        return self.membership.fleet

    def _limiting(self, clock: Callable[[], float]) -> Limiting:
        most, saturation = self.config.admission.worker_requests_max, None
        if most is not None:
            saturation = Saturation(self.router.load, self._fleet, most)
            self.routing.avoidances.append(saturation.avoided)
        keyed = self.config.gateway.keys_file is not None
        sharing = self.router.load.sharing
        return Limiting(self.config.admission, self.routing, saturation, clock, keyed=keyed, sharing=sharing)

    def _breaker_states(self) -> dict[tuple[str, ...], float]:
        states = {e.authority: self.breakers.of(e, time.monotonic()).state for e, *_ in self.membership.engines()}
        return {(engine, state): float(state is now) for engine, now in states.items() for state in BreakerState}

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.following.tick()
            self.reconciler.tick()
            self.sources.tick()
            self.look_at_files()
            self.limiting.tick()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self.limiting.look()

    async def _verify_tokenizer(self) -> None:
        while True:
            await self._changed.wait()
            await self.tokens.verify(self.membership.fleet)

    def _expose(self, metrics: Metrics) -> None:
        """Counters that others keep."""
        metrics.count("access_refused", "Requests not let in", ("listener", "reason"), self.listeners.refused)
        metrics.count("file_reloads", "Changed files read again", ("files", "result"), self.listeners.reloads)
        metrics.count("admission", "What the limits did", ("event",), self.limiting.counts)
        metrics.gauge(
            "admission_requests",
            "Requests inside and waiting, and buckets that are not full",
            ("state",),
            self.limiting.numbers,
        )
        metrics.gauge(
            "event_replays", "Replays under way, and those that wait for a slot", ("state",), self.slots.counts
        )
        metrics.count("breaker_opened", "Times an engine's breaker opened", (), lambda: {(): self.breakers.opened})
        metrics.gauge("breaker", "1 for the state of an engine's breaker", ("engine", "state"), self._breaker_states)
        metrics.count("policy_failures", "Times the policy named by the user did not decide", ("why",), self._failures)
        metrics.count("fleet_changes", "Engines added, altered, drained, removed", ("kind",), self._fleet_changes)
        metrics.count("access_log_lost", "Lines of the access log that could not be written", (), self._lines_lost)
        metrics.gauge("discovery_in_step", "1 if the source is followed now", ("source",), self.sources.in_step)
        metrics.gauge("discovery_objects", "Pods or slices by state", ("source", "state"), self.sources.objects)
        metrics.count("discovery", "What happened while following", ("source", "event"), self.sources.events)

    def _failures(self) -> dict[tuple[str, ...], float]:
        policy = self.router.policy
        return {(why,): n for why, n in policy.failures.items()} if isinstance(policy, Guarded) else {}

    def _fleet_changes(self) -> Counter[tuple[str, ...]]:
        return self.reconciler.changes

    def _in_flight(self, worker: WorkerId) -> int:
        return self.router.load.requests_of(worker)

    def _engine_removed(self, endpoint: Endpoint) -> None:
        self.breakers.forget(endpoint)
        self.tokens.forget(endpoint)

    def _removed(self, worker: WorkerId, name: str) -> None:
        self.trusts.forget(worker)
        self.trusts.forget_name(name)
        self.routing.tracking.forget_worker(name)

    def _fleet_changed(self, fleet: Fleet) -> None:
        self.router.adapters.learn(fleet)
        self.limiting.tick()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


@asynccontextmanager
async def running(
    config: Config, seat: Seat | None = None, ending: asyncio.Event | None = None
) -> AsyncIterator[Gateway]:
    """A gateway that serves while the context is open. Raises ConfigError if it cannot listen.

    `ending` is set if the control process wants it to end.
    """
    async with AsyncExitStack() as stack:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(context.term)
        engine_tls = tls_to_engines(config)
        connector = aiohttp.TCPConnector(ssl=engine_tls or True)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        gateway = Gateway(config, session, context, engine_tls, seat)
        gateway.ending = ending or gateway.ending
        if gateway.log_file is not None:
            stack.callback(gateway.log_file.close)
        stack.callback(gateway.following.close)
        stack.push_async_callback(gateway.limiting.close)
        stack.push_async_callback(gateway.sources.close)
        await gateway.sources.start()
        stack.push_async_callback(gateway.listeners.close)
        failure: Exception | None = None
        async with asyncio.TaskGroup() as tasks:  # so that a failure in the background ends the gateway, loudly
            background = tasks.create_task(gateway.run(), name="gateway")
            try:
                await gateway.open()
                yield gateway
            except Exception as error:
                failure = error  # the caller's own: it gets it back as it is, not in a group
            finally:
                background.cancel()
        if failure is not None:
            raise failure
