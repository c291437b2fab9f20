"""Say the same random things to the native index and to its reference: every report and every answer must be equal.

python native/fuzz/differential.py [--operations N] [--seed N] [--check-every N]

Prints its seed; ends with an AssertionError that names the seed and the operation at the first difference.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "contract"))

from differential import run


def main() -> None:
    """Run until the operations are done or something differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--check-every", type=int, default=50, help="operations between two checks of everything")
    args = parser.parse_args()
    seed = secrets.randbits(32) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    counts = run(seed, args.operations, args.check_every)
    print(f"{args.operations} operations, 0 differences; " + ", ".join(f"{n} {what}" for what, n in counts.items()))


if __name__ == "__main__":
    main()
