"""The store over HTTP, as the API server speaks; and the ways in which it fails.

A test changes the store and the server's mood directly; clients come over the loopback. `requests` keeps what they
asked, so that a test can see whether somebody storms.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from warmroute.testing.kubernetes.apply import Owners
from warmroute.testing.kubernetes.store import GoneError, Store

_PATH = re.compile(r"/(?:api/v1|apis/[^/]+/v1)(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[a-z]+)")
_ITEM = re.compile(_PATH.pattern + r"/(?P<name>[^/]+)")

DEADLINE_S = 60.0
"""Longer than anything takes on a starved machine."""


class FakeKubernetes:
    """Use as `async with`. `url` is where it is; it stays there when it is stopped and started again."""

    def __init__(self, token: str | None = None) -> None:
        self.store = Store()
        self.store.on_change = self._wake
        self.token = token
        """The only bearer token that is let in; None: everybody is."""
        self.forbidden: set[str] = set()
        """Resources that nobody may read: 403."""
        self.broken: int | None = None
        """Status that every request is answered with; None: none."""
        self.gone_as_status = False
        """Whether a watch from a forgotten version is answered with status 410, not with an event that says so."""
        self.watch_s_max: float | None = None
        """Watches are ended after so long, whatever was asked for."""
        self.owners = Owners()
        self.rolls_out = True
        """Whether a Deployment that is applied is rolled out at once; else never."""
        self.raw_lines: list[bytes] = []
        """Sent to the next watch before all else."""
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.port = 0
        self._bookmarks = 0
        self._changed = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._transports: set[asyncio.Transport] = set()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen: on a free port at first, then on the same one."""
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Gone: connections break, new ones are refused."""
        self.cut()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def watching(self) -> int:
        """Watches that are open now."""
        return sum(not transport.is_closing() for transport in self._transports)

    def cut(self) -> None:
        """Break every watch that is open now."""
        for transport in tuple(self._transports):
            transport.abort()

    async def watched(self, watches: int = 1) -> None:
        """Wait until so many watches are open."""
        async with asyncio.timeout(DEADLINE_S):
            while self.watching < watches:  # noqa: ASYNC110 - only tests wait, and only for moments
                await asyncio.sleep(0.01)

    def bookmark(self) -> None:
        """Tell every watch how far the collection is, as servers do about once a minute."""
        self._bookmarks += 1
        self._wake()

    def write_kubeconfig(self, folder: Path, namespace: str = "default") -> str:
        """A kubeconfig that leads here; its path."""
        user = {"name": "u", "user": {"token": self.token} if self.token else {}}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [user],
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": namespace}}],
        }
        path = folder / "kubeconfig"
        path.write_text(json.dumps(config))
        return str(path)

    def counted(self) -> Counter[str]:
        """Requests by kind: list, watch, and the other methods."""
        return Counter(
            "watch" if query.get("watch") == "true" else "list" if method == "GET" and _PATH.fullmatch(path) else method
            for method, path, query in self.requests
        )

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        self.requests.append((request.method, request.path, query))
        where = _PATH.fullmatch(request.path) or _ITEM.fullmatch(request.path)
        if (refusal := self._refusal(request, where)) is not None or where is None:
            return refusal or _status(404, "the server could not find the requested resource")
        if "name" in where.groupdict():
            return await self._item(request, where["resource"], where["namespace"] or "", where["name"])
        if query.get("watch") == "true":
            return await self._watch(request, where["resource"], where["namespace"], query)
        return self._list(where["resource"], where["namespace"], query)

    def _refusal(self, request: web.Request, where: re.Match[str] | None) -> web.Response | None:
        if self.broken is not None:
            return _status(self.broken, "the server is not well")
        if self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}":
            return _status(401, "Unauthorized")
        if where is not None and where["resource"] in self.forbidden:
            return _status(403, f"{where['resource']} is forbidden: User cannot list resource")
        return None

    def _list(self, resource: str, namespace: str | None, query: dict[str, str]) -> web.Response:
        found = self.store.select(resource, namespace, query.get("labelSelector", ""))
        version, at = self.store.version, 0
        if token := query.get("continue"):
            version, at = map(int, token.split(":"))
            if version != self.store.version:  # pages of one list are of one moment, which is past
                return _status(410, "The provided continue parameter is too old")
        limit = int(query.get("limit", "0")) or len(found)
        more = f"{version}:{at + limit}" if at + limit < len(found) else ""
        meta = {"resourceVersion": str(version)} | ({"continue": more} if more else {})
        return web.json_response({"kind": "List", "metadata": meta, "items": found[at : at + limit]})

    async def _watch(
        self, request: web.Request, resource: str, namespace: str | None, query: dict[str, str]
    ) -> web.StreamResponse:
        version, selector = int(query.get("resourceVersion") or self.store.version), query.get("labelSelector", "")
        try:
            next(self.store.since(version, resource, namespace, selector), None)
        except GoneError as error:
            if self.gone_as_status:
                return _status(410, str(error))
        response = web.StreamResponse(headers={"content-type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        limit_s = min(float(query.get("timeoutSeconds", "3600")), self.watch_s_max or 3600.0)
        transport = request.transport
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - TCP has no other
        self._transports.add(transport)
        try:
            async with asyncio.timeout(limit_s):
                await self._stream(response, version, (resource, namespace, selector))
        except TimeoutError:
            if query.get("allowWatchBookmarks") == "true":
                await _send(response, "BOOKMARK", self._bookmark(resource))
        except ConnectionError:
            pass
        finally:
            self._transports.discard(transport)
        return response

    async def _stream(self, response: web.StreamResponse, version: int, what: tuple[str, str | None, str]) -> None:
        lines, self.raw_lines = self.raw_lines, []
        for line in lines:
            await response.write(line + b"\n")
        bookmarks = self._bookmarks
        while True:
            changed = self._changed
            try:
                events = list(self.store.since(version, *what))
            except GoneError as error:
                await _send(response, "ERROR", _failure(410, str(error)))
                return
            version = self.store.version
            for kind, found in events:
                await _send(response, kind, found)
            if bookmarks != self._bookmarks:
                bookmarks = self._bookmarks
                await _send(response, "BOOKMARK", self._bookmark(what[0]))
            await changed.wait()

    def _rolled_out(self, resource: str, stored: dict[str, Any]) -> dict[str, Any]:
        """What the controller would make of a Deployment, at once."""
        if resource != "deployments" or not self.rolls_out:
            return stored
        replicas = stored["spec"].get("replicas", 1)
        numbers = dict.fromkeys(("replicas", "updatedReplicas", "availableReplicas"), replicas)
        status = numbers | {"observedGeneration": stored["metadata"]["generation"]}
        return self.store.change(resource, stored["metadata"]["name"], lambda d: d.update(status=status))

    def _bookmark(self, resource: str) -> dict[str, Any]:
        return {"kind": resource, "metadata": {"resourceVersion": str(self.store.version), "creationTimestamp": None}}

    async def _item(self, request: web.Request, resource: str, namespace: str, name: str) -> web.Response:
        found = self.store.objects.get((resource, namespace, name))
        if found is None:
            return _status(404, f'{resource} "{name}" not found')
        if request.method == "GET":
            return web.json_response(found)
        if request.method == "PATCH" and "apply-patch" in request.content_type:
            given, manager = json.loads(await request.read()), request.query["fieldManager"]
            key = (resource, namespace, name)
            conflicts = self.owners.conflicts(key, found, given, manager)
            if conflicts and request.query.get("force") != "true":
                return _status(409, f"Apply failed with conflicts: {', '.join(conflicts)}")
            stored = self.store.put(resource, self.owners.applied(key, found, given, manager))
            return web.json_response(self._rolled_out(resource, stored))
        return _status(405, "this server does not do that")


async def _send(response: web.StreamResponse, kind: str, found: dict[str, Any]) -> None:
    await response.write(json.dumps({"type": kind, "object": found}).encode() + b"\n")


def _failure(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}


def _status(code: int, message: str) -> web.Response:
    return web.json_response(_failure(code, message), status=code)
