"""What is to happen in one world: a seed's engines and the list of what befalls them.

Everything that chance decides is decided here, or from an action's own `luck`: an action can be taken out and the
others still mean the same, which is what makes a failing plan shrinkable.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from warmroute.testing.events import RELEASES
from warmroute.testing.simulation.cache import HashForm

KINDS: dict[str, str] = {
    "work": "the engine computes SIZE prompts",
    "reset": "its cache is reset; it says so with its next step",
    "restart": "the process dies and comes back after SIZE seconds",
    "vanish": "its machine dies without a word and comes back after SIZE seconds",
    "drop": "the next SIZE published messages do not reach the subscriber",
    "lose": "a batch takes its number and is lost, from the replay as well",
    "garble": "a batch is published that nobody can read",
    "corrupt": "the next SIZE messages arrive unreadable; the replay has them as they were",
    "forge": "a message arrives that the engine never sent",
    "repeat": "the last SIZE messages arrive once more",
    "cut": "the connection breaks and can be made again after SIZE seconds",
    "blackout": "nothing moves for SIZE seconds, in either direction, and nobody is told",
    "replay": "the next replay goes wrong",
    "told": "the engine's metrics are read: they tell when its process began",
    "clock": "the engine's wall clock is set by SIZE seconds, forward or back",
}
"""What can befall an engine."""
REPLAY_FAULTS = ("silent", "lossy", "cut short", "slow", "twice", "garbage", "shuffled")
FORGERIES = ("frames", "number", "payload", "far", "last", "behind")

_TROUBLE_S = 90.0
_WORK_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that befalls one engine."""

    at: float
    engine: int
    kind: str
    size: float
    luck: int
    """Seed of all that chance decides about it."""

    def __str__(self) -> str:
        return f"{self.at:8.3f} engine {self.engine}: {self.kind} {self.size:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """One engine and its way to us."""

    release: str
    replays: bool
    buffer_steps: int
    blocks_max: int
    hwm: int
    """Messages that may wait for a subscriber before more are dropped."""
    delay_s: float
    """Longest time a message takes."""
    hash_form: HashForm
    fixed_root: bool
    """Whether equal content has equal hashes in every run."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One world: its engines and what befalls them, in order of time."""

    seed: int
    setups: tuple[Setup, ...]
    actions: tuple[Action, ...]
    pending_batches_max: int
    idle_end: bool
    """Whether the engines fall silent when the trouble is over; else they go on working."""

    @classmethod
    def of(cls, seed: int) -> Plan:
        """The plan of a seed."""
        luck = random.Random(seed)  # noqa: S311 - a simulation wants repeatable numbers
        setups = tuple([_setup(luck) for _ in range(luck.choice((1, 1, 2, 2, 3, 5)))])
        # Swarms: a seed has few kinds of faults, so that rare ones are not drowned by common ones.
        faults = luck.sample([kind for kind in KINDS if kind != "work"], luck.randint(0, 6))
        actions = [_action(luck, luck.randrange(len(setups)), faults) for _ in range(luck.randint(8, 40) * len(setups))]
        return cls(
            seed,
            setups,
            tuple(sorted(actions, key=lambda action: action.at)),
            pending_batches_max=luck.choice((4, 16, 1000, 1000)),
            idle_end=luck.random() < 0.5,
        )


def _setup(luck: random.Random) -> Setup:
    return Setup(
        release=luck.choice(list(RELEASES)),
        replays=luck.random() < 0.8,
        buffer_steps=luck.choice((1, 3, 10, 1000, 1000, 1000)),
        blocks_max=luck.choice((6, 12, 24)),
        hwm=luck.choice((2, 10, 1000)),
        delay_s=luck.choice((0.001, 0.05, 1.0)),
        hash_form=luck.choice(("int", "int", "signed", "bytes")),
        fixed_root=luck.random() < 0.5,
    )


def _action(luck: random.Random, engine: int, faults: list[str]) -> Action:
    kind = luck.choice(faults) if faults and luck.random() > _WORK_SHARE else "work"
    size: float = luck.randint(1, 5)
    if kind in {"restart", "vanish", "cut"}:
        size = luck.choice((0.01, 0.5, 3.0, 20.0, 50.0))
    elif kind == "blackout":
        size = luck.choice((0.2, 2.0, 10.0, 60.0))
    elif kind == "clock":
        size = luck.choice((-3600.0, -1.0, -0.01, 0.5, 3600.0))
    # Bursts: half of what happens does so right after something else.
    at = luck.uniform(0.0, _TROUBLE_S) if luck.random() < 0.5 else round(luck.uniform(0.0, _TROUBLE_S), -1)
    return Action(at + luck.random() * 0.1, engine, kind, size, luck.getrandbits(32))
