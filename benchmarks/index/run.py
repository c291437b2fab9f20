"""The index beside a peer's: every group of measurements, each in fresh processes, both implementations in turn.

    python benchmarks/index/run.py [--rounds 3] [--group NAME ...] [--trace FILE] [--out FILE.json]

`scripts/peers/install_index.sh` installs the peer; without it only ours is measured. The trace of the group `replay`
is the Mooncake conversation trace (`hash_ids` a request); it is not part of this repository. Figures are CPU time
unless they say wall or p50/p99; the medians of the rounds are shown, and stored with machine and date. Less is better,
whatever the metric. `TARGETS` is what ours must not exceed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from groups import MEMORY
from subjects import SUBJECTS

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from machine import machine  # noqa: E402

CACHE = Path(os.environ.get("WARMROUTE_CACHE", Path.home() / ".cache/warmroute"))
GROUPS = ("hash", "ingest", "match", "cold", "memory", "replay", "end_to_end")

TARGETS: dict[tuple[str, str, str], float] = {
    ("ingest", "128 blocks an event", "cpu_ns_per_block"): 80,
    ("ingest", "16 blocks an event", "cpu_ns_per_block"): 150,
    ("ingest", "1 blocks an event", "cpu_ns_per_block"): 1000,
    ("match", "1 workers, all hold all", "cpu_us"): 2,
    ("match", "64 workers, all hold all", "cpu_us"): 3,
    ("match", "1000 workers, all hold all", "cpu_us"): 15,
    ("cold", "in 4.2 M blocks", "p99_us"): 10,
    ("memory", "distinct", "bytes_per_entry"): 40,
    ("memory", "the same at 8 workers", "bytes_per_entry"): 20,
    ("memory", "the same at 64 workers", "bytes_per_entry"): 12,
    ("memory", "distinct, other hashes", "bytes_per_entry"): 48,
    ("memory", "the same at 8 workers, other hashes", "bytes_per_entry"): 32,
    ("replay", "equal hashes", "scores_wrong_percent"): 0,
    ("replay", "other hashes", "scores_wrong_percent"): 0,
    ("end_to_end", "gateway: 1 block an event, 128 events a message", "cpu_ns_per_block"): 1e9 / 600_000,
    ("end_to_end", "gateway: 1 block an event, 128 events a message", "wall_ns_per_block"): 1e9 / 600_000,
    ("end_to_end", "gateway: 1 block an event, 128 events a message", "query_p99_us"): 1000,
}
RATIO_TARGETS: dict[tuple[str, str, str], float] = {
    ("hash", "8192 tokens, buffer to array", "cpu_us"): 8,
    ("hash", "32768 tokens, buffer to array", "cpu_us"): 8,
    ("hash", "8192 tokens, list to list", "cpu_us"): 2.5,
    ("hash", "32768 tokens, list to list", "cpu_us"): 2.5,
}
"""How many times the peer must need what ours does."""

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


def versions() -> dict[str, str]:
    """What each implementation calls itself."""
    show = "import sys, subjects; print(subjects.SUBJECTS[sys.argv[1]].version())"
    return {
        name: subprocess.run(
            [python, "-c", show, name], cwd=HERE, stdout=subprocess.PIPE, text=True, check=True
        ).stdout.strip()
        for name, python in interpreters().items()
        if name in SUBJECTS
    }


def table(found: dict[str, dict[str, dict[str, dict[str, float]]]]) -> str:
    """Ours, the peer's, how many times less ours is, what was aimed at and whether it was reached."""
    lines = [f"{'':10} {'case':52} {'metric':26} {'warmroute':>11} {'dynamo':>11} {'ratio':>7} {'target':>8}"]
    for group, cases in found.items():
        for case, metrics in cases.items():
            for metric, values in metrics.items():
                ours, peers = values.get("warmroute"), values.get("dynamo")
                columns = [f"{'' if value is None else f'{value:,.2f}':>11}" for value in (ours, peers)]
                ratio = peers / ours if ours and peers is not None else None
                aim = target((group, case, metric), ours, ratio)
                shown = "" if ratio is None else f"{ratio:.2f}"
                lines.append(f"{group:10} {case:52} {metric:26} {' '.join(columns)} {shown:>7} {aim}".rstrip())
    return "\n".join(lines)


def target(what: tuple[str, str, str], ours: float | None, ratio: float | None) -> str:
    if what in TARGETS and ours is not None:
        return f"{TARGETS[what]:>8,.0f} {'met' if ours <= TARGETS[what] else 'MISSED'}"
    if what in RATIO_TARGETS and ratio is not None:
        return f"{RATIO_TARGETS[what]:>7}x {'met' if ratio >= RATIO_TARGETS[what] else 'MISSED'}"
    return ""


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--group", action="append", choices=GROUPS)
    options.add_argument("--trace", type=Path)
    options.add_argument("--out", type=Path, default=HERE.parent / "results" / "index.json")
    chosen = options.parse_args()
    about = machine(**versions())
    found: Found = defaultdict(lambda: defaultdict(list))
    for number in range(chosen.rounds):
        for group in chosen.group or GROUPS:
            print(f"round {number + 1} of {chosen.rounds}: {group}", file=sys.stderr)
            measure(group, chosen.trace, found)
    medians: dict[str, dict[str, dict[str, dict[str, float]]]] = defaultdict(lambda: defaultdict(dict))
    for (group, case, metric), subjects in found.items():
        medians[group][case][metric] = {name: round(statistics.median(values), 3) for name, values in subjects.items()}
    print(table(medians))
    about["load_after"] = round(os.getloadavg()[0], 2)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps({"machine": about, "rounds": chosen.rounds, "groups": medians}, indent=1) + "\n")


if __name__ == "__main__":
    main()
