"""Workloads of another kind than those the defaults were chosen by: is what is published of these luck?

They go where routing may go wrong: prefixes of sixty tools, more than few caches hold, in chains of few steps; prompts
of 60,000 tokens among classifications that are answered by a word and conversations of minutes; a load that swells and
falls, a hot prefix that is another every thousand requests, and bursts. Two of them have shown what copies of prefixes
should cost, with other seeds than those that run.py takes: `toolagent` and `shifting`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from warmroute.app.simulation.workloads import Conversation, Numbers, Piece, Turn, Workload


def toolagent(seed: int) -> Iterator[Conversation]:
    """One of sixty tools of 2,000 to 14,000 tokens, popular ones first (Zipf 1.0), one to four steps."""
    n = Numbers(seed)
    tools = [n.new(n.dice.randint(2000, 14_000)) for _ in range(60)]
    weights = [1 / rank for rank in range(1, len(tools) + 1)]

    def turns(history: list[Piece]) -> Iterator[Turn]:
        pause = 0.0
        for _ in range(n.dice.choice((1, 1, 1, 2, 3, 4))):
            history.append(n.new(n.length(1100, 0.8)))
            answer = n.new(n.length(110, 1.0, most=4000))
            yield Turn(tuple(history), answer, pause)
            history.append(answer)
            pause = 3.0 + n.dice.expovariate(1 / 15)

    while True:
        yield Conversation(n.dice.expovariate(1.0), turns([n.dice.choices(tools, weights)[0]]), None)


def blend(seed: int) -> Iterator[Conversation]:
    """Of a hundred: 15 documents nobody shares, 15,000 to 60,000 tokens; 45 short prompts under one instruction,
    answered by a word or two; 40 conversations of some five turns, 48 s apart."""
    n = Numbers(seed)
    instruction = n.new(3000)

    def talk() -> Iterator[Turn]:
        history, pause = [n.new(1000)], 0.0
        while True:
            history.append(n.new(n.length(600, 0.7)))
            answer = n.new(n.length(240, 0.7, most=2000))
            yield Turn(tuple(history), answer, pause)
            history.append(answer)
            pause = 8.0 + n.dice.expovariate(1 / 40)
            if n.dice.random() < 0.2:
                return

    while True:
        kind = n.dice.random()
        if kind < 0.15:
            turns = iter((Turn((n.new(n.dice.randint(15_000, 60_000)),), n.new(n.length(330, 0.6, most=2000)), 0.0),))
        elif kind < 0.6:
            prompt = (instruction, n.new(n.dice.randint(30, 500)))
            turns = iter((Turn(prompt, n.new(n.dice.randint(1, 20)), 0.0),))
        else:
            turns = talk()
        yield Conversation(n.dice.expovariate(1.0), turns, None)


def shifting(seed: int) -> Iterator[Conversation]:
    """Half under a prefix that is another after every 1,000 requests, one in twenty a burst of 4 to 24 equal prompts,
    the rest alone; the load goes up and down by 60 % of its mean, in waves of 2,000 requests."""
    n = Numbers(seed)
    asked, old, hot = 0, 1000, n.new(8000)
    while True:
        wave = 1.0 + 0.6 * math.sin(asked / 2000 * 2 * math.pi)
        gap, kind, size = n.dice.expovariate(wave), n.dice.random(), 1
        if asked >= old:
            old, hot = old + 1000, n.new(n.dice.randint(2000, 20_000))
        if kind < 0.5:
            pieces: tuple[Piece, ...] = (hot, n.new(n.length(500, 0.6)))
        else:
            pieces = (n.new(n.dice.randint(300, 6000)),)
            size = n.dice.randint(4, 24) if kind < 0.55 else 1
        for each in range(size):
            asked += 1
            turn = Turn(pieces, n.new(n.length(150, 0.8, most=2000)), 0.0)
            yield Conversation(1e-3 if each else gap * size, iter((turn,)), None)


UNSEEN: dict[str, Workload] = {"toolagent": toolagent, "blend": blend, "shifting": shifting}
