"""A bounded run of the wire fuzzer; `scripts/fuzz_wire.py` is the unbounded one."""

from __future__ import annotations

import pytest
from test_wire_golden import SEEDS
from wire_fuzz import check, check_neighbours, run


@pytest.mark.parametrize("seed", range(4))
def test_fuzzed_bytes_decode_or_raise_wire_error_and_never_cost_a_neighbour(seed: int) -> None:
    counts = run(seed, 1_000_000, SEEDS)
    assert counts["bytes"] >= 1_000_000
    # It must reach what it is there to test: payloads that are read, refused, and refused in part.
    assert all(
        counts[outcome] > 50 for outcome in ("read", "rejected", "not_msgpack", "not_a_batch", "neighbours kept")
    )


def test_the_fuzzer_sees_what_it_looks_for() -> None:
    assert [check(payload) for payload in SEEDS] == ["read"] * len(SEEDS)
    assert check(b"\xc1") == "not_msgpack"
    assert check_neighbours(b"\xc0")
    assert not check_neighbours(b"\xc1")
    assert not check_neighbours(b"\x91")
