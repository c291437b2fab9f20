"""What exact KV routing costs: multi-turn chats, tokenized, held against real events; beside the peer that does it too.

    python benchmarks/http/exact.py [--alone] [--tokenizer FOLDER] [--reps 3] [--bodies 6000] [--policy NAME]
                                    [--requests 200000] [--profile FILE] [--out FILE.json]

Two engines per gateway answer in C and announce what they were asked, as vLLM does (announcing.py). Every request of
the main load (oload.c) is the next turn of a conversation of 4 KiB: all messages but the last two have been routed
before, none comes twice. The longer bodies and the streams are warm: each was sent before. CPU is the gateway's, from
/proc.

The peer is vllm-router's kv_aware, if scripts/peers/install_http.sh has installed it. It tokenizes nothing: for each
request it asks engines for the token ids (`/render`), and the mocks make up some at once, where an engine would need a
hundred times as long. So what is compared is what the gateways spend, ours for tokenizing and theirs for asking.

`--alone` leaves it out. `--requests`: so many follow for ours, and what memory they leave behind is said. `--profile`:
ours runs under cProfile, which slows it, and what it spent where is written there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import pydoc_data.topics
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import zmq
from announcing import Engine, engine, rendered_ids
from measuring import build, cpu_s, free_ports, load, resident_mib, running, wait_ready

from warmroute.core import openai
from warmroute.edge.tokenizer_local import LocalTokenizer
from warmroute.types import Endpoint

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from machine import machine  # noqa: E402

CACHE = Path(os.environ.get("WARMROUTE_CACHE", Path.home() / ".cache/warmroute"))
PEER = CACHE / "peers-http/bin/vllm-router"
OURS, THEIRS = "warmroute", "vllm-router kv_aware"

MODEL = "mock-model"
TURNS, SYSTEMS = 6, 4
LONG = 32
"""The longer bodies are so many times as long, and there are so many of each kind."""
STREAMS = 200
ONCE = 0
"""Seconds, for the load generator: every body once."""
PROFILED = (
    "import cProfile,sys; sys.argv[0]='warmroute'; from warmroute.cli.main import main; cProfile.run('main()', {!r})"
)
Message = dict[str, str]


class Target:
    """A gateway, and its engines."""

    def __init__(self, port: int, pid: int, engines: list[Engine]) -> None:
        self.port = port
        self.pid = pid
        self.engines = engines
        self.rounds: list[dict[str, dict[str, float]]] = []


def words(dice: random.Random, vocabulary: Sequence[str], characters: int) -> str:
    """English-like text of about that many characters."""
    return " ".join(dice.choices(vocabulary, k=characters // 6))


def conversations(number: int, *, turns: int = TURNS, longer: int = 1) -> list[list[Message]]:
    """Messages of conversations that end with a user's last one; the body of each is about 4 KiB."""
    dice = random.Random(0)
    vocabulary = re.findall(r"[a-z]{2,}", " ".join(pydoc_data.topics.topics.values()))
    systems = [{"role": "system", "content": words(dice, vocabulary, 1300 * longer)} for _ in range(SYSTEMS)]
    made = []
    for talk in range(number):
        messages = [systems[talk % SYSTEMS]]
        for _ in range(turns):
            messages += [
                {"role": "user", "content": words(dice, vocabulary, 160 * longer)},
                {"role": "assistant", "content": words(dice, vocabulary, 320 * longer)},
            ]
        made.append(messages[:-1])
    return made


def body(messages: Sequence[Message], **more: object) -> bytes:
    fields = {"model": MODEL, "messages": messages, "max_tokens": 64, "temperature": 0, "user": "c64g0"}
    return json.dumps(fields | more).encode()


class Bodies:
    """What is sent: files for the load generator, and for our engines the ids of each."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self._folder = folder
        talks = conversations(options.bodies)
        self.last = [body(talk) for talk in talks]
        self.history = self._file("history", [body(talk[:-2]) for talk in talks])
        self.everything = self._file("everything", self.last)
        few = conversations(LONG, longer=LONG)
        many = conversations(LONG, turns=TURNS * LONG * 6 // 5)
        streamed = [body(talk, stream=True, user="c2g0") for talk in talks[:STREAMS]]
        self.warm = {
            "128 KiB, 12 messages, c=8": self._file("few", [body(talk) for talk in few]),
            f"128 KiB, {len(many[0])} messages, c=8": self._file("many", [body(talk) for talk in many]),
        }
        self.streams = self._file("streams", streamed)
        print(f"{len(self.last)} bodies of {sum(map(len, self.last)) / len(self.last):.0f} bytes")

    def _file(self, name: str, bodies: Sequence[bytes]) -> Path:
        file = self._folder / name
        file.write_bytes(b"\n".join([*bodies, b""]))
        return file

    def part(self, rep: int, reps: int) -> Path:
        """The next turns, those of one repetition."""
        return self._file(f"bodies-{rep}", self.last[rep::reps])

    def ids(self, tokenizer: LocalTokenizer) -> dict[bytes, Sequence[int]]:
        """Body -> token ids."""
        files = (self.history, self.everything, self.streams, *self.warm.values())
        return {line: token_ids(tokenizer, line) for file in files for line in file.read_bytes().splitlines()}


def token_ids(tokenizer: LocalTokenizer, line: bytes) -> Sequence[int]:
    request = openai.parse("/v1/chat/completions", line)
    return asyncio.run(tokenizer.tokens(request, Endpoint("", 0)))


def our_command(folder: Path, port: int, engines: Sequence[Engine], options: argparse.Namespace) -> list[str]:
    config = {
        "engines": [{"url": each.url, "events_endpoint": each.publisher.endpoint} for each in engines],
        "gateway": {"port": port},
        "tokenizer": {"mode": "local", "path": str(options.tokenizer)},
        "routing": {"policy": options.policy},
        "log": {"level": "error"},
    }
    file = folder / "warmroute.yaml"
    file.write_text(json.dumps(config))
    program = ["-c", PROFILED.format(options.profile)] if options.profile else ["-m", "warmroute"]
    return [sys.executable, *program, "serve", "--config", str(file)]


def their_command(port: int, engines: Sequence[Engine]) -> list[str]:
    command = [str(PEER), "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    command += ["--policy", "kv_aware", "--kv-event-model", MODEL, "--worker-startup-check-interval", "1"]
    command += ["--prometheus-port", str(free_ports(1)[0]), "--worker-urls", *(each.url for each in engines)]
    for each in engines:
        command += ["--kv-event-source", f"{each.url}={each.publisher.endpoint}"]
    return command


@contextlib.contextmanager
def gateways(tools: Path, folder: Path, bodies: Bodies, options: argparse.Namespace) -> Iterator[dict[str, Target]]:
    """The gateways, each with engines of its own, which have seen all but the last turns."""
    known = bodies.ids(LocalTokenizer(str(options.tokenizer)))
    makers = {OURS: lambda line: known.get(line, ())}
    if not options.alone and PEER.exists():
        makers[THEIRS] = rendered_ids
    context: zmq.Context[Any] = zmq.Context()
    targets = {}
    with ExitStack() as stack:
        stack.callback(context.destroy, linger=0)
        for name, ids_of in makers.items():
            port, *theirs = free_ports(3)
            engines = [stack.enter_context(engine(tools, each, context, ids_of)) for each in theirs]
            command = our_command(folder, port, engines, options) if name == OURS else their_command(port, engines)
            pid = stack.enter_context(running(command)).pid
            wait_ready(port)
            targets[name] = Target(port, pid, engines)
        time.sleep(2.0)  # subscriptions are silent
        for target in targets.values():
            for file in (bodies.history, *bodies.warm.values()):
                send(tools, target.port, 8, ONCE, "json", file)
        time.sleep(2.0)  # the last events
        yield targets


def send(tools: Path, port: int, connections: int, seconds: float, mode: str, file: Path) -> dict[str, Any]:
    got = load(tools, port, connections, seconds, mode, 64, 0, "/v1/chat/completions", 0, 0, MODEL, "", file)
    if got["errs"] or got["non200"]:
        raise SystemExit(f"{file.name}: {got['errs']} errors, {got['non200']} answers other than 200")
    return got


def measured(target: Target, sending: partial[dict[str, Any]]) -> dict[str, float]:
    before = cpu_s(target.pid)
    blocks, held = (sum(getattr(each, name) for each in target.engines) for name in ("blocks", "held"))
    got = sending()
    used = cpu_s(target.pid) - before
    time.sleep(0.3)  # what the engines were told last
    more, found = (sum(getattr(each, name) for each in target.engines) for name in ("blocks", "held"))
    return {
        "requests_per_cpu_s": got["reqs"] / used,
        "cpu_ms": used / got["reqs"] * 1e3,
        "p50_us": got["p50_us"],
        "p99_us": got["p99_us"],
        "hit_share": (found - held) / max(1, more - blocks),
    }


def measure(tools: Path, target: Target, bodies: Bodies, part: Path, direct: int) -> dict[str, dict[str, float]]:
    """One round; `direct` is the port of an engine, for what a gateway adds."""
    found = {"4 KiB, next turns, c=32": measured(target, partial(send, tools, target.port, 32, ONCE, "json", part))}
    for name, file in bodies.warm.items():
        found[name] = measured(target, partial(send, tools, target.port, 8, 1.5, "json", file))
    send(tools, target.port, 1, ONCE, "sse", bodies.streams)
    straight = send(tools, direct, 1, ONCE, "sse", bodies.streams)["ttft_p50_us"]
    through = send(tools, target.port, 1, ONCE, "sse", bodies.streams)["ttft_p50_us"]
    found["4 KiB, stream, warm, c=1"] = {"ttft_p50_us": through, "added_us": through - straight}
    return found


def medians(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {key: round(statistics.median(each[name][key] for each in rounds), 3) for key in rounds[0][name]}
        for name in rounds[0]
    }


def told(result: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = []
    for name, scenarios in result.items():
        for scenario, numbers in scenarios.items():
            beside = result.get(THEIRS, {}).get(scenario, {}) if name == OURS else {}
            texts = [
                f"{key} {number:,.2f}" + (f" ({number / beside[key]:.2f} x)" if beside.get(key) else "")
                for key, number in numbers.items()
            ]
            lines.append(f"{name:22}{scenario:30}{', '.join(texts)}")
    return "\n".join(lines)


def memory(tools: Path, target: Target, bodies: Bodies, requests: int) -> None:
    """How much memory so many requests leave behind."""
    sent = 0
    while sent < requests:
        sent += round(send(tools, target.port, 32, ONCE, "json", bodies.everything)["reqs"])
        print(f"{resident_mib(target.pid):8.1f} MiB after {sent} requests more", flush=True)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--tokenizer", type=Path, default=CACHE / "models/tiny", help="folder with tokenizer.json")
    options.add_argument("--alone", action="store_true", help="without the peer")
    options.add_argument("--reps", type=int, default=3)
    options.add_argument("--bodies", type=int, default=6_000)
    options.add_argument("--policy", default="warmroute")
    options.add_argument("--requests", type=int, default=0, help="so many more, to see what memory they leave behind")
    options.add_argument("--profile")
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    if not (chosen.tokenizer / "tokenizer.json").exists():
        raise SystemExit(f"no tokenizer.json in {chosen.tokenizer}: `make vllm` makes one, --tokenizer names another")
    about = machine()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        tools = build(Path(folder), "mock", "oload")
        direct = free_ports(1)[0]
        stack.enter_context(running([str(tools / "mock"), str(direct)]))
        bodies = Bodies(Path(folder), chosen)
        targets = stack.enter_context(gateways(tools, Path(folder), bodies, chosen))
        for rep in range(chosen.reps):  # in turn, so that what else the machine does falls on all alike
            part = bodies.part(rep, chosen.reps)
            for target in targets.values():
                target.rounds.append(measure(tools, target, bodies, part, direct))
        result = {name: medians(target.rounds) for name, target in targets.items()}
        print(told(result))
        if chosen.out:
            chosen.out.write_text(
                json.dumps({"machine": about, "repetitions": chosen.reps, "targets": result}, indent=1) + "\n"
            )
        memory(tools, targets[OURS], bodies, chosen.requests)


main()
