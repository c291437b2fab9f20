"""A policy of one's own: the page's example works as it stands there, and what is wrong is said at the start."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from warmroute.app.own_policy import load_policy
from warmroute.app.simulation.runs import Wish, simulate
from warmroute.errors import ConfigError

PAGE = Path(__file__).parent.parent.parent / "docs" / "policies.md"


def test_the_example_of_the_page_runs(tmp_path: Path) -> None:
    example = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert example is not None
    path = tmp_path / "patient.py"
    path.write_text(example[1])
    done = simulate(Wish(policies=[f"{path}:Patient"], workload="rag", engines=2, requests=200), lambda *_: None)
    assert done.runs[0].policy == "patient"
    assert done.runs[0].summary().hit_rate > 0


def test_a_module_is_found_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policy_of_a_test.py").write_text(
        "class Mine:\n    name = 'mine'\n    def costs(self, c):\n        return c.requests\n"
    )
    monkeypatch.chdir(tmp_path)
    policy = load_policy("policy_of_a_test:Mine")
    assert policy is not None
    assert policy.name == "mine"
    assert load_policy("least_loaded") is None


@pytest.mark.parametrize(
    ("content", "name", "problem"),
    [
        ("class Mine: pass", "Mine", "has no `name`"),
        ("1/0", "Mine", "ZeroDivisionError"),
        ("raise SystemExit(3)", "Mine", "SystemExit: 3"),
        ("", "Mine", "AttributeError"),
        ("class Mine:\n    def __init__(self, a): pass", "Mine", "TypeError"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: str, name: str, problem: str) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(content)
    with pytest.raises(ConfigError, match=problem):
        load_policy(f"{path}:{name}")
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        load_policy(f"{tmp_path}/none.py:Mine")
