"""A file that lines are appended to, by several processes if need be, and that somebody may move away meanwhile.

Invariant: what is not counted as lost stands in the file whole, and on a line of its own unless another process's line
broke off before it. Nothing is waited for: a pipe that nobody empties and a full disk cost lines, not time.
"""

from __future__ import annotations

import os

from warmroute.errors import ConfigError

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
_REMEDY = "Give a file that can be written; or /dev/stdout, where that is a file, a terminal or a pipe, and no socket."


class LogFile:
    """Open while it lives. Raises ConfigError, under the name of the setting, if it cannot be opened."""

    def __init__(self, path: str, setting: str) -> None:
        self._path = path
        self._torn = False
        """Whether the file ends in the beginning of a line that did not fit."""
        self.lost = 0
        """Lines that could not be written, or not to their end."""
        try:
            self._file = os.open(path, _FLAGS, 0o640)
        except OSError as error:
            problem = f"{path!r} cannot be opened: {error.strerror}"
            raise ConfigError(setting, problem, _REMEDY) from error

    def write(self, line: bytes) -> None:
        """Append one line, or count it as lost."""
        if self._torn:
            line = b"\n" + line
        try:
            written = os.write(self._file, line)
        except OSError:  # a full disk or pipe, a reader that is gone
            written = 0
        self.lost += written < len(line)
        if written:
            self._torn = written < len(line)

    def look(self) -> None:
        """Follow the path if its file was moved away: rotation."""
        try:
            now, mine = os.stat(self._path), os.fstat(self._file)  # noqa: PTH116 - one call, every second
            moved = (now.st_dev, now.st_ino) != (mine.st_dev, mine.st_ino)
        except FileNotFoundError:
            moved = True
        except OSError:
            return
        if moved:
            try:
                fresh = os.open(self._path, _FLAGS, 0o640)
            except OSError:
                return  # the old one is better than none
            os.close(self._file)
            self._file, self._torn = fresh, False

    def close(self) -> None:
        """Write nothing more."""
        os.close(self._file)
