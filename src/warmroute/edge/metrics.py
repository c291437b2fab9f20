"""Prometheus metrics, collected when asked.

Nothing in the algorithms knows of metrics: services keep plain counters, and this module reads them at scrape time. So
a worker that leaves takes its series along.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from warmroute import __version__
from warmroute.service.ingest import WorkerStream
from warmroute.service.membership import Membership
from warmroute.service.ports import Reply
from warmroute.service.routing import Routing
from warmroute.service.tokens import Tokens
from warmroute.types import TrustState, Worker, WorkerId

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

Numbers = Mapping[tuple[str, ...], float]
Labelled = Iterable[tuple[tuple[str, ...], float]]


class Metrics(Collector):
    """All metrics of one gateway."""

    def __init__(  # noqa: PLR0917 - what it reads, nothing to choose
        self,
        routing: Routing,
        membership: Membership,
        streams: Mapping[WorkerId, WorkerStream],
        tokens: Tokens,
        plane: object,
        clock: Callable[[], float],
    ) -> None:
        self._routing = routing
        self._membership = membership
        self._streams = streams
        self._tokens = tokens
        self._plane = plane
        self._clock = clock
        self._more: list[Callable[[], Metric]] = []
        self.process: int | None = None
        """Which of several processes this is: then every sample says so."""
        self._registry = CollectorRegistry()
        self._registry.register(self)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)

    def reply(self, _: str) -> Reply:
        """The exposition, in Prometheus' text format."""
        registry = self._registry if self.process is None else _OfProcess(self._registry, self.process)
        return Reply(200, generate_latest(registry), CONTENT_TYPE)

    def count(self, name: str, about: str, labels: tuple[str, ...], read: Callable[[], Numbers]) -> None:
        """Expose a counter that somebody else keeps: label values -> number, read when asked."""
        self._more.append(lambda: _counter(name, about, labels, read().items()))

    def gauge(self, name: str, about: str, labels: tuple[str, ...], read: Callable[[], Numbers]) -> None:
        """The same for what goes up and down."""
        self._more.append(lambda: _gauge(name, about, labels, read().items()))

    def collect(self) -> Iterator[Metric]:
        """Read everything once."""
        workers = self._membership.fleet.workers
        yield InfoMetricFamily("warmroute_build", "What runs here", value={"version": __version__})
        yield from self._of_workers(workers)
        yield from self._of_trust(workers)
        yield from self._of_requests()
        yield from self._of_events(workers)
        yield from self._of_index()
        yield from (read() for read in self._more)

    def _of_workers(self, workers: tuple[Worker, ...]) -> Iterator[Metric]:
        now, load, index = self._clock(), self._routing.router.load, self._routing.router.index
        loads = {w.name: load.of(w.id, now) for w in workers}
        sizes = {w.name: index.worker_sizes(w.id) for w in workers}
        for name, about, values in (
            ("worker_ready", "1 if requests may be sent to the worker", {w.name: float(w.ready) for w in workers}),
            ("worker_requests", "Requests in flight", {n: v.requests for n, v in loads.items()}),
            ("worker_prefill_tokens", "Prompt tokens queued", {n: v.prefill_tokens for n, v in loads.items()}),
            ("worker_decoding", "Requests that are generating", {n: v.decoding for n, v in loads.items()}),
            ("worker_step_seconds", "A step without prefill; 0 if not known", {n: v.step_s for n, v in loads.items()}),
            ("worker_blocks", "Blocks known to be cached", {n: v.blocks for n, v in sizes.items()}),
            ("worker_orphan_blocks", "Blocks parked for an unknown parent", {n: v.orphans for n, v in sizes.items()}),
        ):
            yield _gauge(name, about, ("worker",), [((worker,), value) for worker, value in values.items()])

    def _of_trust(self, workers: tuple[Worker, ...]) -> Iterator[Metric]:
        yield _gauge(
            "worker_trust",
            "1 for the trust state the worker is in",
            ("worker", "state"),
            [((w.name, state.value), float(w.trust.state is state)) for w in workers for state in TrustState],
        )
        now, states = self._clock(), [((w.name,), w.trust) for w in workers]
        since = [(name, now - trust.since) for name, trust in states]
        yield _gauge("worker_trust_seconds", "How long the worker has been in its trust state", ("worker",), since)
        moves = self._routing.trusts.transitions.items()
        yield _counter("trust_transitions", "Changes into a trust state", ("worker", "state"), moves)
        own = [((w.name,), self._routing.trusts.of(w.id)) for w in workers]
        for name, about, numbers in (
            ("parity_judged", "Predictions held against the engine's report", [(n, t.parity.judged) for n, t in own]),
            ("parity_predicted_tokens", "Tokens predicted in those", [(n, t.parity.predicted_tokens) for n, t in own]),
            ("parity_reported_tokens", "Tokens reported in those", [(n, t.parity.reported_tokens) for n, t in own]),
            ("parity_resyncs", "Resynchronisations as predictions failed", [(n, t.resyncs) for n, t in own]),
        ):
            yield _counter(name, about, ("worker",), numbers)
        failed = [((*n, kind), v) for n, t in own for kind, v in (("high", t.parity.high), ("low", t.parity.low))]
        yield _counter("parity_failed", "Predictions that did not hold", ("worker", "kind"), failed)
        pressure = [(n, t.parity.pressure) for n, t in own]
        yield _gauge("parity_pressure", "How near a parity alarm is: 1 raises it", ("worker",), pressure)
        belief = [(n, t.parity.belief) for n, t in own]
        yield _gauge("parity_belief", "Share of predicted tokens the engine had, lately", ("worker",), belief)

    def _of_requests(self) -> Iterator[Metric]:
        seen = self._routing.tracking
        reach_s = self._routing.router.load.steps.reach_s
        yield _gauge("step_reach_seconds", "How early a request must be sent to be part of a step", (), [((), reach_s)])
        unasked = [((), self._membership.unasked)]
        yield _counter("probes_unasked", "Probes of engines for which there was no socket", (), unasked)
        yield _counter("decisions", "Decisions by worker and reason", ("worker", "reason"), seen.decisions.items())
        yield _counter("attempts", "Ended attempts by outcome", ("worker", "outcome"), seen.outcomes.items())
        results = seen.predictions.items()
        yield _counter("predictions", "Predictions against what the engine reported", ("worker", "result"), results)
        by_worker = (
            ("prompt_tokens", "Prompt tokens sent to the worker", seen.prompt_tokens),
            ("predicted_cached_tokens", "Prompt tokens predicted to be cached there", seen.predicted_tokens),
            ("reported_cached_tokens", "Prompt tokens the engine reported as cached", seen.reported_tokens),
        )
        for name, about, counter in by_worker:
            yield _counter(name, about, ("worker",), _one(counter))
        yield _counter("requests_without_tokens", "Routed without token ids", ("reason",), _one(seen.no_tokens))
        refused = [((str(status),), number) for status, number in seen.refused.items()]
        yield _counter("requests_refused", "Requests that nobody was to serve", ("status",), refused)
        alike = self._routing.agreements.counts.items()
        yield _counter("made_prompts", "Prompts made of other forms, by the engine's count", ("path", "result"), alike)
        yield _counter("retries", "Requests tried on another worker", (), [((), seen.retries)])
        yield _counter("tokenizer_given_up", "Ways around it found wrong", ("way",), _one(self._tokens.given_up))
        yield _counter("tokenized", "Requests by where token ids came from", ("source",), _one(self._tokens.counts))
        yield _counter("tokenize_seconds", "Time spent on token ids", ("source",), _one(self._tokens.latency_s))
        yield _counter("data_plane", "What happened on connections", ("event",), _flat(self._plane))

    def _of_events(self, workers: tuple[Worker, ...]) -> Iterator[Metric]:
        streams = [(w.name, self._streams[w.id]) for w in workers if w.id in self._streams]
        plain = (
            ("event_messages", "Published messages received", [((n,), s.counts.messages) for n, s in streams]),
            ("event_batches", "Event batches applied", [((n,), s.counts.batches) for n, s in streams]),
            ("events", "Events applied", [((n,), s.counts.events) for n, s in streams]),
            (
                "event_purges",
                "Times a worker's blocks were all forgotten",
                [((n,), s.counts.purges) for n, s in streams],
            ),
        )
        for name, about, samples in plain:
            yield _counter(name, about, ("worker",), samples)
        yield _counter(
            "events_rejected",
            "Events that could not be read or applied",
            ("worker", "reason"),
            [((n, reason), v) for n, s in streams for reason, v in s.counts.rejected.items()],
        )
        yield _counter(
            "event_stream",
            "Anomalies of the event streams: gaps, missed, lost, restarts, duplicates, replays, ...",
            ("worker", "kind"),
            [((n, kind), v) for n, s in streams for kind, v in s.counts.stream.items()],
        )
        yield _counter(
            "event_blocks",
            "What applying events did: stored, removed, orphaned, conflicts, evicted, ...",
            ("worker", "kind"),
            [((n, kind), v) for n, s in streams for kind, v in msgspec.structs.asdict(s.counts.applied).items()],
        )
        waiting = [((n,), s.pending) for n, s in streams]
        yield _gauge("event_pending_batches", "Batches that wait for older ones", ("worker",), waiting)
        lags = [((n,), s.counts.lag_s) for n, s in streams if s.counts.lag_s is not None]
        yield _gauge("event_lag_seconds", "Age of the newest batch when it was applied", ("worker",), lags)

    def _of_index(self) -> Iterator[Metric]:
        sizes = self._routing.router.index.sizes()
        for name, value in msgspec.structs.asdict(sizes).items():
            yield _gauge(f"index_{name}", f"The index's {name}", (), [((), value)])
        yield _gauge(
            "claims",
            "Blocks assumed stored",
            (),
            [((), self._routing.router.speculation.claimed_blocks(self._clock()))],
        )


class _OfProcess(Collector):
    """The same samples, each with the number of the process that gives it."""

    def __init__(self, inner: Collector, process: int) -> None:
        self._inner = inner
        self._label = {"process": str(process)}

    def collect(self) -> Iterator[Metric]:
        for metric in self._inner.collect():
            metric.samples = [sample._replace(labels={**sample.labels, **self._label}) for sample in metric.samples]
            yield metric


def _flat(counts: object) -> Labelled:
    """A dataclass of numbers and of counters, as one series: a counter's entries get its name in front."""
    for field in dataclasses.fields(counts):  # type: ignore[arg-type]  # any dataclass of counts will do
        value = getattr(counts, field.name)
        if isinstance(value, Mapping):
            yield from (((f"{field.name}:{key}",), number) for key, number in value.items())
        else:
            yield (field.name,), value


def _one(counter: Mapping[str, float]) -> Labelled:
    return [((key,), value) for key, value in counter.items()]


def _gauge(name: str, about: str, labels: tuple[str, ...], samples: Labelled) -> Metric:
    family = GaugeMetricFamily(f"warmroute_{name}", about, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _counter(name: str, about: str, labels: tuple[str, ...], samples: Labelled) -> Metric:
    family = CounterMetricFamily(f"warmroute_{name}", about, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family
