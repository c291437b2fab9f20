"""The multipart messages of the event and replay sockets, taken apart.

Releases differ in what stands in front (topic, empty delimiter), never in what stands behind: replies are read from the
right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from warmroute.errors import WireError

Frame: TypeAlias = bytes | memoryview

SEQ_BYTES = 8
END_SEQ = b"\xff" * SEQ_BYTES
"""Stands for the sequence number in the message that ends a replay."""


class ReplayBatch(msgspec.Struct, frozen=True, gc=False):
    """One replayed batch, still encoded."""

    seq: int
    payload: Frame


class ReplayEnd(msgspec.Struct, frozen=True, gc=False):
    """The end marker: every batch that the engine still has was sent."""


_END = ReplayEnd()


def decode_pub(frames: Sequence[Frame]) -> tuple[bytes, int, Frame]:
    """Topic, sequence number and payload of a published message. Raises WireError."""
    if len(frames) != 3:
        raise WireError(
            "frame_count", f"a published message has 3 frames (topic, seq, payload), this has {len(frames)}"
        )
    if frames[1] == END_SEQ:
        raise WireError("bad_seq", "a published message is numbered as the end of a replay is")
    return bytes(frames[0]), _seq(frames[1]), frames[2]


def decode_replay(frames: Sequence[Frame]) -> ReplayBatch | ReplayEnd:
    """One reply of a replay socket: with or without delimiter, with or without topic. Raises WireError."""
    if len(frames) < 2:
        raise WireError("frame_count", f"a replay reply ends in (seq, payload), this has {len(frames)} frame(s)")
    if frames[-2] == END_SEQ:
        return _END
    return ReplayBatch(_seq(frames[-2]), frames[-1])


def encode_replay_request(start: int) -> tuple[bytes, bytes]:
    """What a DEALER sends to be replayed every batch from `start` on: the delimiter a REQ would add, and the number."""
    return b"", start.to_bytes(SEQ_BYTES, "big")


def _seq(frame: Frame) -> int:
    if len(frame) != SEQ_BYTES:
        raise WireError("bad_seq", f"a sequence number has {SEQ_BYTES} bytes, this frame has {len(frame)}")
    return int.from_bytes(frame, "big")
