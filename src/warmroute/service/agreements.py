"""Whether the prompts that we make of other forms than chats and completions are those that engines make of them.

An engine says with its answer how many tokens the prompt had. Where that is not the number that was made here, the
release converts otherwise, and the ids are worth nothing. So a prompt that was made is believed only after another of
its kind (same path, model and shape) had the length that its engine counted; until then it is routed by load, and its
length compared. A kind that differs is left alone for a while, then tried again by more of them.

Invariant: no decision rests on a kind of prompt whose last comparison failed, or that was never compared.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import msgspec

from warmroute.core.openai import RoutingRequest
from warmroute.service.tokens import Tokenized

_log = logging.getLogger(__name__)

PAUSE_S = 60.0
"""So long a kind that differed is left alone; doubled each time it differs again."""
PAUSE_MAX_S = 3600.0
AGREEING_AGAIN = 8
"""So many comparisons in a row must hold before a kind is believed that differed before."""
KINDS_MAX = 4096
"""Kinds remembered; beyond it the one that was compared longest ago begins anew."""


class Made(msgspec.Struct, frozen=True):
    """A prompt that was made from another form."""

    path: str
    model: str
    shape: str
    tokens: int = 0


class _Kind(msgspec.Struct):
    lacking: int = 1
    """Comparisons that must hold before it is believed."""
    paused_until: float = 0.0
    pause_s: float = PAUSE_S


class Agreements:
    """What comparisons said, by kind. Belongs to one event loop; `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        """(path, `equal`, `different` or `unreported`) -> prompts."""
        self._clock = clock
        self._kinds: dict[tuple[str, str, str], _Kind] = {}

    def paused(self, request: RoutingRequest) -> Tokenized | None:
        """Why no ids are to be had for the request, if its kind was found to differ lately."""
        if request.shape is None:
            return None
        kind = self._kinds.get((request.path, request.model, request.shape))
        return Tokenized(None, "differs") if kind is not None and kind.paused_until > self._clock() else None

    def believed(self, request: RoutingRequest, found: Tokenized) -> tuple[Tokenized, Made | None]:
        """What to decide by, and what is to be compared when the request is over."""
        if request.shape is None or found.token_ids is None:
            return found, None
        made = Made(request.path, request.model, request.shape, len(found.token_ids))
        kind = self._kinds.get((made.path, made.model, made.shape))
        proven = kind is not None and not kind.lacking
        return found if proven else Tokenized(None, "unproven"), made

    def compare(self, made: Made, counted: int | None) -> bool:
        """Hold a prompt's length against what its engine counted, if it did. Whether they are equal."""
        if counted is None:
            self.counts[made.path, "unreported"] += 1
            return False
        name = (made.path, made.model, made.shape)
        kind = self._kinds[name] = self._kinds.pop(name, _Kind())  # the last compared stands last
        if len(self._kinds) > KINDS_MAX:
            del self._kinds[next(iter(self._kinds))]
        equal = counted == made.tokens
        self.counts[made.path, "equal" if equal else "different"] += 1
        if equal:
            kind.lacking = max(0, kind.lacking - 1)
        else:
            kind.lacking = AGREEING_AGAIN
            if kind.paused_until <= self._clock():  # else it was sent before another had differed
                self._doubt(kind, made, counted)
        return equal

    def _doubt(self, kind: _Kind, made: Made, counted: int) -> None:
        again = kind.paused_until > 0.0
        kind.paused_until = self._clock() + kind.pause_s
        kind.pause_s = min(2 * kind.pause_s, PAUSE_MAX_S)
        _log.log(
            logging.DEBUG if again else logging.WARNING,
            "%s for %s with %s: the engine counts %d prompt tokens where %d were expected; such requests are routed by "
            "load for now, and tried again later (counted from now on, not logged)",
            made.path,
            made.model,
            made.shape,
            counted,
            made.tokens,
        )
