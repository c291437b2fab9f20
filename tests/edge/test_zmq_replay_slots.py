"""Replays in turn: no more at once than there are slots, everybody's turn comes, and who leaves gives it up."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from warmroute.edge.zmq import ReplaySlots, ZmqEventSource


class Source:
    """A source that only notes when it is its turn."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def ask(self, start: int) -> None:
        self.asked.append(start)


def sources(count: int) -> list[Any]:
    return [cast("ZmqEventSource", Source()) for _ in range(count)]


def test_those_beyond_the_limit_wait_for_their_turn_in_order() -> None:
    slots, (a, b, c, d) = ReplaySlots(2), sources(4)
    for start, source in enumerate((a, b, c, d)):
        slots.take(source, start)
    assert [source.asked for source in (a, b, c, d)] == [[0], [1], [], []]
    assert slots.counts() == {("under way",): 2, ("waiting",): 2}
    slots.leave(b)
    assert (c.asked, d.asked) == ([2], [])
    slots.leave(a)
    assert d.asked == [3]


def test_who_leaves_while_waiting_is_never_asked() -> None:
    slots, (a, b, c) = ReplaySlots(1), sources(3)
    for source in (a, b, c):
        slots.take(source, 7)
    slots.leave(b)
    assert not c.asked, "it held no slot that could be given up"
    slots.leave(a)
    assert (b.asked, c.asked) == ([], [7])


@given(st.integers(1, 3), st.lists(st.tuples(st.booleans(), st.integers(0, 5))))
def test_slots_are_neither_lost_nor_made(count: int, steps: list[tuple[bool, int]]) -> None:
    slots, every = ReplaySlots(count), sources(6)
    asking: set[int] = set()
    waiting: list[int] = []
    expected = [0] * len(every)
    for takes, number in steps:
        slots.leave(every[number])  # as a source does before it asks anew
        asking.discard(number)
        waiting = [other for other in waiting if other != number]
        if takes:
            waiting.append(number)
            slots.take(every[number], number)
        while waiting and len(asking) < count:
            asking.add(waiting[0])
            expected[waiting.pop(0)] += 1
        assert [len(source.asked) for source in every] == expected
    for number in list(asking) + waiting:
        slots.leave(every[number])
    fresh = sources(count + 1)
    for source in fresh:
        slots.take(source, 1)
    assert [len(source.asked) for source in fresh] == [1] * count + [0]
