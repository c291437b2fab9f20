"""What a stream remembers: the view that it has built, and the question it has open.

Invariant: a view is `expected - since` batches of one run, without a hole; `mark` tells any of the last `_REMEMBERED`
of them from a batch of another run with the same number.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from warmroute.core.wire.events import Batch


class Unreadable(msgspec.Struct, frozen=True, gc=False):
    """A batch whose payload could not be read."""

    reason: str
    mark: int
    """As `Batch.mark`."""


Received: TypeAlias = Batch | Unreadable

_REMEMBERED = 1024
"""How many applied batches are remembered by their marks, to tell a repetition from a restart."""
_TRIES_MAX = 3
"""How often a view is rebuilt because of the same flaw."""


@dataclass(slots=True)
class Question:
    """A replay under way."""

    start: int
    expected: int
    """What the stream expected when it asked."""
    at: float
    rebuild: bool = False
    """Whether the first reply is to replace a view that has a flaw."""
    answered: bool = False

    @property
    def anchored(self) -> bool:
        """Whether it asked for a batch that was applied: the reply shows whether it is of the same run."""
        return self.start < self.expected


class View:
    """What was applied since the last purge, and what is wrong with it."""

    def __init__(self) -> None:
        self.expected: int | None = 0
        """Number of the next batch to apply; None: whichever comes first."""
        self.since = 0
        """Number of the first batch that was applied, or is to be."""
        self.flaw: str | None = None
        """Why it is known to be incomplete."""
        self.rebuilds_left = 0
        self.first_ts = self.last_ts = 0.0
        self._flawed_seq = -1
        self._marks = array("Q", bytes(8 * _REMEMBERED))

    @property
    def holds(self) -> bool:
        """Whether anything was applied (or was to be)."""
        return self.expected is not None and self.expected > self.since

    @property
    def anchor(self) -> int:
        """Where a replay must begin to show that it is of the run that was applied."""
        return self.expected - 1 if self.expected and self.holds else self.expected or 0

    def mark(self, seq: int) -> int | None:
        """The mark of a batch that was applied; None if nothing is known of it."""
        if self.expected is not None and max(self.since, self.expected - _REMEMBERED) <= seq < self.expected:
            return self._marks[seq % _REMEMBERED]
        return None

    def is_past(self, seq: int) -> bool:
        """Whether that number was applied, or lies before everything that was."""
        return self.expected is not None and seq < self.expected

    def take(self, seq: int, received: Received) -> None:
        """Batch `seq`, which was expected, is applied."""
        self.expected = seq + 1
        self._marks[seq % _REMEMBERED] = received.mark
        if isinstance(received, Unreadable):
            self.find_flaw(seq, f"batch {seq} could not be read: {received.reason}")
            return
        if seq == self.since:
            self.first_ts = received.ts
        self.last_ts = received.ts
        if received.rejected:
            self.find_flaw(seq, f"events of batch {seq} could not be read: {received.rejected[0].reason}")
        elif received.has_clear:
            self.flaw = None

    def find_flaw(self, seq: int, flaw: str, *, curable: bool = True) -> None:
        """From batch `seq` on something is missing, which a replay could bring if it is `curable`."""
        self.flaw = flaw
        if curable and seq > self._flawed_seq:  # Not one that a rebuild has met again.
            self._flawed_seq = seq
            self.rebuilds_left = _TRIES_MAX

    def join(self, seq: int, flaw: str) -> None:
        """Begin with batch `seq`; what came before is missing, if anything did."""
        self.expected = self.since = seq
        self.flaw = None
        if seq:
            self.find_flaw(seq, flaw)

    def purge(self, expected: int | None) -> None:
        """Forget everything."""
        self.expected, self.since, self.flaw = expected, expected or 0, None

    def new_run(self) -> None:
        """The numbers begin anew, and the flaws with them."""
        self._flawed_seq = -1
