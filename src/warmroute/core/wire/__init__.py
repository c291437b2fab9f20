"""What engines publish, read: frames -> sequence numbers and payloads -> event batches.

Each way to write an event is a dialect module (`positional`, `keyed`); `canonical` is where they meet, `batch` and
`frames` are the doors. `native` is a second, faster reader of what is beyond doubt. Bytes decode or raise WireError,
nothing else.
"""

from __future__ import annotations

from warmroute.core.wire.batch import decode_batch
from warmroute.core.wire.frames import ReplayBatch, ReplayEnd, decode_pub, decode_replay
from warmroute.core.wire.native import decode_natively

__all__ = ["ReplayBatch", "ReplayEnd", "decode_batch", "decode_natively", "decode_pub", "decode_replay"]
