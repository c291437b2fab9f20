"""Objects as a cluster has them: short to write in a test, with the fields that clients stumble over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Object = dict[str, Any]


def pod(
    name: str,
    ip: str | None = None,
    *,
    model: str | None = "m",
    phase: str = "Running",
    ready: bool = True,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Object:
    """A pod with one container, `vllm`; with events, unless the labels say otherwise."""
    own = {"model.aibrix.ai/name": model, "model.aibrix.ai/kv-events-enabled": "true"} if model else {}
    status: Object = {
        "phase": phase,
        "conditions": [{"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": None}],
        "containerStatuses": [{"name": "vllm", "containerID": f"containerd://{name}-1", "restartCount": 0}],
    }
    if ip is not None:
        status |= {"podIP": ip, "podIPs": [{"ip": ip}]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": own | dict(labels or {}),
            "annotations": dict(annotations or {}),
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
        },
        "spec": {"containers": [{"name": "vllm", "ports": [{"containerPort": 8000}]}]},
        "status": status,
    }


def endpoint_slice(
    name: str,
    service: str,
    endpoints: Mapping[str, Mapping[str, bool]],
    port: int = 8000,
    *,
    annotations: Mapping[str, str] | None = None,
) -> Object:
    """A slice of a Service: address -> its conditions."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/service-name": service},
            "annotations": dict(annotations or {}),
        },
        "addressType": "IPv6" if any(":" in address for address in endpoints) else "IPv4",
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": [address],
                "conditions": dict(conditions),
                "targetRef": {"kind": "Pod", "uid": f"u-{address}"},
            }
            for address, conditions in endpoints.items()
        ],
    }


def deployment_of(name: str, template: Mapping[str, Any], replicas: int = 1) -> Object:
    """A Deployment of a pod template, rolled out."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "template": dict(template)},
        "status": {"observedGeneration": 1, "replicas": replicas, "updatedReplicas": replicas},
    }
