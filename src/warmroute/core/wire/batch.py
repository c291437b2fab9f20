"""One payload -> one EventBatch: the envelope, and each event in its own dialect.

An event that cannot be read costs only itself. Invariant, held by a fuzzer: any bytes decode or raise WireError.
"""

from __future__ import annotations

from typing import Any

import msgspec

from warmroute.core.wire import keyed, positional
from warmroute.core.wire.canonical import canonical
from warmroute.core.wire.events import Event, EventBatch, RejectedEvent
from warmroute.core.wire.native import payload_mark
from warmroute.errors import WireError

# What msgspec raises for bytes that it cannot read: bad UTF-8 and too deep a nesting come as they are.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_TAGS = frozenset({"BlockStored", "BlockRemoved", "AllBlocksCleared"})
_DETAIL_CHARS_MAX = 200

NO_RANK = -1
"""Stands for a rank that is no number."""


class _ArrayEnvelope(msgspec.Struct, array_like=True, frozen=True, gc=False):
    ts: float
    events: list[msgspec.Raw]
    rank: Any = None


class _MapEnvelope(msgspec.Struct, frozen=True, gc=False):
    ts: float
    events: list[msgspec.Raw]
    data_parallel_rank: Any = None
    attn_dp_rank: Any = None

    @property
    def rank(self) -> Any:
        return self.attn_dp_rank if self.data_parallel_rank is None else self.data_parallel_rank


_ARRAY_ENVELOPE = msgspec.msgpack.Decoder(_ArrayEnvelope)
_MAP_ENVELOPE = msgspec.msgpack.Decoder(_MapEnvelope)


def decode_batch(payload: bytes | memoryview) -> EventBatch:
    """Everything one payload says. Raises WireError only if the batch as a whole cannot be read."""
    envelope = _envelope(payload)
    events: list[Event] = []
    rejected: list[RejectedEvent] = []
    unknown_media: list[str] = []
    for position, raw in enumerate(envelope.events):
        try:
            published = (keyed.DECODER if _is_map(raw) else positional.DECODER).decode(raw)
            events.append(canonical(published, unknown_media))
        except _UNREADABLE as error:
            rejected.append(_diagnosis(position, raw, error))
        except WireError as error:
            rejected.append(RejectedEvent(position=position, reason=error.reason, detail=error.detail))
    return EventBatch(
        ts=envelope.ts,
        rank=_rank(envelope.rank),
        events=tuple(events),
        rejected=tuple(rejected),
        unknown_media=len(unknown_media),
        mark=payload_mark(payload),
    )


def _envelope(payload: bytes | memoryview) -> _ArrayEnvelope | _MapEnvelope:
    try:
        return (_MAP_ENVELOPE if _is_map(payload) else _ARRAY_ENVELOPE).decode(payload)
    except msgspec.ValidationError as error:
        raise WireError("not_a_batch", str(error)) from None
    except _UNREADABLE as error:
        raise WireError("not_msgpack", str(error)[:_DETAIL_CHARS_MAX]) from None


def _rank(published: Any) -> int:
    """What is no number is nobody's rank: counted as a mismatch, which costs less than the batch."""
    if published is None:
        return 0
    return published if type(published) is int else NO_RANK


def _is_map(encoded: bytes | memoryview | msgspec.Raw) -> bool:
    first = memoryview(encoded)[:1].tobytes()
    return b"\x80" <= first <= b"\x8f" or first in {b"\xde", b"\xdf"}


def _diagnosis(position: int, raw: msgspec.Raw, error: Exception) -> RejectedEvent:
    """Say in a stable word why an event was not read. Off the fast path: it decodes the event once more."""
    message = str(error)
    try:
        anything: Any = msgspec.msgpack.decode(raw)
    except _UNREADABLE:
        reason = "not_msgpack"
    else:
        reason, message = _reason(anything, message)
    return RejectedEvent(position=position, reason=reason, detail=message[:_DETAIL_CHARS_MAX])


def _reason(anything: Any, message: str) -> tuple[str, str]:
    if isinstance(anything, dict):
        tag = anything.get("type")
    elif isinstance(anything, list):
        tag = anything[0] if anything else None
    else:
        return "not_an_event", f"an event is an array or a map, this is a {type(anything).__name__}"
    if not isinstance(tag, str):
        return "missing_tag", "an event names its kind first"
    if tag not in _TAGS:
        return "unknown_tag", repr(tag)
    if "missing required field" in message or "at least length" in message:
        return "missing_field", message
    return "wrong_type", message
