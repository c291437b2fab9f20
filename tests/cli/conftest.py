"""A command line that sees none of this machine's settings."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("WARMROUTE_", "AIBRIX_")):
            monkeypatch.delenv(name)
