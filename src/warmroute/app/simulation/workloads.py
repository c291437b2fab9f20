"""What is asked of a cluster: conversations of one or more turns, each turn a prompt made of known pieces.

A prompt is a list of pieces, each a number and a length; equal numbers are equal tokens. So sharing is explicit, and a
million prompts cost no memory before they are asked. A turn comes when the one before it has been answered and some
time has passed, as with people and agents.

Every workload is a function of its seed. Lengths are log-normal or uniform around what the literature reports; the
docstrings say which.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Final, NamedTuple, TypeAlias

from warmroute.core.hashing import mix

Piece: TypeAlias = tuple[int, int]
"""(number, tokens)."""


class Turn(NamedTuple):
    """One request."""

    pieces: Sequence[Piece]
    answer: Piece
    pause_s: float
    """Seconds after the answer before it, or, for the first turn, after the conversation's beginning."""


class Conversation(NamedTuple):
    """Turns that follow one another."""

    at: float
    """Seconds after the one before it, at a rate of one conversation per second."""
    turns: Iterator[Turn]
    session: str | None


_POOL_BITS: Final = 18
_POOL: Final = array("I", (mix(n) & 0x1FFFF for n in range(2 << _POOL_BITS)))


def tokens_of(pieces: Sequence[Piece]) -> array[int]:
    """The token ids of a prompt: equal pieces give equal tokens, others differ from their first token on."""
    tokens = array("I")
    for number, length in pieces:
        at = mix(number + 1) & ((1 << _POOL_BITS) - 1)
        tokens.append(number & 0x7FFFFFFF)
        rest = length - 1
        while rest > 0:
            tokens.extend(_POOL[at : at + min(rest, 1 << _POOL_BITS)])
            rest -= 1 << _POOL_BITS
    return tokens


class Numbers:
    """Draws, and numbers for pieces that nobody else has."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)  # noqa: S311 - a simulation
        self.fresh = count(1_000_000)

    def length(self, median: float, spread: float = 0.8, least: int = 8, most: int = 100_000) -> int:
        """Log-normal."""
        return int(min(most, max(least, self.dice.lognormvariate(0.0, spread) * median)))

    def new(self, tokens: int) -> Piece:
        """A piece of its own."""
        return next(self.fresh), tokens


def chat(seed: int) -> Iterator[Conversation]:
    """People talking to an assistant: one of twenty system prompts, turns that repeat all before them.

    Turns per conversation geometric with mean 5, user messages and answers around 70 and 215 tokens (LMSYS-Chat-1M and
    ShareGPT as summed up in their papers), 8 s between answer and next message: short, so that a run of some minutes
    is long enough to see conversations from beginning to end.
    """
    n = Numbers(seed)
    systems = [n.new(n.length(600, 0.7)) for _ in range(20)]

    def turns() -> Iterator[Turn]:
        history, pause = [n.dice.choice(systems)], 0.0
        while True:
            history.append(n.new(n.length(150, 1.2, most=8000)))
            answer = n.new(n.length(215, 0.8, most=2000))
            yield Turn(tuple(history), answer, pause)
            history.append(answer)
            pause = n.dice.expovariate(1 / 8)
            if n.dice.random() < 0.2:
                return

    for number in count():
        yield Conversation(n.dice.expovariate(1.0), turns(), f"chat-{number}")


def rag(seed: int) -> Iterator[Conversation]:
    """Questions over shared documents: 3 of 400 documents of some 1,500 tokens each, popular ones first (Zipf 1.0).

    The more popular document stands first, as retrievers that sort by a stable key have it.
    """
    n = Numbers(seed)
    system = n.new(400)
    documents = [n.new(n.length(1500, 0.5)) for _ in range(400)]
    weights = [1 / rank for rank in range(1, len(documents) + 1)]

    while True:
        picked = sorted(set(n.dice.choices(range(len(documents)), weights, k=3)))
        pieces = (system, *(documents[i] for i in picked), n.new(n.length(60)))
        turn = Turn(pieces, n.new(n.length(180, 0.6, most=1500)), 0.0)
        yield Conversation(n.dice.expovariate(1.0), iter((turn,)), None)


def agents(seed: int) -> Iterator[Conversation]:
    """Agents with tools: one of eight long tool descriptions, some 12 steps, each adding a result, seconds apart."""
    n = Numbers(seed)
    tools = [n.new(n.length(4000, 0.4)) for _ in range(8)]

    def turns() -> Iterator[Turn]:
        history, pause = [n.dice.choice(tools), n.new(n.length(300))], 0.0
        while True:
            answer = n.new(n.length(90, 0.6, most=1000))
            yield Turn(tuple(history), answer, pause)
            history += [answer, n.new(n.length(500, 1.0, most=10_000))]
            pause = 0.2 + n.dice.expovariate(1 / 2.0)
            if n.dice.random() < 1 / 12:
                return

    for number in count():
        yield Conversation(n.dice.expovariate(1.0), turns(), f"agent-{number}")


def hot_prompt(seed: int) -> Iterator[Conversation]:
    """One system prompt of 6,000 tokens under all requests, with short questions of their own."""
    n = Numbers(seed)
    system = n.new(6000)
    while True:
        turn = Turn((system, n.new(n.length(200, 0.8))), n.new(n.length(150, 0.6, most=1500)), 0.0)
        yield Conversation(n.dice.expovariate(1.0), iter((turn,)), None)


def bursts(seed: int) -> Iterator[Conversation]:
    """Bursts of 32 identical prompts within a tenth of a second of 30, as when a job fans out, over single requests."""
    n = Numbers(seed)
    while True:
        pieces = (n.new(n.length(3000, 0.5)),)
        size = 32 if n.dice.random() < 0.04 else 1
        gap = n.dice.expovariate(1.0) * size
        for _ in range(size):
            turn = Turn(pieces, n.new(n.length(150, 0.6, most=1500)), 0.0)
            yield Conversation(gap, iter((turn,)), None)
            gap = 1e-4


def uniform(seed: int) -> Iterator[Conversation]:
    """Prompts that share nothing, of 100 to 8,000 tokens."""
    n = Numbers(seed)
    while True:
        turn = Turn((n.new(n.dice.randint(100, 8000)),), n.new(n.dice.randint(10, 500)), 0.0)
        yield Conversation(n.dice.expovariate(1.0), iter((turn,)), None)


def mixed(seed: int) -> Iterator[Conversation]:
    """Short chats and long documents side by side: nine of ten prompts around 400 tokens, one around 20,000."""
    n = Numbers(seed)
    system = n.new(300)
    documents = [n.new(n.length(20_000, 0.5, most=60_000)) for _ in range(300)]
    weights = [1 / rank for rank in range(1, len(documents) + 1)]
    while True:
        if n.dice.random() < 0.9:
            turn = Turn((system, n.new(n.length(400, 1.0, most=6000))), n.new(n.length(200, 0.7, most=1500)), 0.0)
        else:
            document = n.dice.choices(documents, weights)[0]
            turn = Turn((document, n.new(n.length(80))), n.new(n.length(300, 0.7, most=2000)), 0.0)
        yield Conversation(n.dice.expovariate(1.0), iter((turn,)), None)


Workload: TypeAlias = Callable[[int], Iterator[Conversation]]

WORKLOADS: Final[dict[str, Workload]] = {
    "chat": chat,
    "rag": rag,
    "agents": agents,
    "hot_prompt": hot_prompt,
    "bursts": bursts,
    "uniform": uniform,
    "mixed": mixed,
}
"""Name -> generator."""
