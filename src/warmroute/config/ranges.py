"""The range of every leaf, as data beside the tree.

Invariant: every numeric leaf of the tree has a range here, and every text leaf a form (a test holds
this). Types are checked before; ranges see values of the leaf's own type.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from warmroute.config.addresses import PORT_MAX, check_listen_host, parse_url, parse_zmq, parse_zmq_listen

DAY_S: Final = 86_400.0
"""No pause or patience of a router is longer; a longer one is a slip of the unit."""
GIB: Final = 1024**3
BATCHES_MAX: Final = 100_000_000
LIMIT_MAX: Final = 10**12
RANKS_MAX: Final = 1024
PROCESSES_MAX: Final = 64
SOCKET_PATH_BYTES_MAX: Final = 100
"""Systems allow 104 or 108."""
TOPIC_BYTES_MAX: Final = 255


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` (not included if `above`) to `high`, both finite."""

    low: float
    high: float
    above: bool = False

    def describe(self, noun: str) -> str:
        """`an integer from 1 to 65535`."""
        low, high = _number(self.low), _number(self.high)
        return f"{noun} above {low} up to {high}" if self.above else f"{noun} from {low} to {high}"

    def refuse(self, value: object) -> str | None:
        """The clause that says why `value` is refused, or None."""
        if not isinstance(value, int | float) or math.isnan(value):
            return "is not a number"
        if not self.low <= value <= self.high or (self.above and value == self.low):
            return "is out of range"
        return None


@dataclass(frozen=True, slots=True)
class Form:
    """Text that `parse` takes; `expects` says which."""

    expects: str
    parse: Callable[[str], object]

    def describe(self, noun: str) -> str:
        """`text: a URL http://HOST:PORT` without the noun: the form says more."""
        del noun
        return self.expects

    def refuse(self, value: object) -> str | None:
        """The clause that says why `value` is refused, or None."""
        try:
            self.parse(str(value))
        except ValueError as error:
            return str(error)
        return None


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _check_topic(topic: str) -> None:
    if len(topic.encode()) > TOPIC_BYTES_MAX:
        raise ValueError("is too long")
    if not topic.isprintable():
        raise ValueError("has unprintable characters")


def _check_path(path: str) -> None:
    if not path or "\0" in path:
        raise ValueError("is no path")


def _check_socket_path(path: str) -> None:
    _check_path(path)
    if len(path.encode()) > SOCKET_PATH_BYTES_MAX:
        raise ValueError("is too long for a Unix socket")


def check_key(key: str) -> None:
    """Raises ValueError if `key` cannot stand in a header."""
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("is no key: it is empty, or has characters that no header may carry")


POLICIES: Final = (
    "warmroute",
    "round_robin",
    "random",
    "least_loaded",
    "power_of_two",
    "consistent_hash",
    "approximate",
    "aibrix",
    "dynamo",
    "llm_d",
)
"""The policies that are built in."""


def by_model(text: str) -> dict[str, int]:
    """The numbers that `MODEL=N,MODEL=N` gives. Raises ValueError."""
    found: dict[str, int] = {}
    for pair in text.split(","):
        model, _, number = pair.strip().rpartition("=")
        if not model or not re.fullmatch(r"[0-9]{1,12}", number) or not int(number):
            raise ValueError("is not MODEL=N,MODEL=N")
        if model in found:
            raise ValueError(f"names {model} twice")
        found[model] = int(number)
    return found


def _check_redis(url: str) -> None:
    match = re.fullmatch(r"rediss?://[^/@\s:]+(:(?P<port>[0-9]{1,5}))?(/[0-9]{1,3})?", url)
    if match is None or int(match["port"] or 1) > PORT_MAX:
        raise ValueError("is no redis:// URL (a password has a file of its own)")


def _check_header(name: str) -> None:
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9a-z-]+", name):
        raise ValueError("is no lower-case header name")


def _check_policy(policy: str) -> None:
    module, _, name = policy.rpartition(":")
    if policy not in POLICIES and not (module and name.isidentifier()):
        raise ValueError("is no policy")


def _check_dns_name(name: str) -> None:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
        raise ValueError("is no such name: lower-case letters, digits and dashes")


def _check_name(name: str) -> None:
    if not name or not name.isprintable():
        raise ValueError("is no name")


def _check_selector(selector: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_./=!,() -]+", selector):
        raise ValueError("is no label selector, as `kubectl get -l` takes it")


def namespaces_of(text: str) -> tuple[str, ...]:
    """The namespaces that `A,B` names; `("*",)` for all. Raises ValueError."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if names != ("*",):
        for name in names:
            _check_dns_name(name)
    return names


_TIME: Final = Range(0, DAY_S, above=True)
_TIME_OR_NONE: Final = Range(0, DAY_S)
_PORT: Final = Range(1, PORT_MAX)
_SHARE: Final = Range(0, 1)
_WEIGHT: Final = Range(0, 1e6)
_RATE: Final = Range(0, 1e9, above=True)
_LIMIT: Final = Range(1, 1_000_000)
_BY_MODEL: Final = Form("MODEL=N pairs with commas between them, N from 1 on", by_model)
_LISTEN: Final = Form("an IP address or localhost", check_listen_host)
_URL: Final = Form("a URL http://HOST:PORT or https://HOST:PORT", parse_url)
_KEY: Final = Form("a key without spaces, as it goes into a header", check_key)
_NAME: Final = Form("a name", _check_name)
_FILE: Final = Form("the path of a file", _check_path)
_ZMQ: Final = Form("a ZMQ address tcp://HOST:PORT or ipc://PATH to connect to", parse_zmq)
_ZMQ_LISTEN: Final = Form("a ZMQ address tcp://*:PORT, tcp://HOST:PORT or ipc://PATH to listen on", parse_zmq_listen)

RANGES: Final[Mapping[str, Range | Form]] = {
    "engines[].url": _URL,
    "engines[].events_endpoint": _ZMQ,
    "engines[].events_listen": _ZMQ_LISTEN,
    "engines[].replay_endpoint": _ZMQ,
    "engines[].topic": Form(f"printable text of at most {TOPIC_BYTES_MAX} bytes", _check_topic),
    "engines[].api_key": _KEY,
    "engines[].api_key_file": _FILE,
    "engines[].data_parallel_size": Range(1, RANKS_MAX),
    "engines[].weight": Range(0, 1000),
    "gateway.host": _LISTEN,
    "gateway.port": Range(0, PORT_MAX),
    "gateway.processes": Range(1, PROCESSES_MAX),
    "gateway.handover": Form("the path of a Unix socket, at most 100 bytes", _check_socket_path),
    "gateway.max_body_bytes": Range(1, GIB),
    "gateway.max_head_bytes": Range(1024, GIB),  # below 1 KiB no real client's head fits
    "gateway.head_timeout_s": _TIME,
    "gateway.connect_timeout_s": _TIME,
    "gateway.first_byte_timeout_s": _TIME,
    "gateway.idle_timeout_s": _TIME,
    "gateway.keepalive_timeout_s": _TIME,
    "gateway.drain_timeout_s": _TIME_OR_NONE,
    "gateway.retries": Range(0, 100),
    "gateway.keys_file": _FILE,
    "admin.host": _LISTEN,
    "admin.port": Range(0, PORT_MAX),
    "admin.keys_file": _FILE,
    "admission.requests_max": _LIMIT,
    "admission.model_requests_max": _BY_MODEL,
    "admission.model_body_bytes_max": _BY_MODEL,
    "admission.worker_requests_max": _LIMIT,
    "admission.queue_requests_max": Range(0, 1_000_000),
    "admission.queue_timeout_s": _TIME,
    "admission.key_requests_per_min": Range(1, LIMIT_MAX),
    "admission.key_tokens_per_min": Range(1, LIMIT_MAX),
    "admission.redis_url": Form("a URL redis://HOST:PORT/DB or rediss://HOST:PORT/DB", _check_redis),
    "admission.redis_password_file": _FILE,
    "admission.redis_timeout_s": _TIME,
    "tls.certificate": _FILE,
    "tls.key": _FILE,
    "tls.engine_ca": _FILE,
    "events.port": _PORT,
    "events.replay_port": _PORT,
    "events.replay_timeout_s": _TIME,
    "events.replays_max": Range(1, 100_000),
    "events.reconnect_backoff_s": _TIME,
    "events.reconnect_backoff_max_s": _TIME,
    "events.probe_idle_s": _TIME,
    "events.pending_batches_max": Range(1, BATCHES_MAX),
    "events.orphan_blocks_max": Range(0, BATCHES_MAX),
    "events.blocks_max": Range(1, 10**12),
    "events.worker_blocks_max": Range(1, 10**12),
    "tokenizer.path": Form("the path of a folder", _check_path),
    "tokenizer.remote_endpoint": _URL,
    "tokenizer.timeout_s": _TIME,
    "routing.policy": Form(f"one of {', '.join(POLICIES)}, or MODULE:CLASS, or FILE.py:CLASS", _check_policy),
    "routing.session_header": Form("a header name in lower case", _check_header),
    "routing.policy_ms_max": Range(0, 1e6, above=True),
    "routing.prefill_tokens_per_s": _RATE,
    "routing.decode_weight": _WEIGHT,
    "routing.others_weight": _WEIGHT,
    "routing.memory_weight": _WEIGHT,
    "routing.replication_weight": _WEIGHT,
    "routing.eviction_weight": _WEIGHT,
    "routing.speculative_ttl_s": _TIME_OR_NONE,
    "routing.session_worth": _SHARE,
    "routing.cpu_hit_worth": _SHARE,
    "routing.storage_hit_worth": _SHARE,
    "routing.degraded_belief": _SHARE,
    "breaker.failures_max": Range(0, 1000),
    "breaker.open_s": _TIME,
    "breaker.open_max_s": _TIME,
    "membership.probe_interval_s": _TIME,
    "membership.probe_timeout_s": _TIME,
    "membership.retry_interval_s": _TIME,
    "log.access": _FILE,
    "membership.failures_max": Range(1, 1000),
    "membership.drain_timeout_s": _TIME_OR_NONE,
    "discovery.kubernetes.namespaces": Form("names of namespaces with commas between them, or *", namespaces_of),
    "discovery.kubernetes.selector": Form("a label selector", _check_selector),
    "discovery.kubernetes.kubeconfig": _FILE,
    "discovery.kubernetes.context": _NAME,
    "discovery.file.path": _FILE,
    "discovery.service.name": Form("the name of a Service", _check_dns_name),
    "discovery.service.namespace": Form("the name of a namespace", _check_dns_name),
    "discovery.service.port_name": _NAME,
    "membership.api_key": _KEY,
    "membership.api_key_file": _FILE,
}
