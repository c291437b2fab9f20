# The native core: hashing and decoding. Its callers are core.hashing, core.wire and core.index; results are those of
# the Python references.

from typing import Any, ClassVar, final

from warmroute.core.wire.events import RejectedEvent
from warmroute.types import PrefixHash, TokenIds

__version__: str

# The PrefixHash of each full block; first_extra is the first block's extra digest, extra that of all others.
def prefix_hashes(tokens: TokenIds, block_size: int, first_extra: int, extra: int) -> list[PrefixHash]: ...

# The content digest of each full block.
def block_digests(tokens: TokenIds, block_size: int) -> list[int]: ...

# A payload as arrays, for an index that takes them: a wire.events.Batch.
@final
class EventBatch:
    rejected: ClassVar[tuple[RejectedEvent, ...]]  # always empty
    @property
    def ts(self) -> float: ...
    @property
    def rank(self) -> int: ...
    @property
    def mark(self) -> int: ...
    @property
    def unknown_media(self) -> int: ...
    @property
    def has_clear(self) -> bool: ...
    @property
    def n_events(self) -> int: ...
    # For tests. ("stored", hashes, parent, digests, block size, window, group, medium), ("removed", hashes, group,
    # medium), ("cleared",); a digest is that of the block's content plus that of its extra keys, modulo 2**64.
    def to_python(self) -> tuple[tuple[Any, ...], ...]: ...

# What the payload says; None if it is for Python to judge.
def decode_batch(payload: bytes | memoryview) -> EventBatch | None: ...

# A number for the payload's bytes.
def payload_mark(payload: bytes | memoryview) -> int: ...
