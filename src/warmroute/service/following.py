"""Every worker with events has a stream that follows it, from when membership finds it until it is gone."""

from __future__ import annotations

import logging
from collections.abc import Callable

from warmroute.config.tree import EventsConfig
from warmroute.core.router import Router
from warmroute.core.stream_states import State
from warmroute.errors import ConfigError
from warmroute.service.ingest import Clock, Ingest, WorkerStream
from warmroute.service.ports import EventAddress, EventSourceFactory
from warmroute.types import Fleet, Trust, TrustState, Worker, WorkerId

_log = logging.getLogger(__name__)

AGAIN_S = 30.0
"""After so long, sockets that could not be had are asked for again: files may have been closed, names have come."""
_GOLDEN = 0.618  # multiples of it, modulo 1, lie spread out however many there are

SetTrust = Callable[[WorkerId, Trust], None]


class Following:
    """Listens to membership (the port FleetListener) and keeps the streams."""

    def __init__(
        self, router: Router, sources: EventSourceFactory, config: EventsConfig, clock: Clock, wall_clock: Clock
    ) -> None:
        self.streams: dict[WorkerId, WorkerStream] = {}
        self.on_fleet: Callable[[Fleet], None] = _ignore
        """Told of every new fleet."""
        self.on_removed: Callable[[WorkerId, str], None] = _ignore
        """Told every worker that is gone, with its name."""
        self.set_trust: SetTrust = _ignore
        """Told of every change of trust; membership's, once there is one."""
        self._router = router
        self._sources = sources
        self._clock = clock
        self._ingest = Ingest(
            index=router.index,
            config=config,
            clock=clock,
            wall_clock=wall_clock,
            on_trust=self._trusted,
            on_applied=self._applied,
            on_cleared=router.forget,
            adapters=router.adapters,
            full_reports=router.full_reports,
        )
        self._workers: dict[WorkerId, Worker] = {}
        self._addresses: dict[WorkerId, EventAddress] = {}
        self._again_at: dict[WorkerId, float] = {}
        """Who publishes and is not followed, since no socket could be had -> when that is tried again."""

    def worker_added(self, worker: Worker, address: EventAddress | None) -> None:
        """Follow a worker, if it publishes."""
        self._workers[worker.id] = worker
        if address is not None:
            self._addresses[worker.id] = address
            self._follow(worker)

    def worker_removed(self, worker: WorkerId) -> None:
        """Forget a worker and free what it held."""
        stream = self.streams.pop(worker, None)
        self._addresses.pop(worker, None)
        self._again_at.pop(worker, None)
        if stream is not None:
            stream.retire()
        self._router.index.drop(worker)
        self._router.adapters.forget(worker)
        self._router.forget(worker)
        gone = self._workers.pop(worker, None)
        self.on_removed(worker, "" if gone is None else gone.name)

    def worker_restarted(self, worker: WorkerId, process_start: float | None) -> None:
        """The engine is another process: what it held is gone."""
        self._router.forget(worker)  # also of a worker without a stream
        stream = self.streams.get(worker)
        if stream is not None:
            stream.restarted(process_start)
            if stream.state is State.CONNECTING:  # its socket may pause for long before it tries again
                stream.leave()
                if not self._start(self._workers[worker], stream):
                    del self.streams[worker]

    def fleet_changed(self, fleet: Fleet) -> None:
        """Pass the new fleet on."""
        self.on_fleet(fleet)

    def cleared(self, worker: WorkerId) -> None:
        """The worker's cache was reset by a call through the gateway: engines announce it only with their next step."""
        self._router.forget(worker)
        if worker in self.streams:
            self.streams[worker].cleared_by_gateway()

    def resync(self, worker: WorkerId, reason: str) -> None:
        """The worker's predictions fail: drop what is known of it, and rebuild it."""
        self._router.forget(worker)
        if worker in self.streams:
            self.streams[worker].resync(reason)

    def removed_blocks(self, worker: WorkerId) -> int:
        """How many blocks the worker has announced as removed, ever."""
        stream = self.streams.get(worker)
        return 0 if stream is None else stream.counts.applied.removed

    def tick(self) -> None:
        """Time has passed: due about once a second."""
        for stream in tuple(self.streams.values()):
            stream.tick()
        for worker, at in tuple(self._again_at.items()):
            if self._clock() >= at:
                self._follow(self._workers[worker])

    def close(self) -> None:
        """Stop following everybody."""
        for worker in tuple(self.streams):
            self.worker_removed(worker)

    def _follow(self, worker: Worker) -> None:
        stream = WorkerStream(worker.id, self._ingest, rank=worker.rank, stagger=worker.id * _GOLDEN % 1)
        if self._start(worker, stream):
            self.streams[worker.id] = stream

    def _start(self, worker: Worker, stream: WorkerStream) -> bool:
        """Whether there are sockets to follow it by; if not, it is BLIND until there are."""
        try:
            stream.start(self._sources(self._addresses[worker.id]))
        except ConfigError as error:
            if worker.id not in self._again_at:
                _log.error("%s: its events cannot be followed, it is routed to by load: %s", worker.name, error)
            self._again_at[worker.id] = self._clock() + AGAIN_S
            self._trusted(worker.id, Trust(TrustState.BLIND, str(error), self._clock()))
            return False
        self._again_at.pop(worker.id, None)
        return True

    def _applied(self, worker: WorkerId) -> None:
        self._router.applied(worker, self._clock())

    def _trusted(self, worker: WorkerId, trust: Trust) -> None:
        self.set_trust(worker, trust)


def _ignore(*_: object) -> None:
    pass
