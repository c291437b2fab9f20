"""Every policy against every other on simulated clusters: the published table.

    .venv/bin/python benchmarks/routing/run.py [--engines 4,16,64,256] [--trace FILE] [--jobs 2]

A cell is a workload on so many engines, asked 20,000 requests or more: on few engines in five runs (`mixed` and
`bursts` on more of them in two), with seeds that no default was chosen by, whose times to first token are taken
together. For each it is told how far Warmroute's policy is from the best of all others in that cell, mean and 99th
percentile of the time to first token: a ratio of 0.90 is 10 % better, and the best other policy may be another in each
cell. Results go to benchmarks/results/routing.json as they come; what is there already for the same cell is not run
again unless `--fresh` is given. `--ablation` runs ours with one term left out at a time. `--floor` says what no policy
could be below in each cell (`floor.py`), `--tipping` how often caches on the brink tip over under each policy
(`tipping.py`), `--unseen` is the table of workloads of another kind (`unseen.py`). `--publish` writes what it prints
into docs/routing-results.md too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import mean

import tipping
from floor import floor_s
from unseen import UNSEEN

from warmroute.app.simulation.cluster import Cluster
from warmroute.app.simulation.profiles import parse_profile
from warmroute.app.simulation.results import Results, quantile
from warmroute.app.simulation.scenario import Scenario, rate_for
from warmroute.app.simulation.trace import Trace
from warmroute.app.simulation.workloads import WORKLOADS
from warmroute.config.ranges import POLICIES
from warmroute.config.tree import RoutingConfig

RESULTS = Path(__file__).parent.parent / "results" / "routing.json"
PUBLISHED = Path(__file__).parent.parent.parent / "docs" / "routing-results.md"
PROFILE, SLOWER = "qwen3-32b@h100x2", "qwen3-32b@a100x2"
BLOCK_SIZE, UTILISATION, REQUESTS_PER_ENGINE, REQUESTS_MIN = 128, 0.7, 300, 4000
FEW_ENGINES, SEEDS = 16, (51, 52, 53, 54, 55)
"""On so many engines or fewer one run has too few requests for a 99th percentile. A trace has no seeds: it goes on."""
RARE, RARE_SEEDS = ("mixed", "bursts"), (51, 52)
"""One request in a hundred finds its long document cold there, or is of the longest burst: on that edge a 99th
percentile is chance in one run."""
OURS, FLOOR = "warmroute", "floor"
ABLATIONS = {
    "without others": {"others_weight": 0.0},
    "without generations": {"decode_weight": 0.0},
    "without evictions": {"eviction_weight": 0.0},
    "without memory": {"memory_weight": 0.0},
    "without replication": {"replication_weight": 0.0},
}


def scenarios(workload: str, engines: int, routing: RoutingConfig, trace: str | None) -> list[Scenario]:
    one = scenario(workload, engines, routing, trace)
    if engines > FEW_ENGINES:
        return [replace(one, seed=seed) for seed in RARE_SEEDS] if workload in RARE else [one]
    if workload == "trace":
        return [replace(one, requests=len(SEEDS) * one.requests)]
    return [replace(one, seed=seed) for seed in SEEDS]


def scenario(workload: str, engines: int, routing: RoutingConfig, trace: str | None) -> Scenario:
    fleet = [parse_profile(PROFILE)] * engines
    if workload == "unlike engines":
        fleet = [parse_profile(SLOWER if n % 2 == 0 else PROFILE) for n in range(engines)]
    known = {**WORKLOADS, **UNSEEN, "unlike engines": WORKLOADS["chat"]}
    made = Trace(Path(trace)) if workload == "trace" and trace else known[workload]
    return Scenario(
        workload=made,
        engines=fleet,
        requests=max(REQUESTS_MIN, REQUESTS_PER_ENGINE * engines),
        requests_per_s=rate_for(UTILISATION, made, fleet, BLOCK_SIZE),
        routing=routing,
        block_size=BLOCK_SIZE,
    )


def run(job: tuple[str, int, str, str | None]) -> dict[str, object]:
    workload, engines, policy, trace = job
    if policy == FLOOR:
        floors = [floor_s(each) for each in scenarios(workload, engines, RoutingConfig(), trace)]
        return {"policy": FLOOR, "ttft_mean_s": mean(floors)}
    routing = RoutingConfig(**ABLATIONS[policy]) if policy in ABLATIONS else RoutingConfig(policy=policy)
    return together([Cluster(each).run() for each in scenarios(workload, engines, routing, trace)]) | {"policy": policy}


def together(runs: list[Results]) -> dict[str, object]:
    """Times to first token of all runs as if they were one's; of other figures the mean."""
    each = [run.summary().as_dict() for run in runs]
    if len(runs) == 1:
        return each[0]
    ttft = sorted(chain.from_iterable(run.ttft_s() for run in runs))
    shares = {f"ttft_p{percent}_s": quantile(ttft, percent / 100) for percent in (50, 90, 99)}
    means = {name: mean(figures[name] for figures in each) for name in each[0] if name != "policy"}
    return means | shares | {"ttft_mean_s": mean(ttft), "requests": len(ttft), "runs": len(runs)}


def cells(arguments: argparse.Namespace) -> Iterator[tuple[str, int]]:
    workloads = [*WORKLOADS, "unlike engines", *(["trace"] if arguments.trace else [])]
    workloads = list(UNSEEN) if arguments.unseen else workloads
    for engines in arguments.engines:
        for workload in workloads:
            yield workload, engines


def key(workload: str, engines: int, policy: str) -> str:
    return f"{workload}/{engines}/{policy}"


def table(found: dict[str, dict[str, float]], which: list[tuple[str, int]]) -> str:
    head = f"{'workload':15} {'engines':>7} {'mean s':>8} {'p99 s':>8} {'hits':>6} {'spread':>6} {'mean':>6} {'p99':>6}"
    lines = [f"{head}  best other by mean, by p99"]
    better = worse = 0
    absent: list[str] = []
    others = [policy for policy in POLICIES if policy != OURS]
    for workload, engines in which:
        ours = found[key(workload, engines, OURS)]
        ran = {policy: found[cell] for policy in others if (cell := key(workload, engines, policy)) in found}
        absent += [key(workload, engines, policy) for policy in others if policy not in ran]
        best = {
            figure: min(ran, key=lambda policy, figure=figure, ran=ran: ran[policy][figure])
            for figure in ("ttft_mean_s", "ttft_p99_s")
        }
        by_mean, by_p99 = (
            ours[figure] / found[key(workload, engines, policy)][figure] for figure, policy in best.items()
        )
        better += by_mean <= 0.9
        worse += by_mean > 1.02 or by_p99 > 1.02
        lines.append(
            f"{workload:15} {engines:>7} {ours['ttft_mean_s']:>8.3f} {ours['ttft_p99_s']:>8.3f} "
            f"{ours['hit_rate']:>6.3f} {ours['load_spread']:>6.2f} {by_mean:>6.2f} {by_p99:>6.2f}  "
            + ", ".join(best.values())
        )
    lines.append(f"{len(which)} cells: mean at least 10 % better in {better}, mean or p99 over 2 % worse in {worse}")
    for policy in others:
        both = [(w, n) for w, n in which if key(w, n, policy) in found]
        ratios = [found[key(w, n, OURS)]["ttft_mean_s"] / found[key(w, n, policy)]["ttft_mean_s"] for w, n in both]
        lines.append(f"against {policy:16} alone: mean TTFT {min(ratios):.2f} to {max(ratios):.2f} of its")
    if absent:
        lines.append(f"not run: {', '.join(absent)}")
    return "\n".join(lines)


def ablation(found: dict[str, dict[str, float]], which: list[tuple[str, int]]) -> str:
    lines = [f"{'workload':15} {'engines':>7}" + "".join(f"{name.removeprefix('without '):>13}" for name in ABLATIONS)]
    for w, n in which:
        ours = found[key(w, n, OURS)]["ttft_mean_s"]
        ratios = (found[key(w, n, name)]["ttft_mean_s"] / ours for name in ABLATIONS)
        lines.append(f"{w:15} {n:>7}" + "".join(f"{ratio:>13.2f}" for ratio in ratios))
    return "mean TTFT without a term, relative to all terms:\n" + "\n".join(lines)


def floors(found: dict[str, dict[str, float]], which: list[tuple[str, int]]) -> str:
    lines = [f"{'workload':15} {'engines':>7} {'floor s':>8} {'floor':>6} {'ours':>6}"]
    near = 0
    for w, n in which:
        best = min(found[cell]["ttft_mean_s"] for p in POLICIES if p != OURS and (cell := key(w, n, p)) in found)
        floor, ours = (found[key(w, n, policy)]["ttft_mean_s"] for policy in (FLOOR, OURS))
        near += floor > 0.9 * best
        lines.append(f"{w:15} {n:>7} {floor:>8.3f} {floor / best:>6.2f} {ours / best:>6.2f}")
    lines.append(f"{len(which)} cells: in {near} the best other policy is less than 10 % above the floor")
    return "mean TTFT relative to the best other policy:\n" + "\n".join(lines)


def publish(title: str, text: str) -> None:
    """Put it into the page as the section of this title, in the place of what stood there."""
    head, *sections = PUBLISHED.read_text().split("\n## ")
    kept = [section for section in sections if not section.startswith(f"{title}\n")]
    kept.append(f"{title}\n\n```\n{text}\n```\n")
    PUBLISHED.write_text("\n## ".join([head, *(f"{section.rstrip()}\n" for section in sorted(kept))]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=lambda text: [int(n) for n in text.split(",")], default=[4, 16, 64, 256])
    parser.add_argument("--trace", help="a trace in Mooncake's format, as one workload more")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="run everything again")
    parser.add_argument("--ours", action="store_true", help="run ours again, the others only where they are missing")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--floor", action="store_true", help="run nothing but what no policy could be below")
    parser.add_argument("--tipping", action="store_true", help="run nothing but `agents` on 4 engines, fifty times")
    parser.add_argument("--unseen", action="store_true", help="the workloads of unseen.py instead")
    parser.add_argument("--as-is", action="store_true", help="run nothing: only what has been run already")
    parser.add_argument("--publish", action="store_true", help="write the table into docs/routing-results.md")
    arguments = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() and not arguments.fresh else {}
    if arguments.tipping:
        if not arguments.as_is:
            brink = {policy: scenario("agents", 4, RoutingConfig(policy=policy), None) for policy in POLICIES}
            found["tipping"] = tipping.tipping(brink, arguments.jobs)
            RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        show("How often caches on the brink tip over", tipping.table(found["tipping"]), arguments)
        return
    policies = [FLOOR] if arguments.floor else [OURS, *ABLATIONS] if arguments.ablation else POLICIES
    which = list(cells(arguments))
    jobs = [(workload, engines, policy, arguments.trace) for workload, engines in which for policy in policies]
    again = {OURS, *ABLATIONS} if arguments.ours else set()
    jobs = [job for job in jobs if key(*job[:3]) not in found or job[2] in again]
    jobs = [] if arguments.as_is else jobs
    RESULTS.parent.mkdir(exist_ok=True)
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for n, (job, figures) in enumerate(zip(jobs, pool.map(run, jobs), strict=True), 1):
            found[key(*job[:3])] = figures
            RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
            print(f"{n}/{len(jobs)} {job[0]} on {job[1]}, {job[2]}: {figures['ttft_mean_s']:.3f} s", flush=True)
    title, write = "Workloads of another kind" if arguments.unseen else "Cells", table
    if arguments.floor:
        title, write = "What nobody can be below", floors
    elif arguments.ablation:
        title, write = "What each term is worth", ablation
    show(title, write(found, which), arguments)


def show(title: str, text: str, arguments: argparse.Namespace) -> None:
    print(text)
    if arguments.publish:
        publish(title, text)


if __name__ == "__main__":
    main()
