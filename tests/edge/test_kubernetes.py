"""The client against a server over real sockets: what it asks, and what it makes of every way to fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

from warmroute.edge import kubernetes
from warmroute.edge.kubernetes import Kubernetes, connect
from warmroute.errors import ConfigError
from warmroute.service.reflector import ClusterError, Collection, ExpiredError, WatchEvent
from warmroute.testing.kubernetes import FakeKubernetes, pod

PODS = Collection("/api/v1/namespaces/default/pods", "model.aibrix.ai/name")


@pytest.fixture
async def server() -> AsyncIterator[FakeKubernetes]:
    async with FakeKubernetes(token="t") as server:
        yield server


@pytest.fixture
async def api(server: FakeKubernetes, tmp_path: Path) -> AsyncIterator[Kubernetes]:
    api = await connect(server.write_kubeconfig(tmp_path, "serving"))
    yield api
    await api.close()


async def first(api: Kubernetes, version: str, collection: Collection = PODS) -> Sequence[WatchEvent]:
    async with asyncio.timeout(60), aclosing(api.watch(collection, version, 300.0)) as watch:
        async for events in watch:
            if events:
                return events
    return ()


async def test_a_list_comes_in_pages_of_one_moment(
    api: Kubernetes, server: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "PAGE_OBJECTS", 2)
    for number in range(5):
        server.store.put("pods", pod(f"p{number}", "10.0.0.1"))
    server.store.put("pods", pod("other", model=None))
    listing = await api.list(PODS)
    assert [json.loads(raw)["metadata"]["name"] for raw in listing.objects] == [f"p{n}" for n in range(5)]
    assert listing.version == str(server.store.version)
    assert server.counted() == {"list": 3}
    assert api.namespace == "serving"


async def test_a_watch_brings_what_came_after_the_list(api: Kubernetes, server: FakeKubernetes) -> None:
    listing = await api.list(PODS)
    server.store.put("pods", pod("p", "10.0.0.1"))
    server.store.delete("pods", "p")
    events = await first(api, listing.version)
    assert events[0].kind == "ADDED"
    assert int(events[0].version) == int(listing.version) + 1
    assert server.requests[-1][2]["allowWatchBookmarks"] == "true"
    assert int(server.requests[-1][2]["timeoutSeconds"]) >= 300


async def test_an_object_that_leaves_the_selector_is_deleted(api: Kubernetes, server: FakeKubernetes) -> None:
    server.store.put("pods", pod("p", "10.0.0.1"))
    version = str(server.store.version)
    server.store.change("pods", "p", lambda p: p["metadata"]["labels"].clear())
    assert [event.kind for event in await first(api, version)] == ["DELETED"]


@pytest.mark.parametrize("as_status", [True, False])
async def test_a_forgotten_version_is_expired(api: Kubernetes, server: FakeKubernetes, as_status: bool) -> None:
    version = str(server.store.version)
    server.store.put("pods", pod("p", "10.0.0.1"))
    server.store.compact()
    server.gone_as_status = as_status
    with pytest.raises(ExpiredError, match="too old resource version"):
        await first(api, version)


async def test_bookmarks_bring_a_version(api: Kubernetes, server: FakeKubernetes) -> None:
    server.watch_s_max = 0.01
    (event,) = await first(api, str(server.store.version))
    assert (event.kind, event.version) == ("BOOKMARK", str(server.store.version))


async def test_an_event_longer_than_any_buffer_and_cut_anywhere(api: Kubernetes, server: FakeKubernetes) -> None:
    version = str(server.store.version)
    server.store.put("pods", pod("p", "10.0.0.1", annotations={"x": "y" * 3_000_000}))
    (event,) = await first(api, version)
    assert len(event.object) > 3_000_000


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"garbage", "unreadable"),
        (b'{"type": "ERROR", "object": {"code": 500, "message": "etcd"}}', "500"),
        (b'{"type": "ADDED", "object": 3}', "unreadable"),
        (b'{"type": "ERROR", "object": {"code": 410, "message": "old"}}', "expired"),
    ],
)
async def test_what_a_watch_may_bring_instead(
    api: Kubernetes, server: FakeKubernetes, line: bytes, reason: str
) -> None:
    server.raw_lines = [line]
    with pytest.raises(ClusterError) as caught:
        await first(api, str(server.store.version))
    assert caught.value.reason == reason


async def test_a_watch_that_breaks_says_so(api: Kubernetes, server: FakeKubernetes) -> None:
    watch = asyncio.create_task(first(api, str(server.store.version)))
    await server.watched()
    server.cut()
    with pytest.raises(ClusterError) as caught:
        await watch
    assert caught.value.reason == "broken"


@pytest.mark.parametrize(("mood", "reason", "hint"), [(403, "403", "list and watch"), (401, "401", "service account")])
async def test_refusals_say_what_to_do(
    api: Kubernetes, server: FakeKubernetes, mood: int, reason: str, hint: str
) -> None:
    if mood == 403:
        server.forbidden.add("pods")
    else:
        server.token = "another"
    for attempt in (api.list(PODS), first(api, "1")):
        with pytest.raises(ClusterError, match=hint) as caught:
            await attempt
        assert caught.value.reason == reason


async def test_a_server_that_is_away(api: Kubernetes, server: FakeKubernetes) -> None:
    await server.stop()
    for attempt in (api.list(PODS), first(api, "1")):
        with pytest.raises(ClusterError, match="is the API server up") as caught:
            await attempt
        assert caught.value.reason == "unreachable"


async def test_what_is_no_list(api: Kubernetes, server: FakeKubernetes) -> None:
    server.store.put("pods", pod("p"))
    with pytest.raises(ClusterError, match="answered with no list"):
        await api.list(Collection("/api/v1/namespaces/default/pods/p"))


async def test_without_a_cluster_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no API server is known"):
        await connect(str(tmp_path / "missing"))
    (tmp_path / "empty").write_text("{}")
    with pytest.raises(ConfigError, match="no API server is known"):
        await connect(str(tmp_path / "empty"))


async def test_a_way_to_log_in_that_breaks_is_an_error_like_any_other(
    api: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise KeyError("expirationTimestamp")

    monkeypatch.setattr(api._api, "call_api", broken)
    with pytest.raises(ClusterError, match=r"logging in failed.*expirationTimestamp.*kubeconfig") as caught:
        await api.list(PODS)
    assert caught.value.reason == "login"
    with pytest.raises(ClusterError, match="logging in failed"):
        await first(api, "1")


async def test_a_kubeconfig_that_is_no_yaml_is_the_operators_fault(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("clusters: [")
    with pytest.raises(ConfigError, match="no API server is known"):
        await connect(str(path))
