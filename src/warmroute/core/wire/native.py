"""The native decoder: payload -> arrays that the native index takes, with the tokens turned into digests on the way.

The dialects in Python say what bytes mean. The native decoder reads only what they would read without a doubt and
declines the rest, so a payload means the same whichever way it is read; a differential test holds it to that.
"""

from __future__ import annotations

from typing import TypeAlias

try:
    from warmroute import _native
except ImportError:
    NATIVE = False
else:
    NATIVE = True

    NativeBatch: TypeAlias = _native.EventBatch
    """A batch in the native core's form: every event of it could be read."""

_MARKS = 2**64


def decode_natively(payload: bytes | memoryview) -> NativeBatch | None:
    """What the payload says, or None: it is for `decode_batch` to judge, or the native core is not built."""
    return _native.decode_batch(payload) if NATIVE else None


def payload_mark(payload: bytes | memoryview) -> int:
    """A number of 64 bits for the payload's bytes: equal for equal bytes, while this process lives."""
    return _native.payload_mark(payload) if NATIVE else hash(bytes(payload)) % _MARKS
