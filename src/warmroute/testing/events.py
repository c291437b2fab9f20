"""The engines' side of the event plane: honest frames of any release, and an event source without sockets.

`RELEASES` is the table of what each release puts on the wire. A test holds the encoders to bytes that the releases' own
code produced, so what is built with them may be trusted where no engine is at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec

from warmroute.core.wire.events import AllBlocksCleared, BlockRemoved, BlockStored, Event
from warmroute.service.ports import EventAddress, EventSink
from warmroute.types import Medium

Form: TypeAlias = Literal["map", "array"]

END_SEQ = b"\xff" * 8
DEFAULT_RELEASE = "vllm-0.32"

_V09 = ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id")
_V14 = (*_V09, "medium", "lora_name")
_V22 = (*_V14, "extra_keys", "group_idx", "kv_cache_spec_kind", "kv_cache_spec_sliding_window")
_V30 = (*_V22, "locality", "ownership", "session_id")
_REMOVED = ("block_hashes", "medium")
_SGLANG_MAP = (*_V09, "medium", "cache_salt", "session_id")
_REQUIRED = frozenset(_V14)
"""What vLLM's maps carry even when null; everything else is left out when null."""


@dataclass(frozen=True, slots=True)
class Release:
    """What one release puts on the wire."""

    form: Form
    stored: tuple[str, ...]
    """Fields of BlockStored, in order."""
    removed: tuple[str, ...]
    """Fields of BlockRemoved, in order."""
    replay_topic: bool = False
    """Whether replies of the replay socket carry the topic."""
    required: frozenset[str] = _REQUIRED
    """Fields that a map carries even when null."""
    cpu: str = "CPU"
    """Its name of the CPU medium."""
    storage: str = "STORAGE"
    """Its name of the storage medium."""


def _sglang(form: Form, stored: tuple[str, ...], removed: tuple[str, ...], *, replay_topic: bool = False) -> Release:
    return Release(form, stored, removed, replay_topic, frozenset(_V09), cpu="CPU_PINNED", storage="DISK")


RELEASES: dict[str, Release] = {
    "vllm-0.9": Release("array", _V09, _REMOVED[:1]),
    "vllm-0.10.2": Release("array", (*_V09, "medium"), _REMOVED),
    "vllm-0.14": Release("array", _V14, _REMOVED),
    "vllm-0.17": Release("array", _V22[:8], _REMOVED),
    "vllm-0.20": Release("array", _V22[:9], (*_REMOVED, "group_idx")),
    "vllm-0.22": Release("array", _V22, (*_REMOVED, "group_idx")),
    "vllm-0.24": Release("map", _V22, (*_REMOVED, "group_idx")),
    "vllm-0.26": Release("map", _V30[:12], (*_REMOVED, "group_idx", "locality"), replay_topic=True),
    "vllm-0.29": Release("map", _V30[:13], (*_REMOVED, "group_idx", "locality", "ownership"), replay_topic=True),
    "vllm-0.32": Release("map", _V30, (*_REMOVED, "group_idx", "locality", "ownership"), replay_topic=True),
    "vllm-0.33": Release(
        "map", (*_V30, "lookahead_token_ids"), (*_REMOVED, "group_idx", "locality", "ownership"), replay_topic=True
    ),
    "sglang-0.4.7": _sglang("array", _V09, _REMOVED[:1]),
    "sglang-0.5.10": _sglang("array", (*_V09, "medium"), _REMOVED),
    "sglang-0.5.19": _sglang("array", (*_V09, "medium", "metadata"), _REMOVED),
    "sglang-0.5.20": _sglang("map", _SGLANG_MAP, _REMOVED),
    "sglang-0.5.22": _sglang("map", (*_SGLANG_MAP, "lora_name"), _REMOVED, replay_topic=True),
}
"""Each release that changed the wire, by the first version that did (0.32 stands for 0.30 to 0.32)."""


def encode_batch(
    events: Iterable[Event],
    form: Form | None = None,
    *,
    release: str = DEFAULT_RELEASE,
    ts: float = 1_700_000_000.5,
    rank: int | None = 0,
) -> bytes:
    """The payload that `release` publishes for `events`; `form` overrides its way to write an event.

    What the release has no field for is left out, as it would be in life.
    """
    dialect = RELEASES[release]
    encoded = [_event(event, dialect, form or dialect.form) for event in events]
    return msgspec.msgpack.encode([ts, encoded, rank])


def pub_frames(topic: str | bytes, seq: int, payload: bytes) -> list[bytes]:
    """One published message."""
    return [_topic(topic), seq.to_bytes(8, "big"), payload]


def replay_frames(
    seq: int, payload: bytes, *, topic: str | bytes = b"", release: str = DEFAULT_RELEASE, delimiter: bool = True
) -> list[bytes]:
    """One reply of the replay socket, as a DEALER sees it (a REQ sees it without the delimiter)."""
    head = [b""] if delimiter else []
    return [*head, *([_topic(topic)] if RELEASES[release].replay_topic else []), seq.to_bytes(8, "big"), payload]


def replay_end(*, release: str = DEFAULT_RELEASE) -> list[bytes]:
    """The message that ends a replay, as a DEALER sees it."""
    return [b"", *([b""] if RELEASES[release].replay_topic else []), END_SEQ, b""]


REPLAY_END = replay_end()
"""The end marker of releases that put the topic into replies."""


def _topic(topic: str | bytes) -> bytes:
    return topic.encode() if isinstance(topic, str) else topic


def _event(event: Event, release: Release, form: Form) -> object:
    if isinstance(event, AllBlocksCleared):
        return ["AllBlocksCleared"] if form == "array" else {"type": "AllBlocksCleared"}
    tag, names = (
        ("BlockStored", release.stored) if isinstance(event, BlockStored) else ("BlockRemoved", release.removed)
    )
    values = _stored_values(event, release) if isinstance(event, BlockStored) else _removed_values(event, release)
    fields = {name: values.get(name) for name in names}
    if form == "array":
        return [tag, *fields.values()]
    return {"type": tag} | {k: v for k, v in fields.items() if v is not None or k in release.required}


def _removed_values(event: BlockRemoved, release: Release) -> dict[str, Any]:
    return {
        "block_hashes": event.block_hashes,
        "medium": _medium(event.medium, release),
        "group_idx": event.group,
    }


def _stored_values(event: BlockStored, release: Release) -> dict[str, Any]:
    lora_id = int(event.lora[1:]) if event.lora and event.lora[0] == "#" else None
    lora_name = event.lora if lora_id is None else None
    salt = event.extra_keys[0][0] if event.extra_keys and event.extra_keys[0] else None
    return {
        "block_hashes": event.block_hashes,
        "parent_block_hash": event.parent,
        "token_ids": event.token_ids,
        "block_size": event.block_size,
        "lora_id": lora_id,
        "medium": _medium(event.medium, release),
        "lora_name": lora_name,
        "extra_keys": _extra_keys(event, lora_name),
        "group_idx": event.group,
        "kv_cache_spec_kind": "full_attention" if event.sliding_window is None else "sliding_window",
        "kv_cache_spec_sliding_window": event.sliding_window,
        "cache_salt": salt,
        "metadata": None if salt is None else {"cache_salt": salt},
    }


def _extra_keys(event: BlockStored, lora_name: str | None) -> list[list[str | bytes] | None]:
    per_block = event.extra_keys or ((),) * len(event.block_hashes)
    head = [] if lora_name is None else [lora_name]
    return [[*head, *keys] or None for keys in per_block]


def _medium(medium: Medium, release: Release) -> str:
    return {Medium.GPU: "GPU", Medium.CPU: release.cpu, Medium.STORAGE: release.storage}[medium]


class FakeEventSource:
    """The port EventSource without sockets: the test calls the sink, and reads here what was asked of the source."""

    def __init__(self, address: EventAddress | None = None) -> None:
        self.address = address
        self.sink: EventSink | None = None
        self.replays: list[int] = []
        """Every start number that was asked for, in order."""
        self.replaying = False
        self.closed = False

    def start(self, sink: EventSink) -> None:
        """Remember the sink."""
        self.sink = sink

    def replay(self, start: int) -> None:
        """Note the question."""
        self.replays.append(start)
        self.replaying = True

    def end_replay(self) -> None:
        """Note the end."""
        self.replaying = False

    def close(self) -> None:
        """Let go of the sink: a call into it after this would be a bug of the test."""
        self.closed = True
        self.sink = None

    def connect(self) -> None:
        """Say that the subscription is up."""
        self._sink.connected()

    def disconnect(self) -> None:
        """Say that the transport went away."""
        self._sink.disconnected()

    def publish(self, seq: int, payload: bytes, topic: str = "kv") -> None:
        """Deliver one published message."""
        self._sink.message(pub_frames(topic, seq, payload))

    def answer(self, batches: Sequence[tuple[int, bytes]], *, end: bool = True) -> None:
        """Deliver replies to the last question, and the end marker."""
        for seq, payload in batches:
            self._sink.replayed(replay_frames(seq, payload))
        if end:
            self._sink.replayed(REPLAY_END)

    def fail(self, reason: str = "timeout") -> None:
        """Say that the replay cannot be had."""
        self.replaying = False
        self._sink.replay_failed(reason)

    @property
    def _sink(self) -> EventSink:
        if self.sink is None:
            raise RuntimeError("this source was not started, or it was closed")
        return self.sink
