"""Every way to write a batch, and ways that no release has yet: what is known keeps its meaning in any surroundings."""

from __future__ import annotations

from itertools import product
from typing import Any

import msgspec
import pytest
from test_wire_golden import RECORDS, expected, frames

from warmroute.core.wire import ReplayBatch, ReplayEnd, decode_batch, decode_natively, decode_replay
from warmroute.core.wire.batch import NO_RANK
from warmroute.core.wire.events import AllBlocksCleared, BlockRemoved, BlockStored, EventBatch
from warmroute.testing.events import END_SEQ
from warmroute.types import Medium

NAMES = ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name")
STORED = ([11, 12], 7, [1, 2, 3, 4], 2, None, "CPU", None)
FUTURE = [None, 5, -1.5, "word", b"bytes", [1, [2]], {"a": {"b": 1}}, msgspec.msgpack.Ext(9, b"ext")]
"""What a field that nobody has heard of may hold."""


def stored(form: str, **fields: Any) -> Any:
    values = dict(zip(NAMES, STORED, strict=True)) | fields
    return {"type": "BlockStored"} | values if form == "map" else ["BlockStored", *values.values()]


def removed(form: str, block_hash: int | bytes) -> Any:
    return {"type": "BlockRemoved", "block_hashes": [block_hash]} if form == "map" else ["BlockRemoved", [block_hash]]


def cleared(form: str) -> Any:
    return {"type": "AllBlocksCleared"} if form == "map" else ["AllBlocksCleared"]


def batch(envelope: str, events: list[Any], rank: Any = 3) -> bytes:
    forms = {
        "pair": [1.5, events],
        "array": [1.5, events, rank],
        "longer": [1.5, events, rank, *FUTURE],
        "vllm map": {"ts": 1.5, "events": events, "data_parallel_rank": rank},
        "sglang map": {"attn_dp_rank": rank, "future": FUTURE, "events": events, "ts": 1.5},
    }
    return msgspec.msgpack.encode(forms[envelope])


ENVELOPES = ("pair", "array", "longer", "vllm map", "sglang map")
HASHES = [(1, 2), (-1, -(2**63)), (2**63, 2**64 - 1), (bytes(32), b"\xff" * 16), (b"", 0), (5, b"5")]


@pytest.mark.parametrize(("envelope", "form", "hashes"), list(product(ENVELOPES, ("map", "array"), HASHES)))
def test_every_envelope_form_of_event_and_hash(envelope: str, form: str, hashes: tuple[int | bytes, ...]) -> None:
    events = [
        stored(form, block_hashes=list(hashes), parent_block_hash=hashes[0]),
        removed(form, hashes[1]),
        cleared(form),
    ]
    decoded = decode_batch(batch(envelope, events))
    assert decoded.events == (
        BlockStored(block_hashes=hashes, parent=hashes[0], token_ids=(1, 2, 3, 4), block_size=2, medium=Medium.CPU),
        BlockRemoved(block_hashes=(hashes[1],)),
        AllBlocksCleared(),
    )
    assert (decoded.ts, decoded.rank, decoded.rejected) == (1.5, 0 if envelope == "pair" else 3, ())


def test_both_forms_in_one_batch() -> None:
    mixed = decode_batch(batch("array", [stored("array"), stored("map"), removed("array", 1), removed("map", 1)]))
    assert mixed.events[0] == mixed.events[1]
    assert mixed.events[2] == mixed.events[3]


@pytest.mark.parametrize("rank", ["0", 1.0, True, [0], {"rank": 0}, b"0"])
@pytest.mark.parametrize("envelope", ["array", "vllm map"])
def test_a_rank_that_is_no_number_costs_no_event(envelope: str, rank: object) -> None:
    raw = batch(envelope, [cleared("map")], rank)
    assert (decode_batch(raw).events, decode_batch(raw).rank) == ((AllBlocksCleared(),), NO_RANK)
    assert decode_natively(raw) is None


# Releases to come.


def published(version: str) -> list[list[Any]]:
    """What a release published, as trees: `[ts, events, rank]`."""
    return [msgspec.msgpack.decode(message[-1]) for message in frames(RECORDS[version], "pub")]


def read(tree: Any) -> EventBatch:
    decoded = decode_batch(msgspec.msgpack.encode(tree))
    assert decoded.rejected == ()
    return decoded


def with_future(event: Any) -> Any:
    """The event as a later release may write it: more fields behind, or between."""
    if isinstance(event, dict):
        unheard = {f"future_{number}": value for number, value in enumerate(FUTURE)}
        return dict(sorted((event | unheard).items()))
    return event


@pytest.mark.parametrize("version", RECORDS)
def test_unknown_fields_and_another_order_change_nothing(version: str) -> None:
    for tree, events in zip(published(version), expected(RECORDS[version]), strict=True):
        assert list(read([tree[0], [with_future(event) for event in tree[1]], tree[2], *FUTURE]).events) == events


FULL = (*STORED, [None, ["salt"]], 0, "full_attention", None)
"""An array as long as any that is known."""


def test_arrays_may_go_on_with_anything() -> None:
    (longer,) = read([1.0, [["BlockStored", *FULL, *FUTURE]], 0]).events
    assert [longer] == list(read([1.0, [["BlockStored", *FULL]], 0]).events)
    (gone,) = read([1.0, [["BlockRemoved", [1], "CPU", 0, *FUTURE]], 0]).events
    assert gone == BlockRemoved(block_hashes=(1,), medium=Medium.CPU)
    assert read([1.0, [["AllBlocksCleared", *FUTURE]], 0]).events == (AllBlocksCleared(),)


@pytest.mark.parametrize("length", range(4, len(FULL) + 1))
def test_arrays_may_end_behind_any_optional_field(length: int) -> None:
    (event,) = read([1.0, [["BlockStored", *FULL[:length]]], 0]).events
    assert isinstance(event, BlockStored)
    assert (event.block_hashes, event.token_ids) == ((11, 12), (1, 2, 3, 4))
    assert event.medium is (Medium.CPU if length > 5 else Medium.GPU)
    assert event.extra_keys == (((), ("salt",)) if length > 7 else ())


@pytest.mark.parametrize("missing", range(1 << 4))
def test_maps_may_lack_any_optional_field(missing: int) -> None:
    optional = {"parent_block_hash": 7, "lora_id": None, "medium": "CPU", "lora_name": "sql"}
    given = {name: value for bit, (name, value) in enumerate(optional.items()) if not missing >> bit & 1}
    (event,) = read(
        [1.0, [{"type": "BlockStored", "block_hashes": [1], "token_ids": [1], "block_size": 1} | given], 0]
    ).events
    assert isinstance(event, BlockStored)
    assert (event.parent, event.lora) == (given.get("parent_block_hash"), given.get("lora_name"))
    assert event.medium is (Medium.CPU if "medium" in given else Medium.GPU)


@pytest.mark.parametrize("version", RECORDS)
@pytest.mark.parametrize("form", ["map", "array"])
def test_kinds_of_events_to_come_cost_no_neighbour(version: str, form: str) -> None:
    unheard = [
        {"type": "BlockMoved", "block_hashes": [1], "from": "GPU", "to": "CPU"},
        ["BlockMoved", [1], "GPU", "CPU"],
        {"type": "BlockStored", "blocks": FUTURE},
        ["BlockStored", {"hashes": [1]}],
        *FUTURE,
    ]
    strangers = [each for each in unheard if not isinstance(each, dict if form == "array" else list)]
    for tree, events in zip(published(version), expected(RECORDS[version]), strict=True):
        between = [each for event in tree[1] for each in (*strangers, event)] + strangers
        decoded = decode_batch(msgspec.msgpack.encode([tree[0], between, tree[2]]))
        assert list(decoded.events) == events
        assert len(decoded.rejected) == len(strangers) * (len(tree[1]) + 1)
        assert all(rejected.reason and rejected.detail for rejected in decoded.rejected)


def test_fields_that_open_pull_requests_would_add() -> None:
    """`remaining_copy_counts` of a removal, a mark of reports without a new copy, hashes over tokens to come."""
    (gone,) = read([1.0, [removed("map", 1) | {"remaining_copy_counts": [2]}], 0]).events
    assert gone == BlockRemoved(block_hashes=(1,))
    (again,) = read([1.0, [stored("map", is_report=True, lookahead_token_ids=[[9], [8]])], 0]).events
    assert [again] == list(read([1.0, [stored("map")], 0]).events)


# SGLang's ways.


def sglang(**fields: Any) -> BlockStored:
    (event,) = read(
        [1.0, [{"type": "BlockStored", "block_hashes": [-5], "token_ids": [1, 2], "block_size": 2} | fields], 0]
    ).events
    assert isinstance(event, BlockStored)
    return event


def test_sglangs_maps_leave_out_what_is_null() -> None:
    plain = sglang(parent_block_hash=None, lora_id=None)
    assert (plain.block_hashes, plain.medium, plain.lora, plain.extra_keys) == ((-5,), Medium.GPU, None, ())
    full = sglang(medium="CPU_PINNED", lora_name="sql", cache_salt="s", session_id="x")
    assert (full.medium, full.lora, full.extra_keys) == (Medium.CPU, "sql", (("s",),))


@pytest.mark.parametrize(
    ("name", "medium"),
    [("GPU", Medium.GPU), ("CPU_PINNED", Medium.CPU), ("DISK", Medium.STORAGE), ("EXTERNAL", Medium.STORAGE)],
)
@pytest.mark.parametrize("form", ["map", "array"])
def test_sglangs_media(form: str, name: str, medium: Medium) -> None:
    gone = {"type": "BlockRemoved", "block_hashes": [1], "medium": name}
    events = [stored(form, medium=name), gone if form == "map" else ["BlockRemoved", [1], name]]
    decoded = read([1.0, events, 0])
    assert [event.medium for event in decoded.events if not isinstance(event, AllBlocksCleared)] == [medium, medium]
    assert decoded.unknown_media == 0


@pytest.mark.parametrize("metadata", [{"cache_salt": "s"}, {"cache_salt": "s", "future": 1}])
def test_sglangs_trailing_metadata(metadata: dict[str, Any]) -> None:
    (event,) = read(
        [1.0, [["BlockStored", [1, 2], None, [1, 2, 3, 4], 2, None, "GPU", metadata, *FUTURE[:1]]], 0]
    ).events
    assert isinstance(event, BlockStored)
    assert (event.lora, event.extra_keys) == (None, (("s",), ()))


# Replies of a replay.


@pytest.mark.parametrize("delimiter", [[], [b""]])
@pytest.mark.parametrize("topic", [[], [b""], [b"kv"], [b"kv", b"a frame to come"]])
def test_replies_with_and_without_a_topic(delimiter: list[bytes], topic: list[bytes]) -> None:
    head = [*delimiter, *topic]
    assert decode_replay([*head, (7).to_bytes(8, "big"), b"payload"]) == ReplayBatch(7, b"payload")
    assert decode_replay([*head, END_SEQ, b""]) == ReplayEnd()
