"""A stream on the bench: inputs in short words, and everything that was done because of them."""

from __future__ import annotations

from typing import Any

import msgspec

from warmroute.config.tree import EventsConfig
from warmroute.core.stream import Stream
from warmroute.core.stream_states import Apply, Count, Effect, Purge, Replay, SetTrust
from warmroute.core.wire.events import BlockRemoved, EventBatch
from warmroute.types import TrustState


def batch(seq: int, ts: float | None = None, **fields: Any) -> EventBatch:
    """A batch as it comes from its own payload: its mark is a number for all that it says."""
    events = (BlockRemoved(block_hashes=(seq,)),)
    said = EventBatch(**({"ts": 1000.0 + seq if ts is None else ts, "rank": 0, "events": events} | fields))
    return msgspec.structs.replace(said, mark=hash(repr(said)) % 2**64)


class Rig:
    """A stream, and everything it has had done."""

    def __init__(self, **config: Any) -> None:
        self.stream = Stream(EventsConfig(**config))
        self.done: list[Effect] = []
        self.last: list[Effect] = []
        self.now = 0.0

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> list[Effect]:
            self.last = getattr(self.stream, name)(*args, **kwargs)
            self.done += self.last
            return self.last

        return call

    def up(self) -> Rig:
        self.connected(self.now)
        return self

    def synced(self, count: int = 0) -> Rig:
        """Subscribed, with `count` batches replayed from the start."""
        self.up()
        self.reply(range(count))
        assert self.stream.trust is TrustState.LIVE
        self.done.clear()
        return self

    def hear(self, *seqs: int) -> None:
        for seq in seqs:
            self.live(seq, batch(seq), self.now)

    def reply(self, seqs: range | list[int], *, end: bool = True) -> None:
        for seq in seqs:
            self.replayed(seq, batch(seq), self.now)
        if end:
            self.replay_ended(self.now)

    @property
    def applied(self) -> list[int]:
        """What was applied since the last purge."""
        seqs: list[int] = []
        for effect in self.done:
            if isinstance(effect, Purge):
                seqs.clear()
            elif isinstance(effect, Apply):
                seqs.append(effect.seq)
        return seqs

    def asked(self) -> list[int]:
        return [effect.start for effect in self.done if isinstance(effect, Replay)]

    def counted(self, name: str) -> int:
        return sum(effect.n for effect in self.done if isinstance(effect, Count) and effect.name == name)

    def purged(self) -> bool:
        return any(isinstance(effect, Purge) for effect in self.done)

    @property
    def reason(self) -> str:
        return next(effect.reason for effect in reversed(self.done) if isinstance(effect, SetTrust))
