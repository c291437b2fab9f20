"""The values that matter, by what they switch: each alone and each with each other is rendered and judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

Values = Mapping[str, Any]
Axes = Mapping[str, Mapping[str, Values]]

SECRET = {"name": "a-secret", "key": "key"}
AFFINITY = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
    {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
]}}}  # fmt: skip
SPREAD = {
    "maxSkew": 2,
    "topologyKey": "rack",
    "whenUnsatisfiable": "DoNotSchedule",
    "labelSelector": {"matchLabels": {"team": "x"}},
}
SCHEDULING: Values = {
    "affinity": AFFINITY,
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "priorityClassName": "high",
    "topologySpreadConstraints": [SPREAD],
}
EXTRAS: Values = {
    "extraVolumes": [{"name": "tokenizer", "persistentVolumeClaim": {"claimName": "tokenizer"}}],
    "extraVolumeMounts": [{"name": "tokenizer", "mountPath": "/tokenizer", "readOnly": True}],
    "extraEnv": [{"name": "TZ", "value": "UTC"}],
    "podAnnotations": {"a/b": "c"},
    "topologySpreadConstraints": [],
    "podLabels": {"team": "x"},
    "imagePullSecrets": [{"name": "pull"}],
}
STATIC: Values = {"config": {"discovery": {"kubernetes": {"enabled": False}}, "engines": ["http://engine:8000"]}}

GATEWAY_AXES: Axes = {
    "scale": {
        "fixed": {"replicas": 1, "podDisruptionBudget": {"enabled": False}},
        "hpa": {"autoscaling": {"enabled": True}},
    },
    "policy": {
        "none": {"networkPolicy": {"enabled": False}},
        "closed": {"networkPolicy": {"clients": [{"podSelector": {}}], "operators": [], "egress": {"enabled": True}}},
        "extra": {"networkPolicy": {"egress": {"enabled": True, "extra": [{"ports": [{"port": 443}]}]}}},
    },
    "tls": {
        "clients": {"tls": {"secret": "tls"}},
        "both": {"tls": {"secret": "tls", "engineCa": SECRET}, "config": {"admin": {"tls": True}}},
        "own": {"config": {"tls": {"certificate": "/tokenizer/a", "key": "/tokenizer/b"}}},
    },
    "discovery": {
        "all": {"config": {"discovery": {"kubernetes": {"namespaces": "*"}}}},
        "some": {"config": {"discovery": {"kubernetes": {"namespaces": "team-a, team-b", "selector": "tier=gold"}}}},
        "service": {"config": {"discovery": {"kubernetes": {"enabled": False}, "service": {"name": "engines"}}}},
        "static": STATIC,
        "without roles": {"rbac": {"create": False}, "serviceAccount": {"create": False, "name": "mine"}},
    },
    "keys": {
        "all": {"secrets": dict.fromkeys(("clientKeys", "engineKey", "redisPassword"), SECRET)},
    },
    "monitoring": {
        "on": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
        "with keys": {
            "secrets": {"operatorKeys": SECRET},
            "serviceMonitor": {
                "enabled": True,
                "authorization": SECRET,
                "tlsConfig": {"ca": {"secret": SECRET}, "serverName": "warmroute"},
                "relabelings": [{"action": "labeldrop", "regex": "pod"}],
                "metricRelabelings": [{"action": "drop", "regex": "python_.*", "sourceLabels": ["__name__"]}],
            },
        },
    },
    "placing": {"placed": SCHEDULING, "extras": EXTRAS},
    "names": {
        "long": {"fullnameOverride": "a" * 56, "nameOverride": "b" * 56},
        "image": {"image": {"digest": f"sha256:{'0' * 64}"}, "service": {"type": "LoadBalancer", "port": 80}},
    },
    "ports": {"others": {"config": {"gateway": {"port": 18080, "drain_timeout_s": 0.5}, "admin": {"port": 19090}}}},
}
MODEL_AXES: Axes = {
    "engine": {
        "simulated": {"model": {"engine": "simulated", "image": "warmroute:0.1.0"}},
        "keyed": {"model": {"apiKey": {"secret": "key"}, "hubToken": {"secret": "token"}, "source": "org/model"}},
        "silent": {"model": {"reportCachedTokens": False, "extraArgs": ["--max-model-len", "12288"]}},
    },
    "events": {
        "off": {"model": {"kvEvents": {"enabled": False}}},
        "others": {"model": {"kvEvents": {"eventPort": 6557, "replayPort": 6600, "topic": "kv", "highWaterMark": 5}}},
    },
    "ranks": {"two": {"model": {"dataParallelSize": 2}}, "eight": {"model": {"dataParallelSize": 8}}},
    "labels": {
        "aibrix": {"labelPrefix": "model.aibrix.ai", "model": {"loraId": "7"}},
        "weighted": {"model": {"weight": 0.5}},
    },
    "loras": {"two": {"model": {"loras": [{"name": "sql", "path": "/sql"}, {"name": "law", "path": "org/law"}]}}},
    "scale": {
        "hpa": {"autoscaling": {"enabled": True}},
        "pod autoscaler": {"autoscaling": {"enabled": True, "kind": "PodAutoscaler", "strategy": "APA"}},
        "fixed": {"replicas": 8, "podDisruptionBudget": {"enabled": False}},
    },
    "policy": {
        "none": {"networkPolicy": {"enabled": False}, "service": {"enabled": False}},
        "metrics": {"networkPolicy": {"metrics": [{"namespaceSelector": {}}]}},
    },
    "placing": {
        "placed": {**SCHEDULING, "runtimeClassName": "nvidia", "serviceAccount": {"name": "engines"}},
        "extras": {**EXTRAS, "storage": {"claim": "weights"}, "nameOverride": "other"},
    },
}


def combined(axes: Axes) -> Iterator[tuple[str, Values]]:
    """The defaults, every option alone, and rows in which every two options of different axes meet: (name, values)."""
    yield "defaults", {}
    yield from ((f"{axis}: {name}", values) for axis, named in axes.items() for name, values in named.items())
    for row in _covering(axes):
        values: Values = {}
        for axis, name in row.items():
            values = merged(values, axes[axis][name])
        yield ", ".join(f"{axis}: {name}" for axis, name in row.items()), values


def _covering(axes: Axes) -> Iterator[Mapping[str, str]]:
    """Rows of one option per axis, greedily chosen so that few of them hold all pairs."""
    options = [(axis, name) for axis, named in axes.items() for name in named]
    missing = {pair for pair in combinations(options, 2) if pair[0][0] != pair[1][0]}
    while missing:
        row = dict(min(missing))  # of those that are left, so that each row covers at least one
        for axis, named in axes.items():
            if axis not in row:
                row[axis] = max(named, key=lambda name: len(missing & _pairs(axes, {**row, axis: name})))
        missing -= _pairs(axes, row)
        yield {axis: row[axis] for axis in axes}


def _pairs(axes: Axes, row: Mapping[str, str]) -> set[tuple[tuple[str, str], tuple[str, str]]]:
    return set(combinations([(axis, row[axis]) for axis in axes if axis in row], 2))


def merged(values: Values, others: Values) -> Values:
    """Both, deeply; the latter win."""
    both = {**values}
    for key, value in others.items():
        both[key] = merged(both[key], value) if isinstance(value, dict) and isinstance(both.get(key), dict) else value
    return both
