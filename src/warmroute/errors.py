"""Errors that say whose fault it is and what to do next.

One tree, so that a caller can catch as wide or as narrow as it means to. Foreign exceptions (of sockets, of msgpack,
of HTTP parsers) are mapped to these at the module that knows the foreign library, and never travel further.
"""

from __future__ import annotations

import errno
from typing import Final

EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Numbers of system errors of a connection that could not be made: this machine's fault, not the other side's."""


class WarmrouteError(Exception):
    """Base of every error that Warmroute raises on purpose."""


class ConfigError(WarmrouteError):
    """The operator's fault: a setting is unknown, of the wrong type, out of range or contradicts another.

    The message names the key, the value and the remedy.
    """

    def __init__(self, key: str, problem: str, remedy: str) -> None:
        super().__init__(f"{key}: {problem}. {remedy}")
        self.key = key
        self.problem = problem
        self.remedy = remedy


class ClientError(WarmrouteError):
    """The client's fault: answered with `status` and an OpenAI error body; nothing was sent to an engine."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param


class LimitError(WarmrouteError):
    """A limit of the operator's: answered with `status` (429 or 503), the reason as code, and Retry-After."""

    def __init__(self, status: int, reason: str, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


class NoWorkerError(WarmrouteError):
    """The fleet's state: nobody can serve this request now. Answered with 503 and Retry-After."""


class EngineError(WarmrouteError):
    """An engine's fault: it could not be reached, or it answered against its own protocol."""


class WireError(WarmrouteError):
    """An engine's fault: bytes on the event or replay socket that no known dialect can mean.

    `reason` is a short stable word for metrics (`not_msgpack`, `bad_seq`, ...).
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class TokenizeError(WarmrouteError):
    """No token ids could be had for a request; it is routed by load. `reason` is a short stable word for metrics."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class RecordingError(WarmrouteError):
    """The user's fault: a recording cannot be read. The message names the file, the line and the problem."""


class SimulationError(WarmrouteError):
    """The user's fault: what is to be simulated cannot be, or a trace cannot be read. The message names the problem."""


class ExplainError(WarmrouteError):
    """A decision cannot be had from the gateway that was named. The message says what it answered."""


class IndexCorruptionError(WarmrouteError):
    """Our fault: the index broke one of its own invariants. Raised by `check()` only."""
