"""Reading recordings: JSON lines of what a real engine published and was asked.

Two kinds of file are known. A *recording* holds `pub`, `req`, `admin`, `restart` and `note` records with wall-clock
times (scripts/vllm/recorder.py writes it and describes it); a *wire sample* holds one release's raw frames per line.
Whatever is wrong with a file is said with its line.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from warmroute.errors import RecordingError

Frames: TypeAlias = tuple[bytes, ...]
"""One multipart message; in the file each frame is base64."""


class Meta(msgspec.Struct, tag_field="k", tag="meta"):
    """How the recording was made."""

    version: str | None = None
    cache_config: dict[str, Any] | None = None
    t: float = 0.0

    @property
    def block_size(self) -> int | None:
        """Tokens per block as the engine's metrics said."""
        size = (self.cache_config or {}).get("block_size")
        return int(size) if size is not None and str(size).isdigit() else None


class Published(msgspec.Struct, tag_field="k", tag="pub"):
    """One published message."""

    t: float
    frames: Frames
    src: str = ""
    """Which socket it came on, where there are several (one per data-parallel rank)."""


class Request(msgspec.Struct, tag_field="k", tag="req"):
    """One request, from when it was sent to when it was answered."""

    t0: float
    t1: float
    id: int | str
    path: str
    body: dict[str, Any]
    status: int
    prompt_token_ids: list[int] | None = None
    cached_tokens: int | None = None
    hits_delta: float | None = None
    headers: dict[str, str] | None = None
    tag: str | None = None

    @property
    def reported_tokens(self) -> int | None:
        """Cached prompt tokens as the engine reported them: in the answer, else by its hit counter."""
        if self.cached_tokens is not None:
            return self.cached_tokens
        return None if self.hits_delta is None else int(self.hits_delta)


class Admin(msgspec.Struct, tag_field="k", tag="admin"):
    """One call that is not a generation."""

    t: float
    path: str
    status: int
    text: str = ""
    body: dict[str, Any] | None = None


class Restart(msgspec.Struct, tag_field="k", tag="restart"):
    """The engine's process was gone at this time."""

    t: float
    text: str = ""


class Note(msgspec.Struct, tag_field="k", tag="note"):
    """A remark."""

    t: float = 0.0
    text: str = ""


class ReplayAsked(msgspec.Struct, tag_field="k", tag="replay_req"):
    """A replay request that the recorder sent."""

    t: float
    frames: Frames


class ReplayGot(msgspec.Struct, tag_field="k", tag="replay_rep"):
    """One reply that the recorder got."""

    t: float
    frames: Frames


Record: TypeAlias = Meta | Published | Request | Admin | Restart | Note | ReplayAsked | ReplayGot


class WireSample(msgspec.Struct):
    """Frames of one release."""

    version: str
    pub: list[Frames]
    replay: list[Frames] = msgspec.field(name="replay_from_2", default_factory=list)


class Recording(msgspec.Struct):
    """One file's records, in the order of the file."""

    path: str
    records: list[Record]

    @property
    def meta(self) -> Meta:
        """The first description in the file, or an empty one."""
        return next((record for record in self.records if isinstance(record, Meta)), Meta())


class WireSamples(msgspec.Struct):
    """One file's wire samples."""

    path: str
    samples: list[WireSample]


_KNOWN = frozenset({"meta", "pub", "req", "admin", "restart", "note", "replay_req", "replay_rep"})
_decode_record = msgspec.json.Decoder(Record).decode
_decode_sample = msgspec.json.Decoder(WireSample).decode


class _Kind(msgspec.Struct):
    k: str | None = None
    version: str | None = None
    pub: msgspec.Raw = msgspec.Raw()


def read(path: str) -> Recording | WireSamples:
    """Read one file. Raises RecordingError: it cannot be opened, or a line is not what it should be."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read ({error.strerror}). Give a file that can be.") from error
    records: list[Record] = []
    samples: list[WireSample] = []
    for number, line in _lines(data):
        try:
            kind = msgspec.json.decode(line, type=_Kind)
            if kind.k in _KNOWN:
                records.append(_decode_record(line))
            elif kind.k is None and kind.version is not None and kind.pub:
                samples.append(_decode_sample(line))
            elif kind.k is None:
                raise RecordingError(f"{path}:{number}: no record: it has neither `k` nor `version` and `pub`.")
        except msgspec.MsgspecError as error:
            raise RecordingError(f"{path}:{number}: {error}. Expected one JSON object per line.") from error
    if samples and not records:
        return WireSamples(path, samples)
    if not records:
        raise RecordingError(f"{path}: holds no record. Expected JSON lines as the recorder writes them.")
    return Recording(path, records)


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            yield number, line
