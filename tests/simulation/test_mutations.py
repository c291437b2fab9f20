"""The judge can be trusted: each way to break the stream is caught by some seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from warmroute.core.stream import Stream
from warmroute.core.stream_memory import View
from warmroute.core.stream_states import Purge, State
from warmroute.testing.simulation import Plan, Violation, run

SEEDS_MAX = 1500


def no_anchor(patch: pytest.MonkeyPatch) -> None:
    """A reconnect asks for what is missing only: a new run that has passed the old one looks like its continuation."""
    patch.setattr(View, "anchor", property(lambda self: self.expected or 0))


def no_probe(patch: pytest.MonkeyPatch) -> None:
    """Nobody asks a silent engine."""

    def tick(self: Stream, now: float) -> list[Any]:
        self._probe_at = now + 1e9
        return original(self, now)

    original = Stream.tick
    patch.setattr(Stream, "tick", tick)


def no_doubt(patch: pytest.MonkeyPatch) -> None:
    """An engine that is silent and does not answer is believed."""
    patch.setattr(Stream, "_stay_unproven", lambda self, probe: None)


def no_purge(patch: pytest.MonkeyPatch) -> None:
    """What a former run held is kept."""
    original = Stream._flush
    patch.setattr(Stream, "_flush", lambda self: [e for e in original(self) if not isinstance(e, Purge)])


def no_flaw(patch: pytest.MonkeyPatch) -> None:
    """What was lost or could not be read is forgotten."""
    patch.setattr(View, "find_flaw", lambda self, seq, flaw: None)


def no_gap(patch: pytest.MonkeyPatch) -> None:
    """A batch is applied whether or not it was its turn."""

    def accept(self: Stream, seq: int, received: Any) -> None:
        if self.state is State.LIVE:
            self._view.expected = seq
        original(self, seq, received)

    original = Stream._accept
    patch.setattr(Stream, "_accept", accept)


def no_memory_of_what_was_dropped(patch: pytest.MonkeyPatch) -> None:
    """Batches beyond the limit are dropped and forgotten."""

    def hold(self: Stream, seq: int, received: Any) -> None:
        original(self, seq, received)
        self._dropped = False

    original = Stream._hold
    patch.setattr(Stream, "_hold", hold)


def no_marks(patch: pytest.MonkeyPatch) -> None:
    """A batch is known by its number alone."""
    patch.setattr(View, "mark", lambda self, seq: None)
    patch.setattr(Stream, "_mark", lambda self, seq: None)


MUTATIONS = (
    no_anchor,
    no_probe,
    no_doubt,
    no_purge,
    no_flaw,
    no_gap,
    no_memory_of_what_was_dropped,
    no_marks,
)


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_a_broken_stream_is_caught(mutate: Callable[[pytest.MonkeyPatch], None], caplog, monkeypatch) -> None:
    caplog.set_level("CRITICAL")
    mutate(monkeypatch)
    found = (run(Plan.of(seed)).violation for seed in range(SEEDS_MAX))
    assert isinstance(next(filter(None, found), None), Violation), "caught by a property, not by a crash"
