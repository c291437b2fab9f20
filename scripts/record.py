#!/usr/bin/env python3
"""Make new recordings of real vLLM for `warmroute replay`: what it published, and what it reported of each request.

    record.py --list
    record.py --out FOLDER                            every scenario, seeds 1 and 2
    record.py --out FOLDER --seeds 7,8 chat eviction

A scenario's seed draws its prompts and its numbers (turns, lengths, order), so that no two recordings are alike and an
index cannot have been tuned for one nobody has seen. Scenarios of one kind of engine share a running engine: each
begins with /reset_prefix_cache, and its recording with what that publishes.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "vllm"))

from prompts import TOOLS, Prompts
from recorder import Recorder, answer_text
from vllm_engine import EngineOptions, VllmEngine, make_model

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

Json = dict[str, Any]
Run = Callable[[Recorder, Prompts], Awaitable[None]]


async def chat(recorder: Recorder, prompts: Prompts) -> None:
    """Chat and completions mixed: shared system prompts, tools, tool calls, text, token ids, odd characters."""
    random = prompts.random
    systems = [prompts.text(random.randrange(30, 130)) for _ in range(4)]
    documents = [prompts.text(random.randrange(60, 200)) for _ in range(3)]
    for _ in range(60):
        system, limit = random.choice(systems), {"max_tokens": random.randrange(1, 24)}
        match random.randrange(6):
            case 0 | 1:
                body: Json = {"messages": prompts.chat(system, random.randrange(4, 40))}
            case 2:
                body = {"messages": prompts.chat(system, 12), "tools": TOOLS[: random.randrange(1, 4)]}
            case 3:
                messages = [*prompts.chat(system, 8), *prompts.tool_turn(), {"role": "user", "content": "Go on."}]
                body = {"messages": messages, "tools": TOOLS}
            case 4:
                parts = [{"type": "text", "text": prompts.unicode_text(20)}, {"type": "text", "text": prompts.text(9)}]
                body = {"messages": [{"role": "system", "content": system}, {"role": "user", "content": parts}]}
            case _:
                await recorder.send(
                    COMPLETIONS, {"prompt": random.choice(documents) + prompts.unicode_text(9), **limit}
                )
                continue
        await recorder.send(CHAT, {**body, **limit})


async def lengths(recorder: Recorder, prompts: Prompts) -> None:
    """Prompts around the edges of blocks, repeated whole, cut and prolonged; duplicate last blocks."""
    random, size = prompts.random, recorder.engine.options.block_size
    base = prompts.token_ids(size * 8)
    cuts = [size * blocks + offset for blocks in range(1, 8) for offset in (-1, 0, 1)]
    random.shuffle(cuts)
    for cut in [1, 2, *cuts, *random.choices(cuts, k=12)]:
        await recorder.send(COMPLETIONS, {"prompt": base[:cut], "max_tokens": random.choice((1, 2, 3, size))})
    for cut in random.choices(cuts, k=8):
        await recorder.send(COMPLETIONS, {"prompt": base[:cut] + prompts.token_ids(size), "max_tokens": 1})


async def sessions(recorder: Recorder, prompts: Prompts) -> None:
    """Interleaved conversations that grow by what was generated, as text and as token ids."""
    random = prompts.random
    system = prompts.text(40)
    talks = [prompts.chat(system, random.randrange(5, 60)) for _ in range(5)]
    runs = [prompts.token_ids(random.randrange(20, 150)) for _ in range(3)]
    for _ in range(45):
        limit = {"max_tokens": random.randrange(1, 60)}
        if random.random() < 0.3:
            ids = random.choice(runs)
            if len(ids) < 900:
                answer = await recorder.send(COMPLETIONS, {"prompt": ids, "ignore_eos": True, **limit})
                ids += answer["choices"][0]["token_ids"] + prompts.token_ids(random.randrange(0, 40))
            continue
        talk = random.choice(talks)
        if len(talk) < 14:
            answer = await recorder.send(CHAT, {"messages": talk, **limit})
            talk.append({"role": "assistant", "content": answer_text(answer)})
            talk.append({"role": "user", "content": prompts.text(random.randrange(2, 30))})


async def eviction(recorder: Recorder, prompts: Prompts) -> None:
    """More than the cache holds: everything is evicted and comes again, with duplicates and shared beginnings."""
    random, size = prompts.random, recorder.engine.options.block_size
    shared = prompts.token_ids(size * 4)
    families = [
        shared[: size * random.randrange(1, 5)] + prompts.token_ids(random.randrange(20, 500)) for _ in range(12)
    ]
    for _ in range(90):
        ids = random.choice(families)
        cut = random.choice((len(ids), len(ids), len(ids) // size * size, random.randrange(8, len(ids))))
        body = {"prompt": ids[:cut], "max_tokens": random.randrange(1, 20), "ignore_eos": True}
        await recorder.send(COMPLETIONS, body)


async def concurrent(recorder: Recorder, prompts: Prompts) -> None:
    """Clients side by side with shared beginnings, some prompts at the same instant, one step's worth of steps."""
    random = prompts.random
    systems = [prompts.text(random.randrange(20, 120)) for _ in range(3)]
    twins = [prompts.token_ids(random.randrange(40, 300)) for _ in range(4)]

    async def client(seed: int) -> None:
        own = Prompts(seed)
        for _ in range(10):
            limit = {"max_tokens": own.random.randrange(1, 40)}
            if own.random.random() < 0.25:
                await recorder.send(COMPLETIONS, {"prompt": own.random.choice(twins), **limit}, tag="concurrent")
            else:
                messages = own.chat(own.random.choice(systems), own.random.randrange(3, 50))
                await recorder.send(CHAT, {"messages": messages, **limit}, tag="concurrent")
            await asyncio.sleep(own.random.random() * 0.05)

    for ids in twins[:2]:
        body = {"prompt": ids, "max_tokens": 4}
        await asyncio.gather(*(recorder.send(COMPLETIONS, body, tag="same-instant") for _ in range(3)))
        await recorder.settle()
    await asyncio.gather(*(client(random.randrange(10**6)) for _ in range(random.randrange(3, 7))))


async def streams(recorder: Recorder, prompts: Prompts) -> None:
    """Streams, read whole and left in the middle, and the same prompts again."""
    random = prompts.random
    system = prompts.text(50)
    seen: list[Json] = []
    for _ in range(24):
        leave = random.choice((None, None, 1, 3, random.randrange(5, 60)))
        if random.random() < 0.5:
            body: Json = {"messages": prompts.chat(system, random.randrange(4, 60))}
        else:
            body = {"prompt": prompts.token_ids(random.randrange(10, 400))}
        body |= {"max_tokens": random.randrange(20, 160), "ignore_eos": True}
        path = CHAT if "messages" in body else COMPLETIONS
        answer = await recorder.stream(path, body, leave_after=leave, tag="left" if leave else "read")
        if random.random() < 0.5:  # at once, while the engine may not have noticed that its client left
            await recorder.settle(0.1)
        if "prompt" in body:
            body = {**body, "prompt": body["prompt"] + (answer["choices"][0].get("token_ids") or [])}
        seen.append(body | {"max_tokens": 2})
    for body in random.sample(seen, 12):
        await recorder.send(CHAT if "messages" in body else COMPLETIONS, body, tag="again")


async def parameters(recorder: Recorder, prompts: Prompts) -> None:
    """What changes how the cache is read or keyed: n, prompt_logprobs, echo, cache_salt, several prompts, refusals."""
    random = prompts.random
    system = prompts.text(60)
    ids = [prompts.token_ids(random.randrange(40, 260)) for _ in range(4)]
    talks = [prompts.chat(system, random.randrange(5, 40)) for _ in range(3)]
    odd: list[Json] = [
        {"n": 3, "temperature": 1.0, "seed": 5}, {"prompt_logprobs": 1}, {"cache_salt": "tenant-1"},
        {"cache_salt": "tenant-2"}, {"logprobs": 1}, {"max_tokens": 1}, {"n": 2, "temperature": 0.8, "seed": 9}, {},
        {"session_id": "s-1"}, {"min_tokens": 8}, {"stop": ["the"]},
        {"cache_salt": "tenant-1", "n": 2, "temperature": 1.0, "seed": 3},
    ]  # fmt: skip
    for _ in range(48):
        extra = random.choice(odd)
        tag = ",".join(extra) or "plain"
        if "session_id" not in extra and random.random() < 0.5:
            extra = {k: v for k, v in extra.items() if k != "logprobs"}
            await recorder.send(CHAT, {"max_tokens": 12, **extra, "messages": random.choice(talks)}, tag=tag)
        else:
            await recorder.send(COMPLETIONS, {"max_tokens": 12, **extra, "prompt": random.choice(ids)}, tag=tag)
    await recorder.send(
        COMPLETIONS, {"prompt": [ids[0], ids[1], prompts.token_ids(50)], "max_tokens": 2}, tag="several"
    )
    await recorder.send(COMPLETIONS, {"prompt": prompts.token_ids(100), "model": "absent"}, tag="refused")
    await recorder.send(COMPLETIONS, {"prompt": prompts.token_ids(5000)}, tag="refused")
    await recorder.send(COMPLETIONS, {"prompt": ids[2], "max_tokens": 2}, tag="plain")


async def resets(recorder: Recorder, prompts: Prompts) -> None:
    """The cache reset between requests and under them, where the engine refuses; replays in between."""
    random = prompts.random
    ids = [prompts.token_ids(random.randrange(40, 400)) for _ in range(6)]
    for _ in range(8):
        for _ in range(random.randrange(2, 6)):
            await recorder.send(COMPLETIONS, {"prompt": random.choice(ids), "max_tokens": random.randrange(1, 40)})
        if random.random() < 0.4:
            long = recorder.send(COMPLETIONS, {"prompt": random.choice(ids), "max_tokens": 300, "ignore_eos": True})
            task = asyncio.create_task(long)
            await asyncio.sleep(0.15)
            await recorder.admin("/reset_prefix_cache")
            await task
        else:
            await recorder.admin("/reset_prefix_cache")
        if random.random() < 0.3:
            await recorder.replay(max(0, recorder.last_seq - random.randrange(30)))


async def restart(recorder: Recorder, prompts: Prompts) -> None:
    """kill -9 with requests running, and the same engine back on the same ports with an empty cache."""
    random = prompts.random
    ids = [prompts.token_ids(random.randrange(40, 400)) for _ in range(8)]
    for _ in range(random.randrange(4, 14)):
        await recorder.send(COMPLETIONS, {"prompt": random.choice(ids), "max_tokens": random.randrange(1, 40)})
    body = {"prompt": random.choice(ids), "max_tokens": 1500, "ignore_eos": True}
    doomed = asyncio.create_task(recorder.stream(COMPLETIONS, body))
    await asyncio.sleep(0.3)
    recorder.write("restart", text="kill -9")
    recorder.engine.kill()
    await asyncio.gather(doomed, return_exceptions=True)
    recorder.engine.spawn()
    await asyncio.to_thread(recorder.engine.wait_ready)
    recorder.note("ready again")
    for _ in range(random.randrange(8, 24)):
        await recorder.send(COMPLETIONS, {"prompt": random.choice(ids), "max_tokens": random.randrange(1, 40)})
    await recorder.replay(0)


async def lora(recorder: Recorder, prompts: Prompts) -> None:
    """The base model and two adapters with the same prompts; unloaded, loaded again, re-pointed elsewhere."""
    random = prompts.random
    places = [make_model("--adapter", str(seed)) for seed in (1, 2)]
    ids = [prompts.token_ids(random.randrange(40, 300)) for _ in range(4)]

    async def load(name: str, place: Path) -> None:
        await recorder.admin("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(place)})

    async def requests(count: int, models: list[str]) -> None:
        for _ in range(count):
            body: Json = {
                "model": random.choice(models),
                "prompt": random.choice(ids),
                "max_tokens": random.randrange(1, 20),
            }
            await recorder.send(COMPLETIONS, body, tag=body["model"])

    await load("sql", places[0])
    await load("law", places[1])
    await requests(20, ["tiny", "sql", "law"])
    await recorder.admin("/v1/unload_lora_adapter", {"lora_name": "sql"})
    await requests(8, ["tiny", "law"])
    await load("sql", places[0])
    await requests(10, ["tiny", "sql", "law"])
    await recorder.admin("/v1/unload_lora_adapter", {"lora_name": "sql"})
    await load("sql", places[1])
    await requests(10, ["sql", "law"])
    for name in ("sql", "law"):
        await recorder.admin("/v1/unload_lora_adapter", {"lora_name": name})


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is recorded, and on which kind of engine."""

    engine: str
    run: Run


SCENARIOS = {
    "chat": Scenario("standard", chat),
    "lengths": Scenario("standard", lengths),
    "sessions": Scenario("standard", sessions),
    "concurrent": Scenario("standard", concurrent),
    "streams": Scenario("standard", streams),
    "parameters": Scenario("standard", parameters),
    "resets": Scenario("standard", resets),
    "restart": Scenario("standard", restart),
    "eviction": Scenario("small", eviction),
    "eviction-sessions": Scenario("small", sessions),
    "eviction-concurrent": Scenario("small", concurrent),
    "bytes-lengths": Scenario("bytes", lengths),
    "bytes-eviction": Scenario("bytes", eviction),
    "bytes-chat": Scenario("bytes", chat),
    "wide-chat": Scenario("wide", chat),
    "wide-lengths": Scenario("wide", lengths),
    "hybrid-lengths": Scenario("hybrid", lengths),
    "hybrid-sessions": Scenario("hybrid", sessions),
    "hybrid-eviction": Scenario("hybrid-small", eviction),
    "lora": Scenario("lora", lora),
}


def options(kind: str) -> EngineOptions:
    """The engines that scenarios ask for by name."""
    hybrid = kind.startswith("hybrid")
    model = make_model(*(("--architecture", "gemma3") if hybrid else ()))
    match kind:
        case "small":
            return EngineOptions(model=model, blocks=40, max_model_len=1024)
        case "bytes":
            hashing = ("--prefix-caching-hash-algo", "sha256_cbor")
            return EngineOptions(model=model, block_size=64, blocks=40, byte_hashes=True, arguments=hashing)
        case "wide":
            return EngineOptions(model=model, block_size=128, blocks=40)
        case "hybrid":
            return EngineOptions(model=model, blocks=400)
        case "hybrid-small":
            return EngineOptions(model=model, blocks=160, max_model_len=1024)
        case "lora":
            adapters = ("--enable-lora", "--max-loras", "2", "--max-lora-rank", "8")
            allowed = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
            return EngineOptions(model=model, arguments=adapters, environment=allowed)
    return EngineOptions(model=model)


async def record(engine: VllmEngine, name: str, seed: int, folder: Path) -> None:
    """Make one recording."""
    scenario = SCENARIOS[name]
    summary = (scenario.run.__doc__ or "").strip()
    async with Recorder(folder / f"{name}-{seed}.jsonl", engine, f"{summary} Seed {seed}.") as recorder:
        await recorder.admin("/reset_prefix_cache")
        await scenario.run(recorder, Prompts(seed))
    print(f"{name}-{seed}: {summary}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="say what scenarios there are")
    parser.add_argument("--out", type=Path, default=Path("recordings"))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[1, 2])
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="default: all")
    arguments = parser.parse_args()
    if unknown := set(arguments.scenarios) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; see --list")
    if arguments.list:
        for name, scenario in SCENARIOS.items():
            print(f"{name:20} {scenario.engine:13} {(scenario.run.__doc__ or '').strip()}")
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    chosen = arguments.scenarios or list(SCENARIOS)
    for kind in dict.fromkeys(SCENARIOS[name].engine for name in chosen):
        begin = time.monotonic()
        engine = VllmEngine(options(kind), arguments.out / f"engine-{kind}.log")
        try:
            engine.spawn()
            engine.wait_ready()
            print(f"engine {kind} ready after {time.monotonic() - begin:.0f} s", flush=True)
            for name in chosen:
                if SCENARIOS[name].engine == kind:
                    for seed in arguments.seeds:
                        asyncio.run(record(engine, name, seed, arguments.out))
        finally:
            engine.kill()


if __name__ == "__main__":
    main()
