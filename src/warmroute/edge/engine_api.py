"""What engines say of themselves over HTTP, off the data path.

Only `/v1/models` must answer; everything else is taken if it is there, because engines and releases differ in what they
have. Addresses come back as they can be reached from here.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from email.utils import parsedate_to_datetime
from math import isfinite
from types import MappingProxyType

import aiohttp
import msgspec

from warmroute.errors import EXHAUSTED, EngineError
from warmroute.service.doctor.facts import HttpFacts
from warmroute.service.doctor.pages import cache_configs, read_pages
from warmroute.service.ports import CacheCounters, EngineFacts, EventAddress, Health
from warmroute.types import Endpoint, ModelInfo

ANSWER_BYTES_MAX = 8 * 1024 * 1024
"""Longer answers are refused: the metrics of a big engine have some 100 kB."""
COMPLETION_TIMEOUT = aiohttp.ClientTimeout(total=60.0)
"""For one token on an engine that may have a queue."""

_WILDCARDS = frozenset({"*", "0.0.0.0", "::", ""})  # noqa: S104 - compared with, not bound to
_SIZE_MAX = 1 << 48
"""More tokens than this fit nowhere."""
_PROCESS_START = re.compile(rb"^process_start_time_seconds(?:\{[^}]*\})? (\S+)", re.MULTILINE)
_CACHE_COUNTER = re.compile(
    rb"^vllm:(?:gpu_)?prefix_cache_(queries|hits)(?:_total)?(?:\{([^}]*)\})? ([0-9.eE+]+)$", re.MULTILINE
)
_AWAKE = re.compile(rb'^vllm:engine_sleep_state\{[^}]*\bsleep_state="awake"[^}]*\} ([0-9.]+)$', re.MULTILINE)
_ENGINE_LABEL = re.compile(rb'\bengine="(\d{1,9})"')


class _Model(msgspec.Struct):
    id: str
    parent: str | None = None
    root: str | None = None
    max_model_len: int | None = None
    created: int = 0
    owned_by: str = "vllm"


class _Models(msgspec.Struct):
    data: list[_Model]


class _Source(msgspec.Struct):
    endpoint: str | None = None
    replay_endpoint: str | None = None
    topic: str = ""
    publisher: str | None = "zmq"
    enable_kv_cache_events: bool = True


class _Version(msgspec.Struct):
    version: str


_PAGES = ("/kv_event_sources", "/version", "/metrics")
_INFOS = ("/server_info?config_format=json", "/get_server_info")
_MODELS = msgspec.json.Decoder(_Models)
_SOURCES = msgspec.json.Decoder(dict[int, _Source])
_VERSION = msgspec.json.Decoder(_Version)


class HttpEngineApi:
    """The port `EngineApi`, by HTTP. The session belongs to whoever made it."""

    def __init__(
        self, session: aiohttp.ClientSession, timeout_s: float, keys: Mapping[Endpoint, str] = MappingProxyType({})
    ) -> None:
        self._session = session
        self._keys = keys
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def facts(self, endpoint: Endpoint) -> EngineFacts:
        """Ask the engine what it serves and where it publishes. Raises EngineError if it does not answer."""
        status, models = await self._get(endpoint, "/v1/models")
        problem = self._problem(endpoint, 200, status, models)
        if problem is not None:
            raise EngineError(problem[1])
        return _facts(endpoint, models, *await self._pages(endpoint, *_PAGES))

    async def health(self, endpoint: Endpoint) -> Health:
        """What `/health` answers."""
        try:
            status, _ = await self._get(endpoint, "/health")
        except EngineError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in EXHAUSTED:
                return Health.UNASKED
            return Health.REFUSED if isinstance(cause, aiohttp.ClientConnectorError) else Health.FAILING
        return Health.GOOD if status == 200 else Health.FAILING

    async def cache_counters(self, endpoint: Endpoint) -> Mapping[int, CacheCounters]:
        """The prefix cache's counters by data-parallel rank; empty if they cannot be had."""
        metrics = await self._optional(endpoint, "/metrics")
        return {} if metrics is None else cache_counters(metrics)

    async def inspect(self, endpoint: Endpoint) -> HttpFacts:
        """Everything it says that tells right setups from wrong ones. Never raises."""
        try:
            health, _, skew_s = await self._fetch(endpoint, "/health")
        except EngineError as error:
            return HttpFacts(str(error), "unreachable")
        try:
            status, body = await self._get(endpoint, "/v1/models")
        except EngineError as error:
            return HttpFacts(str(error), "not_ready")
        if problem := self._problem(endpoint, health, status, body):
            return HttpFacts(problem[1], problem[0])
        sources, version, metrics, *infos = await self._pages(endpoint, *_PAGES, *_INFOS)
        facts = _facts(endpoint, body, sources, version, metrics)
        return replace(read_pages(facts, sources, metrics, infos), skew_s=skew_s)

    async def complete(self, endpoint: Endpoint, body: bytes, rank: int | None = None) -> tuple[int, bytes]:
        """Have a completion made, by one data-parallel rank if there are several. Raises EngineError."""
        pin = {} if rank is None else {"x-data-parallel-rank": str(rank)}
        key = self._keys.get(endpoint)
        headers = {"content-type": "application/json", **pin} | ({"authorization": f"Bearer {key}"} if key else {})
        try:
            async with self._session.post(
                f"{endpoint.url}/v1/completions", data=body, headers=headers, timeout=COMPLETION_TIMEOUT
            ) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineError(f"{endpoint.url} did not answer a completion: {error!r}") from error

    async def _pages(self, endpoint: Endpoint, *paths: str) -> list[bytes | None]:
        """What the engine answers; None for what it has not."""
        return await asyncio.gather(*(self._optional(endpoint, path) for path in paths))

    def _problem(self, endpoint: Endpoint, health: int, status: int, models: bytes) -> tuple[str, str] | None:
        """Why an engine cannot be used: a code and a sentence; None if it can."""
        url = endpoint.url
        if status in (401, 403):
            wants = "another key than it is configured with" if endpoint in self._keys else "a key"
            remedy = "set engines[].api_key_file or membership.api_key"
            return "api_key", f"{url} refuses /v1/models ({status}): it wants {wants}; {remedy}"
        if health != 200 and status == 200:
            return "not_ready", f"{url}/health answered {health}"
        if status != 200:
            code = "not_ready" if status >= 500 else "no_engine"
            return code, f"{url} answered /v1/models with {status}: it is starting, or no engine; check the URL"
        try:
            _MODELS.decode(models)
        except msgspec.DecodeError as error:
            return "no_engine", f"{url} answered /v1/models with no list of models ({error}); check the URL"
        return None

    async def _optional(self, endpoint: Endpoint, path: str) -> bytes | None:
        try:
            status, body = await self._get(endpoint, path)
        except EngineError:
            return None
        return body if status == 200 else None

    async def _get(self, endpoint: Endpoint, path: str) -> tuple[int, bytes]:
        status, body, _ = await self._fetch(endpoint, path)
        return status, body

    async def _fetch(self, endpoint: Endpoint, path: str) -> tuple[int, bytes, float | None]:
        """Status, body, and how far the engine's clock is ahead of ours, if it says what time it is."""
        key = self._keys.get(endpoint)
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        asked = time.time()
        try:
            async with self._session.get(
                f"{endpoint.url}{path}", headers=headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                body = await response.content.read(ANSWER_BYTES_MAX + 1)
                while not response.content.at_eof() and len(body) <= ANSWER_BYTES_MAX:
                    body += await response.content.read(ANSWER_BYTES_MAX + 1 - len(body))
        except TimeoutError as error:
            raise EngineError(f"{endpoint.url}{path} did not answer within {self._timeout.total} s") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise EngineError(
                f"{endpoint.url} cannot be reached ({error}); check that the engine runs there"
            ) from error
        if len(body) > ANSWER_BYTES_MAX:
            raise EngineError(f"{endpoint.url}{path} answered more than {ANSWER_BYTES_MAX} bytes; check the URL")
        return response.status, body, _skew_s(response.headers.get("date"), asked, time.time())


def _facts(
    endpoint: Endpoint, models: bytes, sources: bytes | None, version: bytes | None, metrics: bytes | None
) -> EngineFacts:
    """What the pages say together; None stands for one that is not there. `models` has been looked at before."""
    found = _MODELS.decode(models).data
    block_size, kv_tokens_max = _cache_sizes(metrics or b"")
    return EngineFacts(
        models=tuple(ModelInfo(m.id, m.parent, m.max_model_len, m.created, m.owned_by, m.root) for m in found),
        event_sources=None if sources is None else event_sources(sources, endpoint),
        version=_version(version),
        block_size=block_size,
        kv_tokens_max=kv_tokens_max,
        asleep=_asleep(metrics or b""),
        process_start=_process_start(metrics or b""),
    )


def event_sources(body: bytes, endpoint: Endpoint) -> dict[int, EventAddress] | None:
    """Read an answer to `/kv_event_sources`: data-parallel rank -> where it publishes, as reachable from here.

    None if it is no such answer. A rank that publishes nothing, or on a loopback address of another machine (which
    here would be somebody else), is left out.
    """
    try:
        sources = _SOURCES.decode(body)
    except msgspec.DecodeError:
        return None
    found = {}
    for rank, source in sources.items():
        publishes = source.enable_kv_cache_events and source.publisher in ("zmq", None)
        address = _reachable(source.endpoint, endpoint.host) if publishes else None
        if address is not None:
            found[rank] = EventAddress(address, _reachable(source.replay_endpoint, endpoint.host), source.topic)
    return found


def _reachable(address: str | None, host: str) -> str | None:
    if not address:
        return None
    if not address.startswith("tcp://"):
        return address if _is_loopback(host) else None
    bound, _, port = address.removeprefix("tcp://").rpartition(":")
    bound = bound.strip("[]")
    if bound in _WILDCARDS:
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
    return None if _is_loopback(bound) and not _is_loopback(host) else address


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def cache_counters(metrics: bytes) -> dict[int, CacheCounters]:
    """The prefix cache's counters in an engine's metrics, by data-parallel rank."""
    found: dict[int, dict[bytes, float]] = {}
    for name, labels, value in _CACHE_COUNTER.findall(metrics):
        rank, number = _ENGINE_LABEL.search(labels), _number(value)
        if number is not None:
            counted = found.setdefault(int(rank[1]) if rank else 0, {})
            counted[name] = counted.get(name, 0.0) + number
    return {
        rank: CacheCounters(counted[b"queries"], counted[b"hits"])
        for rank, counted in found.items()
        if len(counted) == 2
    }


def _version(body: bytes | None) -> str | None:
    try:
        return None if body is None else _VERSION.decode(body).version
    except msgspec.DecodeError:
        return None


def _cache_sizes(metrics: bytes) -> tuple[int | None, int | None]:
    """Tokens in a block, and in the cache."""
    labels = next(iter(cache_configs(metrics)), {})
    block_size, blocks = (
        int(size) if re.fullmatch("[0-9]{1,12}", size := labels.get(key, "")) else 0
        for key in ("block_size", "num_gpu_blocks")
    )
    tokens = block_size * blocks
    return block_size or None, tokens if 0 < tokens <= _SIZE_MAX else None


def _asleep(metrics: bytes) -> bool | None:
    found = _AWAKE.search(metrics)
    awake = None if found is None else _number(found[1])
    return None if awake is None else awake == 0.0


def _process_start(metrics: bytes) -> float | None:
    found = _PROCESS_START.search(metrics)
    return None if found is None else _number(found[1])


def _number(text: bytes) -> float | None:
    """None for what is no number, or none that can be compared."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None


# For the doctor.


def _skew_s(date: str | None, asked: float, answered: float) -> float | None:
    """The header counts whole seconds, so it means half a second more on average."""
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp() + 0.5 - (asked + answered) / 2
    except ValueError:
        return None
