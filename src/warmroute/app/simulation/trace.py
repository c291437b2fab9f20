"""Requests that were recorded: a trace in Mooncake's format, one JSON object per line.

    {"timestamp": MILLISECONDS, "input_length": TOKENS, "output_length": TOKENS, "hash_ids": [BLOCK, ...]}

Each hash id stands for 512 tokens of the prompt, the last one for what is left; equal ids are equal tokens. Plain or
gzipped. Lines may come in any order.

Invariant: prompts are as long as the trace says, and share what it says; a line that is not understood is an error that
names it, never left out.
"""

from __future__ import annotations

import functools
import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import msgspec

from warmroute.app.simulation.workloads import Conversation, Piece, Turn

BLOCK_TOKENS: Final = 512
LENGTH_MAX: Final = 10_000_000
"""A longer prompt or answer is a slip of the unit."""
_GZIP: Final = b"\x1f\x8b"
_BOM: Final = b"\xef\xbb\xbf"
_LAP_BITS: Final = 28
_OWN: Final = 1 << 40
"""Numbers from here on are of pieces that nothing shares."""

Length: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=LENGTH_MAX)]


class Line(msgspec.Struct, frozen=True):
    """One request, as the trace has it."""

    timestamp: float
    input_length: Length
    output_length: Length
    hash_ids: list[int | str]


_decode = msgspec.json.Decoder(Line, strict=False).decode  # 1300.0 is a length, too


@dataclass(frozen=True, slots=True)
class Request:
    """One request with its blocks numbered."""

    at_ms: float
    prompt: tuple[Piece, ...]
    rest: int
    """Tokens at the prompt's end that no hash id stands for: nobody shares them."""
    answer: int


@dataclass(frozen=True, slots=True)
class Trace:
    """A workload. When more is asked than the trace has, it is repeated, and nothing is shared between repetitions."""

    path: Path

    def __call__(self, seed: int) -> Iterator[Conversation]:
        """The requests in order, at the trace's own pace scaled to one per second. Raises ValueError, OSError."""
        del seed
        requests = _read(self.path)
        first_ms, span_s = requests[0].at_ms, (requests[-1].at_ms - requests[0].at_ms) / 1e3
        pace = len(requests) / span_s if span_s else 0.0
        own = count(_OWN)
        for lap in count():
            last_ms = first_ms
            for request in requests:
                prompt = [(lap << _LAP_BITS | number, tokens) for number, tokens in request.prompt]
                if request.rest:
                    prompt.append((next(own), request.rest))
                turn = Turn(tuple(prompt), (next(own), max(1, request.answer)), 0.0)
                gap_s = (request.at_ms - last_ms) / 1e3 * pace if pace else 1.0  # all at one moment: no pace to keep
                yield Conversation(gap_s, iter((turn,)), None)
                last_ms = request.at_ms


@functools.lru_cache(maxsize=1)
def _read(path: Path) -> Sequence[Request]:
    """All requests, the earliest first. Raises ValueError with the line that is none."""
    data = path.read_bytes()
    try:
        data = gzip.decompress(data) if data.startswith(_GZIP) else data
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: it begins as gzip, and cannot be unpacked: {error}") from error
    numbers: dict[int | str, int] = {}
    requests = []
    for number, line in enumerate(data.removeprefix(_BOM).splitlines(), 1):
        if not line.strip():
            continue
        try:
            requests.append(_request(_decode(line), numbers))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: {error}; expected an object with timestamp (ms), input_length, output_length "
                f"and hash_ids, one per {BLOCK_TOKENS} tokens of the prompt"
            ) from error
    if not requests:
        raise ValueError(f"{path} holds no request; expected one JSON object per line")
    return sorted(requests, key=lambda request: request.at_ms)


def _request(line: Line, numbers: dict[int | str, int]) -> Request:
    length = max(1, line.input_length)
    blocks = -(-length // BLOCK_TOKENS)
    if len(line.hash_ids) > blocks + 1:  # some count the block that the answer begins
        raise ValueError(f"{len(line.hash_ids)} hash ids for a prompt of {line.input_length} tokens")
    prompt, left = [], length
    for hash_id in line.hash_ids[:blocks]:
        prompt.append((numbers.setdefault(hash_id, len(numbers)), min(left, BLOCK_TOKENS)))
        left -= min(left, BLOCK_TOKENS)
    return Request(line.timestamp, tuple(prompt), left, line.output_length)
