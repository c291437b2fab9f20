"""The access log: one JSON object per request that ended, with what was decided and what it came to.

What users sent is not in it: no prompt, no body, no header but the request's id, its trace and the name of its key.

Invariant: every request that reached the service has exactly one line, however often it was tried; so has what was
refused before. Times are in seconds, tokens as the engine reported them where it did.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from warmroute.core import usage
from warmroute.service.access import KEY_HEADER
from warmroute.service.ports import Outcome, RequestHead
from warmroute.service.tracking import Attempt

TEXT_BYTES_MAX = 200
"""Longer ids and paths are cut: a line stays short enough to be written whole, whoever else writes there."""

_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


class Line(msgspec.Struct, kw_only=True):
    """One line; null: not known, or there was no such thing."""

    time: str
    """When it ended, UTC."""
    process: int | None = None
    """Which of several."""
    request_id: str
    trace_id: str | None = None
    key: str | None = None
    """The name of the client's key."""
    path: str | None = None
    """Without its query."""
    model: str | None = None
    worker: str | None = None
    reason: str | None = None
    """Why that worker, or why nobody served it."""
    status: int | None = None
    """That the client got; null if it got none, or a 502 or 504 because its engine failed on the way."""
    outcome: str
    """`complete`, `client_gone`, `engine_lost`, `unreachable`, `unasked` (no socket left here), or `refused`: by an
    engine, or by the gateway itself."""
    retries: int = 0
    prompt_tokens: int | None = None
    overlap_tokens: int | None = None
    """Predicted to be cached at its worker."""
    cached_tokens: int | None = None
    """What the engine says of that."""
    completion_tokens: int | None = None
    ttft_s: float | None = None
    """From the decision to the first byte of the answer's body."""
    duration_s: float | None = None
    """From the decision to the end."""


class AccessLog:
    """Makes the lines; `write` takes each with its line break. `process`: which of several."""

    def __init__(
        self, write: Callable[[bytes], None], clock: Callable[[], float], wall_clock: Callable[[], float]
    ) -> None:
        self.process: int | None = None
        self._write = write
        self._clock = clock
        self._wall_clock = wall_clock
        self._encode = msgspec.json.Encoder().encode

    def ended(self, attempt: Attempt, outcome: Outcome, tail: bytes, status: int | None) -> None:
        """A request's last attempt is over, and the client was given that status."""
        job, trail = attempt.job, attempt.trail
        decision = trail.decision
        counted = usage.any_prompt_tokens(tail)
        first_s = decision.first_byte_s
        self._put(
            Line(
                time=self._time(),
                process=self.process,
                request_id=_short(job.request_id),
                trace_id=job.trace_id,
                key=job.key,
                path=_short(job.path),
                model=None if job.pick.model is None else _short(job.pick.model),
                worker=decision.worker.name,
                reason=decision.reason,
                status=status,
                outcome=outcome.value,
                retries=len(job.pick.exclude),
                prompt_tokens=_known(job.no_tokens_reason, decision.prompt_tokens) if counted is None else counted,
                overlap_tokens=_known(job.no_tokens_reason, decision.overlap_tokens),
                cached_tokens=trail.reported_tokens,
                completion_tokens=usage.generated_tokens(tail),
                ttft_s=None if first_s is None else round(first_s, 6),
                duration_s=round(self._clock() - decision.at, 6),
            )
        )

    def refused(self, status: int, reason: str | None, head: RequestHead | None, request_id: str) -> None:
        """The gateway refused a request itself; `head` None: it could not be read."""
        path = None if head is None else _short(head.target.partition(b"?")[0].decode("latin-1"))
        self._put(
            Line(
                time=self._time(),
                process=self.process,
                request_id=_short(request_id),
                trace_id=None if head is None else trace_id(head),
                key=None if head is None else key_name(head),
                path=path,
                reason=reason,
                status=status,
                outcome=Outcome.REFUSED.value,
            )
        )

    def _time(self) -> str:
        return datetime.fromtimestamp(self._wall_clock(), UTC).isoformat(timespec="milliseconds")[:-6] + "Z"

    def _put(self, line: Line) -> None:
        self._write(self._encode(line) + b"\n")


def trace_id(head: RequestHead) -> str | None:
    """The trace that the client's `traceparent` names, which is forwarded as it is; None if it names none."""
    given = head.header(b"traceparent")
    found = None if given is None else _TRACEPARENT.fullmatch(given)
    return None if found is None else found[1].decode()


def key_name(head: RequestHead) -> str | None:
    """The name of the key that a request came with."""
    name = head.header(KEY_HEADER)
    return None if name is None else name.decode("latin-1")


def _short(text: str) -> str:
    return text[:TEXT_BYTES_MAX]


def _known(unknown: str | None, tokens: int) -> int | None:
    return tokens if unknown is None else None
