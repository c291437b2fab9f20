"""The file's syntax."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.config.document import parse_document
from warmroute.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing\n", None),
        ("a:", {"a": None}),
        ("a: off", {"a": "off"}),
        ("a: yes", {"a": "yes"}),
        ("a: true", {"a": True}),
        ("a: 12:30", {"a": "12:30"}),
        ("a: 010", {"a": "010"}),
        ("a: 1_000", {"a": "1_000"}),
        ("a: 0x10", {"a": "0x10"}),
        ("a: -7", {"a": -7}),
        ("a: 1e3", {"a": 1000.0}),
        ("a: .5", {"a": 0.5}),
        ("a: 2024-01-01", {"a": "2024-01-01"}),
        ("a: '8080'", {"a": "8080"}),
        ("a: ~", {"a": None}),
        ("[{url: http://a:1}]", [{"url": "http://a:1"}]),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    parsed = parse_document(text, "w.yaml")
    assert parsed == value
    assert repr(parsed) == repr(value), "1 is not True"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "w.yaml:3:1: not understood as YAML: 'a' is given twice. Mend the file there."),
        ("x:\n  a: 1\n  a: 1\n", "w.yaml:3:3: not understood as YAML: 'a' is given twice."),
        ("{a: 1}: 2", "w.yaml:1:1: not understood as YAML: a key must be text."),
        ("a: [1", "w.yaml:1:6: not understood as YAML:"),
        ("a: 1\n b: 2", "w.yaml:2:3: not understood as YAML:"),
        ("a: 1\n---\nb: 2", "w.yaml:2:1: not understood as YAML: but found another document."),
        ("a: !!python/name:os.system", "w.yaml:1:4: not understood as YAML: could not determine a constructor"),
        ("a: !!timestamp 2024-01-01", "w.yaml:1:4: not understood as YAML:"),
        ("a: !!int x", "w.yaml: not understood as YAML:"),
        ("a: *nowhere", "w.yaml:1:4: not understood as YAML: found undefined alias"),
        ("a: \x00", "w.yaml: not understood as YAML:"),
        ("[" * 100_000, "w.yaml: not understood as YAML:"),
    ],
)
def test_files_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_document(text, "w.yaml")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@given(text=st.text() | st.text(alphabet="a:- \n[]{}&*!'\"|>#1,?"))
def test_any_text_parses_or_is_a_config_error(text: str) -> None:
    with suppress(ConfigError):
        parse_document(text, "w.yaml")
