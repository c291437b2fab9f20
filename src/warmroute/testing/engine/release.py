"""What changed from one vLLM release to the next, as one value per release.

The layout of events is `warmroute.testing.events`' table; here is what else can be seen from outside. The golden frames
in the tests hold both against what those releases really sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from warmroute.errors import ConfigError
from warmroute.testing.events import RELEASES
from warmroute.testing.events import Release as Layout

HashForm: TypeAlias = Literal["int", "signed", "bytes"]

_OLDEST, _NEWEST = (0, 9), (0, 33)


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.removeprefix("vllm-").split("."))


_LAYOUTS = {_numbers(name): layout for name, layout in RELEASES.items() if name.startswith("vllm-")}
_LAYOUTS[0, 30] = _LAYOUTS[0, 32]  # the table names this one by the newest release that writes it, not by the first


@dataclass(frozen=True, slots=True)
class Release:
    """One vLLM release, as far as it can be seen from outside."""

    version: tuple[int, ...]
    layout: Layout
    """How it writes events and replays."""

    @classmethod
    def of(cls, name: str) -> Release:
        """The release named like `0.32` or `0.10.2`, from 0.9 to 0.33. Raises ConfigError for another name."""
        try:
            version = _numbers(name)
        except ValueError:
            version = ()
        if not _OLDEST <= version[:2] <= _NEWEST:
            raise ConfigError("release", f"{name!r} is not a release that is known", "Name one from 0.9 to 0.33.")
        return cls(version, _LAYOUTS[max(since for since in _LAYOUTS if since <= version)])

    @property
    def name(self) -> str:
        """The full version, three numbers."""
        return ".".join(map(str, (*self.version, 0)[:3]))

    @property
    def hash_form(self) -> HashForm:
        """How it publishes hashes unless told otherwise."""
        return "int" if self.version >= (0, 10, 2) else "signed"

    @property
    def says_event_sources(self) -> bool:
        """Whether `/kv_event_sources` exists."""
        return self.version >= (0, 31)

    @property
    def hashes_lora_path(self) -> bool:
        """Whether an adapter of the same name from another path has other hashes."""
        return self.version >= (0, 31)

    @property
    def root_is_fixed(self) -> bool:
        """Whether equal content has equal hashes in all processes."""
        return self.version >= (0, 29)

    @property
    def reuses_uncached_first(self) -> bool:
        """Whether freed blocks without a hash are the next to be taken."""
        return self.version >= (0, 24)

    @property
    def replay_hwm(self) -> int:
        """Replies that may wait for a slow reader of a replay before more are dropped; 0: no limit."""
        return 1000 if self.version < (0, 33) else 0
