#!/usr/bin/env python3
"""Real vLLM engines on this machine's processor, started and ended by the one who needs them.

Used by the tests, the recorder and the demonstration; it knows nothing of Warmroute. Invariant: no process outlives
its owner. An engine is a process group of its own that is ended by number in `stop`, on exit of the interpreter and,
on Linux, by the kernel when the owner is killed.

    vllm_engine.py --count 2        two tiny engines until Ctrl-C; prints their URLs
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
VERSION = "0.32.0"
READY_DEADLINE_S = 240.0
"""20 s alone, 40 s two at once, 46 s with two ranks; more on a busy machine."""


class EngineFailedError(RuntimeError):
    """An engine ended or stayed unhealthy; the message carries the end of its log."""


def cache_folder() -> Path:
    """Where the vLLM environment and the generated models lie."""
    return Path(os.environ.get("WARMROUTE_CACHE") or Path.home() / ".cache" / "warmroute")


def vllm_environment() -> Path:
    """The virtual environment that install.sh makes."""
    return cache_folder() / f"vllm-{VERSION}"


def is_installed() -> bool:
    """Whether install.sh has finished in this cache."""
    return (vllm_environment() / ".complete").exists()


def make_model(*arguments: str) -> Path:
    """Run make_model.py in vLLM's environment; the folder of the model, built now or before."""
    command = [str(vllm_environment() / "bin" / "python"), str(HERE / "make_model.py"), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Path(done.stdout.splitlines()[-1])


def free_ports(count: int) -> list[int]:
    """Ports on the loopback that nobody listens on now."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_run(1))
    return list(ports)


_given: set[int] = set()
"""Ports that this process has given out."""


def free_run(length: int) -> int:
    """The first of so many ports in a row on the loopback that nobody listens on now.

    They lie below those that the system hands out by itself: an engine takes long to start, and meanwhile it would.
    None is given twice, since who got it first may not listen yet.
    """
    while True:
        first = random.randrange(20_000, 32_000 - length)
        if not _given.isdisjoint(range(first, first + length)):
            continue
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in range(first, first + length):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            _given.update(range(first, first + length))
            return first


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What kind of engine to start. The processor's attention wants block sizes that are multiples of 32."""

    model: Path
    served_name: str = "tiny"
    block_size: int = 32
    blocks: int = 128
    """Blocks of KV cache; `blocks * block_size` must exceed `max_model_len` (one block is vLLM's null block)."""
    max_model_len: int = 2048
    max_num_seqs: int = 8
    topic: str = "kv-events"
    ranks: int = 1
    """Data-parallel ranks: each has a cache and event sockets of its own."""
    byte_hashes: bool = False
    """Publish whole digests as bytes instead of their low 64 bits as an integer."""
    arguments: Sequence[str] = ()
    """More arguments for `vllm serve`."""
    environment: Mapping[str, str] = field(default_factory=dict)


class VllmEngine:
    """One engine on fixed ports: they are chosen once, so that a restarted engine comes back at the same address.

    `spawn` returns at once, so that several engines start together; `wait_ready` then waits for each.
    """

    def __init__(self, options: EngineOptions, log: Path) -> None:
        self.options = options
        self.log = log
        (self.port,) = free_ports(1)
        self.events_port = free_run(2 * options.ranks)
        self.replay_port = self.events_port + options.ranks  # clear of the ranks' event ports
        self.url = f"http://127.0.0.1:{self.port}"
        self.events_endpoint = f"tcp://127.0.0.1:{self.events_port}"
        self.replay_endpoint = f"tcp://127.0.0.1:{self.replay_port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def authority(self) -> str:
        """`host:port`, the engine's name."""
        return f"127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """The command line that starts it."""
        options = self.options
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self.events_port}",  # without the asterisk vLLM connects instead of binding
            "replay_endpoint": self.replay_endpoint,
            "topic": options.topic,
        }
        return [
            *(str(vllm_environment() / "bin" / "vllm"), "serve", str(options.model)),
            *("--served-model-name", options.served_name),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--dtype", "float32", "--enforce-eager"),  # bfloat16 dies of short first requests on some processors
            *("--max-model-len", str(options.max_model_len)),
            *("--max-num-seqs", str(options.max_num_seqs), "--max-num-batched-tokens", "2048"),
            *("--block-size", str(options.block_size), "--num-gpu-blocks-override", str(options.blocks)),
            *("--enable-prefix-caching", "--enable-prompt-tokens-details"),
            *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
            *("--kv-events-config", json.dumps(events)),
            *(("--data-parallel-size", str(options.ranks), "--api-server-count", "1") if options.ranks > 1 else ()),
            *options.arguments,
        ]

    def environment(self) -> dict[str, str]:
        """The environment it runs in: one thread, no network, development endpoints."""
        return {
            **os.environ,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "0" if self.options.byte_hashes else "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "RAYON_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            **self.options.environment,
        }

    def spawn(self) -> None:
        """Start its processes; call it from the main thread only (the kernel ends it with the thread that did)."""
        if self._process is not None:
            raise EngineFailedError(f"{self.url} is running already")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_owner,  # noqa: PLW1509  (one system call, no lock: safe beside threads)
            )
        atexit.register(self.kill)

    def wait_ready(self, deadline_s: float = READY_DEADLINE_S) -> None:
        """Return when /health answers 200. Raises EngineFailedError if it ends or is not healthy in time."""
        deadline = time.monotonic() + deadline_s
        while not self.is_healthy():
            if self._process is None or self._process.poll() is not None:
                raise EngineFailedError(f"{self.url} ended while starting:\n{self.log_end()}")
            if time.monotonic() > deadline:
                raise EngineFailedError(f"{self.url} is not healthy after {deadline_s} s:\n{self.log_end()}")
            time.sleep(0.1)

    def is_healthy(self) -> bool:
        """Whether /health answers 200 now."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self, grace_s: float = 20.0) -> None:
        """End it in order: SIGINT to the server, which ends its children; what is left after `grace_s` is killed."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        self.kill()

    def kill(self) -> None:
        """kill -9 for the whole process group, and wait until it is gone. Safe to call at any time."""
        process, self._process = self._process, None
        atexit.unregister(self.kill)
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 10
        while _group_exists(process.pid) and time.monotonic() < deadline:
            time.sleep(0.01)

    def log_end(self, lines: int = 30) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def __repr__(self) -> str:
        return f"VllmEngine({self.url}, log={self.log})"


@contextlib.contextmanager
def running(engines: Sequence[VllmEngine]) -> Iterator[Sequence[VllmEngine]]:
    """Start all of them at once, wait until all are ready, stop them in the end whatever happens."""
    try:
        for engine in engines:
            engine.spawn()
        for engine in engines:
            engine.wait_ready()
        yield engines
    finally:
        for engine in engines:
            engine.kill()


def _end_with_owner() -> None:
    """In the child, before it becomes vLLM: have the kernel send SIGTERM when the owner ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 = PR_SET_PDEATHSIG


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=128)
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("model", nargs="*", help="arguments for make_model.py")
    arguments = parser.parse_args()
    options = EngineOptions(model=make_model(*arguments.model), blocks=arguments.blocks)
    engines = [VllmEngine(options, arguments.logs / f"vllm-engine-{i}.log") for i in range(arguments.count)]
    with running(engines), contextlib.suppress(KeyboardInterrupt):
        for engine in engines:
            print(f"{engine.url} events {engine.events_endpoint} replay {engine.replay_endpoint}", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
