"""The states of a worker's event stream, every move between them, and the effects a stream can have.

The table is data, so that the drawing in the docs is made from it and a test can walk it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

import msgspec

from warmroute.core.wire.events import Batch
from warmroute.types import TrustState


class State(enum.StrEnum):
    """Where a stream is."""

    CONNECTING = "connecting"
    """No subscription. What is known may go stale."""
    REPLAYING = "replaying"
    """Subscribed; a replay brings what was published before."""
    LIVE = "live"
    """Batches are applied as they come."""
    GAP = "gap"
    """Batches are missing; newer ones wait until a replay has brought them."""
    RESYNC = "resync"
    """What was known has been purged; a replay from 0 rebuilds it."""
    DEAD = "dead"
    """Retired: nothing is heard any more."""


class Cause(enum.StrEnum):
    """Why a stream moves from one state to another."""

    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    CAUGHT_UP = "caught up"
    GAVE_UP = "gave up"
    JUMPED = "jumped"
    RESTARTED = "restarted"
    DOUBTED = "doubted"
    REBUILT = "rebuilt"
    RETIRED = "retired"


_ENDS = {Cause.DISCONNECTED: State.CONNECTING, Cause.RETIRED: State.DEAD}
_REPLAYS = {
    Cause.CAUGHT_UP: State.LIVE,
    Cause.GAVE_UP: State.LIVE,
    Cause.RESTARTED: State.RESYNC,
    Cause.DOUBTED: State.RESYNC,
}
TRANSITIONS: Mapping[State, Mapping[Cause, State]] = MappingProxyType(
    {
        State.CONNECTING: {Cause.CONNECTED: State.REPLAYING, Cause.RETIRED: State.DEAD},
        State.REPLAYING: _REPLAYS | _ENDS,
        State.LIVE: {
            Cause.JUMPED: State.GAP,
            Cause.RESTARTED: State.RESYNC,
            Cause.REBUILT: State.RESYNC,
            Cause.DOUBTED: State.RESYNC,
        }
        | _ENDS,
        State.GAP: _REPLAYS | _ENDS,
        State.RESYNC: _REPLAYS | _ENDS,
        State.DEAD: {},
    }
)
"""Every move there is. What is not here is a bug, and raises KeyError."""


class Apply(msgspec.Struct, frozen=True, gc=False):
    """Apply this batch to the worker's index."""

    seq: int
    batch: Batch


class Replay(msgspec.Struct, frozen=True, gc=False):
    """Ask the engine for every batch from `start` on; a replay under way is abandoned."""

    start: int


class EndReplay(msgspec.Struct, frozen=True, gc=False):
    """The replay is over, or not wanted any more: release its socket."""


class Purge(msgspec.Struct, frozen=True, gc=False):
    """Forget everything that is known of the worker's cache."""

    reason: str


class SetTrust(msgspec.Struct, frozen=True, gc=False):
    """From now on the worker's view may be believed so far."""

    state: TrustState
    reason: str


Counted: TypeAlias = Literal[
    "gaps",
    "missed",
    "lost",
    "restarts",
    "duplicates",
    "undecodable",
    "overflows",
    "strays",
    "tails",
    "replays",
    "replay_failures",
    "resyncs",
]
"""`missed` batches were skipped by the live stream; `lost` ones (or those before the subscription) never came.
`strays` came outside a connection.
`tails`: a silent engine was asked whether it had more, and it had."""


class Count(msgspec.Struct, frozen=True, gc=False):
    """Something happened `n` times."""

    name: Counted
    n: int = 1


Effect: TypeAlias = Apply | Replay | EndReplay | Purge | SetTrust | Count
