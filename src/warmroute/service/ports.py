"""The ports: what the services need from the world, as small Protocols.

Each has one implementation per foreign library in `edge` and one shipped fake in `warmroute.testing`. Calls into a port
return at once; what comes back later comes through the sink that was handed over, on the same event loop. So services
need no locks, and a test drives them by calling the sink.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

from warmroute.core.openai import RoutingRequest
from warmroute.types import Endpoint, ModelInfo, TokenIds


class EventSink(Protocol):
    """Who listens to one worker's event stream."""

    def connected(self) -> None:
        """The subscription's transport is up (or up again): everything published from now on arrives, after this."""
        ...

    def disconnected(self) -> None:
        """The transport went away, with all that was not delivered; the source reconnects by itself, with backoff."""
        ...

    def message(self, frames: Sequence[bytes]) -> None:
        """One published multipart message, frames as received."""
        ...

    def replayed(self, frames: Sequence[bytes]) -> None:
        """One multipart reply of the replay that was asked for."""
        ...

    def replay_failed(self, reason: str) -> None:
        """The replay that was asked for cannot be had or fell silent before its end; `reason` is a short word."""
        ...


class EventSource(Protocol):
    """One worker's event and replay sockets."""

    def start(self, sink: EventSink) -> None:
        """Subscribe, and call `sink` from now on."""
        ...

    def replay(self, start: int) -> None:
        """Ask for every batch from number `start` on; a replay still under way is abandoned."""
        ...

    def end_replay(self) -> None:
        """The replay's end was seen: release its socket."""
        ...

    def close(self) -> None:
        """Release everything; the sink is not called any more."""
        ...


@dataclass(frozen=True, slots=True)
class EventAddress:
    """Where one worker publishes."""

    endpoint: str
    """ZMQ address to subscribe to, e.g. `tcp://10.0.0.7:5557`."""
    replay_endpoint: str | None = None
    """ZMQ address of its replay socket; None: lost batches cannot be had again."""
    topic: str = ""
    """Topic prefix to subscribe to; empty: everything."""
    bind: bool = False
    """Whether the engine connects to us: `endpoint` is where we listen for it."""


EventSourceFactory = Callable[[EventAddress], EventSource]


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says of itself."""

    models: tuple[ModelInfo, ...]
    event_sources: Mapping[int, EventAddress] | None
    """Data-parallel rank -> where it publishes; None if the engine does not say (before vLLM 0.31)."""
    version: str | None = None
    block_size: int | None = None
    """`vllm:cache_config_info`'s block size, if it is exported."""
    kv_tokens_max: int | None = None
    """Tokens that a rank's GPU cache has room for, by `vllm:cache_config_info`."""
    asleep: bool | None = None
    """Whether its metrics say that it was put to sleep; None if they do not say."""
    process_start: float | None = None
    """`process_start_time_seconds` of its metrics: another value means another process."""


class Health(enum.Enum):
    """What a probe of an engine found."""

    GOOD = "good"
    FAILING = "failing"
    """No answer in time, or another than 200: it may only be busy."""
    REFUSED = "refused"
    """Nobody listens there."""
    UNASKED = "unasked"
    """We had no socket to ask with: that says nothing of the engine."""


@dataclass(frozen=True, slots=True)
class CacheCounters:
    """What one data-parallel rank has counted since its process began, in tokens."""

    queries: float
    """Looked up in the prefix cache."""
    hits: float
    """Found there."""


class EngineApi(Protocol):
    """The engines' own HTTP surface, off the data path."""

    async def facts(self, endpoint: Endpoint) -> EngineFacts:
        """Ask the engine what it serves and where it publishes. Raises EngineError if it does not answer."""
        ...

    async def health(self, endpoint: Endpoint) -> Health:
        """What `/health` answers."""
        ...

    async def cache_counters(self, endpoint: Endpoint) -> Mapping[int, CacheCounters]:
        """The prefix cache's counters by data-parallel rank; empty if they cannot be had."""
        ...


class Tokenizer(Protocol):
    """Token ids for a request, exactly as the engine will make them."""

    async def tokens(self, request: RoutingRequest, endpoint: Endpoint) -> TokenIds:
        """Token ids of the request's prompt. Raises TokenizeError; `endpoint` is an engine that serves the model."""
        ...


Rest: TypeAlias = "Callable[[], Awaitable[TokenIds]]"
"""What is left to do for token ids after a beginning; to be called at most once. Raises TokenizeError when awaited."""


@runtime_checkable
class InstantTokenizer(Tokenizer, Protocol):
    """A tokenizer that often needs not be waited for."""

    given_up: Counter[str]
    """Ways around the tokenizer or the template that gave something else than these once, and are not taken since."""

    def begin(self, request: RoutingRequest) -> TokenIds | Rest:
        """What `tokens` gives, or what brings it if that would keep the event loop for long. Raises TokenizeError."""
        ...


class Outcome(enum.StrEnum):
    """How a dispatched request ended."""

    COMPLETE = "complete"
    CLIENT_GONE = "client_gone"
    ENGINE_LOST = "engine_lost"
    """The engine closed or reset before its answer was complete."""
    UNREACHABLE = "unreachable"
    """No connection to the engine could be made, or it ended before a byte of the answer: may be retried."""
    REFUSED = "refused"
    """The engine answered 503: it has not begun, and the request may be retried."""
    UNASKED = "unasked"
    """This machine had no socket for asking the engine, which is not at fault."""

    __hash__ = str.__hash__  # an enum's own is written in Python, and every request is counted by its outcome

    @property
    def retried(self) -> bool:
        """Whether the data plane asks for another worker at once."""
        return self in (Outcome.UNREACHABLE, Outcome.REFUSED)


Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""Header names and values, in order, as bytes."""


@dataclass(slots=True)
class RequestHead:
    """A request's head as the client sent it: order, case and bytes of the headers are kept. Not to be changed."""

    method: bytes
    target: bytes
    headers: Headers
    _names: list[bytes] | None = field(default=None, repr=False, compare=False)  # given by who has lowered them already
    _first: dict[bytes, tuple[bytes, bytes]] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def names(self) -> list[bytes]:
        """The headers' names in lower case, in order."""
        names = self._names
        if names is None:
            names = self._names = [name.lower() for name, _ in self.headers]
        return names

    def replaced(self, names: tuple[bytes, ...], name: bytes, value: bytes) -> RequestHead:
        """The same without headers of these lower-case names, and with that one."""
        kept = [header for own, header in zip(self.names, self.headers, strict=True) if own not in names]
        return RequestHead(self.method, self.target, (*kept, (name, value)))

    def header(self, name: bytes) -> bytes | None:
        """The first header of that lower-case name, or None."""
        first = self._first
        if first is None:
            first = self._first = dict(zip(reversed(self.names), reversed(self.headers), strict=True))
        found = first.get(name)
        return None if found is None else found[1]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that the gateway gives itself."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: Headers = ()


LocalReply: TypeAlias = "Callable[[str], Reply | Awaitable[Reply]]"
"""Answers a path, or all below it, for the gateway itself; gets the request's target, its query included."""


class Dispatch(Protocol):
    """One attempt to have one request served by one worker. Holds the load that was booked for it."""

    @property
    def endpoint(self) -> Endpoint:
        """Where to send it."""
        ...

    @property
    def request_headers(self) -> Headers:
        """Headers to set on the request to the engine (`x-request-id`, `x-data-parallel-rank`)."""
        ...

    @property
    def response_headers(self) -> Headers:
        """Headers to set on the answer to the client (`x-request-id`, `x-warmroute-worker`, ...)."""
        ...

    @property
    def retriable(self) -> bool:
        """Whether it may be sent again if no byte of an answer came: false if acting on it twice would do harm."""
        ...

    def answering(self, status: int) -> None:
        """The first byte of the answer's body came (the head may come before the engine has begun to compute)."""
        ...

    def progressed(self) -> None:
        """A further piece of the answer's body came. Called for each, so it must be cheap."""
        ...

    def finished(self, outcome: Outcome, tail: bytes = b"", status: int | None = None) -> None:
        """The attempt is over: release what was booked. Only the first call counts.

        `tail` is the end of the answer's body, at most some KiB as it came: engines put the usage there. `status` is
        that of an answer that came all at once: `answering` was not called.
        """
        ...


class Guard(Protocol):
    """Who looks at a request's head before its body is read."""

    def admit(self, head: RequestHead) -> RequestHead:
        """The head to go on with. Raises ClientError if the request does not."""
        ...


class GatewayService(Protocol):
    """What the HTTP edge asks. It may answer at once; only what must wait (a tokenizer) comes as an awaitable."""

    def dispatch(self, head: RequestHead, body: bytes) -> Dispatch | Reply | Awaitable[Dispatch | Reply]:
        """Decide what becomes of a request. Raises ClientError or NoWorkerError, at once or when awaited."""
        ...

    def retry(self, dispatch: Dispatch) -> Dispatch | None:
        """Another worker for a request whose attempt ended UNREACHABLE or REFUSED; None: not to be tried again."""
        ...
