"""The arguments that turn vLLM's KV events on, worked into a command line that is there already.

`--kv-events-config` with a JSON object is the only switch that any release has (0.9 and later). Flags that documents of
other systems name (`--enable-kv-cache-events`, `--kv-events-endpoint`, ...) exist in no release: an engine that is
given one does not start. What they meant is taken over, and they are taken out.

Invariant: what is there and right stays as it is, to the letter; worked in twice is worked in once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from warmroute.errors import WarmrouteError

FLAG: Final = "--kv-events-config"
UNKNOWN_FLAGS: Final = {
    "--enable-kv-cache-events": "enable_kv_cache_events",
    "--kv-events-publisher": "publisher",
    "--kv-events-endpoint": "endpoint",
    "--kv-events-replay-endpoint": "replay_endpoint",
    "--kv-events-buffer-steps": "buffer_steps",
    "--kv-events-topic": "topic",
}
"""Flags that no release has -> the key of the object that means it."""
UNKNOWN_VARIABLES: Final = {
    "VLLM_ENABLE_KV_CACHE_EVENTS": "enable_kv_cache_events",
    "VLLM_KV_EVENTS_PUBLISHER": "publisher",
    "VLLM_KV_EVENTS_ENDPOINT": "endpoint",
    "VLLM_KV_EVENTS_REPLAY_ENDPOINT": "replay_endpoint",
    "VLLM_KV_EVENTS_BUFFER_STEPS": "buffer_steps",
    "VLLM_KV_EVENTS_HWM": "hwm",
    "VLLM_KV_EVENTS_TOPIC": "topic",
}
"""Variables that no release reads, likewise."""
EVENTS_PORT, REPLAY_DISTANCE_MIN = 5557, 10
RANKS_FLAGS: Final = ("--data-parallel-size", "-dp")
_NUMBERS: Final = frozenset({"buffer_steps", "hwm", "max_queue_size"})
_BOUND: Final = {"endpoint": ("*", "[::]"), "replay_endpoint": ("*", "[::]", "0.0.0.0")}  # noqa: S104 - compared with
"""Hosts that an engine binds for others to reach. Its replay socket it binds wherever it is told; its PUB socket only
where the address has `*` or `::`, for with any other it connects, and nobody hears it."""


class PatchError(WarmrouteError):
    """The user's: what is deployed cannot be changed safely. The message says why and what to do instead."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a command line says."""

    words: tuple[str, ...]
    """Without anything about events."""
    events: Mapping[str, Any]
    """What the object holds, unknown flags taken over."""
    at: int
    """Where among the words the object stood, or should."""
    original: tuple[str, ...]
    """The words of the object as they were; empty: there was none."""


def value_of(words: Sequence[str], *flags: str) -> str | None:
    """What a flag is given, `--flag value` or `--flag=value`; the last one counts, as it does for vLLM."""
    found = None
    for at, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in flags:
            found = value if equals else words[at + 1] if at + 1 < len(words) else None
    return found


def is_told(words: Sequence[str]) -> bool:
    """Whether a command line says anything of events."""
    names = (word.partition("=")[0] for word in words)
    return any(name == FLAG or name.startswith(f"{FLAG}.") or name in UNKNOWN_FLAGS for name in names)


def find(words: Sequence[str]) -> Found:
    """Take a command line apart. Raises PatchError."""
    rest: list[str] = []
    events: dict[str, Any] = {}
    original: tuple[str, ...] = ()
    at = None
    i = 0
    while i < len(words):
        name, equals, value = words[i].partition("=")
        if name.startswith(f"{FLAG}."):
            raise PatchError(f"it uses {name}; write the settings as one {FLAG} with a JSON object, then try again")
        if name != FLAG and name not in UNKNOWN_FLAGS:
            rest.append(words[i])
            i += 1
            continue
        taken = [words[i]]
        if not equals and i + 1 < len(words) and not words[i + 1].startswith("--"):
            taken.append(value := words[i + 1])
        i += len(taken)
        at = len(rest) if at is None else at
        if name == FLAG:
            original = tuple(taken)
            events |= _object(value)
        else:
            events.setdefault(UNKNOWN_FLAGS[name], _value(UNKNOWN_FLAGS[name], value))
    return Found(tuple(rest), events, len(rest) if at is None else at, original)


def completed(found: Found, variables: Mapping[str, str], ranks: int) -> dict[str, Any]:
    """The object as it should be: what is said holds, what is missing or cannot work is put right."""
    events = {key: _value(key, variables[name]) for name, key in UNKNOWN_VARIABLES.items() if name in variables}
    events |= found.events
    events |= {"enable_kv_cache_events": True, "publisher": "zmq"}
    port = _port(events.get("endpoint")) or EVENTS_PORT
    replay = _port(events.get("replay_endpoint"))
    if replay is None or abs(replay - port) < ranks:  # rank r adds r to both: they would meet
        replay = port + max(REPLAY_DISTANCE_MIN, ranks)
    for key, number in (("endpoint", port), ("replay_endpoint", replay)):
        host, _, _ = _parts(events.get(key))
        if host not in _BOUND[key] or _port(events[key]) != number:
            events[key] = f"tcp://*:{number}"
    return {key: value for key, value in events.items() if value not in (None, "")}


def ports(events: Mapping[str, Any]) -> tuple[int, int]:
    """The event and the replay port of rank 0."""
    return _port(events["endpoint"]) or EVENTS_PORT, _port(events["replay_endpoint"]) or 0


def worked_in(found: Found, events: Mapping[str, Any]) -> list[str]:
    """The command line with the object in it; as it was, if it says the same."""
    if found.original and found.events == events:
        return [*found.words[: found.at], *found.original, *found.words[found.at :]]
    shown = json.dumps(events, separators=(",", ":"))
    return [*found.words[: found.at], FLAG, shown, *found.words[found.at :]]


def _object(text: str) -> dict[str, Any]:
    try:
        events = json.loads(text)
    except ValueError:
        events = None
    if not isinstance(events, dict):
        raise PatchError(f"its {FLAG} is no JSON object: {text[:100]!r}; mend or remove it, then try again")
    return events


def _value(key: str, text: str) -> Any:
    if key == "enable_kv_cache_events":
        return text.lower() not in ("false", "0")
    return int(text) if key in _NUMBERS and text.isdecimal() else text


def _port(address: object) -> int | None:
    """The port of an address that means every interface; None: it is no such address."""
    host, _, port = _parts(address)
    wide = host in _BOUND["replay_endpoint"]
    return int(port) if wide and port.isdecimal() and 0 < int(port) <= 65535 else None


def _parts(address: object) -> tuple[str, str, str]:
    return str(address or "").removeprefix("tcp://").rpartition(":")
