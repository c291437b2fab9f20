"""One worker's view in the reference index: what its announcements mean, and what follows from them.

One record per worker and BlockHash says what the hash means and how many copies there are. Everything else is derived
from the records, kept in step with them, and recomputed from scratch by `check()`:

    record                    in a match    kept while
    resolved (has a prefix)   if held       it has copies, or a held record names it as parent
    orphan (has a claim)      never         it has copies; waits under its parent's hash
    unresolved (has neither)  never         it has copies; waits for token ids

Invariant: a record's prefix was computed from announced token ids all the way to the root.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from warmroute.core.hashing import chain
from warmroute.core.index.contract import ApplyReport, DumpEntry, Overlap, WorkerSizes
from warmroute.types import BlockHash, Medium, PrefixHash, WorkerId


class Place(NamedTuple):
    """Where copies lie."""

    group: int
    medium: Medium


class Claim(NamedTuple):
    """What an announcement says of a block: enough to compute its prefix once the parent's is known."""

    parent: BlockHash | None
    digest: int
    """Content digest and extra digest, added up."""
    block_size: int


class Record:
    """What one worker said of one BlockHash."""

    __slots__ = ("block_size", "claim", "copies", "parent", "prefix")

    def __init__(self) -> None:
        self.prefix: PrefixHash | None = None
        self.parent: BlockHash | None = None
        self.block_size = 0
        self.claim: Claim | None = None
        self.copies: Counter[Place] = Counter()


class Rule(NamedTuple):
    """How a worker's groups of one block size decide a match."""

    full: tuple[int, ...]
    needs: tuple[tuple[int, int], ...]
    """(sliding group, how many blocks before the overlap's end it must hold)."""


class Groups:
    """What a worker's KV groups are like, learned from announcements. Survives clears."""

    def __init__(self) -> None:
        self.full: set[int] = set()
        self.windows: dict[int, int] = {}
        self.sizes: dict[Place, int] = {}
        self.rules: dict[int, Rule] = {}

    def learn(self, place: Place, block_size: int, window: int | None) -> None:
        """Take up an announcement that shows the group's kind."""
        before = self.kind(place.group), self.sizes.get(place)
        if window is not None:
            self.windows[place.group] = window
            self.full.discard(place.group)
        elif place.group not in self.windows:
            self.full.add(place.group)
        self.sizes[place] = max(block_size, self.sizes.get(place, 0))
        if before != (self.kind(place.group), self.sizes[place]):
            self._make_rules()

    def kind(self, group: int) -> tuple[int | None, bool]:
        """The window of a sliding group, and whether it is a full one."""
        return self.windows.get(group), group in self.full

    def _make_rules(self) -> None:
        by_group = {group: self.size(group) for group in self.full or self.windows}
        self.rules = {size: self._rule(size) for size in set(by_group.values())}

    def size(self, group: int) -> int:
        """Tokens per block of a group whose kind is known."""
        return self.sizes[min(place for place in self.sizes if place.group == group)]

    def _rule(self, size: int) -> Rule:
        full = tuple(sorted(group for group in self.full if self.size(group) == size))
        sliding = sorted(group for group in self.windows if self.size(group) == size)
        return Rule(full, tuple((group, -(-(self.windows[group] - 1) // size)) for group in sliding))

    def facts(self) -> tuple[tuple[int, Medium, int, int | None], ...]:
        """(group, medium, block size, window or None) of all that was learned: `learn` takes it again."""
        return tuple((*place, size, self.windows.get(place.group)) for place, size in sorted(self.sizes.items()))


class Totals:
    """What is kept over all workers."""

    def __init__(self) -> None:
        self.copies = 0
        self.nodes: Counter[PrefixHash] = Counter()
        """How many records have this prefix."""
        self.leaves: OrderedDict[tuple[WorkerId, BlockHash], None] = OrderedDict()
        """Held records that no held record names as its parent, in the order in which they would be evicted."""


class View:
    """One worker's records and what is derived from them."""

    def __init__(self, worker: WorkerId, totals: Totals, groups: Groups) -> None:
        self.worker = worker
        self.totals = totals
        self.groups = groups
        self.records: dict[BlockHash, Record] = {}
        self.contents: dict[PrefixHash, list[Record]] = {}
        """The held records of each prefix: usually one, more if the worker has several hashes for one content."""
        self.named: Counter[BlockHash] = Counter()
        """How many held records name this hash as their parent."""
        self.waiting: dict[BlockHash, dict[BlockHash, None]] = {}
        """Unknown parent -> its orphans, in order of arrival."""
        self.parked: dict[BlockHash, None] = {}
        """Orphans and unresolved, longest parked first."""
        self.copies = 0
        self.copies_parked = 0

    # -- storing

    def store(self, block_hash: BlockHash, claim: Claim | None, place: Place, report: ApplyReport) -> None:
        """Add one copy of one block; `claim` is None if the announcement does not say what it is."""
        record = self.records.setdefault(block_hash, Record())
        prefix = self._evaluate(claim)
        if prefix is None and record.prefix is None:
            self._park(block_hash, record, claim, place, report)
            return
        if claim is not None and prefix is not None:
            if record.prefix is None:
                self._resolve(block_hash, record, claim, prefix, report)
            else:
                report.conflicts += record.prefix != prefix
                if (record.prefix, record.parent) != (prefix, claim.parent):
                    self._redefine(record, claim, prefix)
        self._add_copies(block_hash, record, place, 1)
        report.stored += 1

    def _evaluate(self, claim: Claim | None) -> PrefixHash | None:
        """The claimed block's prefix, or None if the claim's parent is unknown."""
        if claim is None:
            return None
        if claim.parent is None:
            return chain(None, claim.digest)
        parent = self.records.get(claim.parent)
        return None if parent is None or parent.prefix is None else chain(parent.prefix, claim.digest)

    def _resolve(
        self, block_hash: BlockHash, record: Record, claim: Claim, prefix: PrefixHash, report: ApplyReport
    ) -> None:
        """Give a record its first meaning, and then all orphans that were waiting for it, directly or not."""
        ready = [(block_hash, record, claim, prefix)]
        for name, orphan, meaning, known in ready:  # grows while it runs: a chain may be 100,000 blocks long
            report.adopted += self._adopt(name, orphan, meaning, known)
            for child in self.waiting.pop(name, ()):
                waiting = self.records[child]
                assert waiting.claim is not None  # noqa: S101 - for the type checker
                ready.append((child, waiting, waiting.claim, chain(known, waiting.claim.digest)))

    def _adopt(self, block_hash: BlockHash, record: Record, claim: Claim, prefix: PrefixHash) -> int:
        """Unpark a record (new ones are not parked) with its meaning; gives its number of copies."""
        count = self._unpark(block_hash, record)
        copies, record.copies = record.copies, Counter()
        self._define(record, claim, prefix)
        for place, n in copies.items():
            self._add_copies(block_hash, record, place, n)
        return count

    def _define(self, record: Record, claim: Claim, prefix: PrefixHash) -> None:
        record.prefix, record.parent, record.block_size = prefix, claim.parent, claim.block_size
        self.totals.nodes[prefix] += 1

    def _redefine(self, record: Record, claim: Claim, prefix: PrefixHash) -> None:
        """The engine's latest word on a resolved record."""
        if record.copies:
            self._name(claim.parent)  # before the old one is let go: they may be the same
            self._unname(record.parent)
            self._take_out(record)
        self._forget_node(record)
        self._define(record, claim, prefix)
        if record.copies:
            self.contents.setdefault(prefix, []).append(record)

    def _add_copies(self, block_hash: BlockHash, record: Record, place: Place, count: int) -> None:
        """Add copies of a resolved record; with the first it becomes held."""
        assert record.prefix is not None  # noqa: S101 - for the type checker
        leaf = (self.worker, block_hash)
        if not record.copies:
            self.contents.setdefault(record.prefix, []).append(record)
            self._name(record.parent)
            if block_hash not in self.named:
                self.totals.leaves[leaf] = None
        elif leaf in self.totals.leaves:
            self.totals.leaves.move_to_end(leaf)
        record.copies[place] += count
        self.copies += count
        self.totals.copies += count

    # -- removing

    def remove(self, block_hash: BlockHash, place: Place, report: ApplyReport) -> None:
        """Take away one copy."""
        record = self.records.get(block_hash)
        if record is None or place not in record.copies:
            report.unknown_removed += 1
            return
        report.removed += 1
        if record.prefix is None and record.copies.total() == 1:
            self._unpark(block_hash, record)
            del self.records[block_hash]
            return
        record.copies[place] -= 1
        if not record.copies[place]:
            del record.copies[place]
        if record.prefix is None:
            self.copies_parked -= 1
            return
        self.copies -= 1
        self.totals.copies -= 1
        if not record.copies:
            self._release(block_hash, record)

    def evict(self, block_hash: BlockHash) -> int:
        """Drop a held record with all its copies; gives their number."""
        record = self.records[block_hash]
        count = record.copies.total()
        record.copies.clear()
        self.copies -= count
        self.totals.copies -= count
        self._release(block_hash, record)
        return count

    def _release(self, block_hash: BlockHash, record: Record) -> None:
        """A resolved record has no copies any more."""
        self.totals.leaves.pop((self.worker, block_hash), None)
        self._take_out(record)
        self._unname(record.parent)
        self._forget_if_unused(block_hash)

    def withdraw(self) -> int:
        """Take all of it out of the totals, the view being given up; gives the number of copies there were."""
        for block_hash, record in self.records.items():
            self._forget_node(record)
            self.totals.leaves.pop((self.worker, block_hash), None)
        self.totals.copies -= self.copies
        return self.copies + self.copies_parked

    # -- what is derived from the records

    def _name(self, parent: BlockHash | None) -> None:
        if parent is not None:
            self.named[parent] += 1
            self.totals.leaves.pop((self.worker, parent), None)

    def _unname(self, parent: BlockHash | None) -> None:
        if parent is None:
            return
        self.named[parent] -= 1
        if self.named[parent]:
            return
        del self.named[parent]
        record = self.records.get(parent)
        if record is not None and record.prefix is not None and record.copies:
            leaf = (self.worker, parent)
            self.totals.leaves[leaf] = None
            self.totals.leaves.move_to_end(leaf, last=False)  # the rest of a chain that is being given up goes first
        self._forget_if_unused(parent)

    def _take_out(self, record: Record) -> None:
        assert record.prefix is not None  # noqa: S101 - for the type checker
        same = self.contents[record.prefix]
        same.remove(record)
        if not same:
            del self.contents[record.prefix]

    def _forget_if_unused(self, block_hash: BlockHash) -> None:
        record = self.records.get(block_hash)
        if record is not None and not record.copies and block_hash not in self.named:
            self._forget_node(record)
            del self.records[block_hash]

    def _forget_node(self, record: Record) -> None:
        if record.prefix is None:
            return
        self.totals.nodes[record.prefix] -= 1
        if not self.totals.nodes[record.prefix]:
            del self.totals.nodes[record.prefix]

    # -- parking

    def _park(
        self, block_hash: BlockHash, record: Record, claim: Claim | None, place: Place, report: ApplyReport
    ) -> None:
        if claim is not None and claim.parent is not None:
            self._stop_waiting(block_hash, record)
            record.claim = claim
            self.waiting.setdefault(claim.parent, {})[block_hash] = None
        if record.claim is None:
            report.unresolved += 1
        else:
            report.orphaned += 1
        record.copies[place] += 1
        self.parked.setdefault(block_hash)
        self.copies_parked += 1

    def _unpark(self, block_hash: BlockHash, record: Record) -> int:
        """Take a record out of the parking tables; gives its number of copies."""
        if block_hash not in self.parked:
            return 0
        del self.parked[block_hash]
        self._stop_waiting(block_hash, record)
        count = record.copies.total()
        self.copies_parked -= count
        return count

    def _stop_waiting(self, block_hash: BlockHash, record: Record) -> None:
        if record.claim is None or record.claim.parent is None:
            return
        orphans = self.waiting.get(record.claim.parent, {})
        orphans.pop(block_hash, None)
        if not orphans:
            self.waiting.pop(record.claim.parent, None)
        record.claim = None

    def drop_longest_parked(self) -> int:
        """Give up the record that has been parked longest; gives its number of copies."""
        block_hash = next(iter(self.parked))
        count = self._unpark(block_hash, self.records[block_hash])
        del self.records[block_hash]
        return count

    # -- asking

    def overlap(self, prefixes: Sequence[PrefixHash], rule: Rule) -> Overlap | None:
        """The longest beginning of `prefixes` that the rule lets count, or None if there is none."""
        best = 0
        runs = dict.fromkeys((group for group, _ in rule.needs), 0)
        media: list[Medium] = []
        for length, prefix in enumerate(prefixes, 1):
            held = self._fastest_by_group(prefix)
            if any(group not in held for group in rule.full):
                break
            for group in runs:
                runs[group] = runs[group] + 1 if group in held else 0
            if all(runs[group] >= min(length, need) for group, need in rule.needs):
                best = length
            # The slowest group is waited for. What no full group needs and no window reaches needs no loading at all.
            counting = rule.full or [group for group in runs if group in held]
            media.append(max((held[group] for group in counting), default=Medium.GPU))
        if not best:
            return None
        count = Counter(media[:best])
        return Overlap(self.worker, best, (count[Medium.GPU], count[Medium.CPU], count[Medium.STORAGE]))

    def _fastest_by_group(self, prefix: PrefixHash) -> dict[int, Medium]:
        fastest: dict[int, Medium] = {}
        for record in self.contents.get(prefix, ()):
            for group, medium in record.copies:
                fastest[group] = min(medium, fastest.get(group, medium))
        return fastest

    def sizes(self) -> WorkerSizes:
        """What this worker holds now."""
        orphans = sum(r.copies.total() for r in map(self.records.__getitem__, self.parked) if r.claim is not None)
        return WorkerSizes(
            blocks=sum(map(len, self.contents.values())),
            copies=self.copies,
            orphans=orphans,
            unresolved=self.copies_parked - orphans,
            block_sizes=tuple(sorted(self.groups.rules)),
        )

    # -- dumping

    def dump(self) -> Iterator[DumpEntry]:
        """Every resolved record, parents before children."""
        done: set[BlockHash] = set()
        groups = self.groups.facts()
        for start in self.records:
            path: dict[BlockHash, Record] = {}
            block_hash: BlockHash | None = start
            while block_hash is not None and block_hash not in done and block_hash not in path:
                record = self.records.get(block_hash)
                if record is None or record.prefix is None:
                    break
                path[block_hash] = record
                block_hash = record.parent
            for name, record in reversed(path.items()):
                assert record.prefix is not None  # noqa: S101 - for the type checker
                copies = tuple(sorted((place.group, place.medium, n) for place, n in record.copies.items()))
                yield DumpEntry(self.worker, name, record.prefix, record.parent, record.block_size, copies, groups)
                groups = ()
            done.update(path)

    def restore(self, entry: DumpEntry) -> None:
        """Take up one dumped record in place of what is known of its hash. One without copies stays until `tidy`."""
        if entry.copies:
            self._name(entry.parent)  # so that it outlives what is replaced
        known = self.records.get(entry.block_hash)
        if known is not None and known.prefix is None:
            self._unpark(entry.block_hash, known)
            known.copies.clear()
        elif known is not None and known.copies:
            self.evict(entry.block_hash)
        record = self.records.setdefault(entry.block_hash, Record())
        claim = Claim(entry.parent, 0, entry.block_size)
        if record.prefix is None:
            self._resolve(entry.block_hash, record, claim, entry.prefix, ApplyReport())
        else:
            self._redefine(record, claim, entry.prefix)
        for group, medium, count in entry.copies:
            self._add_copies(entry.block_hash, record, Place(group, medium), count)
        if entry.copies:
            self._unname(entry.parent)

    def tidy(self) -> None:
        """Forget restored records that are neither held nor named by a held one."""
        for block_hash in [name for name, record in self.records.items() if not record.copies]:
            self._forget_if_unused(block_hash)

    # -- checking

    def problems(self) -> Iterator[str]:
        """What contradicts the records, in words; nothing if all is well."""
        parked = {name: record for name, record in self.records.items() if record.prefix is None}
        held = {name: record for name, record in self.records.items() if record.prefix is not None and record.copies}
        idle = self.records.keys() - parked.keys() - held.keys()
        contents: dict[PrefixHash | None, list[Record]] = {}
        for record in held.values():
            contents.setdefault(record.prefix, []).append(record)
        waiting: dict[BlockHash | None, set[BlockHash]] = {}
        for name, record in parked.items():
            if record.claim is not None:
                waiting.setdefault(record.claim.parent, set()).add(name)
        if any(count < 1 for record in self.records.values() for count in record.copies.values()):
            yield "a record has a place with no copies"
        if any(not record.copies for record in parked.values()) or self.parked.keys() != parked.keys():
            yield "the parking tables are not what the records say"
        if any(self.records[name].claim is not None or name in self.waiting for name in idle | held.keys()):
            yield "a record has its meaning and is parked or waited for"
        if not idle <= self.named.keys():
            yield "a record is neither held nor named by a held one"
        if {prefix: set(map(id, same)) for prefix, same in self.contents.items()} != {
            prefix: set(map(id, same)) for prefix, same in contents.items()
        }:
            yield "the table of contents is not what the held records say"
        if self.named != Counter(record.parent for record in held.values() if record.parent is not None):
            yield "the count of named parents is not what the held records say"
        if {parent: set(orphans) for parent, orphans in self.waiting.items()} != waiting:
            yield "the table of orphans is not what the parked records say"
        if self.copies != sum(record.copies.total() for record in held.values()) or self.copies_parked != sum(
            record.copies.total() for record in parked.values()
        ):
            yield "the counts of copies are not what the records say"
