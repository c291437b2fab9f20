# The native core: hashing, decoding and the index. Its callers are core.hashing, core.wire and core.index; results are
# those of the Python references.

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias, final

from warmroute.core.index.contract import ApplyReport, DumpEntry
from warmroute.core.speculation import Claim
from warmroute.core.wire.events import BlockRemoved, BlockStored, RejectedEvent
from warmroute.types import BlockHash, PrefixHash, TokenIds, WorkerId

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

# What prefix_hashes gives, as a buffer of unsigned 64-bit integers.
def prefix_hash_array(tokens: TokenIds, block_size: int, first_extra: int, extra: int) -> memoryview[int]: ...

# A buffer of numbers, which the views above and below are of.
@final
class NumberArray: ...

# One element per worker that holds something: contract.Overlap as arrays.
@final
class Matches:
    def __len__(self) -> int: ...
    @property
    def workers(self) -> memoryview[int]: ...
    @property
    def blocks(self) -> memoryview[int]: ...
    # Three for each worker: GPU, CPU, STORAGE.
    @property
    def by_medium(self) -> memoryview[int]: ...
    # Worker -> blocks.
    def to_dict(self) -> dict[WorkerId, int]: ...

OverlapTuple: TypeAlias = tuple[WorkerId, int, tuple[int, int, int]]
# contract.DumpEntry's fields.
DumpedBlock: TypeAlias = tuple[
    WorkerId,
    BlockHash,
    PrefixHash,
    BlockHash | None,
    int,
    tuple[tuple[int, int, int], ...],
    tuple[tuple[int, int, int, int | None], ...],
]

# A contract.PrefixIndex but for the values it gives, which core.index.native makes of these.
class Index:
    def __init__(
        self, orphan_blocks_max: int, blocks_max: int | None = None, worker_blocks_max: int | None = None
    ) -> None: ...
    def store(self, worker: WorkerId, event: BlockStored, report: ApplyReport) -> None: ...
    def remove(self, worker: WorkerId, event: BlockRemoved, report: ApplyReport) -> None: ...
    def clear(self, worker: WorkerId, report: ApplyReport | None = None) -> None: ...
    def drop(self, worker: WorkerId) -> None: ...
    def sweep(self, blocks: int) -> bool: ...
    # Apply all of a batch's events, adding to the report.
    def add_batch(self, worker: WorkerId, batch: EventBatch, report: ApplyReport) -> None: ...
    # Prefixes may be a sequence of integers or a buffer of unsigned 64-bit ones.
    def match_arrays(self, prefixes: Sequence[PrefixHash] | memoryview[int], block_size: int) -> Matches: ...
    def match_tuples(self, prefixes: Sequence[PrefixHash], block_size: int) -> tuple[OverlapTuple, ...]: ...
    def depth(self, worker: WorkerId, prefixes: Sequence[PrefixHash], block_size: int) -> int: ...
    def block_sizes(self) -> tuple[int, ...]: ...
    def prefix_sizes(self, worker: WorkerId) -> tuple[int, ...] | None: ...
    def worker_size_tuple(self, worker: WorkerId) -> tuple[int, int, int, int, tuple[int, ...]]: ...
    def size_tuple(self) -> tuple[int, int, int, int, int, int]: ...
    def dump_tuples(self, worker: WorkerId | None = None) -> list[DumpedBlock]: ...
    def restore(self, entries: Iterable[DumpEntry]) -> None: ...
    # Every contradiction inside, in words.
    def problems(self) -> list[str]: ...

# What the functions `*_in_python` do, of core.policies.least_work, core.rows, core.lanes and core.sharing. Rows are
# arrays of 64-bit counts ("q") or doubles ("d").
def survey(
    now: float, held: array[int], counts: array[int], times: array[float], rates: array[float]
) -> tuple[int, int, int, float, float, float]: ...
def weigh(
    weights: tuple[float, ...],
    rows: tuple[array[int], array[int], array[float], array[float]],
    belief: array[float],
    kv_tokens_max: array[float],
    costs: array[float],
) -> None: ...
def lowest(costs: array[float], counts: array[int], turn: int) -> tuple[int, int]: ...
def confirm(
    held: array[int],
    positions: Mapping[WorkerId, int],
    matched: tuple[Sequence[int], Sequence[int], Sequence[int]],
    block_size: int,
) -> None: ...
def gather(numbers: array[Any], width: int, places: Sequence[int], taken: array[Any]) -> None: ...
def add_booked(
    counts: array[int], times: array[float], more_counts: array[int], more_times: array[float], now: float
) -> None: ...
def add_part(
    counts: array[int], times: array[float], rows: memoryview[float], order: array[int], now: float
) -> None: ...

# What core.speculation does in Python with the claims that it has met.
def extend(
    held: array[int],
    prefixes: memoryview[int],
    positions: Mapping[WorkerId, int],
    met: list[dict[Claim, None]],
    size: int,
    now: float,
) -> None: ...

# The places of the `count` lowest, in ascending order.
def cheapest(costs: array[float], count: int) -> list[int]: ...

# What core.rates.fit_in_python gives.
def fit(
    state: array[float],
    began: tuple[float, float, float, float],
    features: tuple[float, float, float, float],
    seconds: float,
) -> tuple[float, float, float, float]: ...
