"""What is kept of a request while it runs, and of its decision for those who ask why: values.

Invariant: everything needed to try a request again elsewhere is in its `Job`, which never changes.
"""

from __future__ import annotations

import msgspec

from warmroute.core.decision import Decision, PickRequest
from warmroute.service.agreements import Made
from warmroute.service.ports import Outcome


class Job(msgspec.Struct, frozen=True, gc=False):
    """What is kept of a request while it runs, so that it can be tried again elsewhere."""

    pick: PickRequest
    request_id: str
    path: str
    no_tokens_reason: str | None = None
    plain: bool = True
    """Whether the engine's report is of this one prompt and answer: not so of several."""
    made: Made | None = None
    """What its prompt was made from, if it was not the client's own."""
    full_report: bool = False
    """Whether the engine was asked to announce again what it reuses."""
    adapter: tuple[str | None, str | None] = (None, None)
    """Name and path of the adapter that is loaded or unloaded."""
    authorize: bool = True
    """Whether the engine's key is to be added: the client sent none of its own."""
    trace_id: str | None = None
    key: str | None = None
    """Whose request it is; known for the access log only."""
    retriable: bool = True
    """False if an engine may have acted on it although no answer came (an admin request)."""


class Trail(msgspec.Struct, gc=False):
    """One decision and what became of it."""

    request_id: str
    decision: Decision
    no_tokens_reason: str | None
    outcome: Outcome | None = None
    status: int | None = None
    number: int = 0
    """Of this attempt, unique, if its engine's counters are to tell of it; else 0."""
    removed_before: int = 0
    """Blocks its worker had announced as removed when it was sent."""
    reported_tokens: int | None = None
    """Prompt tokens the engine says it took from its cache, where its answer says so."""
