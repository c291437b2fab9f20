"""What the model's chart writes on pods and Services is what discovery reads there, to the port."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from charts_rig import MODEL, Document, pod_of, rendered, the
from charts_values import MODEL_AXES, combined

from warmroute.config.tree import EngineConfig
from warmroute.core.pods import PodState, read_pod
from warmroute.core.slices import read_slice

pytestmark = pytest.mark.usefixtures("tools")
IP = "10.0.0.7"


def ports_of(template: Document) -> dict[str, int]:
    (container,) = template["spec"]["containers"]
    return {port["name"]: port["containerPort"] for port in container["ports"]}


def as_pod(template: Document) -> bytes:
    """The template as a pod that runs."""
    metadata = {**template["metadata"], "name": "p", "namespace": "serving", "uid": "u", "resourceVersion": "1"}
    status = {"phase": "Running", "podIP": IP, "conditions": [{"type": "Ready", "status": "True"}]}
    return json.dumps({"metadata": metadata, "spec": template["spec"], "status": status}).encode()


def as_slice(service: Document, ports: Mapping[str, int]) -> bytes:
    """What Kubernetes makes of a headless Service with one endpoint, its ports in the Service's order."""
    metadata = {**service["metadata"], "uid": "u", "resourceVersion": "1"}
    listed = [{"name": port["name"], "port": ports[port["targetPort"]]} for port in service["spec"]["ports"]]
    return json.dumps({"metadata": metadata, "endpoints": [{"addresses": [IP]}], "ports": listed}).encode()


def expected(values: Mapping[str, Any], ports: Mapping[str, int]) -> EngineConfig:
    model = values.get("model", {})
    events = "kv-events" in ports
    return EngineConfig(
        url=f"http://{IP}:{ports['api']}",
        events=events,
        events_endpoint=f"tcp://{IP}:{ports['kv-events']}" if events else None,
        replay_endpoint=f"tcp://{IP}:{ports['kv-replay']}" if events else None,
        topic=model.get("kvEvents", {}).get("topic") if events else None,
        data_parallel_size=model.get("dataParallelSize", 1),
        weight=float(model.get("weight", 1)),
    )


def test_discovery_reads_what_the_chart_writes() -> None:
    for name, values in combined(MODEL_AXES):
        found = rendered(MODEL, values)
        template = pod_of(found)
        sighting = read_pod(as_pod(template))
        assert (sighting.state, sighting.notes) == (PodState.ROUTED, ()), (name, sighting)
        assert [each.engine for each in sighting.engines] == [expected(values, ports_of(template))], name
        if values.get("service", {}).get("enabled", True):
            service = the(found, "Service")
            assert service["spec"]["clusterIP"] == "None"
            sighting = read_slice(as_slice(service, ports_of(template)), None, events=False)
            assert [each.engine for each in sighting.engines] == [expected(values, ports_of(template))], name
