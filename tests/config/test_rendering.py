"""What operators read: the effective configuration and the reference page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from warmroute.config import load
from warmroute.config.document import parse_document
from warmroute.config.leaves import ENGINE_LEAVES, LEAVES
from warmroute.config.render import BEGIN, END, reference, render, render_json, with_reference

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
LOADED = load(
    flags={"gateway.port": "9000"},
    environ={"WARMROUTE_LOG_LEVEL": "debug", "AIBRIX_USE_REMOTE_TOKENIZER": "true"},
    document={"engines": ["http://a:1", {"url": "http://b:1", "topic": "", "events": False}]},
    file_name="w.yaml",
)


def test_every_leaf_has_a_line_with_its_source() -> None:
    lines = render(LOADED).splitlines()
    assert [re.split(r"[ \[]", line)[0] for line in lines] == ["engines"] * 3 + list(LEAVES)
    found = dict(re.split(r" +# ", line) for line in lines)
    assert list(found.items())[:4] == [
        ("engines[0].url = http://a:1", "file w.yaml"),
        ("engines[1].url = http://b:1", "file w.yaml"),
        ('engines[1].topic = ""', "file w.yaml"),
        ("engines[1].events = false", "file w.yaml"),
    ]
    assert found["gateway.port = 9000"] == "flag --gateway.port"
    assert found["log.level = debug"] == "environment WARMROUTE_LOG_LEVEL"
    assert found["tokenizer.mode = remote"] == "alias AIBRIX_USE_REMOTE_TOKENIZER"
    assert found["tokenizer.path = null"] == "default"
    assert len({line.index(" # ") for line in lines}) == 1


def test_no_engines() -> None:
    assert re.fullmatch(r"engines = \[\] +# default", render(load(flags={}, environ={})).splitlines()[0])


def test_json_is_a_configuration_file_with_sources_and_notes() -> None:
    shown = json.loads(render_json(LOADED))
    assert load(flags={}, environ={}, document=shown["config"]).config == LOADED.config
    assert shown["sources"]["gateway.port"] == "flag --gateway.port"
    assert shown["sources"].keys() == LEAVES.keys()
    assert shown["notes"] == list(LOADED.notes) != []


def test_the_reference_page_is_up_to_date() -> None:
    assert with_reference(PAGE) == PAGE, "run `warmroute check-config --reference docs/configuration.md`"


def test_the_reference_has_every_leaf() -> None:
    rows = re.findall(r"^\| `([a-z_.\[\]]+)` \|", reference(), flags=re.MULTILINE)
    assert rows == [leaf.key for leaf in (*ENGINE_LEAVES.values(), *LEAVES.values()) if leaf.key != "engines"]


def test_only_the_marked_part_is_made_anew() -> None:
    page = with_reference(f"before\n{BEGIN}\nformer\n{END}\nafter\n")
    assert page.startswith(f"before\n{BEGIN}\n\n### `engines`\n")
    assert page.endswith(f" |\n\n{END}\nafter\n")
    assert "former" not in page
    for broken in ("", BEGIN, f"{END}{BEGIN}"):
        with pytest.raises(ValueError, match="no part between"):
            with_reference(broken)


def test_the_pages_example_is_a_configuration() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    assert examples
    for example in examples:
        loaded = load(flags={}, environ={}, document=parse_document(example, "page"), file_name="page")
        assert loaded.notes == ()
