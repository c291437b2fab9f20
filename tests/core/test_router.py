"""`Router.pick`: least work wins, every reason is kept, and nothing missing makes it fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.config.tree import RoutingConfig
from warmroute.core.decision import PickRequest, Reason
from warmroute.core.index.reference import ReferenceIndex
from warmroute.core.policies import Candidates
from warmroute.core.rates import FIXED_S
from warmroute.core.router import Router
from warmroute.core.wire.events import BlockRemoved, BlockStored
from warmroute.errors import NoWorkerError
from warmroute.types import Endpoint, Fleet, Medium, ModelInfo, Trust, TrustState, Worker, WorkerId

BLOCK = 16
MODEL = "m"


def worker(number: int, *, ready: bool = True, state: TrustState = TrustState.LIVE, model: str = MODEL) -> Worker:
    return Worker(
        id=WorkerId(number),
        endpoint=Endpoint("127.0.0.1", 8000 + number),
        models=(ModelInfo(model), ModelInfo("adapter", parent=model)),
        trust=Trust(state, "test", 0.0),
        ready=ready,
        block_size=BLOCK,
    )


def make(
    workers: int = 3, policy: str = "warmroute", *, states: Sequence[TrustState] = ()
) -> tuple[Router, Fleet, ReferenceIndex]:
    index = ReferenceIndex(orphan_blocks_max=1000, blocks_max=None)
    router = Router(index, RoutingConfig(policy=policy, prefill_tokens_per_s=1000.0))
    fleet = Fleet([worker(n, state=states[n] if states else TrustState.LIVE) for n in range(workers)])
    return router, fleet, index


def tokens(blocks: int, first: int = 0, tail: int = 1) -> list[int]:
    return list(range(first, first + blocks * BLOCK + tail))


def store(
    index: ReferenceIndex, number: int, prompt: list[int], medium: Medium = Medium.GPU, lora: str | None = None
) -> None:
    blocks = len(prompt) // BLOCK
    event = BlockStored(
        block_hashes=tuple(1000 * prompt[0] + n for n in range(blocks)),
        parent=None,
        token_ids=tuple(prompt[: blocks * BLOCK]),
        block_size=BLOCK,
        medium=medium,
        lora=lora,
    )
    index.apply(WorkerId(number), [event])


def ask(prompt: list[int] | None, **more: object) -> PickRequest:
    return PickRequest(model=MODEL, token_ids=prompt, **more)  # type: ignore[arg-type]


def test_the_warm_worker_wins_and_the_decision_says_why() -> None:
    router, fleet, index = make()
    prompt = tokens(10)
    store(index, 1, prompt)
    store(index, 2, prompt[: 4 * BLOCK])
    decision = router.pick(ask(prompt), fleet, 0.0)
    assert decision.worker.id == 1
    assert (decision.reason, decision.overlap_blocks, decision.overlap_tokens) == (Reason.OVERLAP, 10, 160)
    rows = {row.worker: row for row in decision.explain()}
    assert [rows[f"127.0.0.1:800{n}"].overlap_tokens for n in range(3)] == [0, 160, 64]
    assert rows["127.0.0.1:8001"].chosen
    assert rows["127.0.0.1:8001"].overlap_by_medium == {"GPU": 160}
    assert rows["127.0.0.1:8000"].cost == pytest.approx(FIXED_S + 0.161, rel=0.01)
    assert rows["127.0.0.1:8001"].cost == pytest.approx(FIXED_S + 0.001, rel=0.01)


def test_the_last_token_is_never_taken_from_a_cache() -> None:
    router, fleet, index = make(1)
    prompt = tokens(4, tail=0)
    store(index, 0, prompt)
    assert router.pick(ask(prompt), fleet, 0.0).overlap_tokens == 3 * BLOCK
    assert router.pick(ask([*prompt, 7]), fleet, 0.0).overlap_tokens == 4 * BLOCK


def test_locality_is_given_up_when_the_queue_costs_more_than_it_saves() -> None:
    router, fleet, index = make(2)
    prompt = tokens(10)
    store(index, 0, prompt)
    prompts = ([*prompt, *tokens(2, 5000 + 100 * n)] for n in range(40))
    chosen = [router.pick(ask(each), fleet, 0.0).worker.id for each in prompts]
    assert chosen[0] == 0
    assert 1 in chosen
    assert abs(chosen.count(0) - chosen.count(1)) < 20


def test_p31_ties_under_a_burst_spread() -> None:
    router, fleet, _ = make(4)
    burst = [router.pick(ask(tokens(3, 1000 * n)), fleet, 0.0).worker.id for n in range(8)]
    assert sorted(burst) == [0, 0, 1, 1, 2, 2, 3, 3]
    router, fleet, _ = make(4)
    one_by_one = []
    for n in range(8):
        decision = router.pick(ask(tokens(3, 1000 * n)), fleet, float(n))
        router.release(decision, 1.0, served=True)
        one_by_one.append(decision.worker.id)
    assert sorted(one_by_one) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_load_is_booked_at_once_and_released_at_the_end() -> None:
    router, fleet, _ = make(1)
    decision = router.pick(ask(tokens(10)), fleet, 0.0)
    load = router.load.of(WorkerId(0), 0.0)
    assert (load.requests, load.prefill_tokens, load.decoding) == (1, 161, 0)
    router.prefilled(decision, 1.0)
    assert (load.requests, load.prefill_tokens, load.decoding) == (1, 0, 1)
    router.release(decision, 1.0, served=True)
    assert router.load.of(WorkerId(0), 2.0).requests == 0


def test_blocks_of_a_request_under_way_are_claimed_until_its_time_is_over() -> None:
    router, fleet, _ = make(1)
    prompt = tokens(10)
    first = router.pick(ask(prompt), fleet, 0.0)
    second = router.pick(ask(prompt), fleet, 0.0)
    assert (second.overlap_tokens, second.claimed_tokens) == (160, 160)
    router.prefilled(first, 0.1)
    router.release(first, 1.0, served=True)
    assert router.pick(ask(prompt), fleet, 1.9).overlap_tokens == 160, "its events may be late"
    assert router.pick(ask(tokens(10)), fleet, 9.0).overlap_tokens == 0, "no event ever confirmed it"


@pytest.mark.parametrize("late", [False, True])
def test_once_events_have_confirmed_a_claim_they_are_the_truth(late: bool) -> None:
    router, fleet, index = make(1)
    prompt = tokens(10)
    first = router.pick(ask(prompt), fleet, 0.0)
    if late:
        router.prefilled(first, 0.1)
        store(index, 0, prompt)
        router.applied(WorkerId(0), 0.1)
    else:
        store(index, 0, prompt)
        router.prefilled(first, 0.1)
    index.apply(WorkerId(0), [BlockRemoved(block_hashes=(9,))])
    assert router.pick(ask(prompt), fleet, 0.1).overlap_tokens == 144, "evicted right after it was confirmed"


def test_a_request_that_was_never_taken_up_claims_nothing() -> None:
    router, fleet, _ = make(1)
    prompt = tokens(10)
    router.release(router.pick(ask(prompt), fleet, 0.0), 1.0, served=False)
    assert router.pick(ask(prompt), fleet, 0.0).overlap_tokens == 0


def test_an_eviction_takes_the_claim_behind_it_along() -> None:
    router, fleet, index = make(1)
    prompt = tokens(10)
    store(index, 0, prompt[: 4 * BLOCK])
    router.pick(ask(prompt), fleet, 0.0)
    assert router.pick(ask(prompt), fleet, 0.0).overlap_tokens == 160
    index.apply(WorkerId(0), [BlockRemoved(block_hashes=(2,))])
    assert router.pick(ask(prompt), fleet, 0.0).overlap_tokens == 32


def test_e14_a_worker_that_is_not_ready_is_ignored_however_warm() -> None:
    router, _, index = make()
    prompt = tokens(10)
    store(index, 1, prompt)
    fleet = Fleet([worker(0), worker(1, ready=False)])
    decision = router.pick(ask(prompt), fleet, 0.0)
    assert (decision.worker.id, decision.reason) == (0, Reason.LOAD)


def test_e16_no_worker_is_an_error_that_says_so() -> None:
    router, _, _ = make()
    with pytest.raises(NoWorkerError, match="there is no engine that serves the model 'm' now"):
        router.pick(ask(tokens(1)), Fleet(), 0.0)
    with pytest.raises(NoWorkerError, match="none of the 1 known engines"):
        router.pick(ask(tokens(1)), Fleet([worker(0, ready=False)]), 0.0)
    with pytest.raises(NoWorkerError, match="was tried"):
        router.pick(ask(tokens(1), exclude=frozenset({WorkerId(0)})), Fleet([worker(0)]), 0.0)


def test_e18_without_tokens_it_is_a_load_balancer() -> None:
    router, fleet, index = make(2)
    store(index, 0, tokens(10))
    picks = [router.pick(ask(None, prompt_bytes=400), fleet, 0.0) for _ in range(4)]
    assert {p.reason for p in picks} == {Reason.NO_TOKENS}
    assert sorted(p.worker.id for p in picks) == [0, 0, 1, 1]
    assert picks[0].prompt_tokens == 100


def test_degraded_workers_are_believed_less_but_not_excluded() -> None:
    router, fleet, index = make(2, states=[TrustState.DEGRADED, TrustState.LIVE])
    prompt = tokens(10)
    store(index, 0, prompt)
    store(index, 1, prompt[: 6 * BLOCK])
    assert router.pick(ask(prompt), fleet, 0.0).worker.id == 1
    router, fleet, index = make(2, states=[TrustState.DEGRADED, TrustState.LIVE])
    store(index, 0, prompt)
    assert router.pick(ask(prompt), fleet, 0.0).worker.id == 0


def test_slower_media_are_worth_less() -> None:
    router, fleet, index = make(2)
    prompt = tokens(10)
    store(index, 0, prompt, Medium.STORAGE)
    store(index, 1, prompt[: 7 * BLOCK])
    assert router.pick(ask(prompt), fleet, 0.0).worker.id == 1
    store(index, 0, prompt, Medium.CPU)
    rows = {row.worker: row for row in router.pick(ask(prompt), fleet, 0.0).explain()}
    assert rows["127.0.0.1:8000"].overlap_by_medium == {"CPU": 160}


def test_t26_a_block_in_two_media_counts_once_at_the_fastest() -> None:
    router, fleet, index = make(3)
    prompt = tokens(10)
    store(index, 0, prompt)
    store(index, 0, prompt, Medium.CPU)
    store(index, 1, prompt)
    store(index, 2, prompt, Medium.CPU)
    rows = {row.worker: row for row in router.pick(ask(prompt), fleet, 0.0).explain()}
    both, gpu, cpu = (rows[f"127.0.0.1:800{n}"] for n in range(3))
    assert (both.overlap_tokens, both.overlap_by_medium) == (160, {"GPU": 160})
    assert both.cost == gpu.cost < cpu.cost


def test_b22_an_adapter_matches_only_its_own_blocks() -> None:
    router, fleet, index = make(2)
    prompt = tokens(10)
    store(index, 0, prompt)
    store(index, 1, prompt, lora="adapter")
    assert router.pick(PickRequest(model="adapter", token_ids=prompt), fleet, 0.0).overlap_tokens == 160
    assert router.pick(PickRequest(model="adapter", token_ids=prompt), fleet, 0.0).worker.id == 1
    assert router.pick(ask(prompt), fleet, 0.0).worker.id == 0


def test_a_request_that_skips_the_cache_read_is_predicted_cold() -> None:
    router, fleet, index = make(1)
    prompt = tokens(10)
    store(index, 0, prompt)
    decision = router.pick(ask(prompt, skips_cache_read=True), fleet, 0.0)
    assert (decision.overlap_tokens, decision.reason) == (0, Reason.LOAD)


def test_a_salt_separates_tenants() -> None:
    router, fleet, index = make(1)
    prompt = tokens(10)
    store(index, 0, prompt)
    assert router.pick(ask(prompt, cache_salt="tenant"), fleet, 0.0).overlap_tokens == 0


def test_round_robin_takes_turns_whatever_is_warm() -> None:
    router, fleet, index = make(3, "round_robin")
    prompt = tokens(10)
    store(index, 1, prompt)
    picks = [router.pick(ask(prompt), fleet, 0.0) for _ in range(6)]
    assert [p.worker.id for p in picks] == [0, 1, 2, 0, 1, 2]
    assert {p.reason for p in picks} == {Reason.POLICY}
    assert picks[1].overlap_tokens == 160, "the prediction is made whoever chooses"


def test_least_loaded_counts_requests() -> None:
    router, fleet, _ = make(2, "least_loaded")
    first = router.pick(ask(tokens(100)), fleet, 0.0)
    assert router.pick(ask(tokens(1)), fleet, 0.0).worker.id != first.worker.id


def test_a_policy_of_ones_own_takes_ten_lines() -> None:
    class LastOne:
        name = "last_one"

        def costs(self, candidates: Candidates) -> Sequence[float]:
            return [-float(w.id) for w in candidates.workers]

    index = ReferenceIndex(orphan_blocks_max=10, blocks_max=None)
    router = Router(index, policy=LastOne())
    assert router.pick(ask(tokens(1)), Fleet([worker(n) for n in range(3)]), 0.0).worker.id == 2


class Diary:
    """A policy that writes down what it hears, and can be made to fail."""

    name = "diary"

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []
        self.fails = False

    def costs(self, candidates: Candidates) -> Sequence[float]:
        return [] if self.fails else [float(w.id) for w in candidates.workers]

    def chosen(self, candidates: Candidates, winner: int) -> None:
        self.heard.append(("chosen", candidates.workers[winner].id))

    def ended(self, worker: WorkerId, chain: Sequence[int]) -> None:
        self.heard.append(("ended", worker))

    def forget(self, worker: WorkerId) -> None:
        self.heard.append(("forget", worker))


def test_a_policy_of_ones_own_hears_what_becomes_of_its_decisions_and_of_no_others() -> None:
    diary = Diary()
    router = Router(ReferenceIndex(orphan_blocks_max=10, blocks_max=None), policy=diary)
    fleet = Fleet([worker(n) for n in range(2)])
    own = router.pick(ask(tokens(1)), fleet, 0.0)
    diary.fails = True
    ours = router.pick(ask(tokens(1)), fleet, 0.0)
    assert [(each.policy, each.reason) for each in (own, ours)] == [
        ("diary", Reason.POLICY),
        ("warmroute", Reason.LOAD),
    ]
    assert ours.explain()[0].terms
    for decision in (own, own, ours):
        router.release(decision, 1.0, served=True)
    router.forget(WorkerId(1))
    assert diary.heard == [("chosen", 0), ("ended", 0), ("forget", 1)]


class Flat:
    """A policy that likes everybody alike."""

    name = "flat"

    def __init__(self, cost: float) -> None:
        self.cost = cost

    def costs(self, candidates: Candidates) -> Sequence[float]:
        return [self.cost] * len(candidates.workers)


@pytest.mark.parametrize("cost", [-3.0, 3.0])
def test_more_weight_attracts_more_whatever_the_sign_of_the_costs(cost: float) -> None:
    router = Router(ReferenceIndex(orphan_blocks_max=10, blocks_max=None), policy=Flat(cost))
    workers = [replace(worker(n), weight=weight) for n, weight in enumerate((0.5, 2.0, 1.0))]
    decision = router.pick(ask(tokens(1)), Fleet(workers), 0.0)
    assert decision.worker.weight == 2.0
    assert [row.worker for row in decision.explain()] == [workers[n].name for n in (1, 2, 0)]


def test_a_worker_of_twice_the_weight_gets_twice_the_work() -> None:
    router, fleet, _ = make(2, "least_loaded")
    fleet = Fleet([replace(each, weight=1.0 + each.id) for each in fleet.workers])
    chosen = [router.pick(ask(tokens(1)), fleet, 0.0).worker.id for _ in range(30)]
    assert (chosen.count(WorkerId(0)), chosen.count(WorkerId(1))) == (10, 20)


def test_terms_add_up_to_the_cost_whatever_the_weights() -> None:
    router, fleet, _ = make(3)
    fleet = Fleet([replace(each, weight=0.25 + each.id) for each in fleet.workers])
    for _ in range(9):
        decision = router.pick(ask(tokens(10)), fleet, 0.0)
        for row in decision.explain():
            assert sum(row.terms.values()) == pytest.approx(row.cost)


def test_a_pinned_request_goes_there_or_nowhere() -> None:
    router, fleet, _ = make(3)
    assert router.pick(ask(tokens(1), pinned=WorkerId(2)), fleet, 0.0).worker.id == 2
    with pytest.raises(NoWorkerError):
        router.pick(ask(tokens(1), pinned=WorkerId(9)), fleet, 0.0)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.booleans(), st.booleans()), max_size=40))
def test_whatever_is_asked_load_returns_to_zero(steps: list[tuple[int, int, bool, bool]]) -> None:
    router, fleet, index = make(3)
    running = []
    for now, (prefix, number, streamed, served) in enumerate(steps):
        prompt = [*tokens(prefix), *tokens(number, 1000)]
        if number < 3:
            store(index, number, prompt)
        decision = router.pick(ask(prompt, streamed=streamed), fleet, float(now))
        assert decision.overlap_tokens <= len(prompt) - 1
        assert decision.costs[decision.candidates.workers.index(decision.worker)] == min(decision.costs)
        running.append((decision, served))
        if served and running:
            router.prefilled(running[0][0], float(now))
    for decision, served in running:
        router.release(decision, 1.0, served=served)
    router.load.check()
    assert all(router.load.of(w.id, 200.0).requests == 0 for w in fleet.workers)


def sliding(index: ReferenceIndex, number: int, prompt: list[int]) -> None:
    """What a hybrid model announces of a prompt: one full group, and one whose window is two blocks."""
    store(index, number, prompt)
    blocks = len(prompt) // BLOCK
    kept = BlockStored(
        block_hashes=tuple(1000 * prompt[0] + n for n in range(blocks))[-2:],
        parent=None,
        token_ids=tuple(prompt),
        block_size=BLOCK,
        group=1,
        sliding_window=2 * BLOCK,
        by_hash=True,
    )
    index.apply(WorkerId(number), [kept])


def test_claims_made_before_a_worker_showed_its_windows_end_when_it_does() -> None:
    router, fleet, index = make(1)
    prompt = tokens(7)
    first = router.pick(ask(prompt), fleet, 0.0)
    assert first.claims
    router.release(first, 0.1, served=True)
    assert router.pick(ask(prompt[: 3 * BLOCK + 1]), fleet, 0.1).overlap_tokens == 3 * BLOCK
    sliding(index, 0, prompt[: 7 * BLOCK])
    router.applied(WorkerId(0), 0.2)
    assert router.pick(ask(prompt[: 3 * BLOCK + 1]), fleet, 0.2).overlap_tokens == 0


def test_of_several_answers_one_that_came_second_is_reported() -> None:
    router, fleet, _ = make(1)
    cold = router.pick(ask(tokens(4, tail=3), n=3), fleet, 0.0)
    assert (cold.overlap_tokens, cold.predicted_tokens) == (0, 4 * BLOCK)
    assert router.pick(ask(tokens(4, 900, tail=3), n=3, skips_cache_read=True), fleet, 0.0).predicted_tokens == 0
    assert router.pick(ask(None, n=2), fleet, 0.0).predicted_tokens == 0


def test_of_several_prompts_the_last_is_reported() -> None:
    router, fleet, index = make(1)
    warm, cold = tokens(4), tokens(6, 5000)
    store(index, 0, warm)
    assert router.pick(ask(cold, further_prompts=(warm,)), fleet, 0.0).predicted_tokens == 4 * BLOCK
    router, fleet, index = make(1)
    store(index, 0, warm)
    assert router.pick(ask(warm, further_prompts=(cold,)), fleet, 0.0).predicted_tokens == 0
    # what an earlier prompt of the same request leaves is there for a later one
    cut = [*cold[: 3 * BLOCK], 1, 2]
    assert router.pick(ask(cut, further_prompts=(tokens(1, 800), cold)), fleet, 0.0).predicted_tokens == 3 * BLOCK
    assert router.pick(ask(warm, further_prompts=None), fleet, 0.0).predicted_tokens is None


def test_a_rank_that_the_client_names_is_the_only_one_asked() -> None:
    router, fleet, index = make(1)
    prompt = tokens(4)
    models = fleet.workers[0].models
    ranks = [Worker(id=WorkerId(5 + n), endpoint=Endpoint("a", 1), rank=n, ranks=2, models=models) for n in range(2)]
    store(index, 5, prompt)
    assert router.pick(ask(prompt), Fleet(ranks), 0.0).worker.rank == 0
    assert router.pick(ask(prompt, rank=1), Fleet(ranks), 0.0).worker.rank == 1
    assert router.pick(ask(prompt, rank=1), fleet, 0.0).worker is fleet.workers[0]


def test_an_adapter_loaded_from_elsewhere_finds_nothing_until_it_is_pointed_back() -> None:
    router, fleet, index = make(2)
    prompt, here = tokens(4), fleet.workers[0]

    def overlaps() -> list[int]:
        asked = PickRequest(model="adapter", token_ids=prompt)
        now = 100.0
        decision = router.pick(asked, fleet, now)
        router.release(decision, now, served=False)
        return decision.candidates.overlap_tokens

    for each in fleet.workers:
        router.adapters.loaded(each, "adapter", "/first")
        store(index, each.id, prompt, lora=router.adapters.key(each.id, "adapter"))
    assert overlaps() == [64, 64]
    router.adapters.loaded(here, "adapter", "/second")
    assert overlaps() == [0, 64]
    assert (router.adapters.renames(here.id), router.adapters.renames(WorkerId(1))) == (True, False)
    router.adapters.loaded(here, "adapter", "/first")
    assert overlaps() == [64, 64]
    assert not router.adapters.renames(here.id)
