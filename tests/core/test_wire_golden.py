"""The bytes that each release's own code produced (tests/golden): every field read, and the encoders held to them."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmroute.core.wire import ReplayBatch, ReplayEnd, decode_batch, decode_pub, decode_replay
from warmroute.core.wire.events import AllBlocksCleared, BlockRemoved, BlockStored
from warmroute.errors import WireError
from warmroute.testing.events import RELEASES, encode_batch, pub_frames, replay_end, replay_frames
from warmroute.types import Medium

GOLDEN = Path(__file__).parent.parent / "golden" / "wire_by_version.jsonl"
RECORDS = {record["version"]: record for record in map(json.loads, GOLDEN.read_text().splitlines())}
DIGEST, PARENT_DIGEST = bytes(range(32)), bytes(32)


def frames(record: dict[str, Any], kind: str) -> list[list[bytes]]:
    return [[base64.b64decode(frame) for frame in message] for message in record[kind]]


def expected(record: dict[str, Any]) -> list[list[object]]:
    """What the four published batches say, as far as the release has fields for it."""
    has, vllm = set(record["stored_fields"]), "sglang" not in record["version"]
    named, grouped = "lora_name" in has, "group_idx" in has
    windowed = "kv_cache_spec_kind" in has
    plain = BlockStored(block_hashes=(111, 222), parent=None, token_ids=(1, 2, 3, 4), block_size=2)
    second = BlockStored(
        block_hashes=(2**64 - 1,) if vllm else (-5,),
        parent=222,
        token_ids=(5, 6),
        block_size=2,
        lora="sql" if named else "#7",
        group=1 if grouped else 0,
        by_hash=windowed,
        sliding_window=64 if windowed else None,
        extra_keys=(("salt",),) if "extra_keys" in has and not windowed else (),
    )
    digests = BlockStored(block_hashes=(DIGEST,), parent=PARENT_DIGEST, token_ids=(5, 6), block_size=2)
    removed = BlockRemoved(block_hashes=(111,))
    return [[plain], [second, removed], [digests if vllm else plain], [AllBlocksCleared()]]


@pytest.mark.parametrize("version", RECORDS)
def test_every_published_field_is_read(version: str) -> None:
    record = RECORDS[version]
    for seq, (message, events) in enumerate(zip(frames(record, "pub"), expected(record), strict=True)):
        topic, number, payload = decode_pub(message)
        assert (topic, number) == (b"kv", seq)
        batch = decode_batch(payload)
        assert (batch.ts, batch.rank, batch.rejected, batch.unknown_media) == (1700000000.5, 0, (), 0)
        assert list(batch.events) == events


@pytest.mark.parametrize("version", RECORDS)
def test_every_replay_is_read(version: str) -> None:
    record = RECORDS[version]
    *replies, end = frames(record, "replay_from_2")
    published = [message[-1] for message in frames(record, "pub")]
    assert [decode_replay(reply) for reply in replies] == [ReplayBatch(2, published[2]), ReplayBatch(3, published[3])]
    assert decode_replay(end) == ReplayEnd()


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.rpartition("-")[2].split(".")))


def release_of(version: str) -> str:
    """The table's entry for a recorded version: the newest that is not newer."""
    engine = version.split("-", 1)[0]
    names = [name for name in RELEASES if name.startswith(engine) and name != "vllm-0.32"]
    older = [name for name in names if numbers(name) <= numbers(version)]
    return "vllm-0.32" if engine == "vllm" and numbers(version) >= (0, 30) else max(older, key=numbers)


@pytest.mark.parametrize("version", RECORDS)
def test_the_encoders_make_the_same_bytes(version: str) -> None:
    record, release = RECORDS[version], release_of(version)
    has, table = set(record["stored_fields"]), RELEASES[release]
    assert list(table.removed) == record["removed_fields"]
    assert list(table.stored) == record["stored_fields"]
    published = frames(record, "pub")
    cleared = encode_batch([AllBlocksCleared()], release=release)
    assert pub_frames("kv", 3, cleared) == published[3]
    first = encode_batch(expected(record)[0], release=release)
    assert pub_frames("kv", 0, first) == published[0]
    if not has & {"lora_name", "session_id"}:  # Later recordings set fields that the core has no word for.
        assert pub_frames("kv", 1, encode_batch(expected(record)[1], release=release)) == published[1]
    replies = frames(record, "replay_from_2")
    assert replay_frames(3, cleared, topic="kv", release=release) == replies[1]
    assert replay_end(release=release) == replies[2]


def test_media_are_spelled_as_the_engine_does() -> None:
    removed = [BlockRemoved(block_hashes=(1,), medium=medium) for medium in Medium]
    for release, table in RELEASES.items():
        if "medium" in table.removed:
            assert [e.medium for e in decode_batch(encode_batch(removed, release=release)).events] == list(Medium)


SEEDS = [message[-1] for record in RECORDS.values() for message in frames(record, "pub")]


@st.composite
def mutated(draw: st.DrawFn, seeds: st.SearchStrategy[bytes] = st.sampled_from(SEEDS)) -> bytes:  # noqa: B008
    data = bytearray(draw(seeds))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["set", "cut", "insert", "repeat"])):
            case "set":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "cut":
                del data[at : at + draw(st.integers(1, 8))]
            case "insert":
                data[at:at] = draw(st.binary(max_size=9))
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 16))]
    return bytes(data)


@settings(max_examples=2000, deadline=None)
@given(st.one_of(mutated(), st.binary(max_size=64), st.binary(max_size=64).map(lambda tail: b"\x93\x01\x91" + tail)))
def test_any_bytes_decode_or_raise_wire_error(payload: bytes) -> None:
    try:
        batch = decode_batch(payload)
    except WireError:
        return
    hash(batch)
    for event in batch.events:
        if isinstance(event, BlockStored):
            assert event.extra_keys == () or len(event.extra_keys) == len(event.block_hashes)
            fits = len(event.token_ids) == event.block_size * len(event.block_hashes)
            assert fits or event.by_hash
            assert all(type(token) is int and 0 <= token < 2**32 for token in event.token_ids)


@given(st.lists(st.binary(max_size=12), max_size=5))
def test_any_frames_decode_or_raise_wire_error(message: list[bytes]) -> None:
    for decode in (decode_pub, decode_replay):
        with suppress(WireError):
            decode(message)
