"""When each engine's steps begin, as the pieces of its answers tell.

An engine works in steps. A request that comes while one is under way waits until it is over, 7 ms on average where
steps take 14: as long as a prompt of some hundred tokens takes. Each step brings a piece to every stream that is
generated there, and all streams pass through here, so it is known of each engine when its next step is due::

    steps    |--- 14 ms ---|--- 14 ms ---|---- with a prefill of A ----|
    pieces   :             :             :                             :
    requests          ^ A: due soon, but sent too late for that step: begun with the next
               ^ B: it would have waited for nearly a whole one

How long before a step begins a request must be sent to be part of it (networks, an engine's front end, a schedule made
one step ahead) is learned from what became of requests: those that made it, and those that had one more step to wait.

Invariant: without pieces nothing is claimed to be known: lengths are 0, and nobody waits for a step.
"""

from __future__ import annotations

from typing import Final

SAME_STEP_S: Final = 0.002
"""Pieces that come closer together than this are of one step: hardly any engine's steps are shorter."""
LENGTH_NEWS: Final = 0.02
"""One step says so much of how long steps are: the median is followed, so a prefill among them does not matter."""
REACH_NEWS: Final = 0.01
"""One request says so much of how early it had to be sent, as a share of a step."""
CAUGHT: Final = 1
MISSED: Final = 2
"""Steps that were begun between a request's dispatch and the first piece of its answer."""


def wait_s(due_s: float, step_s: float, reach_s: float) -> float:
    """Seconds until a request that is sent now is begun, if the next step is due in `due_s` (below 0: it was).

    `step_s`: how long steps are; 0 if that is not known, or nothing runs.
    """
    if due_s < reach_s:
        due_s += step_s
    return due_s if due_s > 0.0 else 0.0  # noqa: FURB136 - faster


def follow(length_s: float, took_s: float) -> float:
    """How long steps are, after one more took so long from one piece of a stream to its next."""
    return length_s * (1.0 + LENGTH_NEWS if took_s > length_s else 1.0 - LENGTH_NEWS)


class Steps:
    """The steps of all engines; entry i of each list is of the one in place i of the load table."""

    def __init__(self) -> None:
        self.reach_s = 0.0
        """How long before a step begins a request must be sent to be part of it."""
        self.begun: list[int] = []
        """Steps that were seen to begin."""
        self.same_until: list[float] = []
        """Until when pieces are still of the last one: they come of all streams, in any order."""

    def start(self, slot: int) -> None:
        """An engine takes this place: nothing is known of it."""
        if slot == len(self.begun):
            self.begun.append(0)
            self.same_until.append(0.0)
        self.same_until[slot] = 0.0

    def begin(self, slot: int, now: float, length_s: float) -> None:
        """A step of the engine in this place is over, and the next has begun, which is likely to take so long."""
        self.begun[slot] += 1
        self.same_until[slot] = now + max(SAME_STEP_S, length_s / 2)

    def learn(self, due_s: float, begun: int, length_s: float) -> None:
        """So many steps were begun before the first piece of a request that was sent `due_s` before the first of them.

        More of them than a request needs that was sent too late are those of a prompt computed in several steps.
        """
        if begun == MISSED and due_s > self.reach_s:
            self.reach_s += REACH_NEWS * length_s
        elif begun == CAUGHT and due_s < self.reach_s:
            self.reach_s = max(0.0, self.reach_s - REACH_NEWS * length_s)
