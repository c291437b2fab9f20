"""`warmroute demo`, as `make demo` runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from warmroute.app import demo
from warmroute.app.demo import Served

SOURCES = Path(__file__).parents[2] / "src"


def test_the_demo_runs_and_shows_what_caches_gave() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "warmroute", "demo", "--seed", "3"],
        env={**os.environ, "PYTHONPATH": str(SOURCES), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == ""
    requests = demo.APPS * demo.USERS_PER_APP * demo.TURNS
    exact = re.search(rf"^(\d+) of {requests} predictions are what the engine reported", ran.stdout, re.MULTILINE)
    assert exact
    assert int(exact[1]) >= 0.9 * requests
    shares = dict(re.findall(r"^ *(round robin|warmroute) +([\d.]+)% +\d+ ms", ran.stdout, re.MULTILINE))
    assert float(shares["warmroute"]) > float(shares["round robin"])
    rows = re.findall(r"^ *(\d+) +app \d+, user \d+ +127\.0\.0\.1:\d+ +(\w+) ", ran.stdout, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, requests + 1))
    assert {"overlap"} <= {reason for _, reason in rows} <= {"overlap", "load"}


def test_a_seed_decides_the_conversations() -> None:
    made = demo.conversations(5)
    assert [c.messages for c in made] == [c.messages for c in demo.conversations(5)]
    assert [c.questions for c in made] != [c.questions for c in demo.conversations(6)]
    assert len({c.messages[0]["content"] for c in made}) == demo.APPS  # users of one application share their beginning
    assert len({c.name for c in made}) == demo.APPS * demo.USERS_PER_APP


def test_shares_are_of_all_prompt_tokens() -> None:
    served = [
        Served(n, "c", "w", "load", prompt, 0, cached, 0.25) for n, (prompt, cached) in enumerate([(30, 0), (10, 10)])
    ]
    assert demo.share(served) == 0.25
    assert demo.mean_ms(served) == 250
