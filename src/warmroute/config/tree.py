"""The one configuration tree: frozen, typed, built once by the cli and handed down section by section.

Units are in the names. Every leaf has a default that needs no tuning, a docstring that is its documentation (the
configuration reference is made from it) and a range that is checked where it is built.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One engine, statically listed. Only `url` is needed: the rest is learned from the engine."""

    url: str
    """Base URL of the engine's API, `http://HOST:PORT`."""
    events_endpoint: str | None = None
    """ZMQ address rank 0 publishes on, as reachable from here (`tcp://HOST:5557`); rank r is at port + r."""
    events_listen: str | None = None
    """For an engine whose PUB socket connects instead of binding: ZMQ address on which its rank 0 is awaited here
    (`tcp://*:6557`, the engine's `endpoint` names this host and port); rank r at port + r."""
    replay_endpoint: str | None = None
    """ZMQ address of rank 0's replay socket (`tcp://HOST:5558`); rank r is at port + r."""
    topic: str | None = None
    """Topic prefix to subscribe to; None: everything."""
    data_parallel_size: int | None = None
    """Number of data-parallel ranks; None: as the engine says, else 1."""
    events: bool = True
    """False: route to this engine by load only; its worker is BLIND."""
    weight: float = 1.0
    """Share of the work beside an engine of weight 1: its costs are divided by it (multiplied if below 0). 0: none."""
    api_key: str | None = field(default=None, repr=False)
    """Key this engine wants (`vllm serve --api-key`); None: membership.api_key. Never logged or shown."""
    api_key_file: str | None = None
    """File whose content is that key; read once, at start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """The OpenAI-compatible HTTP front."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8080
    """Port to listen on; 0: one the system chooses."""
    processes: int = 1
    """Processes that serve this port, each on a core of its own, with its own view of the events; they share the load
    in flight. Above 1, one more watches over them."""
    handover: str | None = None
    """Path of a Unix socket by which a newly started gateway takes over from the running one, without a gap; None: it
    cannot."""
    max_body_bytes: int = 32 * 1024 * 1024
    """Larger request bodies are refused with 413."""
    max_head_bytes: int = 64 * 1024
    """Larger request heads are refused with 431."""
    head_timeout_s: float = 10.0
    """How long a client may take to send its head, and after that between two pieces of its body."""
    connect_timeout_s: float = 2.0
    """How long connecting to an engine may take."""
    first_byte_timeout_s: float = 1800.0
    """How long an engine may take from the request to the first byte of its answer's body: an answer that is not
    streamed comes when all of it is generated."""
    idle_timeout_s: float = 300.0
    """How long an engine may be silent in the middle of an answer."""
    keepalive_timeout_s: float = 75.0
    """How long an idle client connection is kept."""
    drain_timeout_s: float = 30.0
    """How long running requests may go on after SIGTERM."""
    retries: int = 2
    """How many other workers a request may be tried on while no byte of an answer has come, or nothing but a 503."""
    decision_headers: bool = True
    """Whether answers carry `x-warmroute-worker` and `x-warmroute-overlap-tokens`."""
    keys_file: str | None = None
    """File with the clients' API keys, hashed (`warmroute key`); None: no key is asked for. Re-read when it changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminConfig:
    """The listener for operators: metrics, `/workers`, `/decisions`, and the engines' own administration."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int | None = None
    """Port to listen on, 0: one the system chooses; None: all of it is served to clients, on the gateway's port."""
    keys_file: str | None = None
    """File with the operators' API keys, in the form of `gateway.keys_file`; None: no key is asked for."""
    tls: bool = False
    """Whether it speaks TLS, with the gateway's certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionConfig:
    """How much is let in at once and what waits. Everything is without limit unless it is set."""

    requests_max: int | None = None
    """Requests that are served at once."""
    model_requests_max: str | None = None
    """Requests of one model that are served at once: `MODEL=N,MODEL=N`; `*` stands for every other model."""
    model_body_bytes_max: str | None = None
    """Larger bodies are refused with 413, by model: `MODEL=N,MODEL=N`; `*` stands for every other model."""
    worker_requests_max: int | None = None
    """Requests in flight at one worker. When all workers of a model have so many, further ones wait."""
    queue_requests_max: int = 1000
    """Requests that may wait for room; beyond, the last in line is refused with 429."""
    queue_timeout_s: float = 30.0
    """Longest wait for room; then 503."""
    key_requests_per_min: int | None = None
    """Requests per minute of each API key that has no limit of its own."""
    key_tokens_per_min: int | None = None
    """Tokens per minute, prompts and completions, of each API key that has no limit of its own."""
    redis_url: str | None = None
    """Where gateways share what keys have used, `redis://HOST:PORT/DB`; None: each gateway counts by itself."""
    redis_password_file: str | None = None
    """File whose content is Redis' password; read once, at start."""
    redis_timeout_s: float = 0.05
    """Longer than that and the gateway counts by itself, for a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """Encryption to clients and to engines."""

    certificate: str | None = None
    """PEM file with the gateway's certificate and its chain; None: plain HTTP. Re-read when it changes."""
    key: str | None = None
    """PEM file with the certificate's private key. Re-read when it changes."""
    engine_ca: str | None = None
    """PEM file with the authorities that vouch for https:// engines; None: the system's."""
    engine_verify: bool = True
    """False: the certificates of https:// engines are not looked at. Encrypted, but to whom is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsConfig:
    """Following the engines' KV cache events."""

    enabled: bool = True
    """False: no subscriptions; every worker is BLIND and requests are routed by load."""
    port: int = 5557
    """Where an engine that does not say is expected to publish (rank r: + r)."""
    replay_port: int | None = 5558
    """Where an engine that does not say is expected to replay (rank r: + r); None: nowhere. Must lie clear of the
    event ports of all ranks; where it does not, such an engine is taken to have no replay."""
    replay_timeout_s: float = 5.0
    """A replay that is silent for so long is abandoned and asked for again."""
    replays_max: int = 64
    """Replays that go on at once; the others wait for their turn."""
    reconnect_backoff_s: float = 1.0
    """First pause before another attempt; doubled each time."""
    reconnect_backoff_max_s: float = 30.0
    """Longest pause before another attempt."""
    probe_idle_s: float = 30.0
    """An engine that was silent for so long is asked what it has: a lost batch shows itself only with the next one."""
    pending_batches_max: int = 100_000
    """Live batches kept while a replay is under way, per worker; those beyond are asked for again when it ends."""
    orphan_blocks_max: int = 65_536
    """Blocks parked for an unknown parent or an unknown meaning, per worker; beyond it the oldest are dropped."""
    blocks_max: int | None = None
    """Copies of blocks held in all, of all workers: the limit of the index's memory. Beyond it the ends of the least
    recently extended prefixes are dropped. None: no limit."""
    worker_blocks_max: int | None = None
    """The same for each worker: beyond it its own are dropped, and it is DEGRADED. None: no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """Token ids for requests that carry text."""

    mode: Literal["auto", "remote", "local", "off"] = "auto"
    """`remote`: the engine's /tokenize; `local`: in process from `path`; `auto`: local if `path` is set, else remote;
    `off`: only prompts given as token ids are routed by prefix."""
    path: str | None = None
    """Folder with tokenizer.json and the chat template (tokenizer_config.json or chat_template.jinja)."""
    remote_endpoint: str | None = None
    """Base URL whose /tokenize is asked; None: an engine that serves the model."""
    timeout_s: float = 2.0
    """Longer than that and the request is routed by load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingConfig:
    """Choosing the worker."""

    policy: str = "warmroute"
    """`warmroute` (least work left), another that is built in, or your own as `MODULE:CLASS` or `FILE.py:CLASS`."""
    policy_ms_max: float = 5.0
    """A policy of your own that takes longer rests a hundred times as long; the default decides meanwhile."""
    session_header: str = "x-session-id"
    """Request header whose value the requests of one conversation share."""
    session_worth: float = 0.7
    """Share of a session's last prompt its worker is thought to hold if a prompt's tokens are not known; 0: none."""
    overrides: bool = True
    """Whether a request may name a built-in policy (`routing-strategy`) or a worker (`x-warmroute-worker`)."""
    prefill_tokens_per_s: float = 8000.0
    """Prompt tokens an engine computes per second, until its own answers have shown it."""
    decode_weight: float = 10.0
    """Steps of generation whose slowing counts, relative to this request's own wait; 0: generations do not count."""
    others_weight: float = 4.0
    """Worth of delaying requests yet to come, relative to this request's own wait."""
    memory_weight: float = 0.3
    """Price of a token that seems not to fit into a worker's cache, relative to computing it."""
    replication_weight: float = 1.0
    """How readily a prefix is copied to another worker when its holders are busy; 0: never for that reason."""
    eviction_weight: float = 1.0
    """What it costs that a prefill pushes out what a busy worker computed lately, as a share of that prefill; half as
    much where requests are not bound to what a worker holds."""
    speculative_ttl_s: float = 2.0
    """How long blocks are assumed stored because a request was just routed there, unless events say so."""
    cpu_hit_worth: float = 0.8
    """Worth of a token cached in host memory, relative to one in GPU memory."""
    storage_hit_worth: float = 0.5
    """Worth of a token cached in storage, relative to one in GPU memory."""
    degraded_belief: float = 0.5
    """Share of the overlap that is believed of a DEGRADED worker; REPLAYING workers are believed as well as known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipConfig:
    """Watching the engines."""

    probe_interval_s: float = 2.0
    """Pause between two health probes of a reachable engine."""
    probe_timeout_s: float = 2.0
    """How long a probe may take."""
    retry_interval_s: float = 1.0
    """Pause between two attempts to reach an engine that is down, or whose last probe failed."""
    failures_max: int = 3
    """So many probes in a row must fail until an engine gets no more requests; one is enough if it refuses to be
    connected to."""
    drain_timeout_s: float = 300.0
    """How long an engine that is to leave the fleet is waited for while it has requests. They are never cut: after that
    it is only forgotten."""
    api_key: str | None = field(default=None, repr=False)
    """The key of engines that have none of their own. Never logged or shown."""
    api_key_file: str | None = None
    """File whose content is that key; read once, at start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerConfig:
    """Leaving engines alone that keep failing."""

    failures_max: int = 5
    """So many failures in a row (connections, timeouts, 5xx; never 4xx) and requests go elsewhere; 0: never."""
    open_s: float = 5.0
    """How long, before one request tries the engine again; doubled each time that fails."""
    open_max_s: float = 60.0
    """Longest such pause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesConfig:
    """Pods as engines, by their labels."""

    enabled: bool = False
    """Whether pods are watched. Needs `warmroute[kubernetes]` and a role that may list and watch pods."""
    namespaces: str | None = None
    """Namespaces to watch, with commas between them; `*`: all, which needs a cluster role. None: the gateway's own."""
    selector: str | None = None
    """Label selector of the pods to look at. None: those that say which model they serve."""
    kubeconfig: str | None = None
    """How the API server is reached from outside of a cluster. None: as a pod reaches it, else as kubectl does."""
    context: str | None = None
    """Context of that file. None: the one it names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFileConfig:
    """A file that lists engines and is watched."""

    path: str | None = None
    """YAML or JSON file with a list of engines, or with `engines:`, each as the configuration's own `engines` are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadlessServiceConfig:
    """The endpoints of a Service as engines, by its EndpointSlices; for those who may not read pods."""

    name: str | None = None
    """Name of the Service. Needs `warmroute[kubernetes]` and a role that may list and watch endpointslices."""
    namespace: str | None = None
    """Its namespace. None: the gateway's own."""
    port_name: str | None = None
    """Name of its port. None: its only one, or the first."""
    events: bool = True
    """False: route to these engines by load only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryConfig:
    """Engines that come and go, besides those that are listed."""

    kubernetes: KubernetesConfig = field(default_factory=KubernetesConfig)
    file: EngineFileConfig = field(default_factory=EngineFileConfig)
    service: HeadlessServiceConfig = field(default_factory=HeadlessServiceConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """What is written, to stderr unless it says otherwise."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is written."""
    access: str | None = None
    """File that gets one JSON line per request, without anything that users sent (`/dev/stdout`: there); None: no
    access log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All of it."""

    engines: tuple[EngineConfig, ...] = ()
    """The engines to route to."""
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    admin: AdminConfig = field(default_factory=AdminConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    events: EventsConfig = field(default_factory=EventsConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    membership: MembershipConfig = field(default_factory=MembershipConfig)
    breaker: BreakerConfig = field(default_factory=BreakerConfig)
    discovery: DiscoveryConfig = field(default_factory=DiscoveryConfig)
    log: LogConfig = field(default_factory=LogConfig)
