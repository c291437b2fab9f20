"""Examine seeds of the simulation: `run.py --seed 17` tells one, `run.py --seeds 10000` runs many (`make sim`)."""

from __future__ import annotations

import argparse
import logging
import sys
import time

from warmroute.testing.simulation import Plan, examine, run, shrink


def main() -> int:
    logging.disable()  # of what a gateway would log there is plenty here
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="this one alone; its story is printed if it fails")
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first that fails")
    parser.add_argument("--story", action="store_true", help="with --seed: print what happened in any case")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        outcome = run(Plan.of(arguments.seed))
        if outcome.violation is not None:
            print(shrink(outcome))
            return 1
        if arguments.story:
            print("\n".join(outcome.story()))
        print(f"seed {arguments.seed} passes: {dict(outcome.counts)}")
        return 0
    return many(arguments)


def many(arguments: argparse.Namespace) -> int:
    began, last = time.process_time(), arguments.first + arguments.seeds
    seeds = iter(range(arguments.first, last))
    failed: list[int] = []

    def stop_at(outcome) -> None:
        if outcome.violation is not None:
            failed.append(outcome.plan.seed)
            kind = str(outcome.violation)[:100] if arguments.keep_going else ""
            print(f"seed {outcome.plan.seed} fails {kind}", flush=True)
            if not arguments.keep_going:
                print(shrink(outcome))
                list(seeds)

    examined = examine(seeds, stop_at)
    took = time.process_time() - began
    each_ms = took / examined.seeds * 1000
    print(f"{examined.seeds} seeds in {took:.0f} s of CPU ({each_ms:.1f} ms each), {len(failed)} failed")
    print(", ".join(f"{name} {n:,}" for name, n in examined.counts.most_common()))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
