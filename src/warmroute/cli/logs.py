"""Logging to stderr: one line per record, `TIME LEVEL LOGGER MESSAGE`, TIME in UTC.

Invariant: a line that does not begin with a tab begins a record, whatever a message or a traceback contains. What is
logged is the modules' affair; no record has a request's content in it.
"""

from __future__ import annotations

import logging
import sys
import time

from warmroute.config import LogConfig


class LineFormatter(logging.Formatter):
    """One line per record; a traceback's lines follow, each behind a tab."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"
    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        """The record's line; line breaks in its message are escaped."""
        return super().formatMessage(record).replace("\r", "\\r").replace("\n", "\\n")

    def formatException(self, ei: object) -> str:  # noqa: N802  logging's name
        """The traceback, indented."""
        return "\n".join(f"\t{line}" for line in super().formatException(ei).splitlines())  # type: ignore[arg-type]


def set_up_logging(config: LogConfig) -> None:
    """Send records of `config.level` and above to stderr, Python's warnings among them."""
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(LineFormatter())
    logging.basicConfig(level=config.level.upper(), handlers=[to_stderr], force=True)
    logging.captureWarnings(True)
