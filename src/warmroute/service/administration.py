"""What operators may do to a running gateway, under `/admin/`: on their own listener, and nowhere else.

    POST   /admin/reload                       read the configuration, keys and certificates again
    GET    /admin/engines                      who is in the fleet, by whom, and what runs there
    POST   /admin/engines                      {"url": ..., what `engines:` of the configuration takes}: one more
    DELETE /admin/engines/HOST:PORT            one less that was added so: it drains, then it is forgotten
    POST   /admin/engines/HOST:PORT/drain      no more requests there; what runs may end
    POST   /admin/engines/HOST:PORT/undrain    requests again

Invariant: a change is made in every process of the gateway or, if it is refused, in none.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Literal

import msgspec

from warmroute.config.contradictions import check_engines
from warmroute.config.sources import Given, Origin, Source
from warmroute.config.tree import EngineConfig
from warmroute.config.values import engine_values
from warmroute.core.roster import Listed
from warmroute.errors import ClientError, ConfigError
from warmroute.service.addressing import endpoint_of
from warmroute.service.ports import Dispatch, GatewayService, Reply, RequestHead
from warmroute.service.reconciler import Reconciler
from warmroute.types import Endpoint

PREFIX = b"/admin/"
ADMIN = "admin"
HELD = "drained by an operator"
REQUEST = Source(Origin.REQUEST)

_ENGINE = re.compile(rb"/admin/engines/([^/]+)(?:/(drain|undrain))?")

Change = Literal["add", "remove", "hold", "release"]


class EngineChange(msgspec.Struct, frozen=True):
    """One change to the fleet by an operator."""

    change: Change
    url: str
    engine: EngineConfig | None = None
    """What is added."""


def encode_change(change: EngineChange) -> bytes:
    """A change for another process of the same gateway."""
    return msgspec.msgpack.encode(change)


def decode_change(data: bytes) -> EngineChange:
    """The other way."""
    return msgspec.msgpack.decode(data, type=EngineChange)


class Operated:
    """The fleet, as operators change it."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler

    def make(self, change: EngineChange) -> None:
        """Do it. Raises ClientError, and nothing has changed, if it cannot be done."""
        endpoint, reconciler = endpoint_of(change.url), self._reconciler
        own = {endpoint_of(listed.engine.url): listed for listed in reconciler.listed(ADMIN)}
        if change.change == "add" and change.engine is not None:
            reconciler.replace(ADMIN, (own | {endpoint: Listed(change.engine)}).values())
            return
        entry = reconciler.roster.entries.get(endpoint)
        if entry is None:
            raise ClientError(404, f"There is no engine {endpoint.url}.", code="engine_not_found")
        if change.change == "remove":
            if endpoint not in own:
                message = (
                    f"{endpoint.url} is listed by {entry.source}, and would come back: drain it, or remove it there."
                )
                raise ClientError(409, message, code="engine_not_yours")
            del own[endpoint]
            reconciler.replace(ADMIN, own.values())
        elif change.change == "hold":
            reconciler.hold(endpoint, HELD)
        else:
            reconciler.release(endpoint)

    def follow(self, change: EngineChange) -> None:
        """Make a change that was made in another process, which may know of engines that are not known here yet."""
        endpoint = endpoint_of(change.url)
        if change.change == "hold":
            self._reconciler.hold(endpoint, HELD, unseen=True)
        elif change.change == "release":
            self._reconciler.release(endpoint)
        else:
            with suppress(ClientError):  # it is gone here already
                self.make(change)

    def view(self) -> dict[str, Any]:
        """Every engine: who lists it, whether it gets requests, how many it has."""
        found = self._reconciler.view()
        engines = [
            {"address": endpoint.url, "requests": self._reconciler.in_flight(endpoint), **entry}
            for endpoint, entry in found.items()
        ]
        return {"engines": engines}

    def named(self, authority: str) -> Endpoint:
        """The engine that a path names. Raises ClientError."""
        for endpoint in self._reconciler.roster.entries:
            if endpoint.authority == authority:
                return endpoint
        raise ClientError(
            404, f"There is no engine {authority}; GET /admin/engines lists them.", code="engine_not_found"
        )


class Administration:
    """The port `GatewayService` for operators: `/admin/` here, all else by `inner`.

    `tell` has other processes make a change that was made here.
    """

    def __init__(self, inner: GatewayService, fleet: Operated, tell: Callable[[EngineChange], None]) -> None:
        self.fleet = fleet
        self.reload: Callable[[], Reply | Awaitable[Reply]] = _nothing_to_read
        """Reads everything again."""
        self._inner = inner
        self._tell = tell

    def dispatch(self, head: RequestHead, body: bytes) -> Dispatch | Reply | Awaitable[Dispatch | Reply]:
        """Do what is asked, or pass it on. Raises ClientError."""
        path = head.target.partition(b"?")[0]
        if not path.startswith(PREFIX):
            return self._inner.dispatch(head, body)
        if head.header(b"origin") is not None:
            raise ClientError(403, "Pages in a browser may not administer a gateway.", code="origin")
        if path == b"/admin/engines" and head.method in (b"GET", b"HEAD"):
            return _json(self.fleet.view())
        if path == b"/admin/reload" and head.method == b"POST":
            return self.reload()
        return self._change(self._asked(path, head.method, body))

    def retry(self, dispatch: Dispatch) -> Dispatch | None:
        """Another worker for what was passed on."""
        return self._inner.retry(dispatch)

    def _asked(self, path: bytes, method: bytes, body: bytes) -> EngineChange:
        if path == b"/admin/engines" and method == b"POST":
            engine = _engine(body)
            return EngineChange("add", endpoint_of(engine.url).url, engine)  # as it is named when it is removed
        named = _ENGINE.fullmatch(path)
        if named is None or (method, named[2]) not in _CHANGES:
            raise ClientError(
                404, "There is no such thing to do: see the page on running a gateway.", code="unknown_path"
            )
        url = self.fleet.named(named[1].decode("latin-1")).url
        return EngineChange(_CHANGES[method, named[2]], url)

    def _change(self, change: EngineChange) -> Reply:
        self.fleet.make(change)
        self._tell(change)
        return _json(self.fleet.view())


_CHANGES: dict[tuple[bytes, bytes | None], Change] = {
    (b"DELETE", None): "remove",
    (b"POST", b"drain"): "hold",
    (b"POST", b"undrain"): "release",
}


def _nothing_to_read() -> Reply:
    raise ClientError(501, "This gateway was not started by `warmroute serve`: it has nothing to read again.")


def _engine(body: bytes) -> EngineConfig:
    """The engine that a body describes. Raises ClientError."""
    try:
        engine = _engine_of(msgspec.json.decode(body))
    except (msgspec.DecodeError, ConfigError) as error:
        raise ClientError(400, f"This is no engine: {error}", code="bad_engine") from error
    return engine


def _engine_of(given: object) -> EngineConfig:
    """One engine as the configuration takes it. Raises ConfigError."""
    engines = engine_values(Given([given], REQUEST))
    check_engines(engines, REQUEST)
    (engine,) = engines
    if engine.api_key_file is not None:
        problem = f"{engine.api_key_file!r} is not read for an engine that comes so"
        raise ConfigError("engines[0].api_key_file", problem, "Give its api_key.")
    return engine


def _json(body: object) -> Reply:
    return Reply(200, msgspec.json.encode(body))
