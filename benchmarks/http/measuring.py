"""What the benchmarks of the data plane share: C tools, processes that end with them, and what /proc says of one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def build(folder: Path, *tools: str) -> Path:
    """Compile these C programs into `folder`."""
    for tool in tools:
        subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", folder / tool, HERE / f"{tool}.c"], check=True)
    return folder


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [int(each.getsockname()[1]) for each in sockets]


def fields(pid: int) -> list[str]:
    text = Path(f"/proc/{pid}/stat").read_text()
    return text[text.rindex(")") + 2 :].split()


def cpu_s(root: int) -> float:
    """CPU seconds of a process and all below it, ended children of the root included."""
    children: dict[int, list[int]] = {}
    times: dict[int, list[int]] = {}
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        try:
            stat = fields(pid)
        except OSError:
            continue
        children.setdefault(int(stat[1]), []).append(pid)
        times[pid] = [int(ticks) for ticks in stat[11:15]]
    tree, ticks = [root], sum(times[root][2:])
    for pid in tree:
        tree += children.get(pid, [])
        ticks += sum(times[pid][:2])
    return ticks / TICKS_PER_S


@contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options) as process:
        try:
            yield process
        finally:
            process.terminate()


def wait_ready(port: int) -> None:
    body = b'{"model":"mock-model","messages":[{"role":"user","content":"hi"}],"user":"c4g0"}'
    headers = {"content-type": "application/json", "authorization": "Bearer sk-test"}
    deadline = time.monotonic() + 60
    while True:
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body, headers)
            urllib.request.urlopen(request, timeout=5).read()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def load(tools: Path, port: int, *scenario: Any) -> dict[str, Any]:
    out = subprocess.run([tools / "oload", str(port), *map(str, scenario)], capture_output=True, check=True, timeout=90)
    return dict(json.loads(out.stdout))


def resident_mib(root: int) -> float:
    """Memory of a process and all below it, what they share divided among them."""
    return sum(_proportional_kib(pid) for pid in tree(root)) / 1024


def _proportional_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def tree(root: int) -> list[int]:
    """A process and all below it."""
    found = [root]
    for pid in found:
        children = Path(f"/proc/{pid}/task/{pid}/children")
        found += map(int, children.read_text().split()) if children.exists() else []
    return found
