"""The pages for users name what there is: findings, metrics, variables, settings, values, files, commands."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from charts_rig import GATEWAY, MODEL, ROOT, documents, inconsistent, invalid, render, rendered

from warmroute.cli.main import COMMANDS
from warmroute.config import aliases
from warmroute.config.leaves import LEAVES, SECTIONS
from warmroute.core.pods import AIBRIX, ANNOTATIONS, EVENTS, LORA, NAME, OURS, PORT
from warmroute.service.doctor.catalogue import CATALOGUE

NAMES = ("quickstart", "operations", "troubleshooting", "coming-from-aibrix")
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in NAMES}
VALUES = {chart: yaml.safe_load((ROOT / "charts" / chart / "values.yaml").read_text()) for chart in (GATEWAY, MODEL)}


def rows(page: str, header: str = "") -> list[list[str]]:
    """The rows of the tables whose first header is that one (or of all), cell by cell."""
    found: list[list[str]] = []
    for table in re.findall(r"(?:^\|.*\n)+", PAGES[page], flags=re.MULTILINE):
        head, _, *lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()]
        found += lines if header in ("", head[0]) else []
    return found


def test_every_finding_of_the_doctor_has_a_symptom() -> None:
    said = rows("troubleshooting", "doctor says")
    assert {code for first, *_ in said for code in re.findall(r"`([a-z_]+)`", first)} == CATALOGUE.keys()


@pytest.mark.parametrize("page", NAMES)
def test_metrics_are_those_there_are(page: str) -> None:
    known = set(re.findall(r"^\| `(warmroute_[a-z_]+)` \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
    assert set(re.findall(r"warmroute_[a-z_]+", PAGES[page])) <= known


def test_every_variable_of_aibrix_is_mapped_as_it_is_understood() -> None:
    mapped = {
        name: meaning
        for first, meaning, *_ in rows("coming-from-aibrix")
        for name in re.findall(r"`(AIBRIX_[A-Z_]+)`", first)
        if name != aliases.PREFIX
    }
    assert mapped.keys() == {name for alias in aliases.ALIASES for name in alias.names} | aliases.WITHOUT_EFFECT.keys()
    for alias in aliases.ALIASES:
        assert all(alias.key in mapped[name] for name in alias.names)
    assert all(mapped[name].startswith("nothing:") for name in aliases.WITHOUT_EFFECT)


def test_every_label_and_annotation_is_mapped() -> None:
    firsts = [first.strip("`") for first, *_ in rows("coming-from-aibrix")]
    assert [first for first in firsts if first.startswith(AIBRIX)] == [AIBRIX + n for n in (NAME, PORT, EVENTS, LORA)]
    assert {first for first in firsts if first.startswith(OURS)} == {OURS + name for name in ANNOTATIONS}


@pytest.mark.parametrize("page", NAMES)
def test_settings_and_values_are_those_there_are(page: str) -> None:
    settings = set(LEAVES) | set(SECTIONS) | {f"config.{key}" for key in (*LEAVES, *SECTIONS)} | {"config"}
    unknown = []
    for name in re.findall(r"`((?:[a-z][A-Za-z_]*\.)+[A-Za-z_]+)`", PAGES[page]):
        first = name.split(".")[0]
        if first in ("config", *SECTIONS) and name not in settings and not any(_value(VALUES[c], name) for c in VALUES):
            unknown.append(name)
        elif first in {*VALUES[GATEWAY], *VALUES[MODEL]} - {"config", *SECTIONS}:
            unknown += [] if any(_value(values, name) for values in VALUES.values()) else [name]
    assert unknown == []


def _value(values: object, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


@pytest.mark.parametrize("page", NAMES)
def test_commands_and_files_are_those_there_are(page: str) -> None:
    text = PAGES[page]
    commands = set(re.findall(r"(?:^ *|`|-- )warmroute ([a-z][a-z-]+)", text, flags=re.MULTILINE))
    assert commands <= COMMANDS.keys(), commands - COMMANDS.keys()
    for path in re.findall(r"\b((?:deploy|charts|tests|docs)/[\w./-]+\.\w+|charts/[\w-]+)", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"helm (?:install|upgrade) \S+ (\S+)", text):
        assert (ROOT / path / "Chart.yaml").exists()
    for name in re.findall(r"--set ([A-Za-z.]+)=", text):
        assert any(_value(values, name) for values in VALUES.values()), name


def test_every_manifest_is_on_the_page() -> None:
    listed = {first.strip("`") for first, *_ in rows("quickstart") if first.startswith("`deploy/")}
    assert listed == {f"deploy/{path.name}" for path in (ROOT / "deploy").glob("*.yaml")}


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize("page", NAMES)
def test_helms_commands_are_taken(page: str) -> None:
    text = re.sub(r" *\\\n\s*", " ", PAGES[page])
    for release, chart, rest in re.findall(r"helm (?:install|upgrade) (\S+) charts/(\S+)( [^`\n]*)?", text):
        arguments = [word for word in shlex.split(rest) if word not in ("--create-namespace", "--reuse-values")]
        found = documents(render.helm_template(release, chart, *arguments))
        assert list(inconsistent(found)) == []
    for snippet in re.findall(r"```yaml\n(.*?)```", PAGES[page], flags=re.DOTALL):
        values = yaml.safe_load(snippet)
        chart = MODEL if "gateways" in values.get("networkPolicy", {}) else GATEWAY
        assert invalid(rendered(chart, values), ["1.37"]) == []
