"""How fast each worker computes prompts, learned from its own answers, so that unlike GPUs need no configuration.

A worker's prefill is a line through its observations: seconds = fixed + per_token * uncached tokens. One observation is
the time from the later of (dispatch, the first byte before it) to a request's first byte, so queueing is not counted
twice. Old observations fade. A worker that has shown little leans on what its fleet has shown, and the fleet on the
configured rate: no warm-up phase, no switch.

Invariant: rates are positive and finite whatever is observed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

MEMORY: Final = 0.98
"""What an observation still counts when the next one has come: the last fifty or so matter."""
FLEET_MEMORY: Final = 0.998
LEAN_OBSERVATIONS: Final = 4.0
"""How many observations' worth a worker's lean on its fleet is."""
SURPRISE_MAX: Final = 4.0
"""An observation counts as at most so many times what was expected: a hung engine is slow, not infinitely slow."""
FIXED_S: Final = 0.02
"""Fixed part before anything was observed: about one step of an engine."""
TYPICAL_TOKENS: Final = 1000.0
"""Scale of the lean's two points, about a prompt's length."""


class Line:
    """A fading least-squares line."""

    __slots__ = ("fixed_s", "n", "per_token_s", "x", "xx", "xy", "y")

    def __init__(self, fixed_s: float, per_token_s: float) -> None:
        self.n = self.x = self.y = self.xx = self.xy = 0.0
        self.fixed_s = fixed_s
        self.per_token_s = per_token_s

    def add(self, tokens: float, seconds: float, memory: float) -> None:
        """One more observation."""
        self.n = self.n * memory + 1.0
        self.x = self.x * memory + tokens
        self.y = self.y * memory + seconds
        self.xx = self.xx * memory + tokens * tokens
        self.xy = self.xy * memory + tokens * seconds

    def fit(self, fixed_s: float, per_token_s: float) -> None:
        """Draw the line anew, leaning on the line that is given as if it had been observed some times."""
        half, scale = LEAN_OBSERVATIONS / 2, max(TYPICAL_TOKENS, self.x / self.n if self.n else 0.0)
        n, x, xx = self.n + 2 * half, self.x + half * scale, self.xx + half * scale * scale
        y = self.y + half * (2 * fixed_s + per_token_s * scale)
        xy = self.xy + half * scale * (fixed_s + per_token_s * scale)
        slope = (n * xy - x * y) / (n * xx - x * x)
        fixed = (y - slope * x) / n
        if fixed < 0:  # through the origin then
            fixed, slope = 0.0, xy / xx
        elif slope <= per_token_s / 100:  # what was observed has one length only, or is noise: all of it is per token
            slope = per_token_s / 100
            fixed = max(0.0, (y - slope * x) / n)
        self.fixed_s, self.per_token_s = fixed, slope


class RateTable:
    """The learned lines, in columns: entry i is of the worker in place i of the load table."""

    def __init__(self, prefill_tokens_per_s: float = 8000.0) -> None:
        self._fleet = Line(FIXED_S, 1.0 / prefill_tokens_per_s)
        self._configured = (FIXED_S, 1.0 / prefill_tokens_per_s)
        self._lines: list[Line] = []
        self.fixed_s: list[float] = []
        """Seconds that a prefill takes however short it is."""
        self.per_token_s: list[float] = []
        """Seconds per prompt token that is not cached."""

    def start(self, slot: int) -> None:
        """A worker takes this place: of it nothing is known but its fleet."""
        line = Line(self._fleet.fixed_s, self._fleet.per_token_s)
        if slot == len(self._lines):
            self._lines.append(line)
            self.fixed_s.append(line.fixed_s)
            self.per_token_s.append(line.per_token_s)
        else:
            self._lines[slot] = line
            self.fixed_s[slot], self.per_token_s[slot] = line.fixed_s, line.per_token_s

    def end(self, slot: int) -> None:
        """The worker left."""
        self.start(slot)

    def prefill_s(self, slot: int, tokens: int) -> float:
        """Seconds this worker is expected to take for so many tokens."""
        return self.fixed_s[slot] + self.per_token_s[slot] * tokens

    def observe(self, slot: int, tokens: int, seconds: float) -> None:
        """The worker took `seconds` for a prompt's `tokens` that it did not hold."""
        seconds = min(max(seconds, 0.0), SURPRISE_MAX * self.prefill_s(slot, tokens))
        self._fleet.add(tokens, seconds, FLEET_MEMORY)
        self._fleet.fit(*self._configured)
        line = self._lines[slot]
        line.add(tokens, seconds, MEMORY)
        line.fit(self._fleet.fixed_s, self._fleet.per_token_s)
        self.fixed_s[slot], self.per_token_s[slot] = line.fixed_s, line.per_token_s

    def learned(self, slot: int) -> Sequence[float]:
        """(fixed seconds, seconds per token, observations' worth behind them)."""
        line = self._lines[slot]
        return line.fixed_s, line.per_token_s, line.n
