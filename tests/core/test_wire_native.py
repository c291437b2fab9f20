"""The native decoder against the one in Python: what it reads it reads alike, and it reads all that engines write."""

from __future__ import annotations

import random
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_wire_golden import RECORDS, SEEDS, frames, mutated

from warmroute.core.hashing import extra_digest, reference_block_digests
from warmroute.core.wire import decode_batch, decode_natively
from warmroute.core.wire.events import AllBlocksCleared, BlockRemoved, BlockStored, Event
from warmroute.core.wire.native import NATIVE, payload_mark
from warmroute.errors import WireError
from warmroute.testing.events import RELEASES, encode_batch
from warmroute.types import Medium

pytestmark = pytest.mark.skipif(not NATIVE, reason="the native core is not built: `pip install -e .` builds it")


def as_tuple(event: Event) -> tuple[Any, ...]:
    """An event as the native decoder must have it."""
    if isinstance(event, AllBlocksCleared):
        return ("cleared",)
    if isinstance(event, BlockRemoved):
        return "removed", event.block_hashes, event.group, event.medium
    digests: tuple[int, ...] = ()
    if event.block_hashes and not event.by_hash:
        keys = event.extra_keys or ((),) * len(event.block_hashes)
        contents = reference_block_digests(event.token_ids, event.block_size)
        digests = tuple((c + extra_digest(event.lora, own)) % 2**64 for c, own in zip(contents, keys, strict=True))
    window, place = event.sliding_window, (event.group, event.medium)
    return "stored", event.block_hashes, event.parent, digests, event.block_size, window, *place


def read_alike(payload: bytes) -> bool:
    """Whether the native decoder reads it; if so, it must be as Python does."""
    native = decode_natively(payload)
    if native is None:
        return False
    batch = decode_batch(payload)
    assert batch.rejected == native.rejected == ()
    assert native.to_python() == tuple(map(as_tuple, batch.events))
    assert struct.pack("d", native.ts) == struct.pack("d", batch.ts)
    assert (native.rank, native.unknown_media, native.mark) == (batch.rank, batch.unknown_media, batch.mark)
    assert (native.has_clear, native.n_events) == (batch.has_clear, batch.n_events)
    return True


def payload(*events: object, rank: object = 0) -> bytes:
    return msgspec.msgpack.encode([1.5, events, rank])


@pytest.mark.parametrize("version", RECORDS)
def test_every_release_is_read(version: str) -> None:
    assert all(read_alike(message[-1]) for message in frames(RECORDS[version], "pub"))


# What engines may publish.

hashes = st.integers(0, 2**64 - 1) | st.integers(-(2**63), -1) | st.integers(-300, 300) | st.binary(max_size=33)
alike_hashes = st.lists(st.integers(0, 2**64 - 1), max_size=5) | st.lists(hashes, max_size=5)
token_ids = st.integers(0, 300) | st.integers(0, 2**32 - 1)
names = st.text(max_size=8) | st.sampled_from(["sql", "", "é", "\U0001f600"])
scalars = st.none() | st.booleans() | st.integers(-9, 2**64 - 1) | st.floats() | names | st.binary(max_size=8)
keys = names | st.binary(max_size=8) | scalars | st.lists(scalars, max_size=3)


@st.composite
def stored_fields(draw: st.DrawFn) -> dict[str, Any]:
    block_hashes = draw(alike_hashes)
    count, size = len(block_hashes), draw(st.integers(1, 20))
    whole = draw(st.booleans()) or draw(st.booleans())
    tokens = draw(st.lists(token_ids, min_size=count * size, max_size=count * size)) if whole else []
    lora = draw(st.none() | names)
    block_keys = st.none() | st.lists(keys | st.just(lora), max_size=3)
    return {
        "block_hashes": block_hashes,
        "parent_block_hash": draw(st.none() | hashes),
        "token_ids": tokens,
        "block_size": size,
        "lora_id": draw(st.none() | st.integers(-(2**63), 2**64 - 1)),
        "medium": draw(st.sampled_from([None, "GPU", "CPU", "cpu", "CPU_PINNED", "DISK", "Fs", "OBJ", "", "CXL"])),
        "lora_name": lora,
        "extra_keys": draw(st.none() | st.just([]) | st.lists(block_keys, min_size=count, max_size=count)),
        "group_idx": draw(st.none() | st.integers(0, 2**32 - 1)),
        "kv_cache_spec_kind": draw(st.sampled_from([None, None, "full_attention", "mla_attention", "mamba", ""])),
        "kv_cache_spec_sliding_window": draw(st.none() | st.integers(1, 2**32 - 1)),
    }


removed_fields = st.fixed_dictionaries(
    {
        "block_hashes": alike_hashes,
        "medium": st.sampled_from([None, "GPU", "STORAGE", "EXTERNAL"]),
        "group_idx": st.none() | st.integers(0, 9),
    }
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))


@st.composite
def events(draw: st.DrawFn) -> object:
    tag = draw(st.sampled_from(["BlockStored", "BlockStored", "BlockStored", "BlockRemoved", "AllBlocksCleared"]))
    fields: dict[str, Any] = {}
    if tag == "BlockStored":
        fields = draw(stored_fields())
    elif tag == "BlockRemoved":
        fields = draw(removed_fields)
    if draw(st.booleans()):  # keyed: what is null may be absent, the order is free, strangers may be there
        fields |= {"cache_salt": draw(st.none() | names | st.binary())} if tag == "BlockStored" else {}
        required = {"block_hashes", "token_ids", "block_size"}
        fields = {k: v for k, v in fields.items() if k in required or v is not None or draw(st.booleans())}
        fields |= draw(st.dictionaries(st.sampled_from(["session_id", "locality", "new"]), values, max_size=2))
        order = draw(st.permutations(list(fields))) if draw(st.booleans()) else list(fields)
        return {"type": tag} | {name: fields[name] for name in order}
    positions = list(fields.values())
    if tag == "BlockStored" and draw(st.booleans()):  # SGLang's metadata
        positions[6] = draw(st.dictionaries(st.just("cache_salt") | names, st.none() | names, max_size=2))
        positions[7] = None
    least = {"BlockStored": 4, "BlockRemoved": 1, "AllBlocksCleared": 0}[tag]
    shown = draw(st.integers(least, len(positions)))
    more = draw(st.lists(values, max_size=2)) if shown == len(positions) else []
    return [tag, *positions[:shown], *more]


@settings(max_examples=500, deadline=None)
@given(st.lists(events(), max_size=4), st.none() | st.integers(0, 9))
def test_what_engines_may_write_is_read_alike(published: list[Any], rank: int | None) -> None:
    raw = payload(*published, rank=rank)
    batch = decode_batch(raw)
    assert read_alike(raw) is (batch.rejected == ()), batch.rejected


wire_events = st.builds(
    BlockStored,
    block_hashes=st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=2).map(tuple),
    parent=st.none() | st.integers(0, 2**64 - 1),
    token_ids=st.lists(token_ids, min_size=6, max_size=6).map(tuple),
    block_size=st.just(3),
    medium=st.sampled_from(list(Medium)),
    lora=st.none() | st.sampled_from(["sql", "#7"]),
    extra_keys=st.sampled_from([(), (("salt",), ()), (("salt", b"\0"), ("img",))]),
) | st.builds(BlockRemoved, block_hashes=st.lists(hashes, max_size=3).map(tuple))


@pytest.mark.parametrize("release", RELEASES)
@settings(max_examples=30, deadline=None)
@given(announced=st.lists(wire_events | st.just(AllBlocksCleared()), max_size=4))
def test_what_a_release_writes_is_read(release: str, announced: list[Event]) -> None:
    assert read_alike(encode_batch(announced, release=release))


# What nobody should publish.

FIELDS = ["block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name"]
FIELDS += ["extra_keys", "group_idx", "kv_cache_spec_kind", "kv_cache_spec_sliding_window", "cache_salt"]
strange = st.just(0) | values | st.lists(values, max_size=3) | st.lists(st.lists(keys, max_size=2), max_size=3)


@st.composite
def strange_events(draw: st.DrawFn) -> object:
    event: Any = draw(events())
    for _ in range(draw(st.integers(1, 2))):
        if isinstance(event, dict):
            event = event | {draw(st.sampled_from(["type", *FIELDS])): draw(strange)}
        elif event:
            event[draw(st.integers(0, len(event) - 1))] = draw(strange)
    return event


@settings(max_examples=500, deadline=None)
@given(st.lists(strange_events(), min_size=1, max_size=2), strange)
def test_what_is_strange_is_read_alike_or_left_to_python(published: list[Any], rank: object) -> None:
    read_alike(payload(*published))
    read_alike_or_no_batch(payload(*published, rank=rank))


def read_alike_or_no_batch(raw: bytes) -> None:
    try:
        read_alike(raw)
    except WireError:
        pytest.fail("the native decoder reads what is no batch")


encoded = st.lists(events(), min_size=1, max_size=3).map(lambda published: payload(*published))


@settings(max_examples=1000, deadline=None)
@given(st.one_of(mutated(), mutated(encoded), st.binary(max_size=64), st.binary(max_size=64).map(b"\x92\xca".__add__)))
@example(b"")
@example(payload({"type": "AllBlocksCleared", 5: None}))
@example(b"\x92\x01\x91\x82\xa4type\xb0AllBlocksCleared\xa4type\xb0AllBlocksCleared")
@example(b"\x92\xcb\x3f\xf0" + bytes(6) + b"\x91" * 100_000 + b"\xc0")
def test_any_bytes_are_read_alike_or_left_to_python(raw: bytes) -> None:
    read_alike_or_no_batch(raw)


PLAIN = ["BlockStored", [1, 2], None, [1, 2, 3, 4], 2]


def keyed(**fields: object) -> dict[str, object]:
    names = ("block_hashes", "parent_block_hash", "token_ids", "block_size")
    return {"type": "BlockStored"} | dict(zip(names, PLAIN[1:], strict=True)) | fields


@pytest.mark.parametrize(
    "event",
    [
        ["TierBlocksCleared"],
        PLAIN[:4],
        [*PLAIN[:3], [1, 2, 3], 2],
        [*PLAIN[:3], [1, 2, 3, -1], 2],
        [*PLAIN[:3], [1, 2, 3, 2**32], 2],
        [*PLAIN[:3], [1, 2, 3, True], 2],
        [*PLAIN[:4], 0],
        [*PLAIN, None, 5],
        keyed(block_hashes=["1", "2"]),
        keyed(extra_keys=[["a"]]),
        keyed(cache_salt=5),
        keyed(kv_cache_spec_sliding_window=0),
        keyed(medium="ﬁ"),
        msgspec.Raw(b"\x94" + msgspec.msgpack.encode("BlockRemoved")),
        msgspec.Raw(b"\x82\xa4type\xacBlockRemoved\xa1\xff\x01"),
        msgspec.Raw(b"\x82\xa4type\xacBlockRemoved\x01\x01"),
        msgspec.Raw(b"\x83\xa4type\xacBlockRemoved\xacblock_hashes\x90\xacblock_hashes\x91\x01"),
        msgspec.Raw(b"\x83\xa4type\xacBlockRemoved\xacblock_hashes\x90\xa4type\xacBlockRemoved"),
        ["BlockStored", [1], None, [1], 1, None, None, msgspec.Raw(b"\x82\xaacache_salt\xa1a\xaacache_salt\xa1b")],
        None,
    ],
)
def test_what_is_in_doubt_is_left_to_python(event: object) -> None:
    assert decode_natively(payload(event)) is None


@pytest.mark.parametrize("lora", [None, "", "sql"])
@pytest.mark.parametrize(
    "first",
    [[], ["sql"], ["sql", "sql"], [["sql", 3]], [["sql"], "sql"], [b"sql"], [""], ["x", "sql"], [[], "sql"], [3]],
)
def test_the_adapters_name_among_the_keys(lora: str | None, first: list[object]) -> None:
    assert read_alike(payload(keyed(lora_name=lora, lora_id=7, extra_keys=[first, None], cache_salt="sql")))


@pytest.mark.parametrize("depth", [0, 8, 30])
def test_unknown_fields_are_passed_over(depth: int) -> None:
    assert read_alike(payload(keyed(unheard=msgspec.Raw(b"\x91" * depth + b"\x93\xc2\x81\x01\xc4\x01\xff\xa1\xff"))))
    assert decode_natively(payload(keyed(unheard=msgspec.Raw(b"\x91" * 33 + b"\xc0")))) is None


@pytest.mark.parametrize("size", [1, 15, 16, 17, 1024, 1025, 4000])
def test_tokens_of_all_widths(size: int) -> None:
    widths = [0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1]
    tokens = [widths[(i * i + i // 7) % 8] for i in range(3 * size)]
    assert read_alike(payload(["BlockStored", [1, 2, 3], 9, tokens, size]))
    assert read_alike(payload(["BlockStored", [1, 2, 3], 9, tokens, size, *[None] * 6], keyed(), rank=None))


def test_a_memoryview_is_read_in_place() -> None:
    raw = payload(PLAIN)
    behind = memoryview(b"x" + raw)[1:]
    assert decode_natively(behind).to_python() == decode_natively(raw).to_python()
    assert decode_natively(behind).mark == payload_mark(raw) == payload_mark(behind)


def test_lengths_that_no_payload_can_keep_cost_nothing() -> None:
    head = b"\x92\xcb" + bytes(8)
    for promise in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"):
        for front in (b"", b"\x91", b"\x91\x95\xabBlockStored", b"\x91\x95\xabBlockStored\x91\x01\xc0"):
            assert decode_natively(head + front + promise) is None


class TestMarks:
    def test_every_byte_counts(self) -> None:
        raw = bytes(range(256)) * 40
        marks = {payload_mark(raw[:size]) for size in range(0, len(raw), 7)}
        assert len(marks) == len(range(0, len(raw), 7))
        for at in range(0, len(raw), 61):
            assert payload_mark(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]) != payload_mark(raw)

    def test_zeros_at_the_end_count(self) -> None:
        assert len({payload_mark(bytes(size)) for size in range(9000)}) == 9000

    def test_golden_payloads_have_their_own(self) -> None:
        assert len({payload_mark(seed) for seed in SEEDS}) == len(set(SEEDS))
        assert all(decode_batch(seed).mark == payload_mark(seed) for seed in SEEDS)


# Long runs of token ids are read from several places at once, found by how ids usually look.
VOCABULARIES = {
    "usual": lambda r: r.randrange(150_000),
    "small": lambda r: r.randrange(128),
    "two bytes": lambda r: r.randrange(256, 65_536),
    "mixed": lambda r: r.choice([r.randrange(200), r.randrange(2**16), r.randrange(2**32)]),
    "traps": lambda r: r.choice([0xCE00CE, 0xCE, 0xCD, 0xCDCD, 0xCECE, 0xCE00, 0xCDCE00CE, 0, 0xCE00CE00, 0xCD0000CD]),
    "mostly traps": lambda r: r.choice([0xCE00CE00] * 20 + [0, 0xCD, 0xCE00]),
}


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_long_runs_of_tokens(vocabulary: str) -> None:
    r = random.Random(vocabulary)
    for blocks in (15, 16, 17, 24, 40, 77, 128):
        tokens = [VOCABULARIES[vocabulary](r) for _ in range(blocks * 16)]
        assert read_alike(payload(["BlockStored", list(range(blocks)), None, tokens, 16]))
        assert read_alike(
            payload(["BlockStored", list(range(blocks)), None, tokens, 16, None, "GPU", None, [None] * blocks])
        )


@pytest.mark.parametrize("intruder", [None, "x", -1, 2**32, 1.5, [1], b"\xce\x00", True])
def test_one_wrong_token_among_many(intruder: object) -> None:
    r = random.Random(1)
    for position in [0, 1, 200, 255, 256, 257, 700, 1023, 1024, *(r.randrange(2048) for _ in range(40)), 2047]:
        tokens: list[object] = [r.randrange(150_000) for _ in range(2048)]
        tokens[position] = intruder
        event = ["BlockStored", list(range(128)), None, tokens, 16]
        assert decode_natively(payload(event)) is None


def test_long_runs_that_are_cut_short() -> None:
    r = random.Random(2)
    whole = payload(["BlockStored", list(range(40)), None, [r.randrange(150_000) for _ in range(640)], 16])
    for end in range(len(whole)):
        assert decode_natively(whole[:end]) is None
