"""Bytes that no engine would send, from bytes that engines did: mutated, spliced, random; and what must hold of them.

Reproducible: the seed decides everything. `scripts/fuzz_wire.py` runs it for as long as one likes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from warmroute.core.wire import decode_batch, decode_natively, decode_pub, decode_replay
from warmroute.core.wire.events import AllBlocksCleared, BlockRemoved, BlockStored
from warmroute.errors import WireError

GOOD = (BlockRemoved(block_hashes=(1,)), AllBlocksCleared())
PAYLOAD_BYTES_MAX = 4096
_CONTAINERS = bytes([0x80, 0x8F, 0x90, 0x9F, 0xDC, 0xDD, 0xDE, 0xDF])
_ODD = bytes([0x00, 0x7F, 0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xC7, 0xCA, 0xCB, 0xCF, 0xD3, 0xD9, 0xE0, 0xFF])
_LENGTHS = (b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00")


def mutate(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    """One change in place."""
    at = rng.randrange(len(data) + 1)
    match rng.randrange(8):
        case 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        case 1:
            del data[at : at + rng.randrange(1, 9)]
        case 2:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        case 3:
            data[at:at] = data[at : at + rng.randrange(1, 17)]
        case 4:
            data[at : at + 1] = bytes([rng.choice(_CONTAINERS + _ODD)])
        case 5:
            data[at : at + 4] = rng.choice(_LENGTHS)
        case 6:
            other = rng.choice(seeds)
            begin = rng.randrange(len(other))
            data[at : at + rng.randrange(64)] = other[begin : begin + rng.randrange(64)]
        case _:
            data[at : at + 1] = bytes([data[at] ^ 1 << rng.randrange(8)]) if at < len(data) else b"\x90"


def any_value(rng: random.Random) -> Any:
    """A value of any type, with a liking for limits and for words that mean something."""
    return rng.choice(
        (
            *(None, True, False, 0, 1, -1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1, -(2**63), 0.5, float("nan"), ""),
            *("GPU", "cpu", "sql", "BlockStored", "BlockDreamt", "full_attention", "sliding_window", b"", bytes(32)),
            *(
                [],
                {},
                [[]],
                [None],
                [1, "a"],
                {"cache_salt": "s"},
                [["a"], None],
                [["img", 5]],
                msgspec.msgpack.Ext(5, b"x"),
            ),
            *(rng.randrange(-(2**63), 2**64), rng.randbytes(rng.randrange(40))),
        )
    )


def change(rng: random.Random, value: Any) -> Any:
    """The same tree with one thing in it replaced, left out, added, repeated or moved."""
    if not isinstance(value, list | dict) or not value or rng.random() < 0.05:
        return any_value(rng)
    if isinstance(value, dict):
        key = rng.choice(list(value))
        action = rng.randrange(4)
        if action == 0:
            return {name: each for name, each in value.items() if name != key}
        if action == 1:
            return value | {rng.choice(("future", "type", "medium", "extra_keys", "group_idx", 5)): any_value(rng)}
        return value | {key: change(rng, value[key])}
    at = rng.randrange(len(value))
    match rng.randrange(6):
        case 0:
            return value[:at] + value[at + 1 :]
        case 1:
            return [*value[:at], any_value(rng), *value[at:]]
        case 2:
            return [*value[:at], value[at], *value[at:]]
        case 3:
            return rng.sample(value, len(value))
        case _:
            return [*value[:at], change(rng, value[at]), *value[at + 1 :]]


def payloads(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One payload: mostly something that was one."""
    kind = rng.random()
    if kind < 0.05:
        return rng.randbytes(rng.randrange(64))
    if kind < 0.5:
        tree = msgspec.msgpack.decode(rng.choice(seeds))
        for _ in range(rng.randrange(1, 4)):
            inside = isinstance(tree, list) and len(tree) == 3 and isinstance(tree[1], list) and rng.random() < 0.9
            tree = [tree[0], change(rng, tree[1]), tree[2]] if inside else change(rng, tree)
        return msgspec.msgpack.encode(tree)
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randrange(1, 7)):
        mutate(rng, data, seeds)
    return bytes(data[:PAYLOAD_BYTES_MAX])


def check(payload: bytes) -> str:
    """Decode it: what became of it, in a word. Fails on any exception but WireError, and on contradictions."""
    try:
        batch = decode_batch(payload)
    except WireError as error:
        assert decode_natively(payload) is None
        return error.reason
    for event in batch.events:
        if isinstance(event, BlockStored):
            fits = len(event.token_ids) == event.block_size * len(event.block_hashes)
            assert fits or event.by_hash
            assert event.extra_keys == () or len(event.extra_keys) == len(event.block_hashes)
    native = decode_natively(payload)
    if native is not None:
        assert (native.n_events, native.rank, native.rejected) == (batch.n_events, batch.rank, batch.rejected)
    return "rejected" if batch.rejected else "read"


def check_neighbours(event: bytes) -> bool:
    """Put bytes between two good events: if they are one value, whatever it is, both neighbours are read."""
    try:
        msgspec.msgpack.decode(event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    raw = b"\x93\x01\x93\x92\xacBlockRemoved\x91\x01" + event + b"\x91\xb0AllBlocksCleared\x00"
    batch = decode_batch(raw)
    assert (batch.events[0], batch.events[-1]) == GOOD
    assert len(batch.events) + len(batch.rejected) == 3
    return True


def check_frames(rng: random.Random, payload: bytes) -> None:
    """Cut into frames anyhow, as a published message and as a reply."""
    cuts = sorted(rng.randrange(len(payload) + 1) for _ in range(rng.randrange(5)))
    frames = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    for decode in (decode_pub, decode_replay):
        try:
            decode(frames)
        except WireError:
            continue


def run(seed: int, n_bytes: int, seeds: Sequence[bytes]) -> Counter[str]:
    """Fuzz so many bytes; how often each thing became of them. AssertionErrors name the payload."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    done = 0
    events = [bytes(event) for payload in seeds for event in _events(payload)]
    while done < n_bytes:
        payload = payloads(rng, seeds)
        event = payloads(rng, events)
        try:
            counts[check(payload)] += 1
            counts["neighbours kept"] += check_neighbours(event)
            check_frames(rng, payload)
        except Exception as error:
            raise AssertionError(f"seed {seed}, payload {payload.hex()}, event {event.hex()}") from error
        done += len(payload) + len(event)
        counts["payloads"] += 1
    counts["bytes"] = done
    return counts


def _events(payload: bytes) -> list[msgspec.Raw]:
    return msgspec.msgpack.decode(payload, type=tuple[float, list[msgspec.Raw], int])[1]
