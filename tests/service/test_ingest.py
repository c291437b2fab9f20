"""From frames to the index: what one worker's stream does with everything an engine may send."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.config.tree import EventsConfig
from warmroute.core.index.contract import ApplyReport, PrefixIndex
from warmroute.core.index.reference import ReferenceIndex
from warmroute.core.stream_states import State
from warmroute.core.wire.events import AllBlocksCleared, BlockRemoved, BlockStored, Event
from warmroute.core.wire.native import NATIVE
from warmroute.service.ingest import OUTGROWN, Ingest, WorkerStream
from warmroute.service.ports import EventAddress
from warmroute.testing.events import FakeEventSource, encode_batch
from warmroute.types import Medium, Trust, TrustState, WorkerId

with suppress(ImportError):
    from warmroute.core.index.native import NativeIndex
if TYPE_CHECKING:
    from warmroute.core.wire.native import NativeBatch

WORKER = WorkerId(7)
GOLDEN = Path(__file__).parent.parent / "golden" / "wire_by_version.jsonl"


def stored(number: int, **fields: object) -> BlockStored:
    chain = {"block_hashes": (number,), "parent": number - 1 if number else None}
    return BlockStored(**(chain | {"token_ids": (number, number), "block_size": 2} | fields))


def payload(number: int, ts: float | None = None) -> bytes:
    return encode_batch([stored(number)], ts=1000.0 + number if ts is None else ts)


@pytest.fixture(autouse=True, params=["reference", "native"])
def _index(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test with both indices: the native one takes arrays."""
    if request.param == "native":
        if not NATIVE:
            pytest.skip("the native core is not built: `pip install -e .` builds it")
        monkeypatch.setattr(Rig, "new_index", NativeIndex)


class Rig:
    new_index: Callable[[int], PrefixIndex] = ReferenceIndex

    def __init__(self, index: PrefixIndex | None = None) -> None:
        self.now = 100.0
        self.told: list[Trust] = []
        self.index = index or type(self).new_index(1000)
        self.source = FakeEventSource(EventAddress("tcp://engine:5557"))
        self.batches_told = 0
        self.cleared_told = 0
        ingest = Ingest(
            index=self.index,
            config=EventsConfig(),
            clock=lambda: self.now,
            wall_clock=lambda: 2000.0,
            on_trust=self._on_trust,
            on_applied=self._on_applied,
            on_cleared=self._on_cleared,
        )
        self.stream = WorkerStream(WORKER, ingest)
        self.stream.start(self.source)

    def _on_trust(self, worker: WorkerId, trust: Trust) -> None:
        assert worker == WORKER
        self.told.append(trust)

    def _on_applied(self, worker: WorkerId) -> None:
        assert worker == WORKER
        self.batches_told += 1

    def _on_cleared(self, worker: WorkerId) -> None:
        assert worker == WORKER
        self.cleared_told += 1

    def synced(self, count: int = 0) -> Rig:
        self.source.connect()
        self.source.answer([(seq, payload(seq)) for seq in range(count)])
        assert self.trust is TrustState.LIVE
        return self

    @property
    def trust(self) -> TrustState:
        assert self.told[-1] is self.stream.trust
        return self.stream.trust.state

    @property
    def blocks(self) -> int:
        return self.index.worker_sizes(WORKER).blocks


def test_joins_replays_and_follows() -> None:
    rig = Rig()
    assert rig.stream.trust.state is TrustState.BLIND
    rig.source.connect()
    assert (rig.trust, rig.source.replays) == (TrustState.REPLAYING, [0])
    rig.source.publish(2, payload(2))
    assert rig.blocks == 0
    rig.source.answer([(0, payload(0)), (1, payload(1))])
    assert (rig.blocks, rig.trust, rig.source.replaying) == (3, TrustState.LIVE, False)
    rig.now = 105.0
    rig.source.publish(3, payload(3))
    counts = rig.stream.counts
    assert (counts.messages, counts.batches, counts.events, counts.last_seq) == (2, 4, 4, 3)
    assert (counts.last_event_ts, counts.lag_s) == (1003.0, 997.0)
    assert counts.applied.stored == rig.batches_told == 4
    assert [trust.state for trust in rig.told] == [TrustState.REPLAYING, TrustState.LIVE]
    assert rig.told[-1].since == 100.0


def test_a_gap_is_filled_before_newer_batches() -> None:
    rig = Rig().synced(3)
    rig.source.publish(5, payload(5))
    assert (rig.blocks, rig.trust) == (3, TrustState.REPLAYING)
    rig.source.answer([(seq, payload(seq)) for seq in (2, 3, 4, 5)])
    assert (rig.blocks, rig.trust) == (6, TrustState.LIVE)
    assert rig.stream.counts.applied.orphaned == 0
    assert rig.stream.counts.stream["missed"] == 2


def test_a_restart_purges_this_worker_alone() -> None:
    rig = Rig().synced(3)
    other = WorkerId(8)
    rig.index.apply(other, [stored(0)])
    rig.source.publish(0, payload(0, ts=5000.0))
    assert rig.blocks == 1
    assert rig.stream.counts.purges == 1
    assert rig.index.worker_sizes(other).blocks == 1
    assert rig.stream.view()["restarts"] == 1


def test_c10_an_event_that_fails_costs_only_itself() -> None:
    class Failing(ReferenceIndex):
        def store(self, worker: WorkerId, event: BlockStored, report: ApplyReport) -> None:
            if event.block_hashes == (1,):
                raise RuntimeError("a bug")
            super().store(worker, event, report)

    rig = Rig(Failing(1000)).synced()
    batch = [stored(0), stored(1), stored(2, parent=0)]
    rig.source.publish(0, encode_batch(batch))
    assert rig.blocks == 2
    assert rig.stream.counts.events == 2
    assert rig.stream.counts.rejected == {"apply_failed": 1}
    assert rig.trust is TrustState.DEGRADED
    assert rig.stream.trust.reason == "applying an event of batch 0 failed: RuntimeError: a bug"
    rig.source.publish(1, encode_batch([stored(3, parent=2)], ts=1e9))
    assert (rig.blocks, rig.stream.counts.last_seq, rig.stream.state) == (3, 1, State.LIVE)


def test_c10_a_failure_during_a_replay_is_not_covered_by_its_end() -> None:
    class Failing(ReferenceIndex):
        def store(self, worker: WorkerId, event: BlockStored, report: ApplyReport) -> None:
            raise RuntimeError("a bug")

    rig = Rig(Failing(1000))
    rig.source.connect()
    rig.source.publish(1, payload(1))
    rig.source.answer([(0, payload(0))])
    assert rig.trust is TrustState.DEGRADED


def test_k21_what_cannot_be_read_is_counted_and_the_next_is_applied() -> None:
    rig = Rig().synced()
    rig.source.publish(0, b"\xc1")
    rig.source.sink.message([b"kv", b"\0" * 7, b""])
    rig.source.sink.message([b"kv"])
    rig.source.publish(1, encode_batch([stored(0)], "array", release="vllm-0.9")[:-3] + b"\xc1\xc1\xc1")
    rig.source.publish(2, payload(0))
    counts = rig.stream.counts
    assert rig.blocks == 1
    assert counts.messages == 5
    assert counts.rejected == {"not_msgpack": 2, "bad_seq": 1, "frame_count": 1}
    assert counts.stream["undecodable"] == 4
    assert counts.stream["gaps"] == 0
    assert rig.trust is TrustState.DEGRADED


def test_unreadable_replies_count_too() -> None:
    rig = Rig()
    rig.source.connect()
    rig.source.sink.replayed([b""])
    rig.source.answer([(0, b"\xc1"), (1, payload(0))])
    assert rig.stream.counts.rejected == {"frame_count": 1, "not_msgpack": 1}
    assert (rig.blocks, rig.trust) == (1, TrustState.DEGRADED)


def test_rejected_events_and_strange_ranks_are_counted() -> None:
    rig = Rig().synced()
    rig.source.publish(0, encode_batch([stored(0, token_ids=(1,))], "array", release="vllm-0.9", rank=3))
    assert rig.stream.counts.rejected == {"token_count": 1}
    assert rig.stream.counts.rank_mismatches == 1
    assert rig.trust is TrustState.DEGRADED
    rig.source.publish(1, encode_batch([AllBlocksCleared()], ts=2e9))
    assert rig.trust is TrustState.LIVE


def test_removals_and_clears_reach_the_index() -> None:
    rig = Rig().synced(3)
    rig.source.publish(3, encode_batch([BlockRemoved(block_hashes=(2, 99))], ts=2e9))
    assert rig.blocks == 2
    assert (rig.stream.counts.applied.removed, rig.stream.counts.applied.unknown_removed) == (1, 1)
    rig.source.publish(4, encode_batch([AllBlocksCleared(), stored(0)], ts=2e9 + 1))
    assert rig.blocks == 1
    assert rig.stream.counts.applied.cleared == 2


def test_a_reset_through_the_gateway_clears_at_once() -> None:
    rig = Rig().synced(3)
    rig.stream.cleared_by_gateway()
    assert (rig.blocks, rig.trust) == (0, TrustState.LIVE)
    rig.source.publish(3, encode_batch([AllBlocksCleared(), stored(0)], ts=2e9))
    assert rig.blocks == 1


def test_a_new_process_purges_unless_its_batches_are_already_here() -> None:
    rig = Rig().synced(3)
    rig.stream.restarted(process_start=900.0)
    assert rig.blocks == 3
    rig.stream.restarted(process_start=1500.0)
    assert (rig.blocks, rig.source.replays) == (0, [0, 0])


def test_time_brings_another_try() -> None:
    rig = Rig()
    rig.source.connect()
    rig.source.publish(3, payload(3))
    rig.source.fail()
    assert rig.trust is TrustState.DEGRADED
    rig.now += 2.0
    rig.stream.tick()
    rig.source.answer([(seq, payload(seq)) for seq in range(4)])
    assert (rig.blocks, rig.trust) == (4, TrustState.LIVE)
    assert rig.stream.counts.stream["replays"] == 2


def test_retiring_closes_the_source_and_frees_the_worker() -> None:
    rig = Rig().synced(3)
    rig.source.publish(5, payload(5))
    sink = rig.source.sink
    rig.stream.retire()
    assert rig.source.closed
    assert not rig.source.replaying
    assert rig.index.sizes().copies == 0
    sink.connected()
    sink.message([b"kv", bytes(8), payload(0)])
    rig.stream.tick()
    rig.stream.retire()
    assert rig.index.sizes().copies == 0
    assert rig.stream.state is State.DEAD


class ArraysTaken(ReferenceIndex):
    """An index that takes arrays, and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__(1000)
        self.batches: list[tuple[tuple[object, ...], ...]] = []
        self.error: Exception | None = None

    def add_batch(self, worker: WorkerId, batch: NativeBatch, report: ApplyReport) -> None:
        assert worker == WORKER
        self.batches.append(batch.to_python())
        report.stored += 1
        if self.error is not None:
            raise self.error


@pytest.mark.skipif(not NATIVE, reason="the native core is not built: `pip install -e .` builds it")
class TestArrays:
    def test_a_batch_is_applied_in_one_call(self) -> None:
        index = ArraysTaken()
        rig = Rig(index).synced()
        rig.source.publish(0, encode_batch([stored(0), stored(1), BlockRemoved(block_hashes=(5,))], ts=1990.0))
        (batch,) = index.batches
        assert [event[0] for event in batch] == ["stored", "stored", "removed"]
        counts = rig.stream.counts
        assert (counts.batches, counts.events, counts.last_seq, counts.last_event_ts) == (1, 3, 0, 1990.0)
        assert (counts.lag_s, counts.applied.stored, rig.batches_told, rig.cleared_told) == (10.0, 1, 1, 0)
        assert rig.blocks == 0, "nothing went event by event"

    def test_replays_and_repetitions_are_known_by_their_bytes(self) -> None:
        index = ArraysTaken()
        rig = Rig(index)
        rig.source.connect()
        rig.source.publish(1, payload(1))
        rig.source.answer([(0, payload(0)), (1, payload(1))])
        rig.source.publish(1, payload(1))
        assert len(index.batches) == 2
        assert rig.stream.counts.stream["duplicates"] == 1
        rig.source.publish(0, payload(0, ts=5000.0))
        assert rig.stream.counts.stream["restarts"] == 1

    def test_what_is_declined_goes_event_by_event(self) -> None:
        index = ArraysTaken()
        rig = Rig(index).synced()
        rig.source.publish(0, encode_batch([stored(0), stored(1, token_ids=(1,))], "array", release="vllm-0.9"))
        assert (index.batches, rig.blocks) == ([], 1)
        assert rig.stream.counts.rejected == {"token_count": 1}
        rig.source.publish(1, encode_batch([AllBlocksCleared(), stored(0)], ts=2e9))
        assert rig.trust is TrustState.LIVE
        assert (len(index.batches), rig.cleared_told) == (1, 1)

    def test_c10_a_batch_that_fails_costs_only_itself(self) -> None:
        index = ArraysTaken()
        rig = Rig(index).synced()
        index.error = RuntimeError("a bug")
        rig.source.publish(0, encode_batch([AllBlocksCleared(), stored(0)], ts=1e9))
        assert rig.stream.counts.rejected == {"apply_failed": 1}
        assert (rig.stream.counts.events, rig.cleared_told) == (0, 1)
        assert rig.stream.trust.reason == "applying some event of batch 0 failed: RuntimeError: a bug"
        assert rig.trust is TrustState.DEGRADED
        index.error = None
        rig.source.publish(1, encode_batch([stored(1)], ts=1e9 + 1))
        assert (len(index.batches), rig.stream.counts.last_seq, rig.stream.state) == (2, 1, State.LIVE)


names = st.sampled_from([1, 2, 3, 2**64 - 1, -5, b"digest"])
stores = st.builds(
    BlockStored,
    block_hashes=st.tuples(names) | st.tuples(names, names) | st.just(()),
    parent=st.none() | names,
    token_ids=st.sampled_from([(), (1, 2), (7, 7), (1, 2, 7, 7)]),
    block_size=st.just(2),
    medium=st.sampled_from([Medium.GPU, Medium.CPU]),
    group=st.integers(0, 1),
    by_hash=st.booleans(),
    sliding_window=st.sampled_from([None, None, 4]),
    lora=st.sampled_from([None, None, "sql"]),
)
removals = st.builds(BlockRemoved, block_hashes=st.tuples(names), group=st.integers(0, 1))
batches = st.lists(stores | stores | removals | st.just(AllBlocksCleared()), max_size=5)


def dumped(index: PrefixIndex) -> tuple[object, object]:
    """What is known of groups, and all blocks in whatever order."""
    entries = list(index.dump())
    return entries[:1] and entries[0].groups, {msgspec.structs.replace(entry, groups=()) for entry in entries}


@pytest.mark.skipif(not NATIVE, reason="the native core is not built: `pip install -e .` builds it")
@given(published=st.lists(batches, max_size=6))
def test_both_ways_to_the_index_are_equal(published: list[list[Event]]) -> None:
    rigs = [Rig(ReferenceIndex(1000)).synced(), Rig(NativeIndex(1000)).synced()]
    for seq, events in enumerate(published):
        for rig in rigs:
            rig.source.publish(seq, encode_batch(events, ts=2000.0 + seq))
            rig.index.check()
    slow, fast = rigs
    assert fast.stream.counts == slow.stream.counts
    assert fast.stream.trust == slow.stream.trust
    assert fast.batches_told == slow.batches_told
    assert (fast.cleared_told > 0) == (slow.cleared_told > 0), "once a batch is enough"
    assert fast.index.worker_sizes(WORKER) == slow.index.worker_sizes(WORKER)
    assert dumped(fast.index) == dumped(slow.index)


RECORDS = [json.loads(line) for line in GOLDEN.read_text().splitlines()]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["version"])
def test_every_releases_recording_is_followed_to_its_end(record: dict) -> None:
    rig = Rig().synced()
    for message in record["pub"]:
        rig.source.sink.message([base64.b64decode(frame) for frame in message])
    assert rig.stream.counts.last_seq == 3
    assert rig.stream.counts.rejected == {}
    assert rig.stream.counts.applied.cleared > 0
    assert (rig.blocks, rig.trust) == (0, TrustState.LIVE)
    rig.index.check()


def test_a_worker_that_outgrows_its_limit_is_degraded_until_it_clears() -> None:
    make = type(Rig(None).index)
    rig = Rig(make(1000, None, 3)).synced()
    for number in range(4):
        assert rig.stream.trust.state is TrustState.LIVE
        rig.stream.message([b"", number.to_bytes(8, "big"), payload(number)])
    assert (rig.stream.trust.state, rig.stream.trust.reason) == (TrustState.DEGRADED, OUTGROWN)
    assert rig.stream.counts.applied.outgrown == 1
    asked = len(rig.source.replays)
    for _ in range(5):
        rig.now += 1.0
        rig.stream.tick()
    assert len(rig.source.replays) == asked, "no replay can help"
    rig.stream.message([b"", (4).to_bytes(8, "big"), encode_batch([AllBlocksCleared()], ts=1004.0)])
    assert rig.stream.trust.state is TrustState.LIVE
