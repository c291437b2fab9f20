"""The simulation itself: seeds pass, a seed always tells the same story, a failure is told so that it can be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from warmroute.core.stream_memory import View
from warmroute.testing.simulation import Plan, Violation, examine, run, shrink
from warmroute.testing.simulation.plan import FORGERIES, KINDS, REPLAY_FAULTS, Action

SEEDS_PER_TEST = 100


@pytest.fixture(autouse=True)
def _no_logs(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level("CRITICAL")
    return


@pytest.mark.parametrize("first", range(0, 400, SEEDS_PER_TEST))
def test_seeds_pass(first: int) -> None:
    """A sample of what `make sim SEEDS=10000` runs."""
    examined = examine(range(first, first + SEEDS_PER_TEST))
    assert not examined.failed, f"make sim SEED={examined.failed[0]}"
    for trouble in ("gaps", "lost", "restarts", "duplicates", "undecodable", "overflows", "replay_failures", "tails"):
        assert examined.counts[trouble], f"no {trouble}: the network has become harmless"


def test_a_seed_always_tells_the_same_story() -> None:
    assert run(Plan.of(17)).story() == run(Plan.of(17)).story()


def test_every_kind_of_trouble_comes_up() -> None:
    plans = [Plan.of(seed) for seed in range(300)]
    kinds = Counter(action.kind for plan in plans for action in plan.actions)
    assert kinds.keys() == KINDS.keys()
    stories = "\n".join(line for plan in plans[:120] for line in run(plan).story())
    for fault in REPLAY_FAULTS:
        assert f"replay goes wrong {fault}" in stories
    for kind in FORGERIES:
        assert f"forged {kind}" in stories


def test_a_failing_seed_is_shrunk_to_what_matters_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(View, "find_flaw", lambda self, seq, flaw: None)
    failed = next(outcome for seed in range(200) if (outcome := run(Plan.of(seed))).violation)
    assert isinstance(failed.violation, Violation)
    failure = shrink(failed)
    assert isinstance(failure.shortest.violation, Violation)
    assert failure.shortest.violation.rule == failed.violation.rule
    assert len(failure.shortest.plan.actions) < len(failed.plan.actions) / 3
    text = str(failure)
    assert f"make sim SEED={failed.plan.seed}" in text
    assert failed.violation.rule in text
    assert "LIVE in sync" in text


def test_a_world_that_is_left_alone_is_exact() -> None:
    plan = Plan.of(3)
    setup = replace(plan.setups[0], hwm=1000, replays=True)
    quiet = replace(plan, setups=(setup,), actions=tuple(Action(5 + n / 10, 0, "work", 3, n) for n in range(200)))
    outcome = run(quiet)
    assert outcome.violation is None
    assert not outcome.counts["gaps"] + outcome.counts["restarts"] + outcome.counts["lost"]
    assert outcome.counts["batches"] >= 600
