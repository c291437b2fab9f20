"""What a pod says of the engine in it: where it is, whether it may be asked and whether it is followed, or why not.

The labels are the contract, AIBrix's or our own. A pod's states, by what is known of it; the first that fits::

    no label with a model's name .................. IGNORED    not ours
    being deleted ................................. DRAINING   no new requests; those that run may end
    phase is not Running, or no IP yet ............ WAITING    nobody to talk to
    a label or annotation that cannot be .......... INVALID    left alone, and said
    not Ready ..................................... HELD       followed, gets no requests
    else .......................................... ROUTED     followed, gets requests

Followed means: its events are subscribed to if it says that it has any, exactly as `"true"`. A pod that leaves ROUTED
and HELD leaves the fleet: what it has running drains, what it held is forgotten. Another uid or another start of the
engine's container is another engine, even at the same address.

Invariant: `engine` is there exactly in the states ROUTED and HELD.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from warmroute.config.addresses import PORT_MAX, TcpAddress
from warmroute.config.ranges import RANGES
from warmroute.config.tree import EngineConfig
from warmroute.core.roster import Listed
from warmroute.types import Endpoint

OURS: Final = "warmroute.dev/"
AIBRIX: Final = "model.aibrix.ai/"
PREFIXES: Final = (OURS, AIBRIX)
"""Of labels; ours counts if both are there."""
NAME, PORT, EVENTS, LORA = "name", "port", "kv-events-enabled", "lora-id"
API_PORT, EVENTS_PORT, REPLAY_PORT = "api-port", "events-port", "replay-port"
RANKS, TOPIC, SCHEME, WEIGHT = "data-parallel-size", "topic", "scheme", "weight"
ANNOTATIONS: Final = (API_PORT, EVENTS_PORT, REPLAY_PORT, RANKS, TOPIC, SCHEME, WEIGHT)
"""What is read of annotations under our prefix."""
PORT_DEFAULT: Final = 8000
"""Where vLLM serves if nobody says otherwise."""


class PodState(enum.StrEnum):
    """What a pod is to us."""

    ROUTED = "routed"
    HELD = "held"
    DRAINING = "draining"
    WAITING = "waiting"
    INVALID = "invalid"
    IGNORED = "ignored"


class Metadata(msgspec.Struct, rename="camel"):
    """Any object's."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    deletion_timestamp: str | None = None


class _Condition(msgspec.Struct):
    type: str
    status: str


class _ContainerStatus(msgspec.Struct, rename="camel"):
    name: str
    container_id: str | None = msgspec.field(default=None, name="containerID")


class _Port(msgspec.Struct, rename="camel"):
    container_port: int


class _Container(msgspec.Struct):
    name: str
    ports: list[_Port] | None = None


class _Spec(msgspec.Struct):
    containers: list[_Container] = []


class _Status(msgspec.Struct, rename="camel"):
    phase: str = ""
    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    conditions: list[_Condition] | None = None
    container_statuses: list[_ContainerStatus] | None = None


class Pod(msgspec.Struct):
    """What is read of a pod."""

    metadata: Metadata
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status = msgspec.field(default_factory=_Status)


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one object of the cluster says of engines."""

    uid: str
    version: str
    """The object's resourceVersion."""
    name: str
    """`namespace/name`."""
    state: PodState
    reason: str | None = None
    """Why it gets no requests."""
    engines: tuple[Listed, ...] = ()
    notes: tuple[str, ...] = ()
    """What should be told of it though it does no harm."""


T = TypeVar("T")
N = TypeVar("N", int, float)

_POD: Final = msgspec.json.Decoder(Pod)


def read_pod(raw: bytes) -> Sighting:
    """What a pod says, as JSON. Raises ValueError if it is none."""
    pod = _POD.decode(raw)
    state, reason, listed = _judge(pod)
    own = pod.metadata.annotations or {}
    notes = tuple(
        f"the annotation {key} is not known; known are {', '.join(ANNOTATIONS)}"
        for key in own
        if key.startswith(OURS) and key.removeprefix(OURS) not in ANNOTATIONS
    )
    return Sighting(
        uid=pod.metadata.uid,
        version=pod.metadata.resource_version,
        name=f"{pod.metadata.namespace}/{pod.metadata.name}",
        state=state,
        reason=reason,
        engines=() if listed is None else (listed,),
        notes=() if state is PodState.IGNORED else notes,
    )


def _judge(pod: Pod) -> tuple[PodState, str | None, Listed | None]:
    if (absent := _absent(pod)) is not None:
        return *absent, None
    labels, status = pod.metadata.labels or {}, pod.status
    try:
        engine = engine_at(status.pod_ip or "", labels, pod.metadata.annotations or {})
    except ValueError as error:
        return PodState.INVALID, str(error), None
    identity = f"{pod.metadata.uid}/{_container_id(pod, int(engine.url.rpartition(':')[2]))}"
    if any(condition.type == "Ready" and condition.status == "True" for condition in status.conditions or ()):
        return PodState.ROUTED, None, Listed(engine, identity)
    reason = f"the pod {pod.metadata.namespace}/{pod.metadata.name} is not Ready"
    return PodState.HELD, reason, Listed(engine, identity, reason)


def _absent(pod: Pod) -> tuple[PodState, str] | None:
    """Why there is no engine to talk to, if there is none."""
    if not label(pod.metadata.labels or {}, NAME):
        return PodState.IGNORED, f"it has no label {OURS}{NAME} or {AIBRIX}{NAME}"
    if pod.metadata.deletion_timestamp is not None:
        return PodState.DRAINING, "it is being deleted"
    if pod.status.phase != "Running":
        return PodState.WAITING, f"its phase is {pod.status.phase or 'not known'}, not Running"
    return None if pod.status.pod_ip else (PodState.WAITING, "it has no IP yet")


def label(labels: Mapping[str, str], name: str) -> str | None:
    """A label's value under our prefix, else under AIBrix's."""
    return next((labels[prefix + name] for prefix in PREFIXES if prefix + name in labels), None)


def engine_at(
    ip: str, labels: Mapping[str, str], annotations: Mapping[str, str], port_default: int = PORT_DEFAULT
) -> EngineConfig:
    """The engine at an address that is labelled so. Raises ValueError with what is wrong."""
    own = {key.removeprefix(OURS): value.strip() for key, value in annotations.items() if key.startswith(OURS)}
    port = _port(own, API_PORT, f"annotation {OURS}{API_PORT}")
    if port is None:
        given = label(labels, PORT)
        port = port_default if given is None else _port({PORT: given}, PORT, f"label {PORT}")
    scheme = own.get(SCHEME, "http")
    if scheme not in ("http", "https"):
        raise ValueError(f"the annotation {OURS}{SCHEME} is {scheme!r}, which is neither http nor https")
    events, replay = (_port(own, name, f"annotation {OURS}{name}") for name in (EVENTS_PORT, REPLAY_PORT))
    url = Endpoint(ip, port or port_default, tls=scheme == "https").url
    if (refusal := RANGES["engines[].url"].refuse(url)) is not None:
        raise ValueError(f"its address makes {url!r}, which {refusal}")
    return EngineConfig(
        url=url,
        events_endpoint=None if events is None else str(TcpAddress(ip, events)),
        replay_endpoint=None if replay is None else str(TcpAddress(ip, replay)),
        topic=_checked(own, TOPIC, own.get(TOPIC), "topic"),
        data_parallel_size=_number(own, RANKS, "data_parallel_size", int),
        weight=_number(own, WEIGHT, "weight", float) or 0.0 if WEIGHT in own else 1.0,
        events=label(labels, EVENTS) == "true",
    )


def _port(given: Mapping[str, str], name: str, what: str) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    port = int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 else 0
    if not 1 <= port <= PORT_MAX:
        raise ValueError(f"the {what} is {text!r}, which is no port from 1 to {PORT_MAX}")
    return port


def _number(own: Mapping[str, str], name: str, setting: str, kind: type[N]) -> N | None:
    text = own.get(name)
    try:
        value = None if text is None else kind(text)
    except ValueError:
        raise ValueError(f"the annotation {OURS}{name} is {text!r}, which is no number") from None
    return _checked(own, name, value, setting)


def _checked(own: Mapping[str, str], name: str, value: T | None, setting: str) -> T | None:
    """`value`, if the configuration's own setting could have it."""
    allowed = RANGES[f"engines[].{setting}"]
    if value is not None and (refusal := allowed.refuse(value)) is not None:
        raise ValueError(f"the annotation {OURS}{name} is {own[name]!r}, which {refusal}")
    return value


def _container_id(pod: Pod, port: int) -> str:
    """Which start of the engine's container this is: the one that has its port, else the first."""
    containers = pod.spec.containers
    named = [c.name for c in containers if any(p.container_port == port for p in c.ports or ())]
    named += [c.name for c in containers]
    statuses = {status.name: status.container_id or "" for status in pod.status.container_statuses or ()}
    return next((statuses[name] for name in named if name in statuses), "")
