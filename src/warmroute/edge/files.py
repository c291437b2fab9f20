"""Files that may change while we run: keys, certificates.

Looked at once per second, by what a rename or a rewrite cannot hide. Kubernetes swaps a link, editors rename, scripts
write in place: all of these change the file's number, time or size.

Invariant: what a broken file would replace stays in force; it is read again until it can be.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from warmroute.errors import ConfigError

_log = logging.getLogger(__name__)

_Seen = tuple[tuple[int, int, int] | None, ...]


def read_text(path: str, setting: str) -> str:
    """A file's text. Raises ConfigError under the name of the setting that names the file."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is not UTF-8"
        raise ConfigError(setting, f"{path!r} cannot be read: {reason}", "Give the path of a readable file.") from None


class WatchedFiles:
    """Files that belong together; `load` takes them up and raises ConfigError if it cannot."""

    def __init__(self, paths: Sequence[str], load: Callable[[], None]) -> None:
        self._paths = tuple(paths)
        self._load = load
        self._seen = self._look()
        self.problem: str | None = None
        """What is wrong with what they hold now; None: it is in force."""
        self.reloads = 0
        self.failures = 0
        load()

    def look(self) -> None:
        """Load again if anything changed since the last time that worked."""
        seen = self._look()  # before reading: what changes meanwhile is seen the next time
        if seen == self._seen:
            return
        try:
            self._load()
        except ConfigError as error:
            self.failures += 1
            if str(error) != self.problem:
                self.problem = str(error)
                _log.error("%s What was read before stays in force.", error)
            return
        self._seen, self.problem = seen, None
        self.reloads += 1
        _log.info("%s changed and was read again", " and ".join(self._paths))

    def _look(self) -> _Seen:
        return tuple(_signature(path) for path in self._paths)


def _signature(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - one call, every second
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
