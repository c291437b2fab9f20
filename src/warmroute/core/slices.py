"""What an EndpointSlice of a headless Service says of engines: those who may not read pods still see who is there.

Invariant: an endpoint is listed unless it is terminating; held while it is not ready.
"""

from __future__ import annotations

from typing import Final

import msgspec

from warmroute.core.pods import EVENTS, PREFIXES, Metadata, PodState, Sighting, engine_at, label
from warmroute.core.roster import Listed

SERVICE_LABEL: Final = "kubernetes.io/service-name"
"""Which Service a slice belongs to."""


class _Conditions(msgspec.Struct):
    ready: bool | None = None
    terminating: bool | None = None


class _Target(msgspec.Struct):
    uid: str = ""


class _Endpoint(msgspec.Struct, rename="camel"):
    addresses: list[str] = []
    conditions: _Conditions = msgspec.field(default_factory=_Conditions)
    target_ref: _Target | None = None


class _Port(msgspec.Struct):
    name: str | None = None
    port: int | None = None


class _Slice(msgspec.Struct, rename="camel"):
    metadata: Metadata
    address_type: str = "IPv4"
    endpoints: list[_Endpoint] | None = None
    ports: list[_Port] | None = None


_SLICE: Final = msgspec.json.Decoder(_Slice)


def read_slice(raw: bytes, port_name: str | None, *, events: bool) -> Sighting:
    """What a slice says, as JSON: the engines at its port of that name, or its first. Raises ValueError if it is none.

    Labels and annotations are the Service's, which Kubernetes copies; without a label, `events` says whether there are
    any.
    """
    found = _SLICE.decode(raw)
    meta = found.metadata
    seen = Sighting(meta.uid, meta.resource_version, f"{meta.namespace}/{meta.name}", PodState.ROUTED)
    port = next((p.port for p in found.ports or () if p.port and port_name in (None, p.name or "")), None)
    if meta.deletion_timestamp is not None:
        return _left_out(seen, PodState.DRAINING, "it is being deleted")
    if found.address_type == "FQDN":
        return _left_out(seen, PodState.INVALID, "its addresses are names; IPv4 or IPv6 is needed")
    if port is None:
        wanted = "port" if port_name is None else f"port called {port_name!r}"
        return _left_out(seen, PodState.INVALID, f"it has no {wanted}")
    labels = dict(meta.labels or {})
    if label(labels, EVENTS) is None:
        labels[PREFIXES[0] + EVENTS] = "true" if events else "false"
    engines: list[Listed] = []
    for endpoint in found.endpoints or ():
        if not endpoint.addresses or endpoint.conditions.terminating:
            continue
        try:
            engine = engine_at(endpoint.addresses[0], labels, meta.annotations or {}, port)
        except ValueError as error:
            return _left_out(seen, PodState.INVALID, str(error))
        ready = endpoint.conditions.ready is not False  # not said means that it is
        reason = None if ready else f"its endpoint in {seen.name} is not ready"
        engines.append(Listed(engine, endpoint.target_ref.uid if endpoint.target_ref else "", reason))
    return Sighting(seen.uid, seen.version, seen.name, PodState.ROUTED, engines=tuple(engines))


def _left_out(seen: Sighting, state: PodState, reason: str) -> Sighting:
    return Sighting(seen.uid, seen.version, seen.name, state, reason)
