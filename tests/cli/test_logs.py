"""What a line of the log looks like."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator

import pytest

from warmroute.cli.logs import set_up_logging
from warmroute.config import LogConfig

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def test_one_line_per_record(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(LogConfig())
    logger = logging.getLogger("warmroute.x")
    logger.debug("not this")
    logger.info("to %s", "a:1")
    logger.warning("one\nline\r\n")
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert re.fullmatch(rf"{TIME} INFO warmroute\.x to a:1", lines[0])
    assert re.fullmatch(rf"{TIME} WARNING warmroute\.x one\\nline\\r\\n", lines[1])
    assert len(lines) == 2


def test_a_tracebacks_lines_are_indented(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(LogConfig())
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("x").exception("failed")
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.endswith("ERROR x failed")
    assert rest[0] == "\tTraceback (most recent call last):"
    assert rest[-2:] == ["\tValueError: two", "\tlines"]
    assert all(line.startswith("\t") for line in rest)


@pytest.mark.parametrize(("level", "lines"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_levels(level: str, lines: int, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(LogConfig(level=level))  # type: ignore[arg-type]
    for name in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("x"), name)(name)
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_pythons_warnings_are_records(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(LogConfig())
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("careful", UserWarning, stacklevel=1)
    (line,) = capsys.readouterr().err.splitlines()
    assert "WARNING py.warnings" in line
    assert "careful" in line
