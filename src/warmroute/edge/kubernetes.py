"""The Kubernetes API, by kubernetes_asyncio: where the server is, who we are, lists, watches, applying.

The library finds the server (a pod's service account, or a kubeconfig with all of its ways to log in), renews tokens
and speaks TLS. Objects stay JSON: its generated classes are neither needed nor fast. Its own watch is not used: it
lists nothing anew after 410, reconnects without pause, and cannot tell a server that is away from one with nothing to
say.

Invariant: whatever goes wrong becomes a ClusterError that says what to do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from warmroute.errors import ConfigError
from warmroute.service.reflector import ClusterError, Collection, ExpiredError, Listing, WatchEvent

try:
    from kubernetes_asyncio import client, config
    from kubernetes_asyncio.config.config_exception import ConfigException
except ImportError:  # an extra that need not be installed
    raise ConfigError(
        "discovery.kubernetes",
        "it needs the Kubernetes client, which is not installed",
        "Install it: pip install 'warmroute[kubernetes]'.",
    ) from None

PAGE_OBJECTS = 500
"""Objects that are asked for at a time."""
LIST_TIMEOUT_S = 30.0
SILENCE_S = 150.0
"""A watch that brings nothing for so long, not even a bookmark (about one a minute), is given up and resumed."""
LINE_BYTES_MAX = 16 * 1024 * 1024
"""A longer event is none: etcd's objects end at some 1.5 MiB."""
NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

_GONE = 410
_HINTS = {
    401: "the token or certificate is not accepted; look at the service account or the kubeconfig",
    403: "the role lacks this; discovery needs list and watch",
    404: "there is no such resource; look at the server's address and version",
}


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None
    """Must be there, for nothing at all is no empty list; null is one."""


class _Version(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _Object(msgspec.Struct):
    metadata: _Version = msgspec.field(default_factory=_Version)


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Status(msgspec.Struct):
    code: int = 0
    message: str = ""
    reason: str = ""


_LIST = msgspec.json.Decoder(_List)
_EVENT = msgspec.json.Decoder(_Event)
_OBJECT = msgspec.json.Decoder(_Object)
_STATUS = msgspec.json.Decoder(_Status)


class Kubernetes:
    """The port `ClusterApi`, and what the command `k8s` needs. Made by `connect`, ended by `close`."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self.namespace = namespace
        """The one that is meant if none is named."""
        self._api = api

    async def close(self) -> None:
        """Close its connections."""
        await self._api.close()

    async def list(self, collection: Collection) -> Listing:
        """All objects, page by page. Raises ClusterError."""
        objects: list[bytes] = []
        query = _selected(collection) | {"limit": str(PAGE_OBJECTS)}
        while True:
            body = await self.call("GET", collection.path, query=query)
            try:
                page = _LIST.decode(body)
            except msgspec.DecodeError as error:
                raise ClusterError("unreadable", f"{collection.path} answered with no list ({error})") from error
            objects += map(bytes, page.items or ())
            if not page.metadata.continue_:
                return Listing(objects, page.metadata.resource_version)
            query["continue"] = page.metadata.continue_

    async def watch(
        self, collection: Collection, version: str, timeout_s: float
    ) -> AsyncIterator[Sequence[WatchEvent]]:
        """An empty bunch when it is open, then changes after `version`, in the bunches they come in.

        Raises ExpiredError and other ClusterErrors.
        """
        query = _selected(collection) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(int(timeout_s)),
        }
        response = await self._send("GET", collection.path, query, None, _watching())
        try:
            if response.status != 200:
                raise _problem(response.status, await _read(response), f"watch {collection.path}")
            yield ()
            rest = b""
            async for chunk in _chunks(response):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > LINE_BYTES_MAX:
                    raise ClusterError("unreadable", f"an event of {collection.path} does not end")
                events = [_event(line, collection) for line in lines if line]
                if events:
                    yield events
        finally:
            response.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
    ) -> bytes:
        """One request; the answer's body. Raises ClusterError, with the status as its reason."""
        patience = aiohttp.ClientTimeout(total=LIST_TIMEOUT_S)
        response = await self._send(method, path, dict(query or {}), (body, content_type), patience)
        async with response:
            answer = await _read(response)
        if response.status not in (200, 201):
            raise _problem(response.status, answer, f"{method} {path}")
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        content: tuple[object, str] | None,
        patience: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        body, content_type = content or (None, "application/json")
        try:
            response: aiohttp.ClientResponse = await self._api.call_api(
                path,
                method,
                query_params=query,
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=patience,
            )
        except TimeoutError as error:
            raise ClusterError("timeout", f"{self._api.configuration.host} does not answer") from error
        except (aiohttp.ClientError, OSError) as error:
            host = self._api.configuration.host
            raise ClusterError("unreachable", f"{host} cannot be reached ({error}); is the API server up?") from error
        except Exception as error:  # ways to log in are many, and run programs of others: they may raise anything
            problem = f"logging in failed ({type(error).__name__}: {error}); look at the kubeconfig's user"
            raise ClusterError("login", problem) from error
        return response


async def connect(kubeconfig: str | None = None, context: str | None = None) -> Kubernetes:
    """The API server: of `kubeconfig`; else, in a pod, of its service account; else as kubectl finds it.

    Raises ConfigError if there is none to be found.
    """
    found = client.Configuration()
    namespace = _own_namespace()
    try:
        if kubeconfig is None and context is None and namespace is not None:
            config.load_incluster_config(found)  # type: ignore[no-untyped-call]
        else:
            await config.load_kube_config(kubeconfig, context, found, persist_config=False)
            namespace = _namespace_of(kubeconfig, context)
    except Exception as error:  # a kubeconfig may hold anything, and have programs run
        why = str(error) if isinstance(error, ConfigException) else f"{type(error).__name__}: {error}"
        raise ConfigError(
            "discovery.kubernetes.kubeconfig",
            f"no API server is known: {why}",
            "Run in a pod with a service account, or name a kubeconfig.",
        ) from error
    return Kubernetes(client.ApiClient(found), namespace or "default")


def _own_namespace() -> str | None:
    """The namespace of the pod that this runs in; None: it runs in none."""
    try:
        return Path(NAMESPACE_FILE).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _namespace_of(kubeconfig: str | None, context: str | None) -> str | None:
    contexts, active = config.list_kube_config_contexts(kubeconfig)
    chosen: dict[str, Any] = next((each for each in contexts if each["name"] == context), active or {})
    found = chosen.get("context", {}).get("namespace")
    return None if found is None else str(found)


def _selected(collection: Collection) -> dict[str, str]:
    return {} if collection.label_selector is None else {"labelSelector": collection.label_selector}


def _watching() -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=SILENCE_S)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    try:
        return await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ClusterError("broken", f"{response.url} broke off its answer ({error!r})") from error


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except TimeoutError:
        return  # silent for long: resume
    except (aiohttp.ClientError, OSError) as error:
        raise ClusterError("broken", f"the watch broke off ({error!r})") from error


def _event(line: bytes, collection: Collection) -> WatchEvent:
    try:
        event = _EVENT.decode(line)
        raw = bytes(event.object)
        if event.type == "ERROR":
            status = _STATUS.decode(raw)
            raise _problem(status.code, raw, f"watch {collection.path}")
        return WatchEvent(event.type, raw, _OBJECT.decode(raw).metadata.resource_version)
    except msgspec.DecodeError as error:
        raise ClusterError("unreadable", f"an event of {collection.path} is none ({error})") from error


def _problem(status: int, body: bytes, what: str) -> ClusterError:
    try:
        said = _STATUS.decode(body).message
    except msgspec.DecodeError:
        said = body[:200].decode("utf-8", "replace")
    if status == _GONE:
        return ExpiredError("expired", said or "its place is forgotten")
    hint = f"; {_HINTS[status]}" if status in _HINTS else ""
    return ClusterError(str(status), f"{what} was answered with {status}: {said}{hint}")
