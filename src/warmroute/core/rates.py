"""How fast each worker computes prompts, learned from its own answers, so that unlike GPUs need no configuration.

The fleet's step is a plane through all observations, seconds = fixed + per_token * uncached tokens + per_pair * pairs
of such a token and one before it + per_context * tokens in use by running requests, and a worker is so many times as
slow as its fleet. Pairs are what attention computes: of 20,000 tokens they take a third of the time, of 200 nothing.
One number per worker is learned quickly and cannot be led astray by what it happens to be asked.

An observation is one step: the time from the later of (dispatch, the first byte before it) to the first bytes that come
together, against the tokens of all of them. So queueing is not counted twice, and a busy engine does not look fast
because many short prompts share its steps. Old observations fade.

Two things keep what was believed at the beginning from lasting. What the plane leans on has only its shape from the
configuration, its height from all observations. And a worker's seconds are held against what today's plane says of
all that it was asked (the plane is linear: sums of features suffice), never against what was once expected.

And a worker that is asked no more is forgiven: what it showed fades as others are asked, until it is taken for one of
its fleet, and tried again. It may have been slow for a minute only, and who is taken for slow cannot show that.

Invariant: rates are positive and finite whatever is observed.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add, mul
from typing import Final

from warmroute.core.hashing import NATIVE
from warmroute.core.rows import RATES, Rows

if NATIVE:
    from warmroute import _native

FLEET_MEMORY: Final = 0.998
"""What an observation still counts for the fleet when the next one has come: the last five hundred or so matter."""
WORKER_MEMORY: Final = 0.985
"""The same for one worker."""
UNASKED_MEMORY: Final = 0.995
"""What a worker has shown still counts when as many observations have come, of whomever, as there are workers."""
LEAN_OBSERVATIONS: Final = 5.0
"""How many average observations' worth speak for a worker being like its fleet, and for the first shape."""
CONFIGURED_OBSERVATIONS: Final = 0.25
"""The same for the fleet being as fast as configured."""
SURPRISE_MAX: Final = 4.0
"""An observation counts as at most so many times what was expected: a hung engine is slow, not infinitely slow."""
CHANCE: Final = 4.0
"""A worker differs from its fleet if it does by so many times the variance of its mean: two standard errors."""
FIXED_S: Final = 0.02
"""Fixed part before anything was observed: about one step of an engine."""
PER_CONTEXT_S: Final = 5e-8
"""Seconds per token in use before anything was observed: 100 to 250 KB of keys and values at some TB/s."""
PAIRS_PER_TOKEN: Final = 50_000.0
"""So many pairs take as long as one token's other arithmetic before anything was observed."""
TYPICAL_TOKENS: Final = 1000.0
"""Uncached tokens of a step before anything was observed."""
REFRESHED: Final = 4
"""So many workers take up what one observation has changed for all: a thousand would be too many for each."""
LEAST_SHARE: Final = 0.01
"""No coefficient falls below this share of what it began with: nothing is ever free."""

Features = tuple[float, float, float, float]
"""1, uncached tokens, pairs, tokens in use; or sums of them."""

NOTHING: Final = (0.0, 0.0, 0.0, 0.0)


def pairs(prompt_tokens: int, uncached_tokens: int) -> float:
    """Each uncached token attends to all before it: so many pairs."""
    return uncached_tokens * (prompt_tokens - uncached_tokens / 2)


class Plane:
    """A fading least-squares fit of non-negative coefficients, leaning on the shape that it began with."""

    __slots__ = ("_began", "_state", "coefficients")

    def __init__(self, coefficients: Features) -> None:
        self.coefficients = coefficients
        self._began = coefficients
        self._state = array("d", [0.0] * COEFFICIENTS + list(coefficients) + [0.0, 0.0])

    def add(self, features: Features, seconds: float) -> None:
        """One more observation, and the fit anew."""
        self.coefficients = fit(self._state, self._began, features, seconds)

    def value(self, features: Features) -> float:
        """What is expected there."""
        a, b, c, d = self.coefficients
        return a * features[0] + b * features[1] + c * features[2] + d * features[3]

    def mean_s(self) -> float:
        """What an average observation is expected to take."""
        n = self._state[N]
        if not n:
            return self.value((1.0, TYPICAL_TOKENS, 0.0, 0.0))
        one, tokens, pairs_, context = self._state[:4]
        return self.value((one, tokens, pairs_, context)) / n


MEANS, COEFFICIENTS, N, SECONDS = 16, 20, 24, 25
"""Where in a plane's state are, behind the products of features: those with seconds, the fit, how many there were of
late, and their seconds."""


def fit_in_python(state: array[float], began: Features, features: Features, seconds: float) -> Features:
    """Put one more observation into `state`; the fit anew. What `_native.fit` does, and what judges it.

    Coordinate descent from where it was: one round follows what one observation can change. The lean counts as so many
    observations in which one feature is as large as it usually is, the others 0.
    """
    n = state[N] = state[N] * FLEET_MEMORY + 1.0
    state[SECONDS] = state[SECONDS] * FLEET_MEMORY + seconds
    for i, x in enumerate(features):
        state[MEANS + i] = state[MEANS + i] * FLEET_MEMORY + x * seconds
        for j, y in enumerate(features):
            state[4 * i + j] = state[4 * i + j] * FLEET_MEMORY + x * y
    began_s = reduce(add, map(mul, began, state[:4]))
    height = (state[SECONDS] + CONFIGURED_OBSERVATIONS * began_s / n) / (began_s * (1.0 + CONFIGURED_OBSERVATIONS / n))
    c, lean = state[COEFFICIENTS:N], LEAN_OBSERVATIONS / n
    for _ in range(2):
        for i in range(4):
            row = state[4 * i : 4 * i + 4]
            rest = state[MEANS + i] - reduce(add, map(mul, row, c)) + row[i] * c[i]
            least, weight = began[i] * height, row[i] * (1.0 + lean)
            c[i] = max(least * LEAST_SHARE, (rest + lean * row[i] * least) / weight) if weight else least
    state[COEFFICIENTS:N] = c
    return c[0], c[1], c[2], c[3]


fit: Callable[[array[float], Features, Features, float], Features] = _native.fit if NATIVE else fit_in_python


class RateTable:
    """What was learned, in columns: entry i is of the worker in place i of the load table."""

    def __init__(self, prefill_tokens_per_s: float = 8000.0) -> None:
        per_token_s = 1.0 / prefill_tokens_per_s
        self._fleet = Plane((FIXED_S, per_token_s, per_token_s / PAIRS_PER_TOKEN, PER_CONTEXT_S))
        self._spread = 0.0
        self._seconds: list[float] = []
        self._asked: list[Features] = []
        self._counted: list[tuple[float, float]] = []
        self._observations = self._slow_observations = 0.0
        self._faded_at: list[int] = []
        self._observed = 0
        self._stale = 0
        self.rows = Rows[float]("d", RATES)
        """What the columns below lie in."""
        self.fixed_s: memoryview[float]
        """Seconds that a prefill takes however short it is."""
        self.per_token_s: memoryview[float]
        """Seconds per prompt token that is not cached."""
        self.per_pair_s: memoryview[float]
        """Seconds per pair of such a token and one before it."""
        self.per_context_s: memoryview[float]
        """Seconds per token of the requests that run there."""
        self.generation_s: memoryview[float]
        """Seconds of a step in which nothing but generations run, as `Steps` sees them; 0 if it has not."""

    def start(self, slot: int) -> None:
        """A worker takes this place: of it nothing is known but its fleet."""
        if slot == len(self._seconds):
            self._seconds.append(0.0)
            self._asked.append(NOTHING)
            self._faded_at.append(0)
            self._counted.append((0.0, 1.0))
            if self.rows.reach(slot + 1):
                self.fixed_s, self.per_token_s, self.per_pair_s, self.per_context_s, self.generation_s = (
                    self.rows.columns
                )
        self.generation_s[slot] = 0.0
        self._seconds[slot], self._asked[slot], self._faded_at[slot] = 0.0, NOTHING, self._observed
        self._set((slot,))

    def prefill_s(self, slot: int, prompt_tokens: int, uncached_tokens: int) -> float:
        """Seconds this worker is expected to compute these tokens, the last of such a prompt."""
        return self.per_token_s[slot] * uncached_tokens + self.per_pair_s[slot] * pairs(prompt_tokens, uncached_tokens)

    def step_s(self, slot: int, features: Features) -> float:
        """Seconds this worker is expected to take for a step."""
        _, tokens, pairs_, context = features
        rates = self.per_token_s[slot], self.per_pair_s[slot], self.per_context_s[slot]
        return self.fixed_s[slot] + rates[0] * tokens + rates[1] * pairs_ + rates[2] * context

    def observe(self, slot: int, features: Features, seconds: float) -> None:
        """The worker in this place took `seconds` for a step."""
        seconds = min(max(seconds, 0.0), SURPRISE_MAX * self.step_s(slot, features))
        slowness = self.slowness(slot)
        self._fleet.add(features, seconds / slowness)
        surprise = seconds / (slowness * self._fleet.value(features)) - 1.0
        self._spread += (surprise * surprise - self._spread) * (1 - FLEET_MEMORY)
        n, tokens, pairs_, context = self._asked[slot]
        self._asked[slot] = (
            n * WORKER_MEMORY + 1.0,
            tokens * WORKER_MEMORY + features[1],
            pairs_ * WORKER_MEMORY + features[2],
            context * WORKER_MEMORY + features[3],
        )
        self._seconds[slot] = self._seconds[slot] * WORKER_MEMORY + seconds
        slots = len(self._seconds)
        self._observed += 1
        self._set((slot,))
        # what the fleet has shown holds for the others too
        self._set([(self._stale + 1 + each) % slots for each in range(min(REFRESHED, slots))])
        self._stale = (self._stale + min(REFRESHED, slots)) % slots

    def slowness(self, slot: int) -> float:
        """How many times as long as the plane says this worker takes; of whom little is known, as others do today."""
        n, alone = self._counted[slot]
        others = (self._slow_observations + LEAN_OBSERVATIONS) / (self._observations + LEAN_OBSERVATIONS)
        return alone + (others - 1.0) * LEAN_OBSERVATIONS / (n + LEAN_OBSERVATIONS)

    def _set(self, slots: Sequence[int]) -> None:
        lean_s, numbers = LEAN_OBSERVATIONS * self._fleet.mean_s(), self.rows.numbers
        fixed, per_token, per_pair, per_context = self._fleet.coefficients
        for slot in slots:
            self._fade(slot)
            self._count(slot, lean_s)
            slowness, row = self.slowness(slot), RATES * slot
            numbers[row], numbers[row + 1] = slowness * fixed, slowness * per_token
            numbers[row + 2], numbers[row + 3] = slowness * per_pair, slowness * per_context

    def _fade(self, slot: int) -> None:
        """What this worker has shown counts less by as many observations as have come since it last faded."""
        if past := self._observed - self._faded_at[slot]:
            kept = UNASKED_MEMORY ** (past / len(self._seconds))
            n, tokens, pairs_, context = self._asked[slot]
            self._asked[slot] = n * kept, tokens * kept, pairs_ * kept, context * kept
            self._seconds[slot] *= kept
            self._faded_at[slot] = self._observed

    def _count(self, slot: int, lean_s: float) -> None:
        """What this worker has shown by itself: how slow it is, as far as that is no chance."""
        asked = self._asked[slot]
        more = (self._seconds[slot] + lean_s) / (self._fleet.value(asked) + lean_s) - 1.0
        error = CHANCE * self._spread / (asked[0] + LEAN_OBSERVATIONS)
        # As James and Stein shrink: what could well be chance is taken for it, what could not is left as it is.
        alone = 1.0 + more * (1.0 - error / (more * more)) if more * more > error else 1.0
        n, was = self._counted[slot]
        self._counted[slot] = asked[0], alone
        self._observations += asked[0] - n
        self._slow_observations += asked[0] * alone - n * was
