"""What exact KV routing costs: CPU per request of multi-turn chats of 4 KiB, tokenized here, held against real events.

    python benchmarks/http/exact.py [--tokenizer FOLDER] [--reps 3] [--bodies 6000] [--policy NAME]
                                    [--requests 200000] [--profile FILE]

Two C engines (mock.c) answer; beside each a publisher announces over ZMQ, as vLLM does, what half of the conversations
have left in its cache. Every request of the load (oload.c) is the next turn of one of the conversations: all messages
but the last have been seen, none comes twice. CPU is the gateway's, from /proc. `--requests`: so many follow, and what
memory they leave behind is said. `--profile`: the gateway runs under cProfile, which slows it, and what it spent where
is written there.
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
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import zmq
from measuring import build, cpu_s, free_ports, load, resident_mib, running, wait_ready

from warmroute.core import openai
from warmroute.edge.tokenizer_local import LocalTokenizer
from warmroute.types import Endpoint

MODEL = "mock-model"
BLOCK, TURNS, SYSTEMS = 16, 6, 4
ONCE = 0
"""Seconds, for the load generator: every body once."""
PORT, *ENGINES = free_ports(3)
PROFILED = (
    "import cProfile,sys; sys.argv[0]='warmroute'; from warmroute.cli.main import main; cProfile.run('main()', {!r})"
)


def words(dice: random.Random, vocabulary: Sequence[str], characters: int) -> str:
    """English-like text of about that many characters."""
    return " ".join(dice.choices(vocabulary, k=characters // 6))


def conversations(number: int) -> list[list[dict[str, str]]]:
    """Messages of conversations that end with a user's last one; the body of each is about 4 KiB."""
    dice = random.Random(0)
    vocabulary = re.findall(r"[a-z]{2,}", " ".join(pydoc_data.topics.topics.values()))
    systems = [{"role": "system", "content": words(dice, vocabulary, 1300)} for _ in range(SYSTEMS)]
    made = []
    for talk in range(number):
        messages = [systems[talk % SYSTEMS]]
        for _ in range(TURNS):
            messages += [
                {"role": "user", "content": words(dice, vocabulary, 160)},
                {"role": "assistant", "content": words(dice, vocabulary, 320)},
            ]
        made.append(messages[:-1])
    return made


def body(messages: Sequence[dict[str, str]]) -> bytes:
    fields = {"model": MODEL, "messages": messages, "max_tokens": 64, "temperature": 0, "user": "c64g0"}
    return json.dumps(fields).encode()


def token_ids(tokenizer: LocalTokenizer, messages: Sequence[dict[str, str]]) -> list[int]:
    request = openai.parse("/v1/chat/completions", body(messages))
    return list(asyncio.run(tokenizer.tokens(request, Endpoint("", 0))))


class Publisher:
    """Announces one engine's blocks, each named by a number of its own."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self._socket = context.socket(zmq.PUB)
        self._socket.set_hwm(0)
        self._socket.bind("tcp://127.0.0.1:*")
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._named: dict[tuple[int, tuple[int, ...]], int] = {}
        self._seq = 0

    def store(self, ids: Sequence[int]) -> None:
        """The full blocks of one prompt, those that are not announced yet."""
        parent, fresh, first = 0, [], None
        for start in range(0, len(ids) - BLOCK + 1, BLOCK):
            key = (parent, tuple(ids[start : start + BLOCK]))
            name = self._named.get(key)
            if name is None:
                name = self._named[key] = len(self._named) + 1
                first = (parent, start) if first is None else first
                fresh.append(name)
            parent = name
        if first is not None:
            at, tokens = first[0] or None, list(ids[first[1] : first[1] + BLOCK * len(fresh)])
            event = ["BlockStored", fresh, at, tokens, BLOCK, None, "GPU", None]
            payload = msgspec.msgpack.encode([time.time(), [event], 0])
            self._socket.send_multipart((b"", self._seq.to_bytes(8, "big"), payload))
            self._seq += 1

    @property
    def blocks(self) -> int:
        return len(self._named)


@contextlib.contextmanager
def gateway(folder: Path, publishers: Sequence[Publisher], options: argparse.Namespace) -> Iterator[int]:
    engines = [
        {"url": f"http://127.0.0.1:{port}", "events_endpoint": each.endpoint}
        for port, each in zip(ENGINES, publishers, strict=True)
    ]
    config = {
        "engines": engines,
        "gateway": {"port": PORT},
        "tokenizer": {"mode": "local", "path": str(options.tokenizer)},
        "routing": {"policy": options.policy},
        "log": {"level": "error"},
    }
    file = folder / "warmroute.yaml"
    file.write_text(json.dumps(config))
    program = ["-c", PROFILED.format(options.profile)] if options.profile else ["-m", "warmroute"]
    with running([sys.executable, *program, "serve", "--config", str(file)]) as process:
        wait_ready(PORT)
        yield process.pid


def workers() -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/workers", timeout=10) as answer:
        return list(json.load(answer)["workers"])


def until_known(publishers: Sequence[Publisher]) -> None:
    deadline, wanted = time.monotonic() + 60, sum(each.blocks for each in publishers)
    while sum(worker["blocks"] for worker in workers()) < wanted:
        if time.monotonic() > deadline:
            raise SystemExit(f"the gateway does not know all {wanted} blocks: {workers()}")
        time.sleep(0.1)


def predicted() -> tuple[float, float]:
    """Prompt tokens so far, and those of them that were predicted to be cached."""
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    names = ("warmroute_prompt_tokens_total{", "warmroute_predicted_cached_tokens_total{")
    prompt, cached = (sum(float(each.split()[-1]) for each in lines if each.startswith(name)) for name in names)
    return prompt, cached


def run(tools: Path, folder: Path, options: argparse.Namespace) -> None:
    tokenizer = LocalTokenizer(str(options.tokenizer))
    talks = conversations(options.bodies)
    lines = [body(talk) for talk in talks]
    print(f"{len(lines)} bodies of {sum(map(len, lines)) / len(lines):.0f} bytes")
    context: zmq.Context[Any] = zmq.Context()
    publishers = [Publisher(context) for _ in ENGINES]
    with gateway(folder, publishers, options) as pid:
        time.sleep(1.0)  # subscriptions are silent
        for number, talk in enumerate(talks):
            publishers[number % 2].store(token_ids(tokenizer, talk[:-1]))
        until_known(publishers)
        history = folder / "history"
        history.write_bytes(b"\n".join([*(body(talk[:-2]) for talk in talks), b""]))
        send = partial(load, tools, PORT, 32)
        rest = ("json", 64, 0, "/v1/chat/completions", 0, 0, MODEL, "")
        send(ONCE, *rest, history)
        for rep in range(options.reps):
            bodies = folder / f"bodies-{rep}"
            bodies.write_bytes(b"\n".join([*lines[rep :: options.reps], b""]))
            before, tokens = cpu_s(pid), predicted()
            got = send(ONCE, *rest, bodies)
            used, (prompt, cached) = cpu_s(pid) - before, predicted()
            share = (cached - tokens[1]) / (prompt - tokens[0])
            print(
                f"{got['reqs'] / used:8,.0f} requests per CPU second, {got['reqs']} requests, {used:.2f} s, "
                f"{share:.0%} of {(prompt - tokens[0]) / got['reqs']:.0f} tokens predicted as cached, "
                f"p50 {got['p50_us']:.0f} us, {got['errs'] + got['non200']:.0f} failed, {resident_mib(pid):.0f} MiB"
            )
        everything = folder / "everything"
        everything.write_bytes(b"\n".join([*lines, b""]))
        sent = 0
        while sent < options.requests:  # how much memory they leave behind
            sent += round(send(ONCE, *rest, everything)["reqs"])
            print(f"{resident_mib(pid):8.1f} MiB after {sent} requests more", flush=True)
    context.destroy(linger=0)


def main() -> None:
    options = argparse.ArgumentParser()
    cache = Path(os.environ.get("WARMROUTE_CACHE", Path.home() / ".cache/warmroute"))
    options.add_argument("--tokenizer", type=Path, default=cache / "models/tiny", help="folder with tokenizer.json")
    options.add_argument("--reps", type=int, default=3)
    options.add_argument("--bodies", type=int, default=6_000)
    options.add_argument("--policy", default="warmroute")
    options.add_argument("--requests", type=int, default=0, help="so many more, to see what memory they leave behind")
    options.add_argument("--profile")
    chosen = options.parse_args()
    if not (chosen.tokenizer / "tokenizer.json").exists():
        raise SystemExit(f"no tokenizer.json in {chosen.tokenizer}: `make vllm` makes one, --tokenizer names another")
    with tempfile.TemporaryDirectory() as folder:
        tools = build(Path(folder), "mock", "oload")
        with contextlib.ExitStack() as stack:
            for port in ENGINES:
                stack.enter_context(running([str(tools / "mock"), str(port)]))
            run(tools, Path(folder), chosen)


main()
