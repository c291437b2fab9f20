"""The values' schemas: current, as wide as what the gateway takes, and no wider than a slip."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_origin

import pytest
from charts_rig import GATEWAY, MODEL, ROOT, RefusedError, invalid, render, rendered, the
from charts_values import GATEWAY_AXES, MODEL_AXES

from warmroute.config.document import parse_document
from warmroute.config.leaves import ENGINE_LEAVES, ENGINES, LEAVES, Leaf
from warmroute.config.ranges import Form, Range
from warmroute.config.schema import json_schema

SCHEMAS = {
    chart: json.loads((ROOT / "charts" / chart / "values.schema.json").read_text()) for chart in (GATEWAY, MODEL)
}
OWN_MINIMUM = {"gateway.port": 1, "admin.port": 1}
"""The chart must know the ports, so the system cannot choose them."""
OF_THE_CHART = ("engines", "gateway", "admin", "discovery")


def test_the_configuration_in_the_schema_is_todays() -> None:
    assert render.SCHEMA.read_text() == render.schema(), "run `make manifests`"


def leaves_of(schema: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, node in schema["properties"].items():
        if "properties" in node:
            yield from leaves_of(node, f"{prefix}{name}.")
        else:
            yield prefix + name, node


def test_the_schema_has_every_setting_and_no_other() -> None:
    schema = json_schema()
    assert [key for key, _ in leaves_of(schema)] == list(LEAVES)
    engine = schema["properties"]["engines"]["items"]["oneOf"][1]
    assert [key for key, _ in leaves_of(engine)] == list(ENGINE_LEAVES)
    assert engine["required"] == ["url"]
    for key, node in leaves_of(schema):
        if key != ENGINES:
            assert node["default"] == LEAVES[key].default
            assert node["description"].startswith(LEAVES[key].doc)


def every_mapping(node: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(node, dict):
        if "properties" in node and isinstance(node["properties"], dict):
            yield node
        for value in node.values():
            yield from every_mapping(value)
    elif isinstance(node, list):
        for value in node:
            yield from every_mapping(value)


@pytest.mark.parametrize("chart", [GATEWAY, MODEL])
def test_no_mapping_of_the_schema_takes_unknown_names(chart: str) -> None:
    properties = SCHEMAS[chart]["properties"]
    if overlay := properties.get("config"):  # what the chart adds to the closed one
        assert overlay["allOf"][0] == {"$ref": "#/definitions/config"}
    schema = {**SCHEMAS[chart], "properties": {name: node for name, node in properties.items() if name != "config"}}
    assert [node for node in every_mapping(schema) if node.get("additionalProperties") is not False] == []


def typical(leaf: Leaf, *, high: bool) -> Any:
    """A value at one end of what a setting takes."""
    if leaf.choices:
        return leaf.choices[-1 if high else 0]
    if isinstance(leaf.range, Range):
        bound = leaf.range.high if high else leaf.range.low
        if leaf.range.above and not high:
            bound += 0.001
        low = OWN_MINIMUM.get(leaf.key, bound)
        return max(int(bound), low) if leaf.kind is int else bound
    if get_origin(leaf.kind) is tuple:
        return []
    if leaf.kind is bool:
        return high
    assert isinstance(leaf.range, Form)
    if leaf.name == "host":
        return "::" if high else "0.0.0.0"
    return "text" if high or not leaf.optional else None


@pytest.mark.parametrize("high", [False, True])
@pytest.mark.parametrize("helm", ["helm3", "helm4"])
def test_every_setting_is_reachable_from_end_to_end_of_its_range(helm: str, high: bool, tools: None) -> None:
    config: dict[str, Any] = {ENGINES: ["http://a:1", {"url": "http://b:1", "data_parallel_size": 2, "events": high}]}
    expected = {}
    for key, leaf in LEAVES.items():
        if key == ENGINES or leaf.name == "api_key":
            continue
        *sections, name = key.split(".")
        place = config
        for section in sections:
            place = place.setdefault(section, {})
        expected[key] = place[name] = typical(leaf, high=high)
    text = the(rendered(GATEWAY, {"config": config}, helm=helm), "ConfigMap")["data"]["warmroute.yaml"]
    read = parse_document(text, "warmroute.yaml")
    assert isinstance(read, dict)
    assert read[ENGINES] == config[ENGINES]
    for key, value in expected.items():
        found = read
        for part in key.split("."):
            found = found[part]
        assert found == value, key
        assert type(found) is type(value) or {type(found), type(value)} == {int, float}, key


def test_null_is_a_value_where_it_means_something(tools: None) -> None:
    meant = [key for key, leaf in LEAVES.items() if leaf.optional and leaf.default is not None]
    assert meant == ["events.replay_port"]
    for helm in ("helm3", "helm4"):
        found = rendered(GATEWAY, {"config": {"events": {"replay_port": None}}}, helm=helm)
        read = parse_document(the(found, "ConfigMap")["data"]["warmroute.yaml"], "warmroute.yaml")
        assert isinstance(read, dict)
        assert read["events"] == {"replay_port": None}


def test_sections_may_be_empty(tools: None) -> None:
    """As they are when all their lines are commented out."""
    config: dict[str, Any] = {section: None for section in json_schema()["properties"] if section not in OF_THE_CHART}
    for empty in (config, {**config, "discovery": None}, {"discovery": {"kubernetes": None, "service": None}}):
        for more in ({}, {"tls": {"secret": "a"}, "secrets": {"engineKey": {"name": "a", "key": "b"}}}):
            assert invalid(rendered(GATEWAY, {"config": {ENGINES: ["http://a:1"], **empty}, **more}), ["1.37"]) == []


REFUSED_BY_THE_GATEWAYS = [
    ({"config": {"gateway": {"prot": 1}}}, "prot"),
    ({"config": {"gatway": {}}}, "gatway"),
    ({"config": {"gateway": {"port": 0}}}, "port"),
    ({"config": {"gateway": {"port": 65536}}}, "port"),
    ({"config": {"gateway": {"port": "8080"}}}, "port"),
    ({"config": {"admin": {"port": None}}}, "port"),
    ({"config": {"tokenizer": {"mode": False}}}, "mode"),  # what Helm makes of `mode: off`
    ({"config": {"routing": {"cpu_hit_worth": 1.5}}}, "cpu_hit_worth"),
    ({"config": {"engines": [{"events": True}]}}, "engines"),
    ({"config": {"engines": [{"url": "http://a:1", "api_key": "secret"}]}}, "engines"),
    ({"config": {"membership": {"api_key": "secret"}}}, "api_key"),
    ({"config": {"gateway": {"keys_file": "/x"}}, "secrets": {"clientKeys": {"name": "a", "key": "b"}}}, "keys_file"),
    ({"config": {"discovery": {"kubernetes": {"enabled": "yes"}}}}, "enabled"),
    ({"config": {"admin": {"host": "127.0.0.1"}}}, "host"),  # where no probe reaches it
    ({"config": {"gateway": {"host": None}}}, "host"),
    ({"podLabels": {"app.kubernetes.io/name": "x"}}, "podLabels"),
    ({"podAnnotations": {"checksum/config": "x"}}, "podAnnotations"),
    ({"image": {"digest": "latest"}}, "digest"),
    ({"replica": 3}, "replica"),
    ({"resources": {"limit": {}}}, "limit"),
    ({"preStopSeconds": 0}, "preStopSeconds"),
    ({"networkPolicy": {"operators": {}}}, "operators"),
    ({"autoscaling": {"enabled": True, "minReplicas": 11}}, "minReplicas 11 is above"),
    (
        {"serviceMonitor": {"enabled": True}, "secrets": {"operatorKeys": {"name": "a", "key": "b"}}},
        "operators need a key",
    ),
]
REFUSED_BY_MODELS = [
    ({"model": {"name": "meta-llama/Llama-3.1-8B"}}, "name"),
    ({"model": {"kvEvents": {"publisherType": "null"}}}, "publisherType"),
    ({"model": {"kvEvents": {"replayport": 5558}}}, "replayport"),
    ({"model": {"extraArgs": ["--enable-kv-cache-events"]}}, "extraArgs"),
    ({"model": {"extraArgs": ["--kv-events-endpoint=tcp://*:5557"]}}, "extraArgs"),
    ({"model": {"dataParallelSize": 2, "kvEvents": {"replayPort": 5558}}}, "for example 5567"),
    ({"model": {"dataParallelSize": 32}}, "for example 5589"),
    ({"model": {"kvEvents": {"replayPort": 5557}}}, "for example 5567"),
    ({"model": {"port": 5558, "dataParallelSize": 2}}, "5558 lies among the ports"),
    ({"model": {"loras": [{"name": "a"}]}}, "loras"),
    ({"labelPrefix": "example.org"}, "labelPrefix"),
    ({"networkPolicy": {"gateways": []}}, "gateways"),
    ({"autoscaling": {"kind": "KPA"}}, "kind"),
    ({"podLabels": {"warmroute.dev/name": "x"}}, "podLabels"),
    ({"podAnnotations": {"warmroute.dev/weight": "2"}}, "podAnnotations"),
    ({"rollingUpdate": {"maxSurge": "some"}}, "maxSurge"),
]


@pytest.mark.parametrize(
    ("chart", "values", "named"),
    [(GATEWAY, *case) for case in REFUSED_BY_THE_GATEWAYS] + [(MODEL, *case) for case in REFUSED_BY_MODELS],
)
def test_slips_are_refused_by_name(chart: str, values: Mapping[str, Any], named: str, tools: None) -> None:
    for helm in ("helm3", "helm4"):
        with pytest.raises(RefusedError, match=re.escape(named)):
            rendered(chart, values, helm=helm)


@pytest.mark.parametrize(("chart", "axes"), [(GATEWAY, GATEWAY_AXES), (MODEL, MODEL_AXES)])
def test_every_value_is_documented_and_switched_somewhere(chart: str, axes: Mapping[str, Any]) -> None:
    documented = (ROOT / "charts" / chart / "values.yaml").read_text()
    for name in SCHEMAS[chart]["properties"]:
        assert name in ("global", "config") or re.search(rf"^{name}:", documented, flags=re.MULTILINE), name
