"""The fuzz targets, compiled under sanitizers and run for some seconds each; `make fuzz` runs them for longer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "native" / "fuzz" / "run.py"
SECONDS = os.environ.get("WARMROUTE_FUZZ_SECONDS", "20")
TOOLS = Path(sys.executable).parent  # where pip puts cmake
COMPILERS = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
COMPILE_TIMEOUT_S = 900

pytestmark = [pytest.mark.fuzz, pytest.mark.slow, pytest.mark.timeout(COMPILE_TIMEOUT_S)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all targets of this module are built."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("target", ["fuzz_wire", "fuzz_heads", "fuzz_index", "fuzz_slabs", "differential"])
def test_nothing_is_found(target: str, folder: Path) -> None:
    if target != "differential" and not any(map(shutil.which, COMPILERS)):
        pytest.skip("no C++ compiler here: fuzz targets cannot be built")
    path = f"{TOOLS}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, str(RUN), "--seconds", SECONDS, "--build", str(folder), target]
    ran = subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-8000:]
    last = ran.stdout.splitlines()[-1]
    tried = re.match(r"([1-9]\d*) (inputs, nothing found|operations in \d+ s, 0 differences)", last)
    assert tried or re.search(r"^Done [1-9]\d* runs", ran.stderr, re.MULTILINE), last
