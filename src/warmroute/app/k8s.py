"""`warmroute k8s`: a Deployment's events on and off, with the change shown before it is made.

Invariant: nothing is written before it was shown and agreed to; what is written is exactly what was shown.
"""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import msgspec
import yaml

from warmroute.config.tree import EngineConfig
from warmroute.core.deployments import BEFORE, configuration, disabled, enabled, is_enabled, pods_of, progress
from warmroute.core.event_arguments import PatchError
from warmroute.core.pods import PodState, read_pod
from warmroute.service.reflector import Collection

if TYPE_CHECKING:
    from warmroute.edge.kubernetes import Kubernetes

MANAGER = "warmroute"
"""Of the fields that are ours, for server-side apply."""
POLL_S = 1.0

Object = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which Deployment, and how to get there."""

    name: str
    namespace: str | None = None
    kubeconfig: str | None = None
    context: str | None = None
    container: str | None = None
    image: str | None = None


@dataclass(slots=True, kw_only=True)
class Change:
    """What is to be done to a Deployment, before it is done."""

    before: Object
    after: Object
    notes: tuple[str, ...] = ()
    obstacles: tuple[str, ...] = ()
    managers: tuple[str, ...] = field(default=())
    """Who else manages it, and will want its own again."""

    @property
    def empty(self) -> bool:
        """Whether it is so already."""
        return self.before == self.after

    def diff(self) -> str:
        """As a unified diff of the parts that people write."""
        name = self.before["metadata"]["name"]
        now, then = (to_yaml(_written(each)).splitlines(keepends=True) for each in (self.before, self.after))
        return "".join(difflib.unified_diff(now, then, f"deployment/{name} (now)", f"deployment/{name} (then)"))


class Cluster:
    """The commands' way to the API server; use as `async with`."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._api: Kubernetes | None = None

    async def __aenter__(self) -> Self:
        from warmroute.edge.kubernetes import connect  # noqa: PLC0415 - an extra; manifests do not need it

        self._api = await connect(self.target.kubeconfig, self.target.context)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.api.close()

    @property
    def api(self) -> Kubernetes:
        """The connection."""
        assert self._api is not None  # noqa: S101 - inside `async with` there is one
        return self._api

    @property
    def _namespace(self) -> str:
        return self.target.namespace or self.api.namespace

    @property
    def _path(self) -> str:
        return f"/apis/apps/v1/namespaces/{self._namespace}/deployments/{self.target.name}"

    async def get(self) -> Object:
        """The Deployment as it is. Raises ClusterError."""
        found: Object = msgspec.json.decode(await self.api.call("GET", self._path))
        return found

    async def apply(self, change: Change) -> Object:
        """Make the change, server-side; the Deployment as it is then. Raises ClusterError."""
        query = {"fieldManager": MANAGER, "force": "true"}
        body = configuration(change.before, change.after)
        content_type = "application/apply-patch+yaml"
        answer = await self.api.call("PATCH", self._path, query=query, body=body, content_type=content_type)
        found: Object = msgspec.json.decode(answer)
        return found

    async def rolled_out(self, say: Callable[[str], None], timeout_s: float) -> None:
        """Wait until all pods are new and available. Raises PatchError if that does not come."""
        deadline, said = time.monotonic() + timeout_s, ""
        while True:
            done, where = progress(await self.get())
            if where != said:
                say(where)
                said = where
            if done:
                return
            if time.monotonic() > deadline:
                raise PatchError(f"not rolled out within {timeout_s:g} s: {where}; look at the pods' events and logs")
            await asyncio.sleep(POLL_S)

    async def engines(self, deployment: Mapping[str, Any]) -> list[EngineConfig]:
        """The engines in its pods that get requests now."""
        pods = await self.api.list(Collection(f"/api/v1/namespaces/{self._namespace}/pods", pods_of(deployment)))
        seen = [read_pod(raw) for raw in pods.objects]
        return [listed.engine for each in seen if each.state is PodState.ROUTED for listed in each.engines]


def enabling(deployment: Object, target: Target) -> Change:
    """What turning events on changes. Raises PatchError."""
    patched = enabled(deployment, target.container, target.image)
    return Change(
        before=deployment,
        after=patched.deployment,
        notes=patched.notes,
        obstacles=patched.obstacles,
        managers=tuple(_appliers(deployment)),
    )


def disabling(deployment: Object) -> Change:
    """What putting it back changes. Raises PatchError."""
    return Change(before=deployment, after=disabled(deployment), managers=tuple(_appliers(deployment)))


def described(deployment: Object, target: Target) -> list[tuple[str, str]]:
    """What is to be said of a Deployment: what, and how it is."""
    try:
        events = "on" if is_enabled(deployment, target.container) else "off, or not as they should be"
    except PatchError as error:
        events = f"cannot be told: {error}"
    done, where = progress(deployment)
    changed = BEFORE in (deployment["metadata"].get("annotations") or {})
    return [
        ("events", events),
        ("changed by `warmroute k8s enable`", "yes" if changed else "no"),
        ("rollout", "done" if done else where),
    ]


async def reachable(engines: list[EngineConfig], patience_s: float = 2.0) -> bool:
    """Whether the first of the engines can be reached from here: pods' addresses lead somewhere in a cluster only."""
    host, _, port = engines[0].url.rpartition("//")[2].rpartition(":")
    try:
        async with asyncio.timeout(patience_s):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except OSError:  # a TimeoutError too
        return False
    writer.close()
    return True


def to_yaml(found: Mapping[str, Any]) -> str:
    """An object as people write it."""
    text: str = yaml.safe_dump(dict(found), sort_keys=False, width=1000)
    return text


def deployments_in(text: str, name: str) -> tuple[list[Object], int]:
    """The documents of a manifest, and which of them is the Deployment of that name. Raises PatchError."""
    try:
        documents = [each for each in yaml.safe_load_all(text) if each]
    except yaml.YAMLError as error:
        raise PatchError(f"the file is not understood as YAML: {' '.join(str(error).split())}") from None
    for number, each in enumerate(documents):
        if _is_deployment(each) and each["metadata"].get("name") == name:
            return documents, number
    raise PatchError(f"the file has no Deployment called {name!r}")


def _is_deployment(document: Any) -> bool:
    """Whether it has all that is looked at: a cluster's objects have, files may hold anything."""
    try:
        named = all(isinstance(each["name"], str) for each in document["spec"]["template"]["spec"]["containers"])
        return bool(named and document["kind"] == "Deployment" and isinstance(document["metadata"], dict))
    except (LookupError, TypeError):
        return False


def _written(deployment: Object) -> Object:
    meta = deployment["metadata"]
    kept = {key: meta[key] for key in ("name", "namespace", "labels", "annotations") if key in meta}
    return {"metadata": kept, "spec": deployment["spec"]}


def _appliers(deployment: Object) -> Iterator[str]:
    """Who else applies this Deployment."""
    for entry in deployment["metadata"].get("managedFields") or ():
        if entry.get("manager") != MANAGER and entry.get("subresource") != "status":
            yield str(entry.get("manager"))
