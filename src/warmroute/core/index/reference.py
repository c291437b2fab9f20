"""The prefix index in plain Python: the obviously right implementation of `contract.PrefixIndex`.

It keeps one `View` per worker and, over all of them, what limits and sizes need. Nothing is shared between views, so
what one engine says cannot touch another's blocks; only the common limit on copies can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from warmroute.core.hashing import block_digests, extra_digest
from warmroute.core.index.contract import (
    ApplyReport,
    Columns,
    DumpEntry,
    IndexSizes,
    Overlap,
    WorkerSizes,
    apply_in_order,
)
from warmroute.core.index.reference_view import Claim, Groups, Place, Totals, View
from warmroute.core.wire.events import BlockRemoved, BlockStored, Event
from warmroute.errors import IndexCorruptionError
from warmroute.types import BlockHash, PrefixHash, WorkerId

_BYTES_PER_RECORD = 600
"""Measured, rounded up: a record with its table of copies, and its entries in the tables of view and totals."""


class ReferenceIndex:
    """All workers' caches, by content; `contract.PrefixIndex` says what it promises.

    `orphan_blocks_max` bounds the copies that are parked, per worker; `blocks_max` the copies held in all, and
    `worker_blocks_max` those of one worker (None: no limit).
    """

    def __init__(
        self, orphan_blocks_max: int, blocks_max: int | None = None, worker_blocks_max: int | None = None
    ) -> None:
        self._orphan_blocks_max = orphan_blocks_max
        self._blocks_max = blocks_max
        self._worker_blocks_max = worker_blocks_max
        self._views: dict[WorkerId, View] = {}
        self._totals = Totals()

    def apply(self, worker: WorkerId, events: Iterable[Event]) -> ApplyReport:
        """Apply one batch's events to `worker`, in order."""
        return apply_in_order(self, worker, events)

    def store(self, worker: WorkerId, event: BlockStored, report: ApplyReport) -> None:
        """Apply one store, adding to `report`."""
        view = self._view(worker)
        place = Place(event.group, event.medium)
        digests = _digests(event)
        if event.block_size > 0 and (digests or event.sliding_window is not None):
            view.groups.learn(place, event.block_size, event.sliding_window)
            if event.block_size < view.groups.sizes[place]:
                report.partial += len(event.block_hashes)
                return
        parent = event.parent
        for i, block_hash in enumerate(event.block_hashes):
            view.store(block_hash, Claim(parent, digests[i], event.block_size) if digests else None, place, report)
            parent = block_hash
        while view.copies_parked > self._orphan_blocks_max:
            report.orphans_dropped += view.drop_longest_parked()
        self._evict_outgrown(view, report)
        self._evict(report)

    def remove(self, worker: WorkerId, event: BlockRemoved, report: ApplyReport) -> None:
        """Apply one removal, adding to `report`."""
        view = self._views.get(worker)
        if view is None:
            report.unknown_removed += len(event.block_hashes)
            return
        place = Place(event.group, event.medium)
        for block_hash in event.block_hashes:
            view.remove(block_hash, place, report)

    def clear(self, worker: WorkerId, report: ApplyReport | None = None) -> None:
        """Forget every block of `worker` in every medium, parked ones included; its groups' kinds and sizes stay."""
        view = self._views.get(worker)
        if view is None:
            return
        count = self._begin_anew(view)
        if report is not None:
            report.cleared += count

    def drop(self, worker: WorkerId) -> None:
        """Forget `worker` altogether, its groups too."""
        view = self._views.pop(worker, None)
        if view is not None:
            view.withdraw()

    def sweep(self, blocks: int) -> bool:  # noqa: ARG002 - clears and drops leave nothing here
        """Free what clears and drops have left; whether there is more."""
        return False

    def match(self, prefixes: Sequence[PrefixHash], block_size: int) -> list[Overlap]:
        """Which workers with this block size hold how many of the leading blocks; those with none are left out."""
        found = []
        for view in self._views.values():
            rule = view.groups.rules.get(block_size)
            overlap = None if rule is None else view.overlap(prefixes, rule)
            if overlap is not None:
                found.append(overlap)
        return found

    def match_columns(self, prefixes: Sequence[PrefixHash], block_size: int) -> Columns:
        """What `match` gives, in columns."""
        found = self.match(prefixes, block_size)
        by_medium = [blocks for overlap in found for blocks in overlap.by_medium]
        return [overlap.worker for overlap in found], [overlap.blocks for overlap in found], by_medium

    def depth(self, worker: WorkerId, prefixes: Sequence[PrefixHash], block_size: int) -> int:
        """How many of the leading blocks `worker` holds, as `match` would say: 0 for who is left out of it."""
        view = self._views.get(worker)
        rule = None if view is None else view.groups.rules.get(block_size)
        overlap = None if view is None or rule is None else view.overlap(prefixes, rule)
        return 0 if overlap is None else overlap.blocks

    def block_sizes(self) -> tuple[int, ...]:
        """Every block size that a worker uses, ascending."""
        return tuple(sorted({size for view in self._views.values() for size in view.groups.rules}))

    def prefix_sizes(self, worker: WorkerId) -> tuple[int, ...] | None:
        """Block sizes at which `worker` can use whatever leading part of a prompt it holds; None if none is known."""
        view = self._views.get(worker)
        if view is None or not view.groups.rules:
            return None
        return tuple(sorted(size for size, rule in view.groups.rules.items() if not rule.needs))

    def worker_sizes(self, worker: WorkerId) -> WorkerSizes:
        """What `worker` holds; zeros if it is unknown."""
        view = self._views.get(worker)
        return WorkerSizes(0, 0, 0, 0, ()) if view is None else view.sizes()

    def sizes(self) -> IndexSizes:
        """What the index holds in all."""
        each = [view.sizes() for view in self._views.values()]
        return IndexSizes(
            workers=len(each),
            nodes=len(self._totals.nodes),
            copies=self._totals.copies,
            orphans=sum(sizes.orphans for sizes in each),
            unresolved=sum(sizes.unresolved for sizes in each),
            bytes=_BYTES_PER_RECORD * sum(len(view.records) for view in self._views.values()),
        )

    def dump(self, worker: WorkerId | None = None) -> Iterator[DumpEntry]:
        """Every resolved block, of one worker or of all, parents before children; as it is now, whatever comes."""
        views = self._views.values() if worker is None else filter(None, [self._views.get(worker)])
        return iter([entry for view in views for entry in view.dump()])

    def restore(self, entries: Iterable[DumpEntry]) -> None:
        """Store what `dump` gave; an entry replaces what is known of its worker's hash."""
        restored: dict[WorkerId, View] = {}
        for entry in entries:
            view = restored[entry.worker] = self._view(entry.worker)
            for group, medium, block_size, window in entry.groups:
                view.groups.learn(Place(group, medium), block_size, window)
            view.restore(entry)
        for view in restored.values():
            view.tidy()
            self._evict_outgrown(view, ApplyReport())
        self._evict(ApplyReport())

    def check(self) -> None:
        """Verify every internal invariant. Raises IndexCorruptionError: a bug of ours, never an engine's."""
        problems = [
            f"worker {worker}: {problem}" for worker, view in self._views.items() for problem in view.problems()
        ]
        nodes: Counter[PrefixHash] = Counter()
        leaves: set[tuple[WorkerId, BlockHash]] = set()
        for worker, view in self._views.items():
            nodes.update(record.prefix for record in view.records.values() if record.prefix is not None)
            held = (name for name, record in view.records.items() if record.prefix is not None and record.copies)
            leaves.update((worker, name) for name in held if name not in view.named)
            if view.copies_parked > self._orphan_blocks_max:
                problems.append(f"worker {worker}: more parked copies than allowed")
            if self._worker_blocks_max is not None and view.copies > self._worker_blocks_max:
                problems.append(f"worker {worker}: more copies than one may have")
        if nodes != self._totals.nodes:
            problems.append("the nodes are not what the records say")
        if leaves != self._totals.leaves.keys():
            problems.append("the leaves are not what the records say")
        if self._totals.copies != sum(view.copies for view in self._views.values()):
            problems.append("the copies do not add up")
        if self._blocks_max is not None and self._totals.copies > self._blocks_max:
            problems.append("more copies than allowed")
        if problems:
            raise IndexCorruptionError("; ".join(problems))

    def _view(self, worker: WorkerId) -> View:
        view = self._views.get(worker)
        if view is None:
            view = self._views[worker] = View(worker, self._totals, Groups())
        return view

    def _evict(self, report: ApplyReport) -> None:
        """Come back under the limit: see "oldest_leaf" in the contract."""
        while self._blocks_max is not None and self._totals.copies > self._blocks_max:
            if self._totals.leaves:
                worker, block_hash = next(iter(self._totals.leaves))
                report.evicted += self._views[worker].evict(block_hash)
            else:
                view = max(self._views.values(), key=lambda view: (view.copies, -view.worker))
                report.orphans_dropped += view.copies_parked
                report.evicted += self._begin_anew(view) - view.copies_parked

    def _evict_outgrown(self, view: View, report: ApplyReport) -> None:
        """The same within one worker."""
        while self._worker_blocks_max is not None and view.copies > self._worker_blocks_max:
            leaf = next((block_hash for worker, block_hash in self._totals.leaves if worker == view.worker), None)
            if leaf is None:
                report.orphans_dropped += view.copies_parked
                report.outgrown += self._begin_anew(view) - view.copies_parked
                return
            report.outgrown += view.evict(leaf)

    def _begin_anew(self, view: View) -> int:
        """Forget all of a worker but its groups; gives how many copies it had, parked ones included."""
        self._views[view.worker] = View(view.worker, self._totals, view.groups)
        return view.withdraw()


def _digests(event: BlockStored) -> list[int]:
    """Content and extra digest of each block, added up; empty if the event does not say what its blocks are."""
    count = len(event.block_hashes)
    fits = event.block_size > 0 and len(event.token_ids) == count * event.block_size
    if not count or event.by_hash or not fits or len(event.extra_keys) not in {0, count}:
        return []
    try:
        digests = block_digests(event.token_ids, event.block_size)
    except ValueError:  # a token id out of range: no request has it either
        return []
    if event.lora is None and not event.extra_keys:
        return digests
    keys = event.extra_keys or ((),) * count
    return [digest + extra_digest(event.lora, own) for digest, own in zip(digests, keys, strict=True)]
