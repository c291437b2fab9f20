"""Files that change while they are watched, in every way that tools change files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from warmroute.edge.files import WatchedFiles, read_text
from warmroute.errors import ConfigError


class Watched:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.texts: list[str] = []
        self.files = WatchedFiles((str(path),), self.load)

    def load(self) -> None:
        text = read_text(str(self.path), "a.setting")
        if "bad" in text:
            raise ConfigError("a.setting", "bad", "Mend it.")
        self.texts.append(text)


def write(path: Path, text: str) -> None:
    path.write_text(text)


def rename(path: Path, text: str) -> None:
    (path.parent / "new").write_text(text)
    (path.parent / "new").replace(path)


def link(path: Path, text: str) -> None:
    """As Kubernetes does: the file is a link into a folder that is a link."""
    folder = path.parent / f"folder{len(list(path.parent.iterdir()))}"
    folder.mkdir()
    (folder / "file").write_text(text)
    aside = path.parent / "link"
    aside.symlink_to(folder / "file")
    aside.replace(path)


@pytest.mark.parametrize("put", [write, rename, link])
def test_a_change_is_taken_up_once(tmp_path: Path, put: Callable[[Path, str], None]) -> None:
    path = tmp_path / "file"
    put(path, "one")
    watched = Watched(path)
    watched.files.look()
    put(path, "other")
    for _ in range(3):
        watched.files.look()
    assert watched.texts == ["one", "other"]
    assert (watched.files.reloads, watched.files.failures) == (1, 0)


def test_what_is_broken_changes_nothing_and_is_tried_until_it_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "file"
    path.write_text("one")
    watched = Watched(path)
    for broken in (lambda: path.write_text("bad one"), path.unlink, lambda: path.write_bytes(b"\xff")):
        broken()
        watched.files.look()
        watched.files.look()
    assert watched.texts == ["one"]
    assert watched.files.failures == 6
    assert len(caplog.records) == 3, "each problem is told once"
    path.write_text("two")
    watched.files.look()
    assert watched.texts == ["one", "two"]
    assert "was read again" in caplog.text


def test_what_is_broken_at_the_start_is_the_operators_to_mend(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.setting: .* cannot be read: No such file"):
        Watched(tmp_path / "missing")
