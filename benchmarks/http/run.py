"""What the data plane costs: CPU per request and per streamed event, and the time it adds, against its peers.

    python benchmarks/http/run.py [--reps 3] [--out FILE.json] [--target 'NAME|PORT|COMMAND' ...]

Two C engines (mock.c) and a C load generator (oload.c) are built and started on the loopback. `bare` is our data path
without routing, `round_robin` and `warmroute` the whole gateway with that policy (without token ids: the engines know
no /tokenize), `warmroute_x2` two processes of it. The peers run beside them where scripts/peers/install_http.sh has
installed them; each further target is a gateway in front of 127.0.0.1:18001 and :18002. CPU comes from /proc, for the
target's whole process tree: trust it over wall figures, since generator, engines and target share the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measuring import TICKS_PER_S, build, cpu_s, load, running, wait_ready

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from machine import machine  # noqa: E402

ENGINES = (18001, 18002)
URLS = tuple(f"http://127.0.0.1:{port}" for port in ENGINES)
Target = tuple[int, list[str]]
"""Port and command of a gateway."""
TWO = "warmroute_x2"
"""`--processes 2`: its CPU is that of both processes and of their control process."""
SCENARIOS = {
    # connections, seconds, mode, events per stream, gap in us, path, variants, body bytes
    "json, 4 KiB, c=1": (1, 1.2, "json"),
    "json, 4 KiB, c=32": (32, 2, "json"),
    "json, 128 KiB, c=8": (8, 1.5, "json", 64, 0, "/v1/chat/completions", 32, 131072),
    "stream, 8 events 5 ms apart, c=1": (1, 0.4, "sse", 8, 5000),
    "stream, 64 events 5 ms apart, c=32": (32, 1.6, "sse", 64, 5000),
    "stream, 64 events at once, c=16": (16, 1.5, "sse", 64, 0),
}


def measure(tools: Path, port: int, pid: int) -> dict[str, dict[str, float]]:
    """One round of all scenarios; `added_us` is to the answer, or to a stream's first event."""
    load(tools, port, 8, 0.5, "json")
    direct = load(tools, ENGINES[0], 1, 0.4, "json")["p50_us"]
    direct_stream = load(tools, ENGINES[0], 1, 0.35, "sse", 8, 5000)["ttft_p50_us"]
    found = {}
    for name, scenario in SCENARIOS.items():
        before = cpu_s(pid)
        got = load(tools, port, *scenario)
        used = max(cpu_s(pid) - before, 1 / TICKS_PER_S)
        if got["errs"] or got["non200"]:
            raise SystemExit(f"{name}: {got['errs']} errors, {got['non200']} answers other than 200")
        found[name] = {
            "requests_per_s": got["rps"],
            "requests_per_cpu_s": got["reqs"] / used,
            "p50_us": got["p50_us"],
            "p99_us": got["p99_us"],
        }
        if scenario[2] == "sse":
            found[name] |= {"events_per_cpu_s": got["events"] / used, "ttft_p50_us": got["ttft_p50_us"]}
        if scenario[0] == 1:
            alone, first = (direct, "p50_us") if scenario[2] == "json" else (direct_stream, "ttft_p50_us")
            found[name]["added_us"] = got[first] - alone
    return found


def medians(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {key: round(statistics.median(each[name][key] for each in rounds), 1) for key in rounds[0][name]}
        for name in SCENARIOS
    }


def own_targets() -> dict[str, Target]:
    bare = [sys.executable, str(HERE / "bare.py"), "19400", *map(str, ENGINES)]
    serve = [sys.executable, "-m", "warmroute", "serve", "--log.level", "error", "--events.enabled", "false"]
    serve += ["--tokenizer.mode", "off", *(word for url in URLS for word in ("--engine", url))]
    policies = {name: [*serve, "--routing.policy", name, "--gateway.port"] for name in ("round_robin", "warmroute")}
    return {"bare": (19400, bare), TWO: (19409, [*policies["warmroute"], "19409", "--processes", "2"])} | {
        name: (19401 + n, [*command, str(19401 + n)]) for n, (name, command) in enumerate(policies.items())
    }


def peer_targets() -> dict[str, Target]:
    cache = Path(os.environ.get("WARMROUTE_CACHE", Path.home() / ".cache/warmroute"))
    programs = cache / "peers-http" / "bin"
    if not (programs / "vllm-router").exists():
        print("no peers: scripts/peers/install_http.sh installs them", file=sys.stderr)
        return {}
    router = [str(programs / "vllm-router"), "--host", "127.0.0.1", "--log-level", "warning", "--worker-urls", *URLS]
    smg = [str(programs / "smg"), "launch", "--host", "127.0.0.1", "--log-level", "warn", "--worker-urls", *URLS]
    smg += ["--prometheus-host", "127.0.0.1", "--disable-tokenizer-autoload"]

    def at(port: int, command: list[str], policy: str) -> Target:
        return port, [*command, "--port", str(port), "--policy", policy, "--prometheus-port", str(port + 1000)]

    return {
        "vllm-router round_robin": at(19403, [*router, "--worker-startup-check-interval", "1"], "round_robin"),
        "smg round_robin": at(19404, smg, "round_robin"),
        "smg cache_aware": at(19405, smg, "cache_aware"),
    }


def scaling(targets: dict[str, dict[str, dict[str, float]]]) -> str:
    """What two processes on two cores do against one on one, by CPU per request: 2 if being two costs nothing."""
    lines = []
    for scenario, one in targets["warmroute"].items():
        key = "events_per_cpu_s" if scenario.startswith("stream") else "requests_per_cpu_s"
        lines.append(f"{TWO:24} {scenario:36} {2 * targets[TWO][scenario][key] / one[key]:5.2f} x one process")
    return "\n".join(lines)


def ratios(targets: dict[str, dict[str, dict[str, float]]]) -> str:
    """Requests and events per CPU second of each target, beside those of each peer."""
    lines = []
    peers = [name for name in targets if " " in name]
    for name in targets:
        for scenario in SCENARIOS:
            key = "events_per_cpu_s" if scenario.startswith("stream") else "requests_per_cpu_s"
            got = targets[name][scenario][key]
            beside = ", ".join(f"{got / targets[peer][scenario][key]:.2f} x {peer}" for peer in peers if peer != name)
            lines.append(f"{name:24} {scenario:36} {got:12,.0f} {key}  {beside if name not in peers else ''}")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--reps", type=int, default=3)
    options.add_argument("--out", type=Path, default=HERE.parent / "results" / "http.json")
    options.add_argument("--target", action="append", default=[])
    chosen = options.parse_args()
    targets = own_targets() | peer_targets()
    for target in chosen.target:
        name, port, command = target.split("|", 2)
        targets[name] = (int(port), ["bash", "-c", f"exec {command}"])
    about = machine(uvloop=version("uvloop"), httptools=version("httptools"))
    result: dict[str, Any] = {"machine": about, "repetitions": chosen.reps}
    with tempfile.TemporaryDirectory() as folder:
        tools = build(Path(folder), "mock", "oload")
        with ExitStack() as stack:
            for port in ENGINES:
                stack.enter_context(running([str(tools / "mock"), str(port)]))
            pids = {name: stack.enter_context(running(command)).pid for name, (_, command) in targets.items()}
            rounds: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in targets}
            for port, _ in targets.values():
                wait_ready(port)
                load(tools, port, 8, 1.0, "json")
            for _ in range(chosen.reps):  # in turn, so that what else the machine does falls on all alike
                for name, (port, _) in targets.items():
                    rounds[name].append(measure(tools, port, pids[name]))
    result["targets"] = {name: medians(found) for name, found in rounds.items()}
    print(ratios(result["targets"]))
    print(scaling(result["targets"]))
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")


main()
