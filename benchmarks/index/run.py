"""The index beside a peer's: every group of measurements, each in fresh processes, both implementations in turn.

    python benchmarks/index/run.py [--rounds 3] [--group NAME ...] [--trace FILE] [--out FILE.json]

`scripts/peers/install_index.sh` installs the peer; without it only ours is measured. The trace of the group `replay`
is the Mooncake conversation trace (`hash_ids` a request); it is not part of this repository. Figures are CPU time
unless they say wall or p50/p99; the medians of the rounds are shown, and stored with machine and date.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from groups import MEMORY
from subjects import SUBJECTS

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("WARMROUTE_CACHE", Path.home() / ".cache/warmroute"))
GROUPS = ("hash", "ingest", "match", "cold", "memory", "replay", "end_to_end")

Found = dict[tuple[str, str, str], dict[str, list[float]]]
"""(group, case, metric) -> subject -> a value for each round."""


def interpreters() -> dict[str, str]:
    """Each implementation with the Python that has it."""
    found = {"warmroute": sys.executable}
    peer = CACHE / "peers-index" / "bin" / "python"
    if peer.exists():
        found["dynamo"] = str(peer)
    else:
        print("no peer: scripts/peers/install_index.sh installs it", file=sys.stderr)
    return found


def commands(group: str, trace: Path | None) -> Iterator[list[str]]:
    """What to run for a group of one implementation, without the interpreter; `SUBJECT` stands for its name."""
    script = [str(HERE / "groups.py"), "SUBJECT", group]
    if group == "memory":
        yield from ([*script, case] for case in MEMORY)
    elif group == "replay":
        if trace is None:
            print("no trace: the group `replay` is left out", file=sys.stderr)
        else:
            yield from ([*script, str(trace), case] for case in ("equal hashes", "other hashes"))
    else:
        yield script


def measure(group: str, trace: Path | None, found: Found) -> None:
    pythons = interpreters()
    if group == "end_to_end":
        runs = [("warmroute", [str(HERE / "end_to_end.py")])]
    else:
        runs = [(subject, command) for command in commands(group, trace) for subject in pythons]
    for subject, command in runs:
        words = [subject if word == "SUBJECT" else word for word in command]
        print(" ", subject, *words[2:], file=sys.stderr)
        quiet = os.environ | {"DYN_LOG": "off"}  # the peer's log of what it refuses is no part of its work
        out = subprocess.run(
            [pythons[subject], *words], env=quiet, stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        for line in map(json.loads, out.splitlines()):
            found[group, line["case"], line["metric"]][subject].append(line["value"])


def machine(pythons: dict[str, str]) -> dict[str, Any]:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    print_version = "import sys, subjects; print(subjects.SUBJECTS[sys.argv[1]].version())"
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": models[0].split(": ")[1] if models else platform.processor(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {
            name: subprocess.run(
                [python, "-c", print_version, name], cwd=HERE, stdout=subprocess.PIPE, text=True, check=True
            ).stdout.strip()
            for name, python in pythons.items()
        },
    }


def table(found: dict[str, dict[str, dict[str, dict[str, float]]]]) -> str:
    """Ours, the peer's, and how many times less ours is."""
    lines = [f"{'':10} {'case':52} {'metric':22} {'warmroute':>12} {'dynamo':>12} {'ratio':>7}"]
    for group, cases in found.items():
        for case, metrics in cases.items():
            for metric, values in metrics.items():
                ours, peers = values.get("warmroute"), values.get("dynamo")
                columns = [f"{'' if value is None else f'{value:,.2f}':>12}" for value in (ours, peers)]
                ratio = f"{peers / ours:.2f}" if ours and peers is not None else ""
                lines.append(f"{group:10} {case:52} {metric:22} {' '.join(columns)} {ratio:>7}")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--group", action="append", choices=GROUPS)
    options.add_argument("--trace", type=Path)
    options.add_argument("--out", type=Path, default=HERE.parent / "results" / "index.json")
    chosen = options.parse_args()
    about = machine({name: python for name, python in interpreters().items() if name in SUBJECTS})
    found: Found = defaultdict(lambda: defaultdict(list))
    for number in range(chosen.rounds):
        for group in chosen.group or GROUPS:
            print(f"round {number + 1} of {chosen.rounds}: {group}", file=sys.stderr)
            measure(group, chosen.trace, found)
    medians: dict[str, dict[str, dict[str, dict[str, float]]]] = defaultdict(lambda: defaultdict(dict))
    for (group, case, metric), subjects in found.items():
        medians[group][case][metric] = {name: round(statistics.median(values), 3) for name, values in subjects.items()}
    print(table(medians))
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps({"machine": about, "rounds": chosen.rounds, "groups": medians}, indent=1) + "\n")


if __name__ == "__main__":
    main()
