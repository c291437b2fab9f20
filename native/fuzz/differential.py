"""Say the same random things to the native index and to its reference: every report and every answer must be equal.

python native/fuzz/differential.py [--operations N | --seconds N] [--seed N] [--check-every N]

Prints its seed; ends with an AssertionError that names the seed and the operation at the first difference.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "contract"))

from differential import run

OPERATIONS_AT_ONCE = 10_000


def main() -> None:
    """Run until the operations are done, the time is over or something differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--check-every", type=int, default=50, help="operations between two checks of everything")
    args = parser.parse_args()
    seed = secrets.randbits(32) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    counts, done, begin = Counter[str](), 0, time.monotonic()
    while done < args.operations and time.monotonic() < begin + args.seconds:
        operations = min(OPERATIONS_AT_ONCE, args.operations - done)
        counts += run(seed + done, operations, args.check_every)
        done += operations
    took = time.monotonic() - begin
    print(
        f"{done} operations in {took:.0f} s, 0 differences; " + ", ".join(f"{n} {what}" for what, n in counts.items())
    )


if __name__ == "__main__":
    main()
