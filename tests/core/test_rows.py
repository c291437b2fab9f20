"""Rows of workers' numbers: they grow, their columns are read and written, and native code does what Python does."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.core.hashing import NATIVE
from warmroute.core.lanes import Matched, confirm, confirm_in_python, most_of
from warmroute.core.rows import (
    HELD,
    Rows,
    cheapest,
    gather,
    gather_in_python,
    lowest,
    lowest_in_python,
    zeros,
)
from warmroute.core.speculation import Claim
from warmroute.types import PrefixHash, WorkerId

BLOCK = 16


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2), st.integers())))
def test_what_was_written_is_read_however_the_rows_grow(writes: list[tuple[int, int, int]]) -> None:
    rows, written = Rows[float]("d", 3), {}
    for row, column, number in writes:
        rows.reach(row + 1)
        rows.columns[column][row] = number % 1000
        written[row, column] = number % 1000
    for (row, column), number in written.items():
        assert rows.columns[column][row] == rows.numbers[3 * row + column] == number
    assert sum(rows.numbers) == sum(written.values())


def test_columns_are_others_only_when_the_rows_have_grown() -> None:
    rows = Rows[int]("q", 2)
    assert [rows.reach(n) for n in (1, 2, 8, 9, 1000, 1000)] == [True, False, False, True, True, False]


@given(st.lists(st.tuples(st.integers(), st.integers()), min_size=1), st.lists(st.integers(0, 1000)))
def test_gathered_rows_are_those_asked_for(pairs: list[tuple[int, int]], places: list[int]) -> None:
    rows = [(a % 2**60, b % 2**60) for a, b in pairs]
    places = [place % len(rows) for place in places]
    numbers = array("q", [number for row in rows for number in row])
    taken = gather(numbers, 2, places)
    assert taken.tolist() == [number for place in places for number in rows[place]]
    assert gather(numbers, 2, array("q", places)) == taken
    judged = zeros(numbers, len(taken))
    gather_in_python(numbers, 2, places, judged)
    assert judged == taken


@pytest.mark.skipif(not NATIVE, reason="the native core is not built")
@pytest.mark.parametrize("places", [[2], [-1], [10**30], ["0"], array("h", [0])])
def test_no_row_is_gathered_from_beyond_the_array(places: list[int]) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError, OverflowError)):
        gather(array("d", [0.0] * 4), 2, places)


@given(st.lists(st.integers(0, 5), min_size=1), st.integers(0, 10))
def test_the_cheapest_are_found_and_of_equal_ones_the_first(numbers: list[int], count: int) -> None:
    assert cheapest(array("d", numbers), count) == sorted(sorted(range(len(numbers)), key=numbers.__getitem__)[:count])


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1), st.integers(0, 10))
def test_of_equal_costs_the_fewest_requests_win_then_whose_turn_it_is(rows: list[tuple[int, int]], turn: int) -> None:
    costs, counts = array("d", [cost for cost, _ in rows]), array("q", [n for _, r in rows for n in (r, 0, 0, 0)])
    place, then = lowest(costs, counts, turn)
    assert (place, then) == lowest_in_python(costs, counts, turn)
    assert rows[place] == min(rows)
    assert then - turn == (costs.count(min(costs)) > 1)
    places = {lowest(costs, counts, turn + n)[0] for n in range(len(rows))}
    assert places == {place for place, row in enumerate(rows) if row == min(rows)}


overlaps = st.tuples(st.integers(0, 3000), st.integers(0, 3000), st.integers(0, 3000))


@given(st.dictionaries(st.integers(0, 50), overlaps), st.lists(st.integers(0, 50), unique=True))
def test_what_is_confirmed_is_what_each_candidate_holds(
    matched: dict[int, tuple[int, int, int]], candidates: list[int]
) -> None:
    positions = {WorkerId(worker): i for i, worker in enumerate(candidates)}
    lists = list(matched), [sum(media) for media in matched.values()], [n for media in matched.values() for n in media]
    buffers = tuple(memoryview(array(kind, column)) for kind, column in zip("QII", lists, strict=True))

    def held(by: Callable[..., None], columns: Matched) -> array[int]:
        rows = array("q", bytes(8 * HELD * len(candidates)))
        by(rows, positions, columns, BLOCK)
        return rows

    rows = held(confirm, buffers)  # type: ignore[arg-type]
    assert rows == held(confirm, lists) == held(confirm_in_python, lists)
    for worker, i in positions.items():
        gpu, cpu, storage = matched.get(worker, (0, 0, 0))
        expected = [BLOCK * (gpu + cpu + storage), BLOCK * cpu, BLOCK * storage, 0]
        assert rows[HELD * i : HELD * i + HELD].tolist() == expected


def test_of_two_views_the_one_counts_that_shows_more() -> None:
    one, other = array("q", [16, 16, 0, 0, 32, 0, 0, 0]), array("q", [32, 0, 0, 32, 32, 32, 0, 0])
    assert most_of(one, other).tolist() == [32, 0, 0, 32, 32, 0, 0, 0]


@pytest.mark.skipif(not NATIVE, reason="the native core is not built")
def test_the_native_confirming_refuses_what_does_not_fit() -> None:
    rows, here = array("q", bytes(8 * HELD)), {WorkerId(3): 0}
    for held, positions, matched in (
        (rows, {WorkerId(3): 1}, ([3], [1], [1, 0, 0])),
        (rows, {WorkerId(3): -1}, ([3], [1], [1, 0, 0])),
        (rows, {WorkerId(3): "0"}, ([3], [1], [1, 0, 0])),
        (rows, here, ([3], [1], [1, 0])),
        (rows, here, ([3], [], [1, 0, 0])),
        (rows, here, ([3], [1])),
        (rows, here, ((3,), [1], [1, 0, 0])),
        (rows[:3], here, ([3], [1], [1, 0, 0])),
        (array("d", rows), here, ([3], [1], [1, 0, 0])),
    ):
        with pytest.raises((ValueError, TypeError, RuntimeError, BufferError)):
            confirm(held, positions, matched, BLOCK)  # type: ignore[arg-type]


@pytest.mark.skipif(not NATIVE, reason="the native core is not built")
def test_native_code_refuses_rows_and_claims_that_it_cannot_read() -> None:
    from warmroute import _native

    rows, here, prefixes = array("q", bytes(8 * HELD)), {WorkerId(3): 0}, memoryview(array("Q", [7, 8]))
    claim = Claim(WorkerId(3), memoryview(array("Q", [7, 8, 9])), BLOCK, 0, 9.0)  # type: ignore[arg-type]
    listed = Claim(WorkerId(3), [PrefixHash(7)], BLOCK, 0, 9.0)
    nobody = Claim("3", claim.chain, BLOCK, 0, "soon")  # type: ignore[arg-type]
    for held, asked, positions, met, size in (
        (rows, prefixes, here, [{claim: None}], 0),
        (rows, prefixes, here, [{listed: None}], BLOCK),
        (rows, prefixes, here, [{nobody: None}], BLOCK),
        (rows, prefixes, here, [{"claim": None}], BLOCK),
        (rows, prefixes, here, [[claim]], BLOCK),
        (rows, prefixes, {WorkerId(3): 1}, [{claim: None}], BLOCK),
        (rows, memoryview(array("q", [7, 8])), here, [{claim: None}], BLOCK),
        (rows[:3], prefixes, here, [{claim: None}], BLOCK),
    ):
        with pytest.raises((ValueError, TypeError, RuntimeError, AttributeError)):
            _native.extend(held, asked, positions, met, size, 1.0)  # type: ignore[arg-type]
    assert not any(rows)
    _native.extend(rows, prefixes, here, [{claim: None}], BLOCK, 1.0)
    assert rows.tolist() == [2 * BLOCK, 0, 0, 2 * BLOCK]
    doubles = array("d", [1.0])
    for refused in (
        lambda: _native.lowest(array("d"), array("q"), 0),
        lambda: _native.lowest(doubles, array("q", [1, 2, 3]), 0),
        lambda: _native.lowest([1.0], rows, 0),  # type: ignore[arg-type]
        lambda: _native.cheapest(rows, 1),  # type: ignore[arg-type]
        lambda: _native.fit(doubles, (1.0,) * 4, (1.0,) * 4, 1.0),
        lambda: _native.fit(array("d", bytes(8 * 26)), (1.0,) * 3, (1.0,) * 4, 1.0),  # type: ignore[arg-type]
        lambda: _native.add_part(rows[:], doubles * 2, memoryview(doubles * 9), array("q", [1]), 0.0),
        lambda: _native.add_part(rows[:], doubles * 2, memoryview(doubles * 8), array("q", [0]), 0.0),
        lambda: _native.add_booked(rows[:], doubles * 2, array("q"), doubles * 2, 0.0),
    ):
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            refused()
    assert _native.cheapest(doubles, 5) == [0]
