"""Pods that come, change and go, over a real connection to a fake API server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cluster_stage import ClusterStage, cluster_stage

from warmroute.testing.kubernetes import FakeKubernetes, pod

EVENTS = "model.aibrix.ai/kv-events-enabled"
A, B = "http://10.0.0.1:8000", "http://10.0.0.2:8000"
PUB_A, PUB_B = "tcp://10.0.0.1:5557", "tcp://10.0.0.2:5557"


@pytest.fixture
async def server() -> AsyncIterator[FakeKubernetes]:
    async with FakeKubernetes() as server:
        yield server


@pytest.fixture
async def stage(server: FakeKubernetes, tmp_path: Path) -> AsyncIterator[ClusterStage]:
    server.store.put("pods", pod("a", "10.0.0.1"))
    async with cluster_stage(server, tmp_path) as stage:
        await stage.until(lambda: stage.ready() == {A}, "the first pod is routed to")
        yield stage


async def test_D6_an_update_without_a_difference_keeps_the_subscription(stage: ClusterStage) -> None:
    for number in range(5):
        stage.server.store.change("pods", "a", lambda p, n=number: p["metadata"]["annotations"].update(x=str(n)))
        stage.server.store.change("pods", "a", lambda p, n=number: p["status"].update(qosClass=str(n)))
    await stage.in_step()
    assert stage.sockets.opened == {PUB_A: 1}
    assert stage.membership.fleet.workers[0].id == 0


@pytest.mark.parametrize("how", ["failed", "model label", "events label", "deleted", "terminating", "no ip"])
async def test_D8_a_pod_that_fails_or_loses_its_label_is_left_and_its_entries_purged(
    stage: ClusterStage, how: str
) -> None:
    store, index = stage.server.store, stage.router.index
    worker = stage.membership.fleet.workers[0].id
    from warmroute.core.wire.events import BlockStored

    stored = BlockStored(block_hashes=(1,), parent=None, token_ids=tuple(range(16)), block_size=16, lora=None)
    index.apply(worker, [stored])
    assert index.worker_sizes(worker).blocks == 1
    changes = {
        "failed": lambda p: p["status"].update(phase="Failed"),
        "model label": lambda p: p["metadata"]["labels"].pop("model.aibrix.ai/name"),
        "events label": lambda p: p["metadata"]["labels"].pop(EVENTS),
        "terminating": lambda p: p["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z"),
        "no ip": lambda p: p["status"].pop("podIP"),
    }
    if how == "deleted":
        store.delete("pods", "a")
    else:
        store.change("pods", "a", changes[how])
    await stage.in_step()
    assert stage.sockets.open == {}
    assert index.worker_sizes(worker).blocks == 0
    assert stage.ready() == ({A} if how == "events label" else set())


async def test_an_ip_that_changes_is_another_address(stage: ClusterStage) -> None:
    stage.server.store.change("pods", "a", lambda p: p["status"].update(podIP="10.0.0.2"))
    await stage.until(lambda: stage.ready() == {B}, "the new address")
    assert stage.sockets.open == {PUB_B: 1}


async def test_a_pod_that_terminates_gets_no_requests_and_ends_its_streams(stage: ClusterStage) -> None:
    running = stage.pick()
    stage.server.store.change("pods", "a", lambda p: p["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z"))
    await stage.until(lambda: not stage.ready(), "no new requests")
    assert (stage.present(), stage.sockets.open) == ({A}, {PUB_A: 1})
    stage.server.store.delete("pods", "a")
    await stage.in_step()
    stage.reconciler.tick()
    assert stage.present() == {A}
    stage.router.release(running, 0.0, served=True)
    stage.reconciler.tick()
    assert (stage.present(), stage.sockets.open) == (set(), {})


async def test_ready_flapping_moves_requests_and_nothing_else(stage: ClusterStage) -> None:
    for status in ("False", "True", "False", "True"):
        stage.server.store.change("pods", "a", lambda p, s=status: p["status"]["conditions"][0].update(status=s))
        await stage.until(lambda s=status: stage.ready() == ({A} if s == "True" else set()), status)
    assert stage.sockets.opened == {PUB_A: 1}


async def test_a_container_that_starts_again_has_an_empty_cache(stage: ClusterStage) -> None:
    stage.server.store.change("pods", "a", lambda p: p["status"]["containerStatuses"][0].update(containerID="x-2"))
    await stage.until(lambda: [w.id for w in stage.membership.fleet.workers if w.ready] == [1], "another worker")
    assert (stage.sockets.open, stage.sockets.opened) == ({PUB_A: 1}, {PUB_A: 2})


async def test_what_is_missed_while_away_is_found_without_a_list(
    stage: ClusterStage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = stage.server
    server.requests.clear()
    await server.stop()
    await stage.until(lambda: all(r.problem for r in stage.reflectors), "it is known to be away")
    server.store.put("pods", pod("b", "10.0.0.2"))
    server.store.delete("pods", "a")
    assert stage.ready() == {A}
    assert stage.pick().worker.endpoint.url == A
    view = stage.reflectors[1].view()
    assert not view["in_step"]
    assert "is the API server up" in view["problem"]
    await server.start()
    await stage.until(lambda: stage.ready() == {B}, "what was missed")
    assert "list" not in server.counted()
    said = [record.message for record in caplog.records if "cannot be followed" in record.message]
    assert len(said) == len(stage.reflectors)
    assert "last known 1 objects stay in force" in " ".join(said)


@pytest.mark.parametrize("as_status", [True, False])
async def test_what_was_forgotten_is_listed_once_and_what_is_gone_is_gone(stage: ClusterStage, as_status: bool) -> None:
    server = stage.server
    server.gone_as_status = as_status
    await server.stop()
    await stage.until(lambda: all(r.problem for r in stage.reflectors), "it is known to be away")
    server.store.put("pods", pod("b", "10.0.0.2"))
    server.store.delete("pods", "a")
    server.store.compact()
    server.requests.clear()
    await server.start()
    await stage.until(lambda: stage.ready() == {B}, "a new list")
    await server.watched(2)
    assert server.counted()["list"] == len(stage.reflectors)
    assert sum(r.counts["expired"] for r in stage.reflectors) == len(stage.reflectors)


async def test_watches_that_end_are_resumed_without_a_list(stage: ClusterStage) -> None:
    server = stage.server
    await server.watched(2)
    server.requests.clear()
    for number in range(5):
        server.cut()
        server.store.put("pods", pod(f"b{number}", f"10.0.1.{number}"))
        await stage.in_step()
    assert "list" not in server.counted()
    assert len(stage.ready()) == 6


async def test_bookmarks_keep_the_place_though_nothing_happens(stage: ClusterStage) -> None:
    server = stage.server
    for number in range(3):
        server.store.put("configmaps", {"metadata": {"name": f"c{number}"}})  # the version counts on
    await stage.in_step()
    server.store.compact()
    server.requests.clear()
    server.cut()
    await server.watched(2)
    await stage.in_step()
    assert "list" not in server.counted()


async def test_a_role_that_is_taken_away_is_said_and_the_fleet_stays(stage: ClusterStage) -> None:
    server = stage.server
    await server.watched(2)
    server.forbidden.add("pods")
    server.cut()
    await stage.until(lambda: all("403" in (r.problem or "") for r in stage.reflectors), "403 is said")
    assert "list and watch" in str(stage.reflectors[0].problem)
    assert stage.ready() == {A}
    server.forbidden.clear()
    await stage.in_step()


async def test_a_pod_under_both_labels_is_one_engine(stage: ClusterStage) -> None:
    stage.server.store.change("pods", "a", lambda p: p["metadata"]["labels"].update({"warmroute.dev/name": "m"}))
    await stage.in_step()
    assert sum(len(reflector.sightings) for reflector in stage.reflectors) == 2
    assert stage.sockets.opened == {PUB_A: 1}
    stage.server.store.change("pods", "a", lambda p: p["metadata"]["labels"].pop("model.aibrix.ai/name"))
    stage.server.store.change("pods", "a", lambda p: p["status"].update(qosClass="x"))
    await stage.in_step()
    assert stage.ready() == {A}


async def test_an_object_that_is_no_pod_costs_itself_alone(stage: ClusterStage) -> None:
    stage.server.store.put("pods", pod("broken", "10.0.0.9") | {"status": "text"})
    stage.server.store.put("pods", pod("b", "10.0.0.2"))
    await stage.until(lambda: stage.ready() == {A, B}, "the other pods")
    assert sum(r.counts["unreadable"] for r in stage.reflectors) >= 1


async def test_a_line_that_is_no_event_is_mended_by_a_list(stage: ClusterStage) -> None:
    server = stage.server
    await server.watched(2)
    server.raw_lines = [b'{"type": "ADDED", "object": ']
    server.cut()
    server.store.put("pods", pod("b", "10.0.0.2"))
    await stage.until(lambda: stage.ready() == {A, B}, "what came after it")
    assert sum(r.counts["error_unreadable"] for r in stage.reflectors) == 1


async def test_pods_of_the_same_name_that_overlap_are_two(stage: ClusterStage) -> None:
    """A StatefulSet's pod is made again under its name."""
    store = stage.server.store
    store.delete("pods", "a")
    store.put("pods", pod("a", "10.0.0.2"))
    await stage.until(lambda: stage.ready() == {B}, "the new pod")
    assert stage.sockets.open == {PUB_B: 1}


async def test_nothing_is_routed_before_the_first_list_is_whole(server: FakeKubernetes, tmp_path: Path) -> None:
    server.store.put("pods", pod("a", "10.0.0.1"))
    server.broken = 500
    async with cluster_stage(server, tmp_path) as stage:
        await stage.until(lambda: all(r.counts["error_500"] for r in stage.reflectors), "it is asked again")
        assert stage.present() == set()
        server.broken = None
        await stage.until(lambda: stage.ready() == {A}, "it is found in the end")
        await asyncio.sleep(0)
