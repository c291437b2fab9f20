#!/usr/bin/env python3
"""Run the Dockerfile's own steps without Docker, in a folder of their own, and then what the image would run.

    python3 scripts/kubernetes/try_image.py     a minute or two; needs a C++ compiler and the package registry

COPY copies files, RUN runs in a shell with the image's folders below a temporary one. Left out: `apt-get`, and with it
the base image. What comes out is run with an empty environment.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("/src", "/wheels", "/opt/warmroute")


def instructions() -> list[tuple[str, str]]:
    """(instruction, its arguments), continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def copy(arguments: str, target: Path) -> None:
    """COPY into the build stage: files into the folder, a folder's content into one of that name."""
    *sources, place = arguments.split()
    for source in sources:
        path = ROOT / source
        if path.is_dir():
            unwanted = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(path, target / place, ignore=unwanted, dirs_exist_ok=True)
        else:
            shutil.copy(path, target / place)


def build(work: Path) -> None:
    """The build stage's steps."""
    (work / "src").mkdir()
    (work / "opt").mkdir()
    venv.create(work / "python", with_pip=True)
    environment = {"PATH": f"{work}/python/bin:{os.environ['PATH']}", "HOME": str(work)}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    for instruction, arguments in instructions():
        if instruction == "COPY" and not arguments.startswith("--from"):
            copy(arguments, work / "src")
        elif instruction == "RUN" and not arguments.startswith("apt-get"):
            command = arguments
            for folder in FOLDERS:
                command = re.sub(rf"(?<![\w/]){folder}\b", f"{work}{folder}", command)
            print(f"+ {command}", flush=True)
            subprocess.run(command, shell=True, check=True, cwd=work / "src", env=environment)


def run(work: Path) -> None:
    """What the image runs: the entry point with its commands; everything there can be read by the image's user."""
    made = work / "opt" / "warmroute"
    closed = [path for path in made.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o004 == 0]
    if closed:
        sys.exit(f"the image's user cannot read {closed[:3]}")
    (entry,) = json.loads(dict(instructions())["ENTRYPOINT"])
    check = ["check-config", "--discovery.kubernetes.enabled", "true"]
    for arguments in (["--version"], check, ["serve", "--help"], ["engine", "--help"]):
        command = [str(made / "bin" / entry), *arguments]
        done = subprocess.run(command, check=True, cwd="/", env={}, capture_output=True, text=True)
        print(f"+ {entry} {' '.join(arguments)}\n{done.stdout.splitlines()[0]}")
    imports = (
        "import warmroute._native, warmroute.edge.kubernetes, warmroute.edge.redis_limits, kubernetes_asyncio, redis"
    )
    subprocess.run([str(made / "bin" / "python"), "-c", imports], check=True, cwd="/", env={})
    print("+ python: the native core and both extras can be imported")


def main() -> int:
    """Build, run, and leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="image-") as folder:
        build(Path(folder))
        run(Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
