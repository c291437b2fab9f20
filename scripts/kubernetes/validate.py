#!/usr/bin/env python3
"""Hold manifests against Kubernetes' own types, strictly: an unknown or mistyped field is a problem.

    TOOLS/bin/python validate.py 1.30 1.37 < documents.json     a JSON list in, a problem a line out; exit code 1 if any

Runs in the environment that install.sh makes. The schemas are those that each release's API server publishes (OpenAPI),
closed against unknown fields. ServiceMonitor is held against its operator's model, the original system's PodAutoscaler
against the fields its definition has. A kind that none of these knows is a problem, too.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
from referencing import Registry, Resource

SCHEMAS = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
TEXT, WHOLE = {"type": "string"}, {"type": "integer"}


def closed(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    """A mapping with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required) or list(properties),
        "additionalProperties": False,
    }


POD_AUTOSCALER = closed(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "autoscaling.aibrix.ai/v1alpha1"},
    kind={"const": "PodAutoscaler"},
    metadata={"type": "object"},
    spec=closed(
        ("maxReplicas", "scaleTargetRef", "scalingStrategy", "metricsSources"),
        scalingStrategy={"enum": ["HPA", "KPA", "APA"]},
        minReplicas=WHOLE,
        maxReplicas=WHOLE,
        scaleTargetRef=closed((), apiVersion=TEXT, kind=TEXT, name=TEXT),
        metricsSources={
            "type": "array",
            "minItems": 1,
            "items": closed(
                ("metricSourceType", "protocolType", "path", "targetMetric", "targetValue"),
                metricSourceType={"enum": ["pod", "resource", "custom", "external", "domain"]},
                protocolType={"enum": ["http", "https"]},
                endpoint=TEXT,
                port=TEXT,
                path=TEXT,
                targetMetric=TEXT,
                targetValue=TEXT,
            ),
        },
    ),
)


@functools.cache
def registry(release: str) -> Registry:
    """The definitions that a release's schemas refer to."""
    definitions = json.loads((folder(release) / "_definitions.json").read_text())
    return Resource.from_contents(definitions) @ Registry()


def folder(release: str) -> Path:
    """Where a release's strict schemas lie."""
    return SCHEMAS / f"v{release}.0-local-strict"


@functools.cache
def validator(release: str, kind: str, api_version: str) -> jsonschema.Draft202012Validator | None:
    """What judges documents of a kind; None if the release does not know it."""
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    path = folder(release) / f"{kind.lower()}-{group}.json"
    if not path.exists():
        return None
    schema = json.loads(path.read_text())
    known = Resource.from_contents(schema) @ registry(release)
    return jsonschema.Draft202012Validator(schema, registry=known)


def problems(document: dict[str, Any], release: str) -> Iterator[str]:
    """What is wrong with a document."""
    kind, api_version = document.get("kind", ""), document.get("apiVersion", "")
    if (kind, api_version) == ("ServiceMonitor", "monitoring.coreos.com/v1"):
        from cloudcoil.models.prometheus_operator import v1 as prometheus  # noqa: PLC0415  takes seconds

        yield from unread(document, prometheus.ServiceMonitor)
        return
    judge = validator(release, kind, api_version)
    if (kind, api_version) == ("PodAutoscaler", "autoscaling.aibrix.ai/v1alpha1"):
        judge = jsonschema.Draft202012Validator(POD_AUTOSCALER)
    if judge is None:
        yield f"no {kind} of {api_version}"
        return
    for error in judge.iter_errors(document):
        yield f"{error.json_path}: {error.message[:300]}"


def unread(document: dict[str, Any], model: Any) -> Iterator[str]:
    """The model ignores what it does not know: whatever does not come out again was unknown."""
    try:
        read = model.model_validate(document).model_dump(by_alias=True, exclude_unset=True, mode="json")
    except ValueError as error:
        yield str(error)
        return
    if read != document:
        yield f"unknown fields: only {json.dumps(read)} was read of {json.dumps(document)}"


def main() -> int:
    """Judge all documents by all releases."""
    documents, found = json.load(sys.stdin), 0
    for release in sys.argv[1:]:
        if not folder(release).is_dir():
            sys.exit(f"no schemas of Kubernetes {release}")
        for document in documents:
            name = f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"
            for problem in problems(document, release):
                found += 1
                print(f"{release} {name}: {problem}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
