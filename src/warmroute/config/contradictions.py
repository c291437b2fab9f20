"""What no single leaf shows: settings that are fine alone and wrong together.

Each rule names the leaves it looks at, so that it stays silent while one of them is itself in error.

Invariant: a configuration that raised nothing here can be built into a running gateway without another question about
its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from warmroute.config.addresses import (
    PORT_MAX,
    IpcAddress,
    TcpAddress,
    is_loopback,
    parse_url,
    parse_zmq,
    parse_zmq_listen,
)
from warmroute.config.sources import Source
from warmroute.config.tree import Config, EngineConfig, MembershipConfig
from warmroute.config.values import raise_all
from warmroute.errors import ConfigError

Said: TypeAlias = Callable[[str], str | None]
"""Key -> where it was set (`file warmroute.yaml`), or None if it has its default."""
Rule: TypeAlias = Callable[[Config, Said], Iterator[ConfigError]]


def _where(said: Said, key: str) -> str:
    return said(key) or "default"


def _tokens_for_events(config: Config, said: Said) -> Iterator[ConfigError]:
    if config.events.enabled and said("events.enabled") and config.tokenizer.mode == "off":
        yield ConfigError(
            "events.enabled",
            f"true ({_where(said, 'events.enabled')}) needs the prompts' token ids, but tokenizer.mode is off "
            f"({_where(said, 'tokenizer.mode')})",
            "Set tokenizer.mode to auto, remote or local (WARMROUTE_TOKENIZER_MODE=auto; of the AIBrix names, "
            "AIBRIX_USE_REMOTE_TOKENIZER=true), or events.enabled to false.",
        )


def _local_needs_path(config: Config, said: Said) -> Iterator[ConfigError]:
    if config.tokenizer.mode == "local" and config.tokenizer.path is None:
        yield ConfigError(
            "tokenizer.path",
            f"none, but tokenizer.mode is local ({_where(said, 'tokenizer.mode')})",
            "Set tokenizer.path to the folder with the model's tokenizer.json, or tokenizer.mode to auto.",
        )


def _one_key_each(config: Config, said: Said) -> Iterator[ConfigError]:
    owners: dict[str, EngineConfig | MembershipConfig] = {"membership": config.membership}
    owners |= {f"engines[{number}]": engine for number, engine in enumerate(config.engines)}
    for name, owner in owners.items():
        if owner.api_key is not None and owner.api_key_file is not None:
            yield ConfigError(
                f"{name}.api_key_file", f"given besides {name}.api_key ({_where(said, name)})", "Keep one of them."
            )


def _backoff_order(config: Config, said: Said) -> Iterator[ConfigError]:
    first, longest = config.events.reconnect_backoff_s, config.events.reconnect_backoff_max_s
    if first > longest:
        yield ConfigError(
            "events.reconnect_backoff_s",
            f"{first:g} ({_where(said, 'events.reconnect_backoff_s')}) is above events.reconnect_backoff_max_s = "
            f"{longest:g} ({_where(said, 'events.reconnect_backoff_max_s')})",
            "Lower the first pause or raise the longest.",
        )


def _pause_order(config: Config, said: Said) -> Iterator[ConfigError]:
    if config.breaker.open_s > config.breaker.open_max_s:
        yield ConfigError(
            "breaker.open_s",
            f"{config.breaker.open_s:g} ({_where(said, 'breaker.open_s')}) is above breaker.open_max_s = "
            f"{config.breaker.open_max_s:g} ({_where(said, 'breaker.open_max_s')})",
            "Lower the first pause or raise the longest.",
        )


def _one_port_each(config: Config, said: Said) -> Iterator[ConfigError]:
    if config.events.port == config.events.replay_port:
        yield ConfigError(
            "events.replay_port",
            f"{config.events.replay_port} ({_where(said, 'events.replay_port')}) is also events.port "
            f"({_where(said, 'events.port')})",
            "An engine publishes and replays on two ports: change one, or set events.replay_port to null.",
        )


def _distinct_engines(config: Config, said: Said) -> Iterator[ConfigError]:
    first: dict[tuple[str, int], int] = {}
    for number, engine in enumerate(config.engines):
        endpoint = parse_url(engine.url)
        earlier = first.setdefault((endpoint.host, endpoint.port), number)
        if earlier != number:
            yield ConfigError(
                f"engines[{number}].url",
                f"{engine.url} is engines[{earlier}].url again ({_where(said, 'engines')})",
                "List every engine once.",
            )


@dataclass(frozen=True, slots=True)
class _Socket:
    """One address of one rank of one engine, and who says so."""

    key: str
    rank: int

    def __str__(self) -> str:
        return f"{self.key} of rank {self.rank}"


def _sockets(number: int, engine: EngineConfig) -> Iterator[tuple[TcpAddress | IpcAddress, _Socket]]:
    """Every address that `engine` names itself, rank by rank. Raises ConfigError for one that ranks cannot have."""
    ranks = engine.data_parallel_size or 1
    if engine.events_listen is not None and engine.events_endpoint is not None:
        raise ConfigError(
            f"engines[{number}].events_listen",
            f"{engine.events_listen} and events_endpoint {engine.events_endpoint} contradict each other",
            "An engine either connects here (events_listen) or is connected to (events_endpoint): name one.",
        )
    named = ("events_endpoint", "events_listen", "replay_endpoint")
    for name, text in ((name, getattr(engine, name)) for name in named):
        if text is None:
            continue
        key = f"engines[{number}].{name}"
        address = parse_zmq_listen(text) if name == "events_listen" else parse_zmq(text)
        if isinstance(address, IpcAddress):
            if ranks > 1:
                raise ConfigError(key, f"{text} has no port that {ranks} ranks could count up", "Use tcp://HOST:PORT.")
            yield address, _Socket(key, 0)
            continue
        if address.port + ranks - 1 > PORT_MAX:
            problem = f"{text} leaves no ports for {ranks} ranks below {PORT_MAX + 1}"
            raise ConfigError(key, problem, "Choose a lower port.")
        for rank in range(ranks):
            yield TcpAddress(address.host, address.port + rank), _Socket(key, rank)


def _distinct_sockets(config: Config, said: Said) -> Iterator[ConfigError]:
    """No two event or replay addresses that are written down may be the same, ranks counted."""
    del said
    taken: dict[TcpAddress | IpcAddress, _Socket] = {}
    for number, engine in enumerate(config.engines):
        try:
            sockets = list(_sockets(number, engine))
        except ConfigError as error:
            yield error
            continue
        for address, socket in sockets:
            other = taken.setdefault(address, socket)
            if other is not socket:
                yield ConfigError(
                    socket.key,
                    f"{address} would be both {other} and {socket}",
                    "Rank r is at port + r: put replay ports clear of all event ports, for example 10 higher.",
                )
                break


def _replay_clear_of_ranks(config: Config, said: Said) -> Iterator[ConfigError]:
    """A replay port that somebody set must lie clear of all ranks' event ports, of engines that name neither."""
    events, replay = config.events.port, config.events.replay_port
    if replay is None or replay == events or not (said("events.port") or said("events.replay_port")):
        return
    for number, engine in enumerate(config.engines):
        ranks = engine.data_parallel_size or 1
        if engine.events_endpoint is None and engine.replay_endpoint is None and abs(events - replay) < ranks:
            yield ConfigError(
                "events.replay_port",
                f"{replay} ({_where(said, 'events.replay_port')}) lies among the ports of engines[{number}], whose "
                f"{ranks} ranks count up from events.port = {events} ({_where(said, 'events.port')})",
                f"Set it to {events + ranks} or higher, as the engine is started, or to null.",
            )
            return


def _certificate_and_key(config: Config, said: Said) -> Iterator[ConfigError]:
    tls = config.tls
    if (tls.certificate is None) != (tls.key is None):
        given, missing = ("certificate", "key") if tls.key is None else ("key", "certificate")
        yield ConfigError(
            f"tls.{missing}", f"none, but tls.{given} is set ({_where(said, f'tls.{given}')})", "Set both, or neither."
        )
    if config.admin.tls and tls.certificate is None:
        yield ConfigError(
            "admin.tls",
            f"true ({_where(said, 'admin.tls')}), but there is no certificate",
            "Set tls.certificate and tls.key, or admin.tls to false.",
        )


def _rates_need_keys(config: Config, said: Said) -> Iterator[ConfigError]:
    for name in ("key_requests_per_min", "key_tokens_per_min", "redis_url"):
        if getattr(config.admission, name) is not None and config.gateway.keys_file is None:
            yield ConfigError(
                f"admission.{name}",
                f"set ({_where(said, f'admission.{name}')}), but no keys are asked for whose use it could limit",
                "Set gateway.keys_file, or leave it out.",
            )


def _admin_has_its_own_port(config: Config, said: Said) -> Iterator[ConfigError]:
    if config.admin.port and config.admin.port == config.gateway.port:
        yield ConfigError(
            "admin.port",
            f"{config.admin.port} ({_where(said, 'admin.port')}) is also gateway.port",
            "Give it a port of its own, or set it to null to serve both on one.",
        )


def _several_processes(config: Config, said: Said) -> Iterator[ConfigError]:
    """What processes beside each other cannot keep together."""
    if config.gateway.processes == 1:
        return
    problem = f"given, and gateway.processes is {config.gateway.processes} ({_where(said, 'gateway.processes')})"
    if config.admission.model_requests_max is not None:
        remedy = "Each would let in so many: use admission.requests_max or worker_requests_max, or one process."
        yield ConfigError("admission.model_requests_max", problem, remedy)
    for name in ("key_requests_per_min", "key_tokens_per_min"):
        if getattr(config.admission, name) is not None and config.admission.redis_url is None:
            remedy = "Each would count by itself: set admission.redis_url, or use one process."
            yield ConfigError(f"admission.{name}", problem, remedy)
    for number, engine in enumerate(config.engines):
        if engine.events_listen is not None:
            remedy = "Only one of them can listen there: have the engine bind its PUB socket, or use one process."
            yield ConfigError(f"engines[{number}].events_listen", problem, remedy)


_OF_ENGINES: Final[tuple[Rule, ...]] = (_one_key_each, _distinct_engines, _distinct_sockets)
"""Rules that look at nothing else."""
RULES: Final[tuple[tuple[tuple[str, ...], Rule], ...]] = (
    (("events.enabled", "tokenizer.mode"), _tokens_for_events),
    (("tokenizer.mode", "tokenizer.path"), _local_needs_path),
    (("events.reconnect_backoff_s", "events.reconnect_backoff_max_s"), _backoff_order),
    (("breaker.open_s", "breaker.open_max_s"), _pause_order),
    (("events.port", "events.replay_port"), _one_port_each),
    (("engines", "membership.api_key", "membership.api_key_file"), _one_key_each),
    (("tls.certificate", "tls.key", "admin.tls"), _certificate_and_key),
    (
        ("gateway.keys_file", "admission.key_requests_per_min", "admission.key_tokens_per_min", "admission.redis_url"),
        _rates_need_keys,
    ),
    (("gateway.port", "admin.port"), _admin_has_its_own_port),
    (
        (
            *("gateway.processes", "engines", "admission.model_requests_max", "admission.redis_url"),
            *("admission.key_requests_per_min", "admission.key_tokens_per_min"),
        ),
        _several_processes,
    ),
    (("engines",), _distinct_engines),
    (("engines",), _distinct_sockets),
    (("engines", "events.port", "events.replay_port"), _replay_clear_of_ranks),
)
"""The leaves that a rule looks at, and the rule."""


def check_engines(engines: Sequence[EngineConfig], source: Source) -> None:
    """Raise ConfigError for what engines that `source` lists by themselves say against themselves or each other."""
    config = Config(engines=tuple(engines))
    raise_all([error for rule in _OF_ENGINES for error in rule(config, lambda _: str(source))])


def _exposed(config: Config, said: Said) -> Iterator[str]:
    """What a listener that others reach shows them."""
    gateway, admin = config.gateway, config.admin
    if admin.port is None:
        for name in ("host", "keys_file", "tls"):
            if said(f"admin.{name}"):
                yield f"admin.{name} ({said(f'admin.{name}')}) has no effect: admin.port is not set"
    elif not is_loopback(admin.host) and admin.keys_file is None:
        yield f"whoever reaches admin.host = {admin.host} administers the engines: set admin.keys_file"
    if is_loopback(gateway.host):
        return
    if gateway.keys_file is None:
        yield f"whoever reaches gateway.host = {gateway.host} is served: set gateway.keys_file to ask for keys"
    if admin.port is None:
        yield (
            f"whoever is served at gateway.host = {gateway.host} can also read metrics, /workers and /decisions, and "
            "administer the engines: set admin.port to serve these elsewhere"
        )


def idle_notes(config: Config, said: Said) -> Iterator[str]:
    """Settings that somebody made and that change nothing, or not what they seem to: worth a line, not a refusal."""
    mode = config.tokenizer.mode
    if mode in ("remote", "off") and said("tokenizer.path"):
        yield f"tokenizer.path ({said('tokenizer.path')}) has no effect: tokenizer.mode is {mode}"
    if mode in ("local", "off") and said("tokenizer.remote_endpoint"):
        yield f"tokenizer.remote_endpoint ({said('tokenizer.remote_endpoint')}) has no effect: tokenizer.mode is {mode}"
    yield from _exposed(config, said)
    if not config.events.enabled:
        return
    silent = [(number, engine) for number, engine in enumerate(config.engines) if engine.events_endpoint is None]
    replay = config.events.replay_port
    for number, engine in silent:
        ranks = engine.data_parallel_size or 1
        if replay is not None and engine.replay_endpoint is None and abs(config.events.port - replay) < ranks:
            yield (
                f"engines[{number}] has {ranks} ranks: unless it says where it replays, lost batches cannot be had "
                f"again, because the default replay port {replay} is an event port of its ranks"
            )
