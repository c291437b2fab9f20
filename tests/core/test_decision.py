"""What is kept of a decision, and of the workers that it was made between."""

from __future__ import annotations

from array import array

import pytest

from warmroute.core.decision import PickRequest
from warmroute.core.index.reference import ReferenceIndex
from warmroute.core.router import LANES_MAX, Router
from warmroute.core.wire.events import BlockStored
from warmroute.errors import NoWorkerError
from warmroute.types import Endpoint, Fleet, ModelInfo, Worker, WorkerId

BLOCK = 16
PROMPT = list(range(10 * BLOCK + 1))


def fleet_of(workers: int) -> Fleet:
    models = (ModelInfo("m"),)
    return Fleet([Worker(WorkerId(n), Endpoint("127.0.0.1", 8000 + n), models=models) for n in range(workers)])


def ask(prompt: list[int] | None = None, **more: object) -> PickRequest:
    return PickRequest(model="m", token_ids=prompt, **more)  # type: ignore[arg-type]


def test_whom_a_request_avoids_is_avoided_and_no_other_request_is() -> None:
    router, fleet = Router(ReferenceIndex(100)), fleet_of(3)
    for n in range(300):
        avoided = frozenset({WorkerId(n % 3), WorkerId(10 + n)})
        assert router.pick(ask(exclude=avoided), fleet, 0.0).worker.id not in avoided
        router.pick(ask(), fleet, 0.0)
    assert len({router.pick(ask(), fleet, 0.0).worker.id for _ in range(9)}) == 3
    assert len(router._lanes) <= LANES_MAX
    with pytest.raises(NoWorkerError):
        router.pick(ask(exclude=frozenset({WorkerId(0)})), fleet_of(1), 0.0)


def test_what_is_kept_is_the_chosen_one_and_the_cheapest() -> None:
    router, fleet = Router(ReferenceIndex(100)), fleet_of(40)
    stored = BlockStored(
        block_hashes=tuple(range(10)), parent=None, token_ids=tuple(PROMPT[: 10 * BLOCK]), block_size=BLOCK
    )
    router.index.apply(WorkerId(7), [stored])
    decision = router.pick(ask(PROMPT), fleet, 0.0)
    rows, expected_s = decision.explain(), decision.expected_s
    for _ in range(2):
        decision.settle(5)
        kept = decision.explain()
        assert kept == [row for row in rows if row in kept]
        assert (len(kept), decision.left_out, decision.expected_s) == (5, 35, expected_s)
        assert kept[0].chosen
        assert kept[0].worker == decision.worker.name == "127.0.0.1:8007"


def test_the_chosen_one_is_kept_though_others_are_cheaper() -> None:
    router, fleet = Router(ReferenceIndex(100)), fleet_of(40)
    pinned = router.pick(ask(pinned=WorkerId(3)), fleet, 0.0)
    pinned.settle(0)
    assert [row.chosen for row in pinned.explain()] == [True]
    other = router.pick(ask(policy="round_robin"), fleet, 0.0)
    other.costs = array("d", range(40, 0, -1))  # the first was chosen
    for _ in range(2):
        other.settle(5)
        assert [row.chosen for row in other.explain()] == [False] * 5 + [True]
        assert (len(other.costs), other.left_out) == (6, 34)


def test_what_is_kept_is_as_it_was_when_it_was_decided() -> None:
    router, fleet = Router(ReferenceIndex(100)), fleet_of(3)
    decision = router.pick(ask(PROMPT), fleet, 0.0)
    before = decision.explain()
    for n in range(20):
        router.release(router.pick(ask(PROMPT), fleet, n * 0.1), n * 0.1, served=n % 2 == 0)
    router.release(decision, 5.0, served=True)
    router.pick(ask(), Fleet(fleet.workers[:1]), 9.0)
    assert decision.explain() == before
