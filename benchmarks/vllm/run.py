"""Policies against each other on real vLLM: the same requests through the same gateway, time to first token.

    python benchmarks/vllm/run.py [--policy NAME ...] [--load NAME ...] [--rounds 2] [--out FILE.json]

Two engines on the processor with the larger generated model (a cold prompt of 1,900 tokens costs some 300 ms, a cached
one 18 ms). Every run begins with empty caches and a new gateway; all policies get the same arrivals, in turn, so that
what else the machine does falls on all alike. `scripts/vllm/install.sh` installs vLLM.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "scripts" / "vllm")]

from machine import machine  # noqa: E402
from vllm_engine import EngineOptions, VllmEngine, free_ports, make_model, running  # noqa: E402

MODEL_ARGUMENTS = ("--hidden", "512", "--layers", "12")
BLOCKS = 400
"""Per engine: 12,800 tokens, so that one engine alone cannot hold all documents or conversations of a load."""
OUTPUT_TOKENS = 4
READY_DEADLINE_S = 60.0


@dataclass(frozen=True)
class Turn:
    """One request: when it arrives (s), and its messages, or the conversation that it goes on with."""

    at: float
    messages: list[dict[str, str]]
    conversation: int | None = None


@dataclass
class Sample:
    """What one run measured."""

    ttft_ms: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    failed: int = 0


def words(r: random.Random, count: int) -> str:
    return " ".join(
        r.choice(("self", "return", "import", "value", "list", "None", "def", "class")) for _ in range(count)
    )


def shared_prefix(r: random.Random) -> list[Turn]:
    """Questions about 12 documents of about 1,500 tokens, at 3 a second."""
    documents = [f"Document {n}: {words(r, 1400)}" for n in range(12)]
    turns, at = [], 0.0
    for n in range(90):
        at += r.expovariate(3.0)
        content = f"{r.choice(documents)}\n\nQuestion {n}: {words(r, 12)}?"
        turns.append(Turn(at, [{"role": "user", "content": content}]))
    return turns


def multi_turn(r: random.Random) -> list[Turn]:
    """14 conversations of 6 turns, whose prompts grow from about 500 to 1,500 tokens."""
    turns = []
    for number in range(14):
        at, opening = r.uniform(0, 10), {"role": "system", "content": f"You are assistant {number}. {words(r, 350)}"}
        for n in range(6):
            content = f"Turn {n}: {words(r, 130)}"
            turns.append(Turn(at, [*([opening] if n == 0 else []), {"role": "user", "content": content}], number))
            at += 1.5 + r.expovariate(0.4)
    return sorted(turns, key=lambda turn: turn.at)


LOADS: dict[str, Callable[[random.Random], list[Turn]]] = {"shared prefix": shared_prefix, "multi-turn": multi_turn}


async def send(session: aiohttp.ClientSession, url: str, messages: Sequence[Any], sample: Sample) -> str:
    """One streamed chat; the text that came."""
    body = {
        "model": "bench", "messages": messages, "stream": True, "max_tokens": OUTPUT_TOKENS, "temperature": 0,
        "ignore_eos": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    started, text, first = time.perf_counter(), "", None
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            first = first or time.perf_counter()
            chunk = json.loads(line[6:])
            text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            if usage := chunk.get("usage"):
                sample.prompt_tokens += usage["prompt_tokens"]
                sample.cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    if first is None:
        sample.failed += 1
    else:
        sample.ttft_ms.append((first - started) * 1e3)
    return text


async def play(url: str, turns: Sequence[Turn]) -> Sample:
    """Send every request when it is due; one of a conversation waits for the answer before."""
    sample, histories = Sample(), dict[int, list[dict[str, str]]]()
    locks: dict[int, asyncio.Lock] = {}
    start = time.perf_counter()

    async def one(turn: Turn) -> None:
        await asyncio.sleep(max(0.0, start + turn.at - time.perf_counter()))
        if turn.conversation is None:
            await send(session, url, turn.messages, sample)
            return
        async with locks.setdefault(turn.conversation, asyncio.Lock()):
            history = histories.setdefault(turn.conversation, [])
            history += turn.messages
            history.append({"role": "assistant", "content": await send(session, url, history, sample)})

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(300)) as session:
        await asyncio.gather(*map(one, turns))
    return sample


@contextlib.contextmanager
def gateway(engines: Sequence[VllmEngine], policy: str, model: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "warmroute", "serve", "--gateway.port", str(port), "--log.level", "error"]
    command += ["--routing.policy", policy, "--tokenizer.path", str(model)]
    command += [word for engine in engines for word in ("--engine", engine.url)]
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + READY_DEADLINE_S
            while not _all_live(f"http://127.0.0.1:{port}", len(engines)):
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit("the gateway did not become ready with all engines LIVE")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _all_live(url: str, count: int) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/workers", timeout=5) as answer:
            workers = json.load(answer)["workers"]
    except OSError:
        return False
    return len(workers) == count and all(worker["trust"]["state"] == "LIVE" for worker in workers)


def summary(samples: Sequence[Sample]) -> dict[str, float]:
    times = sorted(time for sample in samples for time in sample.ttft_ms)
    return {
        "requests": len(times),
        "failed": sum(sample.failed for sample in samples),
        "ttft_mean_ms": round(statistics.fmean(times), 1),
        "ttft_p50_ms": round(times[len(times) // 2], 1),
        "ttft_p90_ms": round(times[int(len(times) * 0.9)], 1),
        "ttft_p99_ms": round(times[min(len(times) - 1, int(len(times) * 0.99))], 1),
        "cached": round(sum(s.cached_tokens for s in samples) / max(1, sum(s.prompt_tokens for s in samples)), 3),
    }


def show(results: dict[str, dict[str, dict[str, float]]]) -> None:
    for load, found in results.items():
        print(
            f"\n{load}\n{'policy':18}{'mean':>9}{'p50':>9}{'p90':>9}{'p99':>9} ms  {'cached':>7}  mean, to round_robin"
        )
        base = found.get("round_robin", {}).get("ttft_mean_ms")
        for policy, row in found.items():
            times = "".join(f"{row[f'ttft_{key}_ms']:9.1f}" for key in ("mean", "p50", "p90", "p99"))
            beside = f"{row['ttft_mean_ms'] / base - 1:+.0%}" if base else ""
            print(f"{policy:18}{times}     {row['cached']:7.1%}  {beside}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--policy", nargs="+", default=["warmroute", "round_robin", "least_loaded"])
    options.add_argument("--load", nargs="+", choices=LOADS, default=list(LOADS))
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--out", type=Path, default=HERE.parent / "results" / "vllm.json")
    chosen = options.parse_args()
    about = machine()
    model = make_model(*MODEL_ARGUMENTS)
    engine = EngineOptions(model=model, served_name="bench", blocks=BLOCKS, max_model_len=4096)
    samples: dict[str, dict[str, list[Sample]]] = {load: {p: [] for p in chosen.policy} for load in chosen.load}
    with tempfile.TemporaryDirectory() as logs:
        engines = [VllmEngine(engine, Path(logs) / f"engine-{i}.log") for i in range(2)]
        with running(engines):
            for number in range(chosen.rounds):
                for load in chosen.load:
                    for policy in chosen.policy:
                        for each in engines:
                            urllib.request.urlopen(f"{each.url}/reset_prefix_cache", data=b"", timeout=30).close()
                        with gateway(engines, policy, model) as url:
                            sample = asyncio.run(play(url, LOADS[load](random.Random(number))))
                        samples[load][policy].append(sample)
                        print(f"round {number}, {load}, {policy}: {summary([sample])}", file=sys.stderr, flush=True)
    results = {load: {p: summary(found) for p, found in by.items()} for load, by in samples.items()}
    show(results)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps({"machine": about, "rounds": chosen.rounds, "loads": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
