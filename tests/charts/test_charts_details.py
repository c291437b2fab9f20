"""What the charts are for, value by value: who may connect to whom, what is shown to whom, how pods end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from charts_rig import GATEWAY, MODEL, ROOT, Document, documents, of_kind, pod_of, rendered, the

from warmroute.cli.engine import command as engine_command
from warmroute.testing.engine import EngineOptions

pytestmark = pytest.mark.usefixtures("tools")
STATIC = {"config": {"discovery": {"kubernetes": {"enabled": False}}, "engines": ["http://engine:8000"]}}


def args_of(values: Mapping[str, Any]) -> list[str]:
    (container,) = pod_of(rendered(MODEL, values))["spec"]["containers"]
    args: list[str] = container["args"]
    return args


def kv_events(values: Mapping[str, Any]) -> dict[str, Any]:
    args = args_of(values)
    config: dict[str, Any] = json.loads(args[args.index("--kv-events-config") + 1])
    return config


def test_engines_publish_by_the_one_switch_there_is() -> None:
    assert kv_events({}) == {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": "tcp://*:5557",
        "replay_endpoint": "tcp://*:5567",
        "buffer_steps": 10000,
    }
    others = {"eventPort": 6000, "replayPort": 6100, "bufferSteps": 7, "topic": "kv", "highWaterMark": 9}
    assert kv_events({"model": {"kvEvents": others}}) == {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": "tcp://*:6000",
        "replay_endpoint": "tcp://*:6100",
        "buffer_steps": 7,
        "topic": "kv",
        "hwm": 9,
    }
    assert "--kv-events-config" not in args_of({"model": {"kvEvents": {"enabled": False}}})


def test_the_simulated_engine_takes_its_arguments() -> None:
    model = {
        "engine": "simulated",
        "name": "demo",
        "dataParallelSize": 2,
        "reportCachedTokens": False,
        "loras": [{"name": "sql", "path": "anywhere"}],
        "kvEvents": {"topic": "kv", "bufferSteps": 7},
    }
    name, *args = args_of({"model": model})
    assert name == "engine"
    options = EngineOptions(**engine_command.make_context(name, args).params)
    assert (options.model, options.host, options.port, options.data_parallel_size) == ("demo", "0.0.0.0", 8000, 2)
    assert (options.events_port, options.replay_port, options.topic, options.buffer_steps) == (5557, 5567, "kv", 7)
    assert (options.loras, options.prompt_tokens_details) == (("sql",), False)
    name, *args = args_of({"model": {"engine": "simulated", "kvEvents": {"enabled": False}}})
    assert not EngineOptions(**engine_command.make_context(name, args).params).events


@pytest.mark.parametrize("prefix", ["warmroute.dev", "model.aibrix.ai"])
def test_pods_say_what_discovery_reads(prefix: str) -> None:
    model = {"name": "llama", "port": 9000, "loraId": "7", "weight": 2, "dataParallelSize": 2}
    metadata = pod_of(rendered(MODEL, {"labelPrefix": prefix, "model": model}))["metadata"]
    labels = {key: value for key, value in metadata["labels"].items() if key.startswith(prefix)}
    assert labels == {
        f"{prefix}/name": "llama",
        f"{prefix}/port": "9000",
        f"{prefix}/kv-events-enabled": "true",
        f"{prefix}/lora-id": "7",
    }
    assert metadata["annotations"] == {
        "warmroute.dev/events-port": "5557",
        "warmroute.dev/replay-port": "5567",
        "warmroute.dev/data-parallel-size": "2",
        "warmroute.dev/weight": "2",
    }
    silent = pod_of(rendered(MODEL, {"model": {"kvEvents": {"enabled": False}}}))["metadata"]
    assert "warmroute.dev/kv-events-enabled" not in silent["labels"]
    assert silent["annotations"] == {"warmroute.dev/data-parallel-size": "1"}


def ports_by_peer(policy: Document, direction: str = "ingress") -> dict[str, set[object]]:
    """Peer as JSON (`everybody` for none) -> ports that it reaches."""
    reached: dict[str, set[object]] = {}
    peers = {"ingress": "from", "egress": "to"}[direction]
    for rule in policy["spec"][direction]:
        for peer in rule.get(peers, ["everybody"]):
            ports = reached.setdefault(json.dumps(peer, sort_keys=True), set())
            for port in rule.get("ports", ()):
                ports |= set(range(port["port"], port["endPort"] + 1)) if "endPort" in port else {port["port"]}
    return reached


def test_engines_accept_the_gateway_alone() -> None:
    found = rendered(MODEL, {"model": {"dataParallelSize": 2}})
    policy = the(found, "NetworkPolicy")
    labels = {"app.kubernetes.io/name": GATEWAY, "app.kubernetes.io/component": "gateway"}
    gateway = json.dumps({"podSelector": {"matchLabels": labels}}, sort_keys=True)
    assert ports_by_peer(policy) == {gateway: {8000, 5557, 5558, 5567, 5568}}
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    (container,) = pod_of(found)["spec"]["containers"]
    assert {port["containerPort"] for port in container["ports"]} == ports_by_peer(policy)[gateway]
    assert labels.items() <= pod_of(rendered(GATEWAY, {}))["metadata"]["labels"].items()
    silent = the(rendered(MODEL, {"model": {"kvEvents": {"enabled": False}}}), "NetworkPolicy")
    assert ports_by_peer(silent) == {gateway: {8000}}
    metrics = {"namespaceSelector": {}}
    reached = ports_by_peer(the(rendered(MODEL, {"networkPolicy": {"metrics": [metrics]}}), "NetworkPolicy"))
    assert reached.pop(json.dumps(metrics)) == {8000}
    assert reached == {gateway: {8000, 5557, 5567}}


def test_nobody_connects_to_a_gateway_but_clients_and_operators() -> None:
    policy = the(rendered(GATEWAY, {}), "NetworkPolicy")
    reached = ports_by_peer(policy)
    assert reached.pop('"everybody"') == {"http"}
    assert set.union(*reached.values()) == {"admin"}
    assert "egress" not in policy["spec"]
    closed = the(rendered(GATEWAY, {"networkPolicy": {"operators": [], "egress": {"enabled": True}}}), "NetworkPolicy")
    assert ports_by_peer(closed) == {'"everybody"': {"http"}}
    outward = ports_by_peer(closed, "egress")
    assert outward.pop('"everybody"') == {53}
    assert [peer for peer in outward if "warmroute.dev/name" in peer or "model.aibrix.ai/name" in peer] == list(outward)


@pytest.mark.parametrize(
    ("values", "granted"),
    [
        ({}, {("Role", "serving", "pods")}),
        (
            {"config": {"discovery": {"kubernetes": {"namespaces": "a, b"}}}},
            {("Role", "a", "pods"), ("Role", "b", "pods")},
        ),
        ({"config": {"discovery": {"kubernetes": {"namespaces": "*"}}}}, {("ClusterRole", None, "pods")}),
        (
            {"config": {"discovery": {"kubernetes": {"enabled": False}, "service": {"name": "x", "namespace": "c"}}}},
            {("Role", "c", "endpointslices")},
        ),
        (STATIC, set()),
    ],
)
def test_the_gateway_may_do_what_it_does_and_no_more(values: Mapping[str, Any], granted: set[tuple[str, ...]]) -> None:
    found = rendered(GATEWAY, values)
    rules = {
        (role["kind"], role["metadata"].get("namespace"), resource)
        for role in found
        if role["kind"] in ("Role", "ClusterRole")
        for rule in role["rules"]
        for resource in rule["resources"]
    }
    assert rules == granted
    roles = [role for role in found if role["kind"] in ("Role", "ClusterRole")]
    assert all(rule["verbs"] == ["list", "watch"] for role in roles for rule in role["rules"])
    assert pod_of(found)["spec"]["automountServiceAccountToken"] is bool(granted)
    assert the(found, "ServiceAccount")["automountServiceAccountToken"] is False


@pytest.mark.parametrize(("drain_s", "sleep_s", "grace_s"), [(120, 10, 140), (0.5, 1, 12), (3600, 30, 3640)])
def test_a_gateway_has_the_time_to_drain(drain_s: float, sleep_s: int, grace_s: int) -> None:
    values = {"config": {"gateway": {"drain_timeout_s": drain_s}}, "preStopSeconds": sleep_s}
    pod = pod_of(rendered(GATEWAY, values))["spec"]
    assert pod["terminationGracePeriodSeconds"] == grace_s
    assert pod["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": sleep_s}}}


@pytest.mark.parametrize("values", [{}, {"config": {"admin": {"tls": True}}, "tls": {"secret": "tls"}}])
def test_probes_ask_what_the_gateway_answers(values: Mapping[str, Any]) -> None:
    (container,) = pod_of(rendered(GATEWAY, values))["spec"]["containers"]
    scheme = "HTTPS" if values else "HTTP"
    health = {"path": "/health", "port": "admin", "scheme": scheme}
    assert container["startupProbe"]["httpGet"] == container["livenessProbe"]["httpGet"] == health
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http", "scheme": scheme}


def unrestricted(pod: Document) -> list[str]:
    """What Kubernetes' "restricted" Pod Security Standard has against a pod without sidecars."""
    spec, (container,) = pod["spec"], pod["spec"]["containers"]
    own, of_pod = container["securityContext"], spec["securityContext"]
    volumes = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
    rules = {
        "root": of_pod.get("runAsNonRoot") is True and of_pod.get("runAsUser") != 0,
        "seccomp": of_pod.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
        "escalation": own.get("allowPrivilegeEscalation") is False,
        "capabilities": own.get("capabilities") == {"drop": ["ALL"]},
        "privileged": not own.get("privileged"),
        "host": not any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")),
        "ports": not any("hostPort" in port for port in container["ports"]),
        "volumes": volumes <= {"configMap", "emptyDir", "secret", "persistentVolumeClaim", "projected"},
    }
    return [name for name, holds in rules.items() if not holds]


def test_pods_keep_to_the_pod_security_standards() -> None:
    production = rendered(GATEWAY, {"tls": {"secret": "a"}, "secrets": {"engineKey": {"name": "a", "key": "b"}}})
    assert unrestricted(pod_of(production)) == []
    assert unrestricted(pod_of(rendered(MODEL, {}))) == ["root"], "vLLM's own image begins as root"
    manifest = documents((ROOT / "deploy" / "quickstart-simulated.yaml").read_text())
    assert [unrestricted(each["spec"]["template"]) for each in of_kind(manifest, "Deployment")] == [[], []]


def test_a_gateway_is_confined() -> None:
    pod = pod_of(rendered(GATEWAY, {}))["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["enableServiceLinks"] is False
    assert pod["containers"][0]["resources"]["limits"].keys() == {"memory"}


def test_a_changed_configuration_makes_new_pods() -> None:
    def checksum(values: Mapping[str, Any]) -> str:
        found: str = pod_of(rendered(GATEWAY, values))["metadata"]["annotations"]["checksum/config"]
        return found

    secret = {"secrets": {"clientKeys": {"name": "a", "key": "keys"}}}
    assert checksum({}) == checksum({"replicas": 7})
    assert len({checksum({}), checksum({"config": {"log": {"level": "debug"}}}), checksum(secret)}) == 3


def test_operators_are_never_served_where_clients_are() -> None:
    found = rendered(GATEWAY, {"service": {"type": "LoadBalancer"}})
    clients, operators = of_kind(found, "Service")
    assert [port["name"] for port in clients["spec"]["ports"]] == ["http"]
    assert clients["spec"]["type"] == "LoadBalancer"
    assert [port["name"] for port in operators["spec"]["ports"]] == ["admin"]
    assert operators["spec"]["clusterIP"] == "None"


def test_secrets_are_files_that_the_configuration_names() -> None:
    key = {"name": "keys", "key": "clients"}
    found = rendered(GATEWAY, {"secrets": {"clientKeys": key}, "tls": {"secret": "tls"}})
    (volume,) = [each for each in pod_of(found)["spec"]["volumes"] if each["name"] == "client-keys"]
    assert volume["secret"] == {
        "secretName": "keys",
        "defaultMode": 0o440,
        "items": [{"key": "clients", "path": "key"}],
    }
    text = the(found, "ConfigMap")["data"]["warmroute.yaml"]
    for path in ("client-keys/key", "tls/tls.crt", "tls/tls.key"):
        assert f"/etc/warmroute/{path}\n" in f"{text}\n"


def test_autoscalers_leave_the_number_to_themselves() -> None:
    for chart in (GATEWAY, MODEL):
        found = rendered(chart, {"autoscaling": {"enabled": True}})
        assert "replicas" not in the(found, "Deployment")["spec"]
        scaler = the(found, "HorizontalPodAutoscaler")["spec"]
        assert scaler["scaleTargetRef"]["name"] == the(found, "Deployment")["metadata"]["name"]
        assert scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"] >= 300
    scaler = the(rendered(MODEL, {"autoscaling": {"enabled": True, "kind": "PodAutoscaler"}}), "PodAutoscaler")
    assert scaler["spec"]["metricsSources"][0]["targetMetric"] == "num_requests_waiting"
