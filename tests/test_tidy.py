"""The repository watches its own tail: averages hardly differ between good and bad code, the longest ones do.

Every exception is listed with its reason. An exception that is not needed any more fails too.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PYTHON = SOURCES + [p for d in ("tests", "benchmarks", "scripts") for p in sorted((ROOT / d).rglob("*.py"))]

FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 500
PARAMETERS_MAX = 6
ARCHITECTURE_LINES_MAX = 300

LONG_FUNCTIONS: dict[str, str] = {}
LONG_FILES: dict[str, str] = {}
MANY_PARAMETERS: dict[str, str] = {
    "src/warmroute/testing/kubernetes/objects.py:pod": "what of a pod matters, each by its name and with a default",
}

BANNED_NAMES = re.compile(r"manager|helper|util|handler|processor|common", re.IGNORECASE)
NAMES_OF_OTHERS: dict[str, str] = {}
"""Definitions that a foreign interface wants to be called so."""


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{relative(path)}:{node.name}", node


def committed() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_functions_are_short() -> None:
    found = {
        name: node.end_lineno - node.lineno + 1
        for path in PYTHON
        for name, node in functions(path)
        if node.end_lineno and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    }
    assert found.keys() == LONG_FUNCTIONS.keys(), found


def test_files_are_short() -> None:
    found = {relative(p): n for p in PYTHON if (n := len(p.read_text().splitlines())) > FILE_LINES_MAX}
    assert found.keys() == LONG_FILES.keys(), found


def test_functions_take_few_parameters() -> None:
    found = {}
    for path in SOURCES:
        for name, node in functions(path):
            a = node.args
            taken = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs) if arg.arg not in ("self", "cls")]
            if len(taken) > PARAMETERS_MAX:
                found[name] = taken
    assert found.keys() == MANY_PARAMETERS.keys(), found


def test_names_say_what_a_thing_is() -> None:
    found = set()
    for path in SOURCES:
        found |= {relative(path)} if BANNED_NAMES.search(path.stem) else set()
        for node in ast.walk(ast.parse(path.read_text())):
            defined = node.name if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) else ""
            if BANNED_NAMES.search(defined):
                found.add(f"{relative(path)}:{defined}")
    assert found == NAMES_OF_OTHERS.keys(), found


def test_every_module_says_why_it_exists() -> None:
    assert not [relative(p) for p in SOURCES if ast.get_docstring(ast.parse(p.read_text())) is None]


def test_the_architecture_page_can_be_read_in_one_sitting() -> None:
    assert len((ROOT / "docs" / "ARCHITECTURE.md").read_text().splitlines()) <= ARCHITECTURE_LINES_MAX


def test_the_architecture_page_and_the_import_contract_say_the_same() -> None:
    diagram = "cli -> app -> { edge, testing } -> service -> core -> { config, errors, types }"
    assert diagram in (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    assert diagram in (ROOT / "pyproject.toml").read_text()


def test_only_what_has_a_reference_knows_the_native_core() -> None:
    users = {relative(path) for path in SOURCES if re.search(r"import _native|warmroute\._native", path.read_text())}
    in_core = "hashing|lanes|rates|rows|sharing|speculation|wire/|index/|policies/least_work"
    allowed = re.compile(rf"src/warmroute/(core/({in_core})|edge/http/plain)")
    assert all(allowed.match(user) for user in users), users


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
        local = (target for target in targets if "://" not in target)
        broken += [f"{relative(page)} -> {target}" for target in local if not (page.parent / target).exists()]
    assert not broken


def test_nothing_of_this_machine_is_committed() -> None:
    """No path of a machine, no registry's host, no binary, no key."""
    suspicious = re.compile(
        r"/root/|/home/\w+/|/work/|file:///|(?:pypi|pythonhosted|npmjs|debian)\.org|BEGIN [A-Z ]*PRIVATE KEY"
    )
    found = []
    for path in committed():
        data = path.read_bytes()
        if b"\0" in data[:8000] and path.suffix != ".png":
            found.append(f"{relative(path)}: binary")
        elif path != Path(__file__) and (hit := suspicious.search(data.decode("utf-8", "replace"))):
            found.append(f"{relative(path)}: {hit.group()}")
    assert not found
