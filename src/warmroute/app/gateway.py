"""The gateway's composition root: every object that `warmroute serve` is made of, on one screen.

Constructor calls and one TaskGroup; no containers, no registries. Signals end it by draining: nothing new is accepted,
what runs may finish within `gateway.drain_timeout_s`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import uvloop
import zmq

from warmroute.app.limiting import Limiting
from warmroute.app.listeners import Listeners, tls_to_engines
from warmroute.app.own_policy import load_policy
from warmroute.config.tree import Config
from warmroute.core.breaker import Breakers, BreakerState
from warmroute.core.index import make_index
from warmroute.core.router import Router
from warmroute.edge.engine_api import HttpEngineApi
from warmroute.edge.metrics import Metrics
from warmroute.edge.tokenizer_remote import RemoteTokenizer
from warmroute.edge.zmq import ReplaySlots, zmq_event_sources
from warmroute.service.avoidance import Saturation, shut_workers
from warmroute.service.following import Following
from warmroute.service.membership import Membership, engine_keys
from warmroute.service.ports import Tokenizer
from warmroute.service.routing import Routing
from warmroute.service.status import Status
from warmroute.service.sweeping import sweep_forever
from warmroute.service.tokens import Tokens
from warmroute.types import Fleet, TrustState, WorkerId

_log = logging.getLogger(__name__)

TICK_S = 1.0
GC_THRESHOLDS = (50_000, 20, 100)
"""Allocations between collections of each generation; measured with benchmarks/http/run.py."""


class Gateway:
    """The running gateway, as far as its owner needs it."""

    def __init__(
        self,
        config: Config,
        session: aiohttp.ClientSession,
        context: zmq.Context[zmq.Socket[bytes]],
        engine_tls: ssl.SSLContext | None = None,
    ) -> None:
        clock = time.monotonic
        self.config = config
        index = make_index(config.events.orphan_blocks_max, config.events.blocks_max, config.events.worker_blocks_max)
        self.router = Router(index, config.routing, load_policy(config.routing.policy), timer=time.perf_counter)
        slots = ReplaySlots(config.events.replays_max)
        sources = zmq_event_sources(context, config.events, slots)
        self.following = Following(self.router, sources, config.events, clock, time.time)
        keys = engine_keys(config)
        api = HttpEngineApi(session, config.membership.probe_timeout_s, keys)
        self.membership = Membership(config, api, self.following, clock)
        remote = RemoteTokenizer(session, config.tokenizer.remote_endpoint, config.tokenizer.timeout_s, keys)
        self.tokens = Tokens(config.tokenizer, clock, _local_tokenizer(config), remote)
        self.breakers = Breakers(config.breaker)
        self.routing = Routing(self.router, self.membership, self.tokens, config.gateway, clock)
        self.routing.breakers = self.breakers
        self.routing.avoidances.append(shut_workers(self.breakers, self._fleet))
        self.trusts = self.routing.trusts
        self.limiting = self._limiting(clock)
        self.listeners = Listeners(config, engine_tls, clients=self.limiting.service, operators=self.routing)
        self.limiting.ask_for_keys(self.listeners.keys)
        self.server = self.listeners.clients
        streams = self.following.streams
        self.status = Status(self.router, self.membership, streams, self.trusts, self.routing.tracking, clock)
        metrics = Metrics(self.routing, self.membership, streams, self.tokens, self.server.counts, clock)
        metrics.count("access_refused", "Requests not let in", ("listener", "reason"), self.listeners.refused)
        metrics.count("file_reloads", "Changed files read again", ("files", "result"), self.listeners.reloads)
        metrics.count("admission", "What the limits did", ("event",), self.limiting.counts)
        metrics.gauge(
            "admission_requests",
            "Requests inside and waiting, and buckets that are not full",
            ("state",),
            self.limiting.numbers,
        )
        metrics.gauge("event_replays", "Replays under way, and those that wait for a slot", ("state",), slots.counts)
        metrics.count("breaker_opened", "Times an engine's breaker opened", (), lambda: {(): self.breakers.opened})
        metrics.gauge("breaker", "1 for the state of an engine's breaker", ("engine", "state"), self._breaker_states)
        self.status.breaker = lambda endpoint: self.breakers.of(endpoint, clock()).state
        self.routing.answer_locally(self.status.replies() | {"/metrics": metrics.reply})
        self.routing.on_reset = self.following.cleared
        self.routing.removed_blocks = self.following.removed_blocks
        self.following.on_removed = self._removed
        self.following.set_trust = self.trusts.streamed
        self.trusts.publish = self.membership.set_trust
        self.trusts.resync = self.following.resync
        self.trusts.name_of = self.membership.name_of
        self.membership.wants_counters = self.trusts.wants_counters
        self.membership.on_counters = self.trusts.counted
        self.following.on_fleet = self._fleet_changed
        self.port = 0
        self._changed = asyncio.Event()

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return _url(self.config.gateway.host, self.port, tls=self.config.tls.certificate is not None)

    @property
    def admin_url(self) -> str | None:
        """Where operators reach it, if not there too."""
        port = self.listeners.admin_port
        return None if port is None else _url(self.config.admin.host, port, tls=self.config.admin.tls)

    async def run(self) -> None:
        """Watch engines, follow events, compare tokenizers, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.membership.run(), name="membership")
            tasks.create_task(self._tick(), name="tick")
            tasks.create_task(sweep_forever(self.router.index), name="sweep")
            tasks.create_task(self._verify_tokenizer(), name="verify tokenizer")

    async def until_ready(self, workers: int = 1) -> None:
        """Wait until so many workers can be routed to and no stream is still catching up."""
        settled = {TrustState.LIVE, TrustState.DEGRADED}
        while True:
            ready = [w for w in self.membership.fleet.workers if w.ready]
            if len(ready) >= workers and all(w.trust.state in settled for w in ready):
                return
            await self._changed.wait()

    def _fleet(self) -> Fleet:
        return self.membership.fleet

    def _limiting(self, clock: Callable[[], float]) -> Limiting:
        most, saturation = self.config.admission.worker_requests_max, None
        if most is not None:
            saturation = Saturation(self.router.load, self._fleet, clock, most)
            self.routing.avoidances.append(saturation.avoided)
        keyed = self.config.gateway.keys_file is not None
        return Limiting(self.config.admission, self.routing, saturation, clock, keyed=keyed)

    def _breaker_states(self) -> dict[tuple[str, ...], float]:
        states = {e.authority: self.breakers.of(e, time.monotonic()).state for e, *_ in self.membership.engines()}
        return {(engine, state): float(state is now) for engine, now in states.items() for state in BreakerState}

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.following.tick()
            self.listeners.tick()
            self.limiting.tick()

    async def _verify_tokenizer(self) -> None:
        while True:
            await self._changed.wait()
            await self.tokens.verify(self.membership.fleet)

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
async def running(config: Config) -> AsyncIterator[Gateway]:
    """A gateway that serves while the context is open. Raises ConfigError if it cannot listen."""
    async with AsyncExitStack() as stack:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(context.term)
        engine_tls = tls_to_engines(config)
        connector = aiohttp.TCPConnector(ssl=engine_tls or True)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        gateway = Gateway(config, session, context, engine_tls)
        stack.callback(gateway.following.close)
        stack.push_async_callback(gateway.limiting.close)
        stack.push_async_callback(gateway.listeners.close)
        gateway.port = await gateway.listeners.start()
        failure: Exception | None = None
        async with asyncio.TaskGroup() as tasks:  # so that a failure in the background ends the gateway, loudly
            background = tasks.create_task(gateway.run(), name="gateway")
            try:
                yield gateway
            except Exception as error:
                failure = error  # the caller's own: it gets it back as it is, not in a group
            finally:
                background.cancel()
        if failure is not None:
            raise failure


async def serve(config: Config) -> int:
    """Serve until SIGTERM or SIGINT, then drain; the exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(config) as gateway:
        _log.info("listening on %s, %d engines configured", gateway.url, len(config.engines))
        if gateway.admin_url is not None:
            _log.info("operators are served on %s", gateway.admin_url)
        await stop.wait()
        _log.info("draining for at most %g s", config.gateway.drain_timeout_s)
        gateway.status.draining = True
        await gateway.listeners.drain()
    _log.info("stopped")
    return 0


def run(config: Config) -> int:
    """Serve on an event loop of its own; the exit code."""
    # Requests leave no cycles behind, but thousands of kept decisions would be walked again and again to find none.
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    return uvloop.run(serve(config))


def _url(host: str, port: int, *, tls: bool) -> str:
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _local_tokenizer(config: Config) -> Tokenizer | None:
    if config.tokenizer.path is None:
        return None
    from warmroute.edge.tokenizer_local import LocalTokenizer  # noqa: PLC0415 - costs memory that others need not pay

    return LocalTokenizer(config.tokenizer.path)
