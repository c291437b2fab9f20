#!/usr/bin/env python3
"""Fuzz the reading of events: any bytes decode or raise WireError, and a broken event never costs its neighbours.

python scripts/fuzz_wire.py [--bytes N] [--seed N]

Begins with what each release's own code published (tests/golden). Prints its seed first, and the payload if one fails.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "core"))

from test_wire_golden import SEEDS
from wire_fuzz import run


def main() -> None:
    """Run until so many bytes were read."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=int, default=100_000_000)
    parser.add_argument("--seed", type=int, default=None)
    args = parser.parse_args()
    seed = secrets.randbits(32) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    started = time.monotonic()
    counts = run(seed, args.bytes, SEEDS)
    seconds = time.monotonic() - started
    print(f"{counts.pop('bytes')} bytes in {counts.pop('payloads')} payloads, {seconds:.0f} s, no failure")
    print(", ".join(f"{name} {count}" for name, count in counts.most_common()))


if __name__ == "__main__":
    main()
