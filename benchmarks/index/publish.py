"""Writes the tables of docs/index.md from what `run.py` has stored.

    python benchmarks/index/publish.py

Each table is found by its first line, and only the figures in it change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "index.md"
RESULTS = ROOT / "benchmarks" / "results" / "index.json"

BESIDE = "| what | ours | ai-dynamo-runtime | theirs / ours |"
ROWS = (
    ("hash 8,192 tokens, list to list, us", "hash", "8192 tokens, list to list", "cpu_us"),
    ("hash 8,192 tokens, buffer to array, us", "hash", "8192 tokens, buffer to array", "cpu_us"),
    ("hash 32,768 tokens, buffer to array, us", "hash", "32768 tokens, buffer to array", "cpu_us"),
    ("ingest, 128 blocks an event, ns a block", "ingest", "128 blocks an event", "cpu_ns_per_block"),
    ("of it decoding and digests", "ingest", "128 blocks an event, of it decoding", ""),
    ("ingest, 16 blocks an event, ns a block", "ingest", "16 blocks an event", "cpu_ns_per_block"),
    ("of it decoding and digests", "ingest", "16 blocks an event, of it decoding", ""),
    ("the same, 64 workers that hold the same", "ingest", "16 blocks an event, the same at 64 workers", ""),
    ("ingest, 1 block an event, ns", "ingest", "1 blocks an event", "cpu_ns_per_block"),
    ("of it decoding and digests", "ingest", "1 blocks an event, of it decoding", ""),
    (
        "ingest, 1 block an event, 80 events a message, ns",
        "ingest",
        "1 block an event, 80 events a message, vllm-0.32",
        "",
    ),
    ("removal, 16 blocks an event, ns a block", "ingest", "removal, 16 blocks an event", ""),
    ("match 512 blocks, 1 worker, us", "match", "1 workers, all hold all", "cpu_us"),
    ("match 512 blocks, 64 workers, us", "match", "64 workers, all hold all", "cpu_us"),
    ("match 512 blocks, 1,000 workers, us", "match", "1000 workers, all hold all", "cpu_us"),
    ("the same as a dict, us", "match", "1000 workers, all hold all, as a dict", "cpu_us"),
    ("cold match in 4.2 M blocks, p50, wall us", "cold", "in 4.2 M blocks", "p50_us"),
    ("the same, p99", "cold", "in 4.2 M blocks", "p99_us"),
    ("bytes per (block, worker), distinct", "memory", "distinct", "bytes_per_entry"),
    ("the same, held by 8", "memory", "the same at 8 workers", "bytes_per_entry"),
    ("the same, held by 64", "memory", "the same at 64 workers", "bytes_per_entry"),
    ("held by 8 that call it by other hashes", "memory", "the same at 8 workers, other hashes", "bytes_per_entry"),
    ("held by 64 that call it by other hashes", "memory", "the same at 64 workers, other hashes", "bytes_per_entry"),
    ("replay of conversations: find, us", "replay", "equal hashes", "find_cpu_us"),
    ("wrong scores there, engines with other hashes, %", "replay", "other hashes", "scores_wrong_percent"),
)
"""Label, group, case, metric; no metric: ns of CPU a block."""

SOCKET = (
    "| an engine's messages | gateway, CPU us a message | bare, CPU us a message | gateway, blocks per CPU second |"
)
MESSAGES = (
    "1 block an event, 1 event a message",
    "1 block an event, 16 events a message",
    "1 block an event, 128 events a message",
    "16 blocks an event, 1 event a message",
    "128 blocks an event, 1 event a message",
)


def figure(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def beside(groups: dict[str, Any]) -> Iterator[str]:
    for label, group, case, metric in ROWS:
        metrics = groups[group][case]
        values = metrics[metric or "cpu_ns_per_block"]
        ours, theirs = values["warmroute"], values.get("dynamo")
        refused = metrics.get("events_refused", {}).get("dynamo", 0)
        if group == "memory" and refused:
            yield f"| {label} | {figure(ours)} | (refuses {refused:,.0f} events) | |"
        elif theirs is None or not ours:
            yield f"| {label} | {figure(ours)} | {'' if theirs is None else figure(theirs)} | |"
        else:
            yield f"| {label} | {figure(ours)} | {figure(theirs)} | {theirs / ours:.1f} |"


def socket(groups: dict[str, Any]) -> Iterator[str]:
    for case in MESSAGES:
        gateway, bare = (groups["end_to_end"][f"{what}: {case}"] for what in ("gateway", "bare"))
        message = [each["cpu_us_per_message"]["warmroute"] for each in (gateway, bare)]
        blocks = round(1e9 / gateway["cpu_ns_per_block"]["warmroute"], -3)
        yield f"| {case} | {figure(message[0])} | {figure(message[1])} | {blocks:,.0f} |"


def replaced(page: str, head: str, rows: Iterator[str]) -> str:
    before, after = page.split(head + "\n")
    rule, *rest = after.splitlines(keepends=True)
    left = next(i for i, line in enumerate(rest) if not line.startswith("|"))
    return "".join([before, head, "\n", rule, *(f"{row}\n" for row in rows), *rest[left:]])


def main() -> None:
    groups = json.loads(RESULTS.read_text())["groups"]
    page = replaced(PAGE.read_text(), BESIDE, beside(groups))
    page = replaced(page, SOCKET, socket(groups))
    PAGE.write_text(page)
    queries = [
        metrics["query_p99_us"]["warmroute"]
        for case, metrics in groups["end_to_end"].items()
        if "query_p99_us" in metrics
    ]
    print(f"queries beside events: {max(queries):.0f} us at most at the 99th percentile")


if __name__ == "__main__":
    main()
