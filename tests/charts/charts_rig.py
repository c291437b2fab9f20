"""Charts in, documents out; and what an API server would refuse beyond its types."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "kubernetes"))

import render  # noqa: E402  (found by the path above)

RELEASES = tuple(f"1.{minor}" for minor in range(30, 38))
"""Of Kubernetes: those that the charts are for."""
GATEWAY, MODEL = "warmroute", "warmroute-model"
Document = dict[str, Any]
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def is_installed() -> bool:
    """Whether install.sh has finished."""
    return (render.tools().parent / ".complete").exists()


class RefusedError(Exception):
    """Helm would not make manifests of these values; its message says why."""


def rendered(chart: str, values: Mapping[str, Any], release: str = "wr", helm: str = "helm4") -> list[Document]:
    """What a chart makes of values. Raises RefusedError."""
    command = [
        str(render.tools() / helm),
        "template",
        release,
        str(ROOT / "charts" / chart),
        "-n",
        "serving",
        "-f",
        "-",
    ]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RefusedError(done.stderr)
    return documents(done.stdout)


def documents(text: str) -> list[Document]:
    """The documents of a manifest."""
    return [document for document in yaml.load_all(text, Loader=LOADER) if document is not None]


def of_kind(found: Iterable[Document], kind: str) -> list[Document]:
    """Those of one kind."""
    return [document for document in found if document["kind"] == kind]


def the(found: Iterable[Document], kind: str) -> Document:
    """The only one of its kind."""
    (document,) = of_kind(found, kind)
    return document


def pod_of(found: Iterable[Document]) -> Document:
    """The Deployment's pod template."""
    template: Document = the(found, "Deployment")["spec"]["template"]
    return template


def invalid(found: Iterable[Document], releases: Iterable[str] = RELEASES) -> list[str]:
    """What Kubernetes' types have against the documents, each judged once."""
    unique = list({json.dumps(document, sort_keys=True): document for document in found}.values())
    command = [str(render.tools() / "python"), str(ROOT / "scripts" / "kubernetes" / "validate.py"), *releases]
    done = subprocess.run(command, input=json.dumps(unique), capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    assert bool(done.returncode) == bool(done.stdout)
    return done.stdout.splitlines()


def inconsistent(found: list[Document]) -> Iterator[str]:
    """What no single field shows: names that point nowhere, selectors that select nothing, what is there twice."""
    identities = Counter((each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in found)
    yield from (f"{identity} is there {count} times" for identity, count in identities.items() if count > 1)
    for each in found:
        name = each["metadata"]["name"]
        if not NAME.fullmatch(name) and "rbac" not in each["apiVersion"]:
            yield f"{each['kind']} {name}: no name"
        labels = each["metadata"].get("labels", {})
        yield from (f"{name}: label {k}={v!r}" for k, v in labels.items() if not LABEL_VALUE.fullmatch(v))
        if each["kind"] == "Deployment":
            yield from _inconsistent_deployment(each)
    accounts = {each["metadata"]["name"] for each in of_kind(found, "ServiceAccount")}
    for deployment in of_kind(found, "Deployment"):
        yield from _unmatched(deployment["spec"]["template"], found)
        account = deployment["spec"]["template"]["spec"].get("serviceAccountName", "default")
        if accounts and account not in accounts:
            yield f"no ServiceAccount {account}"
    roles = {(each["kind"], each["metadata"]["name"]) for each in found if each["kind"].endswith("Role")}
    for each in found:
        if each["kind"].endswith("Binding") and (each["roleRef"]["kind"], each["roleRef"]["name"]) not in roles:
            yield f"{each['metadata']['name']} binds nothing"


def _inconsistent_deployment(deployment: Document) -> Iterator[str]:
    template = deployment["spec"]["template"]
    if not deployment["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items():
        yield "the Deployment does not select its own pods"
    yield from (f"label {k}={v!r}" for k, v in template["metadata"]["labels"].items() if not LABEL_VALUE.fullmatch(v))
    (container,) = template["spec"]["containers"]
    ports = Counter(port["name"] for port in container["ports"])
    ports += Counter(str(port["containerPort"]) for port in container["ports"])
    yield from (f"port {port} is there twice" for port, count in ports.items() if count > 1)
    yield from (f"port name {port['name']}" for port in container["ports"] if len(port["name"]) > 15)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if container[probe]["httpGet"]["port"] not in ports:
            yield f"{probe} asks a port that is not there"
    volumes = Counter(volume["name"] for volume in template["spec"]["volumes"])
    mounts = Counter(mount["name"] for mount in container["volumeMounts"])
    if set(volumes) != set(mounts) or max(volumes.values()) > 1:
        yield f"volumes {sorted(volumes)} and mounts {sorted(mounts)}"
    grace, sleep = template["spec"]["terminationGracePeriodSeconds"], container["lifecycle"]["preStop"]["sleep"]
    if sleep["seconds"] >= grace:
        yield f"a grace period of {grace} s ends before the {sleep['seconds']} s it begins with"


def _unmatched(template: Document, found: list[Document]) -> Iterator[str]:
    labels = template["metadata"]["labels"].items()
    ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    for service in of_kind(found, "Service"):
        if not service["spec"]["selector"].items() <= labels:
            yield f"Service {service['metadata']['name']} selects nothing"
        yield from (
            f"no port {port['targetPort']}" for port in service["spec"]["ports"] if port["targetPort"] not in ports
        )
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        for each in of_kind(found, kind):
            selector = each["spec"].get("selector") or each["spec"]["podSelector"]
            if not selector["matchLabels"].items() <= labels:
                yield f"{kind} {each['metadata']['name']} selects nothing"
    for monitor in of_kind(found, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        services = [each for each in of_kind(found, "Service") if wanted <= each["metadata"]["labels"].items()]
        offered = [port["name"] for service in services for port in service["spec"]["ports"]]
        if offered != [endpoint["port"] for endpoint in monitor["spec"]["endpoints"]]:
            yield f"ServiceMonitor finds {offered}"
