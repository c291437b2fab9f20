"""Keys of engines: from the file, a file of their own or the environment, and never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from warmroute.cli.main import main
from warmroute.cli.settings import read_sources
from warmroute.config.render import render, render_json
from warmroute.errors import ConfigError

KEY = "sk-much-too-secret"


def write(folder: Path, engines: str, more: str = "") -> str:
    path = folder / "w.yaml"
    path.write_text(f"engines:\n  - url: http://a:1\n{engines}{more}")
    return str(path)


def test_a_key_is_used_and_not_shown(tmp_path: Path) -> None:
    loaded = read_sources({}, {"WARMROUTE_MEMBERSHIP_API_KEY": KEY + "2"}, write(tmp_path, f"    api_key: {KEY}\n"))
    assert loaded.config.engines[0].api_key == KEY
    assert loaded.config.membership.api_key == KEY + "2"
    for shown in (render(loaded), render_json(loaded), repr(loaded)):
        assert KEY not in shown
    assert "engines[0].api_key = ********" in render(loaded)


def test_a_key_has_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    path = write(tmp_path, f"    api_key_file: {tmp_path / 'key'}\n")
    loaded = read_sources({}, {}, path)
    assert loaded.config.engines[0].api_key == KEY
    assert KEY not in render_json(loaded)


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "cannot be read: No such file"), ("", "holds no key"), ("a b", "holds no key")]
)
def test_a_file_without_a_key(tmp_path: Path, content: str | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "key").write_text(content)
    with pytest.raises(ConfigError, match=problem) as error:
        read_sources({"membership.api_key_file": str(tmp_path / "key")}, {}, None)
    assert error.value.key == "membership.api_key_file"


def test_a_key_and_a_file_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engines\[0\].api_key_file: given besides engines\[0\].api_key"):
        read_sources({}, {}, write(tmp_path, f"    api_key: {KEY}\n    api_key_file: x\n"))


@pytest.mark.parametrize("wrong", ["[much, too, secret]", "'much too secret'", "12345"])
def test_a_wrong_key_is_not_repeated(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"engines\[0\].api_key: '\*+'") as error:
        read_sources({}, {}, write(tmp_path, f"    api_key: {wrong}\n"))
    assert "secret" not in str(error.value)
    assert "12345" not in str(error.value)


@pytest.mark.parametrize("name", ["two words", "#comment", "", "a" * 65])
def test_a_name_that_no_key_may_have(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", name]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "at most 64 letters" in err
