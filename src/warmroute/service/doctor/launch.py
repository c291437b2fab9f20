"""The arguments that mend an engine: what its software and release take, with the ports it already uses.

Facts of the engines, by release: `--kv-events-config` with a JSON object is the only switch that vLLM has for its
events, from 0.9 on. Its `publisher` must be written (until 0.11.0 the default is none). A PUB socket binds only if its
endpoint has a `*` or `::` in it; `tcp://[::]:PORT` cannot be bound, as the socket is not told to speak IPv6, so a host
with IPv6 alone needs `tcp://*:0`, which exists since 0.31. Rank r adds r to both ports. SGLang has no key
`enable_kv_cache_events`.
"""

from __future__ import annotations

import json

from warmroute.service.doctor.facts import EngineReport

DEFAULT_EVENTS_PORT = 5557
REPLAY_DISTANCE_MIN = 10
"""The replay port lies so far behind the event port, or as far as there are ranks: they must not meet."""
VLLM_CHOSEN_PORTS = (0, 31)
"""Since then `tcp://*:0` is a port that the system chooses, on the address of VLLM_HOST_IP, IPv6 too."""


def with_events(engine: EngineReport, *, buffer_steps: int | None = None) -> str:
    """The command line that turns events on as they should be."""
    events: dict[str, object] = {} if engine.http.software == "sglang" else {"enable_kv_cache_events": True}
    events["publisher"] = "zmq"
    prefix = ""
    if _needs_ipv6(engine):
        prefix = f"VLLM_HOST_IP={engine.endpoint.host} "
        events |= {"endpoint": "tcp://*:0", "replay_endpoint": "tcp://*:0"}
    else:
        port = _events_port(engine)
        replay_port = port + max(REPLAY_DISTANCE_MIN, engine.http.ranks or 1)
        events |= {"endpoint": f"tcp://*:{port}", "replay_endpoint": f"tcp://*:{replay_port}"}
    said = (engine.http.sources or {}).get(0)
    if said is not None and said.topic:
        events["topic"] = said.topic
    if buffer_steps is not None:
        events["buffer_steps"] = buffer_steps
    return f"{prefix}{command(engine)} --kv-events-config '{json.dumps(events, separators=(',', ':'))}'"


def with_arguments(engine: EngineReport, *, vllm: str, sglang: str) -> str:
    """The command line with one more argument, by software."""
    return f"{command(engine)} {sglang if engine.http.software == 'sglang' else vllm}"


def command(engine: EngineReport) -> str:
    """How the software is started; `...` stands for what it is given already."""
    return "python -m sglang.launch_server ..." if engine.http.software == "sglang" else "vllm serve ..."


def engine_entry(engine: EngineReport, **settings: object) -> str:
    """The engine's entry in Warmroute's configuration file, on one line, with `settings` in it."""
    shown = ", ".join(f"{name}: {json.dumps(value)}" for name, value in settings.items())
    return f"engines: [{{url: {json.dumps(engine.url)}, {shown}}}]"


def _needs_ipv6(engine: EngineReport) -> bool:
    newer = engine.release >= VLLM_CHOSEN_PORTS
    return ":" in engine.endpoint.host and engine.http.software == "vllm" and newer


def _events_port(engine: EngineReport) -> int:
    """The port rank 0 is to publish on: where the engine says it does, or where it is looked for."""
    said = (engine.http.sources or {}).get(0)
    followed = engine.streams[0].address if engine.streams else None
    for address in (said.endpoint if said else None, followed.endpoint if followed else None):
        port = port_of(address)
        if port:
            return port
    return DEFAULT_EVENTS_PORT


def port_of(address: str | None) -> int | None:
    """The port in a ZMQ address; None if it has none."""
    port = (address or "").rpartition(":")[2]
    return int(port) if (address or "").startswith("tcp://") and port.isdecimal() else None
