"""What no policy can be below: the mean time to first token if nobody ever waited and nothing was ever forgotten.

Each request alone on an idle engine of the fastest kind, with every block cached that any request before it had. A cell
in which the best other policy is nearer than 10 % to this has no room for anybody to be 10 % better.
"""

from __future__ import annotations

from warmroute.app.simulation.scenario import Scenario
from warmroute.app.simulation.workloads import tokens_of
from warmroute.core.hashing import prefix_hash_array


def floor_s(scenario: Scenario) -> float:
    """Seconds, of the requests that count; conversations are taken one after the other."""
    fastest = min(scenario.engines, key=lambda profile: profile.token_s)
    size, seen, n, total_s = scenario.block_size, set[int](), 0, 0.0
    warmup = int(scenario.requests * scenario.warmup)
    for conversation in scenario.workload(scenario.seed):
        for turn in conversation.turns:
            tokens = tokens_of((*turn.pieces, turn.answer))
            prompt = len(tokens) - turn.answer[1]
            chain = list(prefix_hash_array(tokens, size))
            usable = chain[: (prompt - 1) // size]
            held = next((i for i, block in enumerate(usable) if block not in seen), len(usable)) * size
            seen.update(chain)
            if n >= warmup:
                total_s += fastest.prefill_s(prompt - held, held) + scenario.network_s
            n += 1
            if n == scenario.requests:
                return total_s / (n - warmup)
    raise ValueError("the workload has an end")
