"""The image, as far as it can be judged without building it: lint, what it copies, what it installs, what it runs."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest
from charts_rig import ROOT, render

from warmroute.cli.main import COMMANDS

TEXT = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.usefixtures("tools")
def test_lint() -> None:
    command = [str(render.tools() / "hadolint"), "--failure-threshold", "style", str(ROOT / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_everything_that_is_copied_is_let_through() -> None:
    copied = [name for line in re.findall(r"^COPY ([^-].*) \S+$", TEXT, flags=re.MULTILINE) for name in line.split()]
    assert copied
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)
    wanted = {*PROJECT["license-files"], PROJECT["readme"], "CMakeLists.txt", "pyproject.toml", "src", "native"}
    assert wanted <= set(copied)


def test_it_installs_what_there_is() -> None:
    (extras,) = re.findall(r"warmroute\[([a-z,]+)\]", TEXT)
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    (python,) = re.findall(r"^ARG PYTHON=(\S+)$", TEXT, flags=re.MULTILINE)
    low, high = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    assert int(low) <= int(python.removeprefix("3.")) < int(high)


def test_it_runs_commands_that_there_are_as_nobody() -> None:
    assert 'ENTRYPOINT ["warmroute"]' in TEXT
    (command,) = re.findall(r'^CMD \["([a-z-]+)"\]$', TEXT, flags=re.MULTILINE)
    assert {command, *re.findall(r"warmroute:0\.1\.0 ([a-z]+)", TEXT)} <= COMMANDS.keys()
    (user,) = re.findall(r"^USER (\d+):(\d+)$", TEXT, flags=re.MULTILINE)
    assert "0" not in user


def test_the_charts_and_the_package_are_of_one_version() -> None:
    for chart in ("warmroute", "warmroute-model"):
        about = (ROOT / "charts" / chart / "Chart.yaml").read_text()
        assert f"\nappVersion: {PROJECT['version']}\n" in about
        assert f"\nversion: {PROJECT['version']}\n" in about
    assert f"warmroute:{PROJECT['version']}" in TEXT
