"""Pods and slices as engines: the state table, row by row, and anything that is no pod."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.config.tree import EngineConfig
from warmroute.core.pods import PodState, Sighting, read_pod
from warmroute.core.roster import Listed
from warmroute.core.slices import read_slice
from warmroute.testing.kubernetes import endpoint_slice, pod

OURS, AIBRIX = "warmroute.dev/", "model.aibrix.ai/"


def read(found: dict[str, Any], **metadata: Any) -> Sighting:
    found["metadata"] |= {"namespace": "ns", "uid": "u", "resourceVersion": "7"} | metadata
    return read_pod(json.dumps(found).encode())


def engine(found: dict[str, Any]) -> EngineConfig:
    sighting = read(found)
    assert sighting.reason is None, sighting
    (listed,) = sighting.engines
    return listed.engine


def test_a_pod_that_is_routed_to() -> None:
    assert read(pod("p", "10.0.0.1")) == Sighting(
        uid="u",
        version="7",
        name="ns/p",
        state=PodState.ROUTED,
        engines=(Listed(EngineConfig(url="http://10.0.0.1:8000"), "u/containerd://p-1"),),
    )


STATES: list[tuple[dict[str, Any], dict[str, Any], PodState]] = [
    (pod("p", "10.0.0.1", model=None), {}, PodState.IGNORED),
    (pod("p", "10.0.0.1", model=None), {"deletionTimestamp": "2026-01-01T00:00:00Z"}, PodState.IGNORED),
    (pod("p", "10.0.0.1"), {"deletionTimestamp": "2026-01-01T00:00:00Z"}, PodState.DRAINING),
    (pod("p", phase="Pending", ready=False), {}, PodState.WAITING),
    (pod("p", None), {}, PodState.WAITING),
    (pod("p", ""), {}, PodState.WAITING),
    (pod("p", "10.0.0.1", phase="Failed"), {}, PodState.WAITING),
    (pod("p", "10.0.0.1", phase="Succeeded"), {}, PodState.WAITING),
    (pod("p", "10.0.0.1", phase="Unknown"), {}, PodState.WAITING),
    (pod("p", "10.0.0.1", labels={AIBRIX + "port": "http"}), {}, PodState.INVALID),
    (pod("p", "10.0.0.256"), {}, PodState.INVALID),
    (pod("p", "10.0.0.1", ready=False), {}, PodState.HELD),
    (pod("p", "10.0.0.1"), {}, PodState.ROUTED),
    (pod("p", "fd00::1"), {}, PodState.ROUTED),
]


@pytest.mark.parametrize(("found", "metadata", "state"), STATES)
def test_the_state_table(found: dict[str, Any], metadata: dict[str, Any], state: PodState) -> None:
    sighting = read(found, **metadata)
    assert sighting.state is state
    assert bool(sighting.engines) is (state in (PodState.ROUTED, PodState.HELD))
    assert (sighting.reason is None) is (state is PodState.ROUTED)


def test_a_pod_that_is_not_ready_is_followed_but_held() -> None:
    (listed,) = read(pod("p", "10.0.0.1", ready=False)).engines
    assert listed.held == "the pod ns/p is not Ready"
    assert listed.engine.events


@pytest.mark.parametrize("value", ["True", "1", "yes", "TRUE", "", "false", None])
def test_D2_events_are_followed_only_if_the_label_is_exactly_true(value: str | None) -> None:
    found = pod("p", "10.0.0.1")
    del found["metadata"]["labels"][AIBRIX + "kv-events-enabled"]
    if value is not None:
        found["metadata"]["labels"][AIBRIX + "kv-events-enabled"] = value
    assert engine(found).events is False


def test_D4_a_running_pod_without_an_ip_is_left_alone() -> None:
    assert read(pod("p", None)).engines == ()


def test_labels_of_either_prefix_and_ours_count_first() -> None:
    ours = pod("p", "10.0.0.1", model=None, labels={OURS + "name": "m", OURS + "kv-events-enabled": "true"})
    assert engine(ours) == EngineConfig(url="http://10.0.0.1:8000")
    both = pod("p", "10.0.0.1", labels={AIBRIX + "port": "1", OURS + "port": "9000", OURS + "kv-events-enabled": "no"})
    assert engine(both) == EngineConfig(url="http://10.0.0.1:9000", events=False)


def test_annotations_say_the_rest() -> None:
    found = pod(
        "p",
        "fd00::1",
        labels={AIBRIX + "port": "8001"},
        annotations={
            OURS + "api-port": "9000",
            OURS + "events-port": "6000",
            OURS + "replay-port": "6100",
            OURS + "data-parallel-size": "4",
            OURS + "topic": "kv@m",
            OURS + "scheme": "https",
            OURS + "weight": "0.5",
        },
    )
    assert engine(found) == EngineConfig(
        url="https://[fd00::1]:9000",
        events_endpoint="tcp://[fd00::1]:6000",
        replay_endpoint="tcp://[fd00::1]:6100",
        topic="kv@m",
        data_parallel_size=4,
        weight=0.5,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("api-port", "0"),
        ("api-port", "65536"),
        ("events-port", "-1"),
        ("replay-port", "５５５８"),
        ("data-parallel-size", "many"),
        ("data-parallel-size", "0"),
        ("topic", "a\nb"),
        ("scheme", "ftp"),
        ("weight", "-1"),
        ("weight", "nan"),
        ("weight", "much"),
    ],
)
def test_an_annotation_that_cannot_be_is_said(name: str, value: str) -> None:
    sighting = read(pod("p", "10.0.0.1", annotations={OURS + name: value}))
    assert sighting.state is PodState.INVALID
    assert OURS + name in (sighting.reason or "")
    assert sighting.engines == ()


def test_an_annotation_that_nobody_knows_is_noted() -> None:
    (note,) = read(pod("p", "10.0.0.1", annotations={OURS + "event-port": "5557", "other/x": "y"})).notes
    assert note.startswith("the annotation warmroute.dev/event-port is not known; known are api-port, events-port")


def test_another_start_of_the_engines_container_is_another_engine_and_a_sidecars_is_not() -> None:
    found = pod("p", "10.0.0.1")
    found["spec"]["containers"].insert(0, {"name": "proxy", "ports": [{"containerPort": 15001}]})
    found["status"]["containerStatuses"].append({"name": "proxy", "containerID": "x-1"})
    before = read(found).engines[0].identity
    found["status"]["containerStatuses"][1]["containerID"] = "x-2"
    assert read(found).engines[0].identity == before
    found["status"]["containerStatuses"][0]["containerID"] = "containerd://p-2"
    assert read(found).engines[0].identity != before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
LABELS = st.dictionaries(
    st.sampled_from([p + n for p in (OURS, AIBRIX) for n in ("name", "port", "kv-events-enabled")]),
    st.sampled_from(["m", "true", "True", "8000", "0", "x", ""]),
)
ANNOTATIONS = st.dictionaries(
    st.sampled_from([OURS + n for n in ("api-port", "events-port", "data-parallel-size", "topic", "weight", "q")]),
    st.sampled_from(["1", "5557", "0", "-3", "x", "", "99999999"]) | st.text(max_size=4),
)


@given(
    labels=LABELS | JSON,
    annotations=ANNOTATIONS | JSON,
    status=JSON | st.fixed_dictionaries({"phase": st.just("Running"), "podIP": st.just("10.0.0.1") | JSON}),
)
def test_whatever_a_pod_is_it_is_read_or_refused(labels: Any, annotations: Any, status: Any) -> None:
    metadata = {"name": "p", "uid": "u", "labels": labels, "annotations": annotations}
    try:
        sighting = read_pod(json.dumps({"metadata": metadata, "status": status}).encode())
    except ValueError:
        return
    assert bool(sighting.engines) is (sighting.state in (PodState.ROUTED, PodState.HELD))
    assert (sighting.reason is None) is (sighting.state is PodState.ROUTED)


# Slices.


def slice_of(port_name: str | None = None, *, events: bool = True, **given: Any) -> Sighting:
    found = endpoint_slice("s", "engines", given.pop("endpoints"), **given)
    found["metadata"] |= {"namespace": "ns", "uid": "u", "resourceVersion": "7"}
    return read_slice(json.dumps(found).encode(), port_name, events=events)


def test_endpoints_are_engines_unless_they_terminate() -> None:
    endpoints: dict[str, dict[str, bool]] = {
        "10.0.0.1": {"ready": True, "serving": True, "terminating": False},
        "10.0.0.2": {"ready": False, "serving": True, "terminating": True},
        "10.0.0.3": {"ready": False, "serving": False, "terminating": False},
        "10.0.0.4": {},
    }
    sighting = slice_of(endpoints=endpoints, port=9000)
    assert [(each.engine.url, each.identity, each.held is None) for each in sighting.engines] == [
        ("http://10.0.0.1:9000", "u-10.0.0.1", True),
        ("http://10.0.0.3:9000", "u-10.0.0.3", False),
        ("http://10.0.0.4:9000", "u-10.0.0.4", True),
    ]


def test_the_services_annotations_hold_for_all_of_its_endpoints() -> None:
    sighting = slice_of(endpoints={"10.0.0.1": {}}, annotations={OURS + "events-port": "6000"})
    assert sighting.engines[0].engine.events_endpoint == "tcp://10.0.0.1:6000"
    assert slice_of(endpoints={"10.0.0.1": {}}, events=False).engines[0].engine.events is False


def test_a_slice_without_the_port_is_said() -> None:
    assert slice_of("http", endpoints={"fd00::1": {}}).engines[0].engine.url == "http://[fd00::1]:8000"
    sighting = slice_of("grpc", endpoints={"10.0.0.1": {}})
    assert (sighting.state, sighting.reason) == (PodState.INVALID, "it has no port called 'grpc'")
