"""How far the simulated engine is from a real one: a profile is fitted to real vLLM, then both are asked the same.

    python benchmarks/vllm/calibrate.py [--out FILE.json]

One engine on the processor with the larger generated model. First single prompts of several lengths, cold and cached,
and generations alone and side by side: from these the profile's arithmetic, attention and overhead are fitted by least
squares. Then a load it has not seen: prompts of all lengths that share beginnings, arriving at random, so often
that they queue. The same arrivals go to `app.simulation.engine.Engine` on virtual time. Told are the mean and
quantiles of both, and how well the times to first token agree request by request.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import random
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "scripts" / "vllm")]

from machine import machine  # noqa: E402
from vllm_engine import EngineOptions, VllmEngine, make_model, running  # noqa: E402

from warmroute.app.simulation.engine import Engine, Work  # noqa: E402
from warmroute.app.simulation.profiles import Profile  # noqa: E402
from warmroute.core.hashing import prefix_hash_array  # noqa: E402

SEQUENCES_MAX = 8
MODEL_ARGUMENTS = ("--hidden", "512", "--layers", "12")
BLOCKS, BLOCK = 800, 32
LENGTHS = (64, 128, 256, 512, 1024, 1536, 1900)
REPEATS = 4
REQUESTS, OUTPUT_TOKENS = 150, 8
UTILISATION = 0.6


@dataclass
class Asked:
    """One request of the load: when (s), its tokens, and what came of it: first token and end, s after arrival."""

    at: float
    tokens: list[int]
    first_s: float = 0.0
    end_s: float = 0.0


async def ask(session: aiohttp.ClientSession, url: str, tokens: Sequence[int], output: int) -> tuple[float, float]:
    """Seconds to the first token and to the end."""
    body = {
        "model": "bench", "prompt": list(tokens), "max_tokens": output, "temperature": 0, "ignore_eos": True,
        "stream": True,
    }  # fmt: skip
    started, first = time.perf_counter(), 0.0
    async with session.post(f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {") and not first:
                first = time.perf_counter()
    return first - started, time.perf_counter() - started


def fresh(r: random.Random, length: int) -> list[int]:
    return [r.randrange(10, 200) for _ in range(length)]


async def measure(session: aiohttp.ClientSession, url: str, r: random.Random) -> Profile:
    """Ask one thing at a time and fit."""
    cold = [(length, (await ask(session, url, fresh(r, length), 1))[0]) for length in LENGTHS * REPEATS]
    best = [(length, statistics.median(s for each, s in cold if each == length)) for length in LENGTHS]
    floor, token_s, attention_s = fit([(1.0, length, length * length / 2) for length, _ in best], [s for _, s in best])
    _, alone = await ask(session, url, fresh(r, 64), 33)
    first, _ = await ask(session, url, fresh(r, 64), 1)
    step_alone = (alone - first) / 32
    together = await asyncio.gather(*(ask(session, url, fresh(r, 64), 33) for _ in range(8)))
    step_of_8 = statistics.fmean((end - first) / 32 for first, end in together)
    per_sequence = max(0.0, (step_of_8 - step_alone) / 7)
    return Profile(
        name="vllm on this processor",
        weights_s=0.0,
        token_s=max(token_s, per_sequence),
        attention_s=max(attention_s, 0.0),
        context_s=0.0,
        overhead_s=max(0.001, min(floor, step_alone)),
        kv_tokens=BLOCKS * BLOCK,
        host_kv_tokens=0,
        host_token_s=0.0,
        batch_tokens=2048,
        sequences_max=SEQUENCES_MAX,
    )


def fit(rows: Sequence[tuple[float, float, float]], values: Sequence[float]) -> list[float]:
    """Least squares of relative errors, by normal equations."""
    weighted = [([x / value for x in row], 1.0) for row, value in zip(rows, values, strict=True)]
    a = [
        [sum(x[i] * x[j] for x, _ in weighted) for j in range(3)] + [sum(x[i] * y for x, y in weighted)]
        for i in range(3)
    ]
    for i in range(3):
        for j in range(i + 1, 3):
            factor = a[j][i] / a[i][i]
            a[j] = [x - factor * y for x, y in zip(a[j], a[i], strict=True)]
    solution = [0.0] * 3
    for i in (2, 1, 0):
        solution[i] = (a[i][3] - sum(a[i][j] * solution[j] for j in range(i + 1, 3))) / a[i][i]
    return solution


def load(r: random.Random, profile: Profile) -> list[Asked]:
    """Prompts that begin with one of twenty beginnings, or are new, so often that the engine is busy."""
    beginnings = [fresh(r, r.randrange(200, 1200)) for _ in range(20)]
    asked = []
    for _ in range(REQUESTS):
        start = r.choice(beginnings) if r.random() < 0.7 else fresh(r, r.randrange(50, 900))
        asked.append(Asked(0.0, [*start, *fresh(r, r.randrange(16, 600))]))
    seen: set[int] = set()
    seconds = 0.0
    for each in asked:
        chain = list(prefix_hash_array(array("I", each.tokens), BLOCK))
        held = next((n for n, block in enumerate(chain) if block not in seen), len(chain)) * BLOCK
        seen.update(chain)
        seconds += profile.prefill_s(len(each.tokens) - held, held) + OUTPUT_TOKENS * profile.overhead_s / 2
    rate, at = UTILISATION * REQUESTS / seconds, 0.0
    for each in asked:
        at += r.expovariate(rate)
        each.at = at
    return asked


async def really(session: aiohttp.ClientSession, url: str, asked: Sequence[Asked]) -> None:
    """What the real engine makes of it."""
    start = time.perf_counter()

    async def one(each: Asked) -> None:
        await asyncio.sleep(max(0.0, start + each.at - time.perf_counter()))
        each.first_s, each.end_s = await ask(session, url, each.tokens, OUTPUT_TOKENS)

    await asyncio.gather(*map(one, asked))


def simulated(profile: Profile, asked: Sequence[Asked]) -> list[Asked]:
    """What the simulated engine makes of it."""
    engine = Engine(profile, BLOCK)
    answers = [Asked(each.at, each.tokens) for each in asked]
    agenda: list[tuple[float, int, Asked | None]] = [(each.at, n, each) for n, each in enumerate(answers)]
    heapq.heapify(agenda)
    number = len(agenda)
    while agenda:
        now, _, each = heapq.heappop(agenda)
        before = engine.ends_at
        if each is not None:
            tokens = array("I", [*each.tokens, *range(OUTPUT_TOKENS)])
            work = Work(each, tokens, len(each.tokens), OUTPUT_TOKENS)
            work.chain = list(prefix_hash_array(tokens, BLOCK))
            engine.arrive(work, now)
        elif engine.ends_at == now:
            engine.step_over(now)
            before = None
        for work in engine.first:
            work.owner.first_s = now - work.owner.at
        for work in engine.done:
            work.owner.end_s = now - work.owner.at
        engine.first, engine.done, engine.events = [], [], []
        if engine.ends_at is not None and engine.ends_at != before:
            number += 1
            heapq.heappush(agenda, (engine.ends_at, number, None))
    return answers


def compare(real: Sequence[Asked], model: Sequence[Asked]) -> dict[str, float]:
    def quantile(values: Sequence[float], share: float) -> float:
        return sorted(values)[int(share * (len(values) - 1))]

    firsts, ours = [each.first_s for each in real], [each.first_s for each in model]
    rows = {
        "ttft_mean": (statistics.fmean(firsts), statistics.fmean(ours)),
        "ttft_p50": (quantile(firsts, 0.5), quantile(ours, 0.5)),
        "ttft_p90": (quantile(firsts, 0.9), quantile(ours, 0.9)),
        "ttft_p99": (quantile(firsts, 0.99), quantile(ours, 0.99)),
        "end_mean": (statistics.fmean(each.end_s for each in real), statistics.fmean(each.end_s for each in model)),
    }
    print(f"{'':10} {'real ms':>9} {'simulated':>9} {'error':>7}")
    found: dict[str, float] = {}
    for name, (was, said) in rows.items():
        print(f"{name:10} {was * 1e3:>9.1f} {said * 1e3:>9.1f} {said / was - 1:>+7.1%}")
        found |= {f"{name}_real_ms": was * 1e3, f"{name}_simulated_ms": said * 1e3, f"{name}_error": said / was - 1}
    found["ttft_correlation"] = statistics.correlation(firsts, ours)
    print(f"request by request, times to first token correlate with {found['ttft_correlation']:.3f}")
    return found


async def run(engine: VllmEngine) -> dict[str, object]:
    r = random.Random(7)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(300)) as session:
        for length in (64, 1024, 1900):  # what is compiled and allocated first
            await ask(session, engine.url, fresh(r, length), 4)
        profile = await measure(session, engine.url, r)
        print(f"overhead {profile.overhead_s * 1e3:.1f} ms, {profile.token_s * 1e6:.0f} us a token, "
              f"{profile.attention_s * 1e9:.1f} ns a pair")  # fmt: skip
        asked = load(r, profile)
        await really(session, engine.url, asked)
    return {"profile": asdict(profile), "compared": compare(asked, simulated(profile, asked))}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=HERE.parent / "results" / "calibration.json")
    chosen = options.parse_args()
    about = machine()
    model = make_model(*MODEL_ARGUMENTS)
    made = EngineOptions(model=model, served_name="bench", block_size=BLOCK, blocks=BLOCKS, max_num_seqs=SEQUENCES_MAX)
    with tempfile.TemporaryDirectory() as folder, running([VllmEngine(made, Path(folder) / "engine.log")]) as (engine,):
        found = asyncio.run(run(engine))
    chosen.out.write_text(json.dumps({"machine": about, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
