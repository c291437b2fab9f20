"""What must hold in a world, whatever happens to it. docs/events.md says the same in prose ("What LIVE means").

- *LIVE is exact.* The view of a LIVE worker is what its engine's cache held, per hash, medium and copy, after some
  batch, and that batch was the newest one at some time in the last `window_s`. Of an engine without replay nothing can
  tell that the newest batches were lost until another one comes: there it is what the cache held after the newest batch
  that has reached us.
- *Nothing is invented.* Whatever the trust, a view holds only what was announced in the worker's name, and each hash
  means the tokens that it was announced with.
- *A match is a prefix.* What the index says of a LIVE worker for a prompt is what that cache would have served.
- *It heals.* When all has been well for `SETTLE_S`, a worker whose cache can still be learned from its replay is LIVE,
  and a LIVE view is what the cache holds now.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from warmroute.config.tree import EventsConfig
from warmroute.core.index.contract import PrefixIndex
from warmroute.service.ingest import WorkerStream
from warmroute.testing.simulation.cache import BLOCK_SIZE, Held, prefixes_of
from warmroute.testing.simulation.engine import ModelEngine, Run
from warmroute.types import TrustState, WorkerId

TICK_S = 1.0
SETTLE_S = 240.0


class Violation(Exception):  # noqa: N818 - it is no error of the program that raises it
    """A property does not hold. `rule` is its name, the text says who and how."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


@dataclass(slots=True)
class _Verdict:
    """The last view that was looked at, so that an unchanged one need not be taken out of the index again."""

    changes: tuple[int, int]
    run: Run
    state: int


class Judge:
    """Looks at one worker's view. `delivered` is the newest batch that reached us: (its run's number, its seq)."""

    def __init__(self, engine: ModelEngine, stream: WorkerStream, index: PrefixIndex, config: EventsConfig) -> None:
        self._engine = engine
        self._stream = stream
        self._worker = WorkerId(stream.worker)
        self._index = index
        delay_s = engine.setup.delay_s
        self.window_s = config.probe_idle_s + TICK_S + 2 * config.replay_timeout_s + 4 * delay_s
        self.newest_delivered = (0, -1)
        self._verdict: _Verdict | None = None
        self._looked: tuple[int, int] | None = None
        self._excused_until = 0.0

    def delivered(self, seq: int, payload: bytes) -> None:
        """A batch was handed to the stream, if it is one of the engine's."""
        for number, run in enumerate(self._engine.runs):
            if (seq, payload) in run.buffer:
                self.newest_delivered = max(self.newest_delivered, (number, seq))

    def excuse(self, now: float) -> None:
        """A forgery that could be true: it may be taken for that until the engine itself contradicts it."""
        self._excused_until = now + self.window_s

    def look(self, now: float, *, closely: bool = False) -> None:
        """Look at a LIVE view, or `closely` at any. Raises Violation."""
        counts = self._stream.counts
        changes = (counts.batches, counts.purges)
        if self._stream.trust.state is not TrustState.LIVE:
            if closely and changes != self._looked:
                self._looked = changes
                self._check_announced(self._view())
            return
        if now < self._excused_until:
            self._verdict = None
            return
        verdict = self._verdict
        if verdict is None or verdict.changes != changes:
            verdict = self._verdict = self._find(changes)
        run, state = verdict.run, verdict.state
        superseded = run.superseded(state)
        if superseded is not None and not self._allowed(run, state, superseded, now):
            verdict = self._verdict = self._find(changes)  # it may be so again: an empty cache, for one
            run, state = verdict.run, verdict.state
            superseded = run.superseded(state)
        if superseded is not None and not self._allowed(run, state, superseded, now):
            raise Violation(
                "LIVE but stale",
                f"engine {self._engine.number} at {now:.3f}: the view is what run {self._number(run)} held after batch "
                f"{state - 1}, which another followed at {superseded:.3f}: {now - superseded:.1f} s ago, "
                f"{self.window_s:.1f} s are allowed; {self._stream!r}",
            )

    def settled(self, now: float) -> None:
        """All has been well for long. Raises Violation."""
        engine, trust = self._engine, self._stream.trust
        self.look(now)
        view, held = self._view(), engine.run.cache.held
        if trust.state is TrustState.LIVE and view != held and engine.setup.replays:
            raise Violation("LIVE but wrong in the end", f"engine {engine.number}: {_difference(view, held)}")
        if engine.recoverable and trust.state is not TrustState.LIVE:
            raise Violation("not healed", f"engine {engine.number} is {trust.state} ({trust.reason}); {self._stream!r}")

    def match(self, luck: random.Random) -> None:
        """Ask for a prompt, as a request does. Raises Violation."""
        if self._verdict is None or self._stream.trust.state is not TrustState.LIVE:
            return
        paths = self._verdict.run.cache.paths
        if not paths:
            return
        path = paths[luck.choice(list(paths))]
        found = {overlap.worker: overlap.blocks for overlap in self._index.match(prefixes_of(path), BLOCK_SIZE)}
        held = {paths[name] for name, _ in self._verdict.run.states[self._verdict.state][1]}
        blocks = next((n for n in range(len(path)) if path[: n + 1] not in held), len(path))
        if found.get(self._worker, 0) != blocks:
            got = found.get(self._worker, 0)
            raise Violation("a wrong match", f"engine {self._engine.number}: {path} gives {got} blocks, not {blocks}")

    def _find(self, changes: tuple[int, int]) -> _Verdict:
        view = self._view()
        self._check_announced(view)
        for run in reversed(self._engine.runs):
            for state in range(len(run.states) - 1, -1, -1):
                if run.states[state][1] == view:
                    return _Verdict(changes, run, state)
        held = self._engine.run.cache.held
        raise Violation(
            "LIVE but never so",
            f"engine {self._engine.number}: no batch left the cache as the view is; against the newest: "
            f"{_difference(view, held)}; {self._stream!r}",
        )

    def _allowed(self, run: Run, state: int, superseded: float, now: float) -> bool:
        if now - superseded <= self.window_s:
            return True
        lost_unseen = not self._engine.setup.replays and (run.died is None or now - run.died <= self.window_s)
        return lost_unseen and (self._number(run), state - 1) >= self.newest_delivered

    def _view(self) -> Held:
        view: Held = {}
        runs = self._engine.runs
        for entry in self._index.dump(self._worker):
            paths = [run.cache.paths[entry.block_hash] for run in runs if entry.block_hash in run.cache.paths]
            if paths and entry.prefix not in [prefixes_of(path)[-1] for path in paths]:
                raise Violation("a wrong meaning", f"engine {self._engine.number}: {entry}")
            for _, medium, copies in entry.copies:
                view[entry.block_hash, medium] = copies
        return view

    def _check_announced(self, view: Held) -> None:
        for name, medium in view:
            if name not in self._engine.forged and not any(name in run.cache.paths for run in self._engine.runs):
                raise Violation("invented", f"engine {self._engine.number} never announced {name!r} in {medium.name}")

    def _number(self, run: Run) -> int:
        return self._engine.runs.index(run)


def _difference(view: Held, held: Held) -> str:
    more = {key: n for key, n in view.items() if held.get(key) != n}
    less = {key: n for key, n in held.items() if view.get(key) != n}
    return f"{len(view)} held by the view, {len(held)} by the cache; only in the view {more}, only in the cache {less}"
