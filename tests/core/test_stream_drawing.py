"""The page shows the table as it is."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_drawing_in_the_docs_is_the_table() -> None:
    page = (ROOT / "docs" / "events.md").read_text()
    draw = runpy.run_path(str(ROOT / "scripts" / "sim" / "draw.py"))
    assert draw["with_drawing"](page) == page, "run `python scripts/sim/draw.py docs/events.md`"
    assert draw["drawing"]() in page
