"""Where engines are reached: their URL, their key, and where each of their ranks publishes.

Invariant: what the operator says of an engine holds before what the engine says of itself, and that before defaults.
"""

from __future__ import annotations

from typing import TypeAlias

from warmroute.config.addresses import parse_url
from warmroute.config.tree import Config, EngineConfig
from warmroute.errors import ConfigError
from warmroute.service.ports import EngineFacts, EventAddress
from warmroute.types import Endpoint

Addresses: TypeAlias = dict[int, EventAddress | None]
"""Where each data-parallel rank publishes, in order; None: nowhere that we may listen."""


def endpoint_of(url: str) -> Endpoint:
    """The endpoint that a configured URL means. Raises ConfigError."""
    try:
        return parse_url(url)
    except ValueError as error:
        raise ConfigError("engines.url", f"{url!r} {error}", "Write http://HOST:PORT") from error


def engine_key(config: Config, engine: EngineConfig) -> str | None:
    """The API key that the engine wants: its own, else the common one; None: none."""
    return engine.api_key or config.membership.api_key


def event_addresses(config: Config, engine: EngineConfig, endpoint: Endpoint, facts: EngineFacts) -> Addresses:
    """Where each rank of an engine publishes; None: nowhere that we may listen.

    An engine that is one rank of several, each with an address of its own, speaks of that rank only: it is all it has.

    What the operator says of this engine holds before what the engine says of itself (it may sit behind a port
    mapping), and that before the defaults, which are used only if the engine says nothing at all.
    """
    said = facts.event_sources
    ranks = range(engine.data_parallel_size) if engine.data_parallel_size else sorted(said or (0,))
    if not (config.events.enabled and engine.events):
        return dict.fromkeys(ranks)
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    default = None if said is not None else f"tcp://{host}:{config.events.port}"
    port = config.events.replay_port
    clear = port is not None and abs(port - config.events.port) >= len(ranks)
    default_replay = f"tcp://{host}:{port}" if default and clear else None
    found: Addresses = {}
    for rank in ranks:
        own = said.get(rank) if said else None
        address = (
            _shifted(engine.events_endpoint or default, rank) if not own or engine.events_endpoint else own.endpoint
        )
        replay = _shifted(engine.replay_endpoint or default_replay, rank)
        if own and not engine.replay_endpoint:
            replay = own.replay_endpoint
        topic = engine.topic if engine.topic is not None else own.topic if own else ""
        listen = _shifted(engine.events_listen, rank)
        if listen:
            found[rank] = EventAddress(listen, replay, topic, bind=True)
        else:
            found[rank] = EventAddress(address, replay, topic) if address else None
    return found


def _shifted(address: str | None, rank: int) -> str | None:
    """Rank 0's address -> another rank's: the port counts up. An address without a port has rank 0 only."""
    head, _, port = (address or "").rpartition(":")
    if head and port.isdecimal():
        return f"{head}:{int(port) + rank}"
    return address if rank == 0 else None
