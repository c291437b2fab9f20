"""Reading events: the conformance cases by their ids, and each rule of the canonical form."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from warmroute.core.wire import ReplayBatch, ReplayEnd, decode_batch, decode_pub, decode_replay
from warmroute.core.wire.events import AllBlocksCleared, BlockRemoved, BlockStored
from warmroute.errors import WireError
from warmroute.testing.events import END_SEQ, REPLAY_END, encode_batch, pub_frames, replay_end, replay_frames
from warmroute.types import Medium


def stored(**fields: Any) -> BlockStored:
    defaults = {"block_hashes": (1,), "parent": None, "token_ids": (1, 2), "block_size": 2}
    return BlockStored(**(defaults | fields))


def payload(*events: object, rank: int | None = 0) -> bytes:
    return msgspec.msgpack.encode([1.0, events, rank])


def only(*events: object) -> Any:
    batch = decode_batch(payload(*events))
    assert batch.rejected == ()
    (event,) = batch.events
    return event


def rejection(event: object) -> str:
    batch = decode_batch(payload(event, ["AllBlocksCleared"]))
    assert batch.events == (AllBlocksCleared(),), "the neighbour is decoded"
    (rejected,) = batch.rejected
    assert rejected.position == 0
    assert rejected.detail
    return rejected.reason


def keyed(**fields: Any) -> dict[str, Any]:
    defaults = {"type": "BlockStored", "block_hashes": [1], "parent_block_hash": None, "token_ids": [1, 2]}
    return defaults | {"block_size": 2} | fields


# Conformance.


def test_a2() -> None:
    batch = decode_batch(bytes.fromhex("92cb3ff00000000000009195ab426c6f636b53746f726564912ac092090802"))
    assert batch.events == (stored(block_hashes=(42,), token_ids=(9, 8)),)
    assert batch.rank == 0


def test_a4() -> None:
    batch = decode_batch(
        bytes.fromhex(
            "93cb3ff00000000000009495ab426c6f636b53746f7265649101c0920a140292ac426c6f636b52656d6f766564916393ac426c6f636b"
            "52656d6f766564926465a347505591b0416c6c426c6f636b73436c656172656400"
        )
    )
    assert batch.events == (
        stored(token_ids=(10, 20)),
        BlockRemoved(block_hashes=(99,)),
        BlockRemoved(block_hashes=(100, 101)),
        AllBlocksCleared(),
    )
    assert batch.rank == 0


def test_a6() -> None:
    raw = bytes.fromhex(
        "92cb3ff00000000000009195ab426c6f636b53746f72656491c420000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c"
        "1d1e1fc092010202"
    )
    (event,) = decode_batch(raw).events
    assert event.block_hashes == (bytes(range(32)),)
    assert hash(event) == hash(decode_batch(raw).events[0])


def test_a8() -> None:
    raw = bytes.fromhex("92cb3ff0000000000000919aab426c6f636b53746f7265649165c0940102030404c0a3637075c09191a16b05")
    assert decode_batch(raw).events == (
        stored(
            block_hashes=(101,),
            token_ids=(1, 2, 3, 4),
            block_size=4,
            medium=Medium.CPU,
            extra_keys=(("k",),),
            group=5,
        ),
    )


def test_a10() -> None:
    raw = bytes.fromhex(
        "83a27473cb3ff8000000000000a66576656e74739183a474797065ac426c6f636b52656d6f766564ac626c6f636b5f686173686573"
        "9107a66d656469756da3475055b2646174615f706172616c6c656c5f72616e6b02"
    )
    batch = decode_batch(raw)
    assert (batch.ts, batch.rank, batch.events) == (1.5, 2, (BlockRemoved(block_hashes=(7,)),))


def test_a12() -> None:
    raw = bytes.fromhex(
        "93cb3ff00000000000009292b154696572426c6f636b73436c6561726564a347505592ac426c6f636b52656d6f766564910500"
    )
    batch = decode_batch(raw)
    assert batch.events == (BlockRemoved(block_hashes=(5,)),)
    assert [(r.position, r.reason, r.detail) for r in batch.rejected] == [(0, "unknown_tag", "'TierBlocksCleared'")]


def test_a14() -> None:
    batch = decode_batch(bytes.fromhex("92cb3ff00000000000009194ab426c6f636b53746f7265649101c0920102"))
    assert batch.events == ()
    assert [r.reason for r in batch.rejected] == ["missing_field"]


def test_a16() -> None:
    with pytest.raises(WireError) as caught:
        decode_pub([b"kv", b"\0" * 7, b"payload"])
    assert caught.value.reason == "bad_seq"
    assert decode_pub([b"kv", b"\0" * 7 + b"\5", b"payload"]) == (b"kv", 5, b"payload")


def test_a18() -> None:
    assert only(["BlockStored", [], None, [], 16]).block_hashes == ()
    assert only(["BlockStored", [], 7, list(range(32)), 32]).block_hashes == ()


def test_t06() -> None:
    event = only(["BlockStored", [7], 6, [1, 2], 2])
    assert event == stored(block_hashes=(7,), parent=6, medium=Medium.GPU, lora=None)
    assert rejection(["BlockStored", [7], 6, [1, 2]]) == "missing_field"


def test_t08() -> None:
    positional = ["BlockStored", [7], None, [1, 2], 2, None, "CPU", "sql", [["sql", "salt"]], 1]
    names = ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name")
    as_map = {"type": "BlockStored"} | dict(zip((*names, "extra_keys", "group_idx"), positional[1:], strict=True))
    assert only(as_map) == only(positional)
    assert only(keyed()) == stored()
    absent = keyed()
    del absent["parent_block_hash"]
    assert only(absent).parent is None
    untagged = keyed()
    del untagged["type"]
    assert rejection(untagged) == "missing_tag"


@pytest.mark.parametrize(
    ("published", "canonical"),
    [
        ([["img1"], None], (("img1",), ())),
        ([[["img1", 5]], None], (("img1",), ())),
        ([[7, 1.5, None, {"a": 1}, True, "img1"], [3]], (("img1",), ())),
        ([[7], None], ()),
        ([[["img1", 5], "salt", b"embeds"], [["img1", 5]]], (("img1", "salt", b"embeds"), ("img1",))),
        ([[[]], [[5, "x"]]], ()),
        ([None, None], ()),
        ([], ()),
        (None, ()),
    ],
)
def test_t24(published: Any, canonical: Any) -> None:
    event = only(keyed(block_hashes=[1, 2], token_ids=[1, 2, 3, 4], extra_keys=published))
    assert event.extra_keys == canonical


def test_f8_token_ids_beyond_one_and_two_bytes_keep_their_value() -> None:
    event = only(keyed(block_hashes=[1], token_ids=[1, 256, 65536], block_size=3))
    assert b"".join(token.to_bytes(4, "big") for token in event.token_ids).hex() == "000000010000010000010000"


def test_k7_extremes_are_ordinary_values() -> None:
    hashes = [0, -(2**63), 2**63, 2**64 - 1, b"", b"\0" * 32]
    event = only(keyed(block_hashes=hashes, token_ids=[0, 2**32 - 1] * 6, parent_block_hash=-1))
    assert event.block_hashes == tuple(hashes)
    assert event.parent == -1


# The canonical form.


def test_the_adapters_name_leaves_the_extra_keys_once() -> None:
    event = only(keyed(lora_name="sql", extra_keys=[["sql", "sql"]]))
    assert (event.lora, event.extra_keys) == ("sql", (("sql",),))
    event = only(keyed(lora_name="sql", extra_keys=[["sql"]]))
    assert (event.lora, event.extra_keys) == ("sql", ())


def test_an_adapter_without_a_name_goes_by_its_number() -> None:
    assert only(["BlockStored", [1], None, [1, 2], 2, 0]).lora == "#0"
    assert only(keyed(lora_id=3, lora_name="sql")).lora == "sql"


def test_sglangs_salt_is_a_key_of_the_prompts_first_block_only() -> None:
    both = {"block_hashes": [1, 2], "token_ids": [1, 2, 3, 4], "cache_salt": "s"}
    assert only(keyed(**both)).extra_keys == (("s",), ())
    assert only(keyed(**both, parent_block_hash=9)).extra_keys == ()
    assert only(["BlockStored", [1], None, [1, 2], 2, None, "GPU", {"cache_salt": "s"}]).extra_keys == (("s",),)
    assert only(["BlockStored", [1], None, [1, 2], 2, None, "GPU", {}]).extra_keys == ()
    assert rejection(keyed(cache_salt=5)) == "wrong_type"


@pytest.mark.parametrize(
    ("name", "medium"),
    [
        (None, Medium.GPU),
        ("", Medium.GPU),
        ("gpu", Medium.GPU),
        ("cpu", Medium.CPU),
        ("CPU_PINNED", Medium.CPU),
        ("DISK", Medium.STORAGE),
        ("EXTERNAL", Medium.STORAGE),
        ("FS", Medium.STORAGE),
        ("obj", Medium.STORAGE),
        ("storage", Medium.STORAGE),
    ],
)
def test_media(name: str | None, medium: Medium) -> None:
    batch = decode_batch(payload(keyed(medium=name), {"type": "BlockRemoved", "block_hashes": [1], "medium": name}))
    assert [event.medium for event in batch.events] == [medium, medium]
    assert batch.unknown_media == 0


def test_t26_an_unknown_medium_is_taken_as_the_slowest_and_counted() -> None:
    """Not at full worth, as the case has it elsewhere: what is not known is not credited beyond the least there is."""
    batch = decode_batch(payload(keyed(medium="CXL"), ["BlockRemoved", [1], "cxl"]))
    assert [event.medium for event in batch.events] == [Medium.STORAGE, Medium.STORAGE]
    assert batch.unknown_media == 2


def test_groups_that_keep_only_a_part_go_by_hash() -> None:
    window = {"group_idx": 1, "kv_cache_spec_kind": "sliding_window", "kv_cache_spec_sliding_window": 64}
    event = only(keyed(**window))
    assert (event.by_hash, event.group, event.sliding_window) == (True, 1, 64)
    event = only(keyed(group_idx=1, token_ids=list(range(9))))
    assert event.by_hash
    for kind in ("full_attention", "mla_attention", "sink_full_attention"):
        assert not only(keyed(group_idx=1, kv_cache_spec_kind=kind)).by_hash
    assert only(keyed(group_idx=1, kv_cache_spec_kind="mamba")).by_hash


def test_a_placeholder_without_tokens_goes_by_hash() -> None:
    event = only(keyed(token_ids=[], medium="CPU"))
    assert (event.by_hash, event.token_ids, event.medium) == (True, (), Medium.CPU)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (keyed(token_ids=[1, 2, 3]), "token_count"),
        (keyed(extra_keys=[["a"], ["b"]]), "extra_keys_count"),
        (keyed(token_ids=[1, -1]), "wrong_type"),
        (keyed(token_ids=[1, 2**32]), "wrong_type"),
        (keyed(token_ids=[1, True]), "wrong_type"),
        (keyed(token_ids=[1, 2.0]), "wrong_type"),
        (keyed(block_hashes=[True]), "wrong_type"),
        (keyed(block_hashes=["1"]), "wrong_type"),
        (keyed(block_hashes=None), "wrong_type"),
        (keyed(parent_block_hash="1"), "wrong_type"),
        (keyed(block_size=0), "wrong_type"),
        (keyed(block_size=True), "wrong_type"),
        (keyed(group_idx=-1), "wrong_type"),
        (keyed(medium=1), "wrong_type"),
        (keyed(extra_keys=["a"]), "wrong_type"),
        ({"type": "BlockStored", "token_ids": [], "block_size": 1}, "missing_field"),
        ({"type": "BlockRemoved"}, "missing_field"),
        (["BlockRemoved"], "missing_field"),
        (["BlockStored", [1], None, [1, 2], 2, None, "GPU", 5], "wrong_type"),
        ({"type": 5}, "missing_tag"),
        ([], "missing_tag"),
        ([["BlockStored"]], "missing_tag"),
        ("BlockStored", "not_an_event"),
        (None, "not_an_event"),
        (msgspec.Raw(b"\xa2\xff\xff"), "not_msgpack"),
    ],
)
def test_a_bad_event_costs_only_itself(event: object, reason: str) -> None:
    assert rejection(event) == reason


def test_unknown_fields_mean_nothing() -> None:
    assert only(keyed(locality="LOCAL", session_id="s", lookahead_token_ids=[[1]], unheard={"of": 1})) == stored()
    assert only(["BlockStored", [1], None, [1, 2], 2, *[None] * 7, "LOCAL", {"unheard": "of"}]) == stored()
    assert only(["AllBlocksCleared", "GPU"]) == AllBlocksCleared()


def test_the_rank_may_be_missing() -> None:
    assert decode_batch(payload(rank=None)).rank == 0
    assert decode_batch(msgspec.msgpack.encode([1.0, []])).rank == 0
    assert decode_batch(msgspec.msgpack.encode([1.0, [], 3, "more"])).rank == 3
    assert decode_batch(msgspec.msgpack.encode({"ts": 1, "events": [], "attn_dp_rank": 4})).rank == 4


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not_msgpack"),
        (b"\xc1", "not_msgpack"),
        (b"\x92\xcb", "not_msgpack"),
        (b"\x92\x01\x90\x00", "not_msgpack"),
        (b"\x92\x01\xdd\xff\xff\xff\xff", "not_msgpack"),
        (b"\x92\x01\x91\x95\xabBlockStored\xdd\xff\xff\xff\xff", "not_msgpack"),
        (b"\x92\x01" + b"\x91" * 100_000 + b"\xc0", "not_msgpack"),
        (b"\x01", "not_a_batch"),
        (b"\x91\x01", "not_a_batch"),
        (b"\x92\xa1a\x90", "not_a_batch"),
        (b"\x92\x01\x80", "not_a_batch"),
        (b"\x80", "not_a_batch"),
    ],
)
def test_what_is_no_batch(raw: bytes, reason: str) -> None:
    for form in (raw, memoryview(raw)):
        with pytest.raises(WireError) as caught:
            decode_batch(form)
        assert caught.value.reason == reason


# Frames.


@pytest.mark.parametrize("frames", [[], [b"kv"], [b"kv", b"\0" * 8], [b"", b"kv", b"\0" * 8, b""]])
def test_a_published_message_has_three_frames(frames: list[bytes]) -> None:
    with pytest.raises(WireError) as caught:
        decode_pub(frames)
    assert caught.value.reason == "frame_count"


@pytest.mark.parametrize("front", [[], [b""], [b"", b"kv"], [b"kv"], [b"", b""]])
def test_replies_are_read_from_the_right(front: list[bytes]) -> None:
    assert decode_replay([*front, b"\0" * 7 + b"\2", b"payload"]) == ReplayBatch(2, b"payload")
    assert decode_replay([*front, END_SEQ, b""]) == ReplayEnd()


def test_bad_replies() -> None:
    with pytest.raises(WireError, match="frame_count"):
        decode_replay([b"payload"])
    with pytest.raises(WireError, match="bad_seq"):
        decode_replay([b"", b"seq", b"payload"])


def test_the_shipped_encoders_make_what_is_decoded() -> None:
    events = [
        stored(block_hashes=(1, 2), token_ids=(1, 2, 3, 4), extra_keys=(("salt",), ()), lora="sql"),
        BlockRemoved(block_hashes=(1,), medium=Medium.CPU),
        AllBlocksCleared(),
    ]
    for form in ("map", "array"):
        encoded = encode_batch(events, form, ts=2.5, rank=3)
        batch = decode_batch(encoded)
        assert (batch.ts, batch.rank, batch.events, batch.rejected) == (2.5, 3, tuple(events), ())
    assert decode_pub(pub_frames("kv", 7, encoded)) == (b"kv", 7, encoded)
    assert decode_replay(replay_frames(7, encoded, topic="kv")) == ReplayBatch(7, encoded)
    assert decode_replay(REPLAY_END) == decode_replay(replay_end(release="vllm-0.24")) == ReplayEnd()
