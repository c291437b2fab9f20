"""Deployments with events on and back: what changes, what is refused, and that nothing is lost."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from warmroute.core.deployments import BEFORE, configuration, disabled, enabled, is_enabled, pods_of, progress
from warmroute.core.event_arguments import FLAG, UNKNOWN_FLAGS, PatchError
from warmroute.testing.kubernetes.apply import Owners

DATA = Path(__file__).parents[1] / "data" / "deployments"
SAMPLES = sorted(path.stem for path in DATA.glob("*.yaml"))
AIBRIX, OURS = "model.aibrix.ai/", "warmroute.dev/"


def sample(name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(yaml.safe_load_all((DATA / f"{name}.yaml").read_text()))
    return found


def of(*args: str, **container: Any) -> dict[str, Any]:
    """A Deployment of one container, with these arguments."""
    engine = {"name": "vllm", "image": "vllm/vllm-openai:v0.32.0", "args": list(args)} | container
    return {"metadata": {"name": "d"}, "spec": {"template": {"spec": {"containers": [engine]}}}}


def container(deployment: dict[str, Any], at: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = deployment["spec"]["template"]["spec"]["containers"][at]
    return found


def events_of(words: list[str]) -> dict[str, Any]:
    assert words.count(FLAG) == 1
    found: dict[str, Any] = json.loads(words[words.index(FLAG) + 1])
    return found


BOTH = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": "tcp://*:5557"}


@pytest.mark.parametrize(
    ("name", "place", "expected"),
    [
        ("flags_in_command", "command", {**BOTH, "replay_endpoint": "tcp://*:5558", "buffer_steps": 10000}),
        ("variables", "command", {**BOTH, "replay_endpoint": "tcp://*:5558", "buffer_steps": 10000, "hwm": 100000}),
        ("args", "args", {**BOTH, "replay_endpoint": "tcp://*:5558", "buffer_steps": 10000}),
        ("plain", "args", {**BOTH, "replay_endpoint": "tcp://*:5567"}),
    ],
)
def test_the_documents_deployments_get_arguments_that_exist(name: str, place: str, expected: dict[str, Any]) -> None:
    patched = enabled(sample(name)).deployment
    words = container(patched, -1)[place]
    assert events_of(words) == expected
    assert not [word for word in words if word.partition("=")[0] in UNKNOWN_FLAGS]
    labels = patched["spec"]["template"]["metadata"]["labels"]
    assert labels[AIBRIX + "kv-events-enabled"] == "true"
    assert labels[AIBRIX + "name"]


@pytest.mark.parametrize("name", SAMPLES)
def test_twice_is_once_and_back_is_what_was_there(name: str) -> None:
    before = sample(name)
    once = enabled(before).deployment
    assert before == sample(name)
    assert enabled(once).deployment == once
    assert is_enabled(once)
    assert not is_enabled(before)
    assert disabled(once) == before


def test_a_label_that_is_there_under_the_other_name_is_enough() -> None:
    deployment = sample("plain")
    labels = deployment["spec"]["template"]["metadata"].setdefault("labels", {})
    labels |= {OURS + "name": "m", OURS + "kv-events-enabled": "false"}
    found = enabled(deployment).deployment["spec"]["template"]["metadata"]["labels"]
    assert found[OURS + "kv-events-enabled"] == "true"
    assert AIBRIX + "kv-events-enabled" not in found


def test_a_container_without_labels_env_or_ports() -> None:
    patched = enabled(sample("plain")).deployment
    template = patched["spec"]["template"]
    assert template["metadata"] == {
        "labels": {
            "app": "plain",
            AIBRIX + "name": "Qwen3-0.6B",
            AIBRIX + "port": "9000",
            AIBRIX + "kv-events-enabled": "true",
        },
        "annotations": {
            OURS + "events-port": "5557",
            OURS + "replay-port": "5567",
            OURS + "data-parallel-size": "2",
        },
    }
    assert container(patched) == container(sample("plain"))
    assert container(patched, 1)["ports"] == [
        {"name": "kv-events", "containerPort": 5557, "protocol": "TCP"},
        {"name": "kv-replay", "containerPort": 5567, "protocol": "TCP"},
    ]


def test_what_is_right_stays_to_the_letter() -> None:
    own = (
        '{ "publisher": "zmq", "enable_kv_cache_events": true, '
        '"endpoint": "tcp://*:7000", "replay_endpoint": "tcp://*:7100", "topic": "kv"}'
    )
    for words in ([f"{FLAG}={own}", "--model", "m"], ["--model", "m", FLAG, own]):
        patched = enabled(of(*words)).deployment
        assert container(patched)["args"] == words
        assert patched["spec"]["template"]["metadata"]["annotations"][OURS + "replay-port"] == "7100"


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"publisher": "null", "topic": "kv"}, {**BOTH, "replay_endpoint": "tcp://*:5567", "topic": "kv"}),
        ({"endpoint": "tcp://0.0.0.0:6000"}, {**BOTH, "endpoint": "tcp://*:6000", "replay_endpoint": "tcp://*:6010"}),
        ({"replay_endpoint": "tcp://0.0.0.0:6000"}, {**BOTH, "replay_endpoint": "tcp://0.0.0.0:6000"}),
        ({"endpoint": "tcp://localhost:6000"}, {**BOTH, "replay_endpoint": "tcp://*:5567"}),
        ({"endpoint": "tcp://*:6000", "replay_endpoint": "tcp://*:6000"}, {"endpoint": "tcp://*:6000"}),
    ],
)
def test_what_cannot_work_is_put_right(own: dict[str, Any], expected: dict[str, Any]) -> None:
    events = events_of(container(enabled(of(FLAG, json.dumps(own))).deployment)["args"])
    assert events | expected == events
    assert events["replay_endpoint"] != events["endpoint"]


def test_replay_ports_are_clear_of_all_ranks() -> None:
    own = json.dumps({"endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5558"})
    events = events_of(container(enabled(of("-dp", "16", FLAG, own)).deployment)["args"])
    assert events["replay_endpoint"] == "tcp://*:5573"


SHELL = ["python3 -m vllm.entrypoints.openai.api_server --model m"]


@pytest.mark.parametrize(
    ("deployment", "told"),
    [
        (of(command=["/bin/bash", "-lc", "vllm serve m"]), "text for a shell.*by hand: --kv-events-config"),
        (of(command=["sh"], args=["-c", *SHELL]), "text for a shell"),
        (of(FLAG, "{"), "no JSON object"),
        (of("--port", 8000), "8000 among the arguments.*quote it"),  # type: ignore[arg-type]
        (of(f"{FLAG}.publisher", "zmq"), "one --kv-events-config with a JSON object"),
        (of(FLAG, "{}", command=["vllm", "serve", FLAG, "{}"]), "both command and args"),
    ],
)
def test_what_cannot_be_changed_safely_is_refused(deployment: dict[str, Any], told: str) -> None:
    with pytest.raises(PatchError, match=told):
        enabled(deployment)


@pytest.mark.parametrize("kept", ["", "[]", "{}", '{"container": "vllm", "before": {}, "after": null}'])
def test_an_annotation_that_somebody_changed_undoes_nothing(kept: str) -> None:
    deployment = enabled(sample("plain")).deployment
    deployment["metadata"]["annotations"][BEFORE] = kept
    with pytest.raises(PatchError, match="by hand"):
        disabled(deployment)


def test_of_several_containers_the_one_that_is_meant() -> None:
    two = of("--model", "m")
    two["spec"]["template"]["spec"]["containers"].append({"name": "vllm-2", "image": "x"})
    with pytest.raises(PatchError, match=r"several containers that run vLLM \(vllm, vllm-2\): say which one"):
        enabled(two)
    patched = enabled(two, container="vllm-2").deployment
    assert container(patched) == container(two)
    assert events_of(container(patched, 1)["args"])
    with pytest.raises(PatchError, match="it has no container 'x'; it has vllm, vllm-2"):
        enabled(two, container="x")
    with pytest.raises(PatchError, match="no container that is known to run vLLM"):
        enabled(of(name="a", image="b", args=[]))


def test_an_image_that_is_too_old_is_said_and_can_be_replaced() -> None:
    (obstacle,) = enabled(sample("variables")).obstacles
    assert "v0.7.1 has no --kv-events-config" in obstacle
    patched = enabled(sample("variables"), image="vllm/vllm-openai:v0.32.0")
    assert patched.obstacles == ()
    assert disabled(patched.deployment) == sample("variables")


def test_what_would_be_of_no_use_is_noted() -> None:
    assert "caches no prefixes" in enabled(of("--no-enable-prefix-caching")).notes[0]
    assert "where no gateway reaches it" in enabled(of("--host", "127.0.0.1")).obstacles[0]
    assert "no release of vLLM reads VLLM_ENABLE_KV_CACHE_EVENTS" in enabled(sample("variables")).notes[0]


def test_what_somebody_changed_since_is_not_undone_blindly() -> None:
    once = enabled(of("--model", "m")).deployment
    container(once)["args"].append("--seed=1")
    with pytest.raises(PatchError, match="its args changed since events were enabled"):
        disabled(once)
    with pytest.raises(PatchError, match="nothing to undo"):
        disabled(of())


def test_what_others_say_of_the_pods_stays() -> None:
    restarted = "kubectl.kubernetes.io/restartedAt"
    once = enabled(sample("plain")).deployment
    once["spec"]["template"]["metadata"]["annotations"][restarted] = "now"
    once["spec"]["template"]["metadata"]["labels"]["tier"] = "gpu"
    assert is_enabled(once)
    meta = disabled(once)["spec"]["template"]["metadata"]
    assert meta == {"labels": {"app": "plain", "tier": "gpu"}, "annotations": {restarted: "now"}}
    once["spec"]["template"]["metadata"]["labels"][AIBRIX + "kv-events-enabled"] = "false"
    with pytest.raises(PatchError, match="its labels changed since"):
        disabled(once)


@pytest.mark.parametrize("name", SAMPLES)
def test_applied_server_side_it_comes_and_goes_whole(name: str) -> None:
    before = sample(name)
    owners = Owners()
    on = enabled(before).deployment
    applied = configuration(before, on)
    assert json.dumps(applied["spec"]).count('"image"') == 0  # only what is ours
    there = owners.applied("d", before, applied, "warmroute")
    assert there == on
    off = disabled(there)
    assert owners.applied("d", there, configuration(there, off), "warmroute") == before


def test_what_is_applied_is_what_was_shown_also_after_another_hand() -> None:
    owners = Owners()
    there = enabled(sample("plain")).deployment
    container(there, 1)["args"] = ["--model=other"]
    del there["spec"]["template"]["metadata"]["annotations"][OURS + "events-port"]
    shown = enabled(there).deployment
    assert owners.applied("d", there, configuration(there, shown), "warmroute") == shown


def test_the_pods_are_those_of_its_selector() -> None:
    assert pods_of({"spec": {"selector": {"matchLabels": {"a": "1", "b": "2"}}}}) == "a=1,b=2"
    expressions = [
        {"key": "c", "operator": "In", "values": ["x", "y"]},
        {"key": "d", "operator": "NotIn", "values": ["z"]},
        {"key": "e", "operator": "Exists"},
        {"key": "f", "operator": "DoesNotExist"},
    ]
    selector = {"matchLabels": {"a": "1"}, "matchExpressions": expressions}
    assert pods_of({"spec": {"selector": selector}}) == "a=1,c in (x,y),d notin (z),e,!f"


def test_a_rollout_is_followed() -> None:
    deployment = of() | {"status": {"observedGeneration": 1, "updatedReplicas": 1, "availableReplicas": 0}}
    deployment["metadata"]["generation"], deployment["spec"]["replicas"] = 2, 2
    assert progress(deployment) == (False, "1 of 2 pods are new, 0 available")
    done = dict.fromkeys(("updatedReplicas", "availableReplicas", "replicas"), 2)
    assert not progress(deployment | {"status": done | {"observedGeneration": 1}})[0]
    assert progress(deployment | {"status": done | {"observedGeneration": 2}})[0]
    assert not progress(deployment | {"status": done | {"observedGeneration": 2, "replicas": 3}})[0]
    stuck = [{"type": "Progressing", "reason": "ProgressDeadlineExceeded", "message": "no room"}]
    with pytest.raises(PatchError, match="does not get on: no room"):
        progress(deployment | {"status": {"conditions": stuck}})


WORDS = st.lists(
    st.sampled_from(["--model", "m", "-dp", "4", "--port", "9000", "--host=0.0.0.0", "--seed=1", *UNKNOWN_FLAGS])
    | st.sampled_from([f"{FLAG}={{}}", '--kv-events-config={"endpoint":"tcp://*:6000"}', "tcp://*:5557", "zmq", ""]),
    max_size=8,
)
OPTIONAL = st.fixed_dictionaries(
    {},
    optional={
        "command": st.just(["vllm", "serve"]) | WORDS,
        "args": WORDS,
        "ports": st.lists(st.sampled_from([{"containerPort": 5557, "name": "kv-replay"}, {"containerPort": 8000}])),
        "env": st.just([{"name": "VLLM_KV_EVENTS_ENDPOINT", "value": "tcp://*:9"}, {"name": "X", "valueFrom": {}}]),
    },
)


@given(fields=OPTIONAL, meta=st.none() | st.just({}) | st.just({"labels": {"a": "b"}, "annotations": {"c": "d"}}))
def test_whatever_is_there_comes_back(fields: dict[str, Any], meta: dict[str, Any] | None) -> None:
    before = of()
    container(before).pop("args")
    container(before).update(copy.deepcopy(fields))
    before["spec"]["template"] |= {} if meta is None else {"metadata": copy.deepcopy(meta)}
    try:
        once = enabled(before).deployment
    except PatchError:
        return
    assert enabled(once).deployment == once
    back = disabled(once)
    assert BEFORE not in json.dumps(back)
    if meta is None:
        assert back["spec"]["template"].pop("metadata", {}) == {}
    assert back == before
