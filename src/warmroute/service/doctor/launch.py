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
        port, replay_port = _ports(engine)
        events |= {"endpoint": f"tcp://*:{port}", "replay_endpoint": f"tcp://*:{replay_port}"}
    said = (engine.http.sources or {}).get(0)
    if said is not None and said.topic:
        events["topic"] = said.topic
    if buffer_steps is not None:
        events["buffer_steps"] = buffer_steps
    launched = f"{prefix}{command(engine)} --kv-events-config '{json.dumps(events, separators=(',', ':'))}'"
    return launched if _finds_ports(engine) else f"{launched}\n{_entry_with_ports(engine)}"


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


def _ports(engine: EngineReport) -> tuple[int, int]:
    """Rank 0's event and replay port: as the engine says, else as they are looked for, if they lie apart."""
    said = (engine.http.sources or {}).get(0)
    followed = engine.streams[0].address if engine.streams else None
    sources = [source for source in (said, followed) if source is not None]
    events = next((port for each in sources if (port := port_of(each.endpoint))), DEFAULT_EVENTS_PORT)
    replay = next((port for each in sources if (port := port_of(each.replay_endpoint))), None)
    ranks = engine.http.ranks or 1
    met = any(stream.replay is not None and stream.replay.publishes for stream in engine.streams)
    apart = replay is not None and abs(replay - events) >= ranks and not met
    return events, replay if replay is not None and apart else events + max(REPLAY_DISTANCE_MIN, ranks)


def _finds_ports(engine: EngineReport) -> bool:
    """Whether Warmroute will look where the engine is told to publish: it says so itself, or that is where it looks."""
    if engine.http.software == "vllm" and engine.release >= VLLM_CHOSEN_PORTS:
        return True  # /kv_event_sources came with the chosen ports
    followed = engine.streams[0].address if engine.streams else None
    looked_for = (port_of(followed.endpoint), port_of(followed.replay_endpoint)) if followed else (None, None)
    return looked_for == _ports(engine)


def _entry_with_ports(engine: EngineReport) -> str:
    host = f"[{engine.endpoint.host}]" if ":" in engine.endpoint.host else engine.endpoint.host
    events, replay = _ports(engine)
    return engine_entry(engine, events_endpoint=f"tcp://{host}:{events}", replay_endpoint=f"tcp://{host}:{replay}")


def port_of(address: str | None) -> int | None:
    """The port in a ZMQ address; None if it has none."""
    port = (address or "").rpartition(":")[2]
    return int(port) if (address or "").startswith("tcp://") and port.isdecimal() else None
