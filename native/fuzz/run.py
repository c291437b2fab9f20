"""Fuzz the native core: build each target under sanitizers, and run it for some time from a corpus of real payloads.

python native/fuzz/run.py [--seconds N] [--build DIRECTORY] [TARGET...]

A C++ compiler, cmake and make are needed: clang++ brings libFuzzer (CXX=clang++), with any other compiler
`driver.cpp` mutates blindly. Ends with the first target that found something, after what that one said.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from fuzz_heads_seeds import main as write_head_seeds
from fuzz_wire_seeds import main as write_seeds

ROOT = Path(__file__).parents[2]
TARGETS = ("fuzz_wire", "fuzz_heads", "fuzz_index", "fuzz_slabs", "differential")


def build(directory: Path, targets: list[str]) -> None:
    """Compile in `directory`, and put the corpus beside the targets."""
    about = ["-DWARMROUTE_FUZZ=ON", "-DSKBUILD_PROJECT_NAME=warmroute", "-DSKBUILD_PROJECT_VERSION=0"]
    subprocess.run(["cmake", "-S", ROOT, "-B", directory, "-G", "Unix Makefiles", *about], check=True)
    subprocess.run(["cmake", "--build", directory, "--parallel", str(os.cpu_count()), "--target", *targets], check=True)
    write_seeds(directory / "corpus")
    write_head_seeds(directory / "corpus_heads")


def command(target: str, directory: Path, seconds: float) -> list[str | Path]:
    """What runs a target for so long."""
    if target == "differential":
        script = Path(__file__).with_name("differential.py")
        return [sys.executable, script, f"--seconds={seconds}", f"--operations={10**9}"]
    corpus = directory / ("corpus_heads" if target == "fuzz_heads" else "corpus")
    return [directory / target, f"-max_total_time={seconds:.0f}", corpus]


def main() -> None:
    """Build all, then run one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    args = parser.parse_args()
    targets = args.targets or list(TARGETS)
    if native := [target for target in targets if target != "differential"]:
        build(args.build, native)
    for target in targets:
        print(f"{target}, {args.seconds:.0f} s", flush=True)
        subprocess.run(command(target, args.build, args.seconds), check=True)


if __name__ == "__main__":
    main()
