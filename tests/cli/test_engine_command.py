"""`warmroute engine`: its options are the simulated engine's, and it runs until told to stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from dataclasses import fields
from pathlib import Path

import pytest

from warmroute.cli.engine import command
from warmroute.cli.main import main
from warmroute.testing.engine import EngineOptions

SRC = Path(__file__).parents[2] / "src"


def test_every_option_of_the_engine_is_a_flag_with_the_same_default() -> None:
    with command.make_context("engine", []) as context:
        assert EngineOptions(**context.params) == EngineOptions()
    with command.make_context(
        "engine", ["--lora", "x", "--lora", "y", "--no-events", "--hash-form", "bytes"]
    ) as context:
        assert EngineOptions(**context.params) == EngineOptions(loras=("x", "y"), events=False, hash_form="bytes")
    assert {param.name for param in command.params} == {each.name for each in fields(EngineOptions)}


def test_options_that_make_no_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", "--block-size", "0"]) == 2
    assert capsys.readouterr().err.startswith("warmroute: block_size: 0 is out of range.")
    assert main(["engine", "--block-size", "x"]) == 2
    assert "Error: Invalid value for '--block-size'" in capsys.readouterr().err


def test_an_address_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["engine", "--port", str(taken.getsockname()[1])]) == 2
    assert capsys.readouterr().err.startswith("warmroute: engine: cannot listen: ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_told_to_stop(number: signal.Signals) -> None:
    arguments = [sys.executable, "-m", "warmroute", "engine", "--model", "m", "--data-parallel-size", "2"]
    env = os.environ | {"PYTHONPATH": str(SRC)}
    with subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            serving, *ranks = [process.stdout.readline() for _ in range(3)]
            assert serving.startswith("serving m at http://127.0.0.1:")
            assert [line.split(" at tcp://127.0.0.1:")[0] for line in ranks] == ["rank 0 publishes", "rank 1 publishes"]
            with urllib.request.urlopen(f"{serving.split()[-1]}/v1/models", timeout=60) as answer:
                assert json.load(answer)["data"][0]["id"] == "m"
            process.send_signal(number)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
