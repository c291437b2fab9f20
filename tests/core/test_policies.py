"""Policies: the baselines by their sources' rules, ours by what each term is for, strangers' ones guarded."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import inf, nan
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.config.ranges import POLICIES
from warmroute.config.tree import RoutingConfig
from warmroute.core.dice import Dice
from warmroute.core.hashing import NATIVE
from warmroute.core.index.reference import ReferenceIndex
from warmroute.core.policies import BASELINES, Candidates, LeastWork, Policy, make_policy
from warmroute.core.policies.guard import Guarded
from warmroute.core.policies.least_work import RowsOfAll, survey, survey_in_python, weigh, weigh_in_python
from warmroute.core.policies.peers import Aibrix, Approximate, Dynamo, LlmD
from warmroute.core.policies.simple import ConsistentHash, LeastLoaded, RoundRobin
from warmroute.core.router import PickRequest, Router
from warmroute.types import Endpoint, Fleet, ModelInfo, Trust, TrustState, Worker, WorkerId

PROMPT = 160
ROWS: dict[str, tuple[Literal["q", "d"], tuple[str, ...]]] = {
    "held": ("q", ("overlap_tokens", "cpu_tokens", "storage_tokens", "claimed_tokens")),
    "counts": ("q", ("requests", "prefilling", "prefill_tokens", "kv_tokens")),
    "times": ("d", ("free_at", "busy")),
    "rates": ("d", ("fixed_s", "per_token_s", "per_pair_s", "per_context_s", "step_s")),
}


def side_by_side(kind: Literal["q", "d"], *columns: Sequence[float]) -> array[Any]:
    """Rows of these columns."""
    return array(kind, [number for row in zip(*columns, strict=True) for number in row])


def candidates(
    requests: Sequence[int], overlap: Sequence[int] | None = None, workers: Sequence[int] | None = None, **more: object
) -> Candidates:
    n = len(requests)
    zeros: list[float] = [0] * n
    ids = workers or range(n)
    facts: dict[str, object] = {
        "workers": tuple(Worker(id=WorkerId(i), endpoint=Endpoint("10.0.0.1", i + 1)) for i in ids),
        "now": 0.0,
        "dice": Dice(1),
        "prompt_tokens": PROMPT,
        "token_ids": None,
        "chain": (),
        "block_size": 16,
        "session": None,
        "priority": 0,
        "belief": array("d", [1.0] * n),
        "kv_tokens_max": array("d", [inf] * n),
        "requests_per_s": 1.0,
    }
    columns = {"overlap_tokens": overlap or zeros, "requests": requests}
    columns |= {"fixed_s": [0.02] * n, "per_token_s": [0.001] * n}
    for rows, (kind, names) in ROWS.items():
        facts[rows] = side_by_side(kind, *(more.pop(name, columns.get(name, zeros)) for name in names))  # type: ignore[arg-type]
    return Candidates(**(facts | more))  # type: ignore[arg-type]


def winners(policy: Policy, asked: Candidates) -> set[int]:
    costs = list(policy.costs(asked))
    assert len(costs) == len(asked.workers)
    return {i for i, cost in enumerate(costs) if cost == min(costs)}


@pytest.mark.parametrize(
    ("requests", "overlap", "factor", "expected"),
    [
        pytest.param([100, 10, 12], [160, 128, 96], 1.0, {1}, id="E2"),
        pytest.param([1, 10, 1, 4], [80, 160, 0, 0], 1.0, {0}, id="E4"),
        pytest.param([5, 50, 60], [0, 128, 0], 2.0, {1}, id="E6"),
        pytest.param([10, 10, 10], [144, 128, 112], 1.0, {0}, id="E8"),
        pytest.param([10, 5, 15], [0, 0, 0], 1.0, {1}, id="E10"),
    ],
)
def test_aibrix_caps_load_at_mean_plus_deviations(
    requests: list[int], overlap: list[int], factor: float, expected: set[int]
) -> None:
    policy = Aibrix(imbalance_abs_count=1000, deviation_factor=factor)
    assert winners(policy, candidates(requests, overlap)) == expected


def test_e12_aibrix_beyond_the_gate_matches_among_the_least_loaded() -> None:
    assert winners(Aibrix(), candidates([0, 0, 20], [0, 80, 160])) == {1}


def test_e20_aibrix_over_several_turns() -> None:
    policy, loads = Aibrix(), [0, 0, 0, 0]
    held: list[list[str]] = [[], [], [], []]

    def send(prompt: str, among: set[int] | None = None) -> int:
        def match(prompts: list[str]) -> int:
            blocks = [prompt[i : i + 4] for i in range(0, len(prompt), 4)]
            best = 0
            for other in prompts:
                n = 0
                while n < len(blocks) and other[4 * n : 4 * n + 4] == blocks[n]:
                    n += 1
                best = max(best, n)
            return 4 * best

        asked = candidates(loads, [match(prompts) for prompts in held], prompt_tokens=len(prompt))
        won = winners(policy, asked)
        fewest = min(loads[i] for i in won)
        target = min(i for i in won if loads[i] == fewest)
        loads[target] += 1
        held[target].append(prompt)
        return target

    x = send("abcdegfh")
    assert send("wxyz") != x
    assert send("abcdegfh") == x
    assert loads[send("abcd")] == 1, "one of the two that were idle"


def test_approximate_follows_its_history_until_load_is_out_of_line() -> None:
    policy, chain = Approximate(balance_abs_threshold=4), list(range(100, 110))
    policy.chosen(candidates([0, 0, 0], chain=chain), 1)
    assert winners(policy, candidates([0, 3, 0], chain=chain)) == {1}
    assert winners(policy, candidates([0, 3, 0], chain=[100, 101, *range(8)])) == {0, 2}, "20 % is below the threshold"
    assert winners(policy, candidates([0, 6, 1], chain=chain)) == {0}, "imbalanced: the shortest queue"


def test_approximate_forgets_what_was_used_longest_ago() -> None:
    policy = Approximate(tree_tokens_max=16 * 10)
    policy.chosen(candidates([0, 0], chain=list(range(10))), 0)
    policy.chosen(candidates([0, 0], chain=list(range(20, 30))), 0)
    policy.chosen(candidates([0, 0], chain=list(range(40, 50))), 1)
    assert winners(policy, candidates([0, 0], chain=list(range(20, 30)))) == {0}
    assert winners(policy, candidates([0, 0], chain=list(range(10)))) == {0, 1}, "trees of equal size"


def test_approximate_keeps_nothing_of_a_worker_that_is_gone() -> None:
    policy, chain = Approximate(), list(range(10))
    for worker in (0, 1):
        policy.chosen(candidates([0, 0], chain=chain), worker)
    for gone in (1, 1, 5):
        policy.forget(WorkerId(gone))
    assert winners(policy, candidates([0, 0], chain=chain)) == {0}
    policy.forget(WorkerId(0))
    assert winners(policy, candidates([0, 0], chain=chain)) == {0, 1}
    assert not policy._trees
    assert not policy._holders
    assert not policy._tokens


def test_dynamo_keeps_nothing_of_a_worker_where_nothing_runs() -> None:
    policy, chain = Dynamo(), list(range(10))
    asked = candidates([0, 0], chain=chain)
    policy.chosen(asked, 1)
    policy.chosen(asked, 1)
    policy.ended(WorkerId(1), chain)
    assert list(policy.costs(asked)) == [10 + 10, 10 + 10]
    policy.chosen(candidates([0, 0]), 1)
    for each in (chain, [], []):
        policy.ended(WorkerId(1), each)
    assert not policy._active


def test_dynamo_counts_prefill_blocks_and_running_blocks_once() -> None:
    policy, chain = Dynamo(), list(range(10))
    asked = candidates([1, 1], [0, 0], chain=chain, prefill_tokens=[0, 320])
    assert list(policy.costs(asked)) == [10 + 10, 30 + 10]
    policy.chosen(asked, 0)
    again = candidates([1, 1], [160, 0], chain=[*range(8), 98, 99])
    assert list(policy.costs(again)) == [0 + 12, 10 + 10]
    policy.ended(WorkerId(0), chain)
    assert list(policy.costs(again)) == [0 + 10, 10 + 10]


def test_llm_d_adds_weighted_scores() -> None:
    asked = candidates([0, 0], [160, 0], prefilling=[2, 0], kv_tokens=[100, 0])
    assert list(LlmD().costs(asked)) == [-(2 * 0 + 2 * 0 + 3 * 1), -(2 * 1 + 2 * 1 + 3 * 0)]
    assert winners(LlmD(), candidates([0, 0, 0])) == {0, 1, 2}


def test_a_session_keeps_its_worker_when_others_come_and_go() -> None:
    policy = ConsistentHash()
    before = [winners(policy, candidates([0] * 4, session=f"s{n}")) for n in range(50)]
    after = [winners(policy, candidates([0] * 3, workers=[0, 1, 3], session=f"s{n}")) for n in range(50)]
    assert len({next(iter(w)) for w in before}) == 4
    for old, new in zip(before, after, strict=True):
        ids = {0: 0, 1: 1, 2: 3}
        assert old == {2} or {ids[next(iter(new))]} == old


def test_gateways_agree_on_a_sessions_worker_whoever_came_first() -> None:
    def chosen(order: Sequence[int], session: str) -> str:
        workers = tuple(Worker(WorkerId(i), Endpoint("a", port)) for i, port in enumerate(order))
        asked = msgspec.structs.replace(candidates([0] * len(order), session=session), workers=workers)
        (winner,) = winners(ConsistentHash(), asked)
        return workers[winner].name

    sessions = [f"s{n}" for n in range(50)]
    first = [chosen([1, 2, 3, 4], session) for session in sessions]
    assert first == [chosen([3, 1, 4, 2], session) for session in sessions]
    assert len(set(first)) == 4


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_names_a_cost_for_everybody_and_can_be_asked_for(name: str) -> None:
    router = Router(ReferenceIndex(100), RoutingConfig(policy=name))
    live = Trust(TrustState.LIVE, "", 0.0)
    for n in (1, 2, 5):
        fleet = Fleet(
            [Worker(WorkerId(i), Endpoint("a", i + 1), models=(ModelInfo("m"),), trust=live) for i in range(n)]
        )
        for tokens in (None, list(range(40))):
            decision = router.pick(PickRequest(model="m", token_ids=tokens, session="s"), fleet, 1.0)
            assert decision.policy == name
            assert len(decision.costs) == n
            router.release(decision, 2.0, served=True)


def test_a_request_may_name_its_policy() -> None:
    router = Router(ReferenceIndex(100), RoutingConfig())
    fleet = Fleet([Worker(WorkerId(i), Endpoint("a", i + 1), models=(ModelInfo("m"),)) for i in range(3)])
    asked = PickRequest(model="m", policy="round_robin")
    assert [router.pick(asked, fleet, 0.0).worker.id for _ in range(4)] == [0, 1, 2, 0]
    assert router.pick(PickRequest(model="m", policy="no such"), fleet, 0.0).policy == "warmroute"


def test_names_and_policies_agree() -> None:
    assert set(POLICIES) == {"warmroute", *BASELINES}
    assert make_policy("no such", RoutingConfig()) is None


# -- ours


def ours(**weights: float) -> LeastWork:
    return LeastWork(RoutingConfig(**weights))  # type: ignore[arg-type]


def test_the_terms_add_up_to_the_cost() -> None:
    policy = ours()
    asked = candidates(
        [3, 1, 0],
        [160, 96, 0],
        cpu_tokens=[0, 32, 0],
        free_at=[2.0, 0.5, 0.0],
        kv_tokens=[900, 300, 0],
        per_pair_s=[1e-7, 2e-7, 3e-7],
        per_context_s=[1e-6] * 3,
        busy=[0.9, 0.2, 0.4],
        chain=list(range(10)),
    )
    policy.costs(asked)
    policy.chosen(asked, 0)  # so that there is a credit
    costs = policy.costs(asked)
    terms = policy.terms(asked.only([0, 1, 2]), policy.memo)
    last = policy.terms(asked.only([2]), policy.memo)
    assert sum(column[0] for column in last.values()) == pytest.approx(costs[2]), "whoever else is left out"
    assert terms["replication"][2] < 0
    for i, cost in enumerate(costs):
        assert sum(column[i] for column in terms.values()) == pytest.approx(cost)


def test_a_session_goes_back_to_its_worker_when_nothing_else_is_known_of_the_prompt() -> None:
    policy = ours()
    policy.costs(first := candidates([0, 0, 0], session="s"))
    policy.chosen(first, 1)
    assert winners(policy, candidates([0, 0, 0], session="s")) == {1}
    assert len(winners(policy, candidates([0, 0, 0], session="t"))) == 3
    assert winners(policy, candidates([0, 0, 0], session="s", free_at=[0.0, 9.0, 0.0])) == {0, 2}, "it is a soft term"
    assert winners(policy, candidates([0, 0, 0], [0, 0, 96], session="s", token_ids=[1] * PROMPT)) == {2}
    asked = candidates([0, 0, 0], session="s")
    costs = policy.costs(asked)
    for i, cost in enumerate(costs):
        assert sum(column[i] for column in policy.terms(asked, policy.memo).values()) == pytest.approx(cost)


def test_sessions_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmroute.core.policies.least_work.SESSIONS_MAX", 2)
    policy = ours()
    for name in ("a", "b", "c"):
        policy.costs(asked := candidates([0, 0], session=name))
        policy.chosen(asked, 1)
    assert [len(winners(policy, candidates([0, 0], session=name))) for name in "abc"] == [2, 1, 1]


def test_priority_scales_what_the_delay_of_others_counts() -> None:
    """The warm worker has a queue: for itself a request would go elsewhere, for others' sake it waits a little."""
    policy, wait = ours(eviction_weight=0.0), PROMPT * 0.001 * 1.4

    def asked(priority: int) -> Candidates:
        facts = {"busy": [0.5, 0.5], "free_at": [wait, 0.0], "requests_per_s": 5.0}
        return candidates([1, 0], [PROMPT - 1, 0], priority=priority, **facts)

    assert (winners(policy, asked(-9)), winners(policy, asked(3))) == ({1}, {0})


numbers = st.floats(0, 1e6)
tokens = st.integers(0, 10**6)
fleets = st.lists(st.tuples(*[tokens] * 8, *[numbers] * 9), min_size=1, max_size=20)
"""Of each worker its rows, how far it is believed, and its room."""


def rows_of(fleet: list[tuple[Any, ...]]) -> RowsOfAll:
    columns = list(zip(*fleet, strict=True))
    held, counts = side_by_side("q", *columns[:4]), side_by_side("q", *columns[4:8])
    return held, counts, side_by_side("d", *columns[8:10]), side_by_side("d", *columns[10:15])


@given(st.tuples(*[numbers] * 13, st.integers(-1, 20), *[numbers] * 2), fleets, st.booleans())
def test_the_native_weighing_gives_what_the_reference_gives(
    weights: tuple[float, ...], fleet: list[tuple[Any, ...]], roomy: bool
) -> None:
    weights = (*weights[:6], weights[6] + 1.0, *weights[7:])  # the fleet's mean is never 0
    belief, rooms = (array("d", column) for column in list(zip(*fleet, strict=True))[15:])
    rooms = array("d", [inf] * len(rooms)) if roomy else rooms
    costs = [array("d", [nan] * len(fleet)) for _ in range(2)]
    asked = zip((weigh, weigh_in_python), costs, strict=True)
    full = [judged(weights, rows_of(fleet), belief, rooms, into) for judged, into in asked]
    assert costs[0] == costs[1]
    assert full[0] == full[1]


@given(numbers, fleets)
def test_the_native_survey_finds_what_the_reference_finds(now: float, fleet: list[tuple[Any, ...]]) -> None:
    assert survey(now, *rows_of(fleet)) == survey_in_python(now, *rows_of(fleet))


@pytest.mark.skipif(not NATIVE, reason="the native core is not built")
def test_the_native_weighing_refuses_what_it_cannot_read() -> None:
    one, weights = array("d", [1.0]), (1.0,) * 16
    rows = rows_of([(1,) * 8 + (1.0,) * 9])
    weigh(weights, rows, one, one, array("d", [0.0]))
    two, counted = array("d", [1.0, 2.0]), array("q", [1])
    for asked in (
        (weights[:15], rows, one, one, array("d", [0.0])),
        (weights, rows[:3], one, one, array("d", [0.0])),
        (weights, (*rows[1:], rows[0]), one, one, array("d", [0.0])),
        (weights, (rows[0][:3], *rows[1:]), one, one, array("d", [0.0])),
        (weights, (rows[0] + rows[0], *rows[1:]), one, one, array("d", [0.0])),
        (weights, rows, two, one, array("d", [0.0])),
        (weights, rows, one, two, array("d", [0.0])),
        (weights, rows, one, counted, array("d", [0.0])),
        (weights, rows, one, [1.0], array("d", [0.0])),
        (weights, rows, one, one, two),
        (weights, rows, one, one, bytes(8)),
        (("1", *weights[1:]), rows, one, one, array("d", [0.0])),
    ):
        with pytest.raises((TypeError, ValueError, RuntimeError, BufferError)):
            weigh(*asked)
    with pytest.raises(ValueError, match="unequal"):
        survey(0.0, *(array(each.typecode) for each in rows))
    with pytest.raises(ValueError, match="unequal"):
        survey(0.0, rows[0] + rows[0], *rows[1:])


def test_a_queue_is_worth_as_much_as_the_prefill_that_takes_as_long() -> None:
    policy = ours(others_weight=0.0)
    assert winners(policy, candidates([1, 0], [160, 0], free_at=[0.15, 0.0])) == {0}
    assert winners(policy, candidates([1, 0], [160, 0], free_at=[0.17, 0.0])) == {1}


def test_the_faster_worker_wins() -> None:
    assert winners(ours(), candidates([0, 0], per_token_s=[0.002, 0.001])) == {1}


def test_cold_work_goes_where_there_was_less_to_do_of_late() -> None:
    assert winners(ours(), candidates([0, 0], busy=[0.8, 0.3])) == {1}
    assert winners(ours(others_weight=0.0), candidates([0, 0], busy=[0.8, 0.3])) == {1}
    assert winners(ours(eviction_weight=0.0), candidates([0, 0], busy=[0.8, 0.3])) == {1}
    assert winners(ours(others_weight=0.0, eviction_weight=0.0), candidates([0, 0], busy=[0.8, 0.3])) == {0, 1}


def test_what_is_pushed_out_costs_less_where_requests_are_not_bound_to_what_a_worker_holds() -> None:
    def waits_for_the_holder(bound: float, busy: list[float]) -> bool:
        policy = ours(others_weight=0.0)
        policy._bound = bound
        return winners(policy, candidates([1, 0], [160, 0], free_at=[0.205, 0.0], busy=busy)) == {0}

    assert waits_for_the_holder(1.0, [0.5, 0.5])
    assert not waits_for_the_holder(0.0, [0.5, 0.5])
    assert waits_for_the_holder(0.0, [0.1, 0.9]), "the other's cache is young"


def test_computing_delays_those_that_may_go_anywhere_once_every_worker_has_a_queue() -> None:
    """The holder has the longer queue. Nobody minds while a worker is idle; where all queue, computing delays all."""

    def went_to(idle: float) -> set[int]:
        policy = ours(eviction_weight=0.0)
        policy._bound = 0.0
        waits = {"free_at": [0.18 + idle, idle], "requests_per_s": 10.0}
        return winners(policy, candidates([0, 0], [160, 0], **waits))

    assert went_to(0.0) == {1}
    assert went_to(0.5) == {0}


def test_what_is_only_being_computed_binds_nobody() -> None:
    bound = {}
    for claimed in (0, 160):
        policy = ours()
        policy.costs(asked := candidates([0, 0], [160, 0], claimed_tokens=[claimed, 0]))
        policy.chosen(asked, 0)
        bound[claimed] = policy._bound
    assert bound[160] < 0.5 - 0.001 < bound[0] + 0.001


def test_what_does_not_fit_costs() -> None:
    policy = ours(decode_weight=0.0)
    asked = candidates([0, 0], kv_tokens=[900, 100])
    assert winners(policy, asked) == {0, 1}, "nobody says how much room there is"
    assert winners(policy, msgspec.structs.replace(asked, kv_tokens_max=array("d", [1000.0, 1000.0]))) == {1}


# -- strangers'


class Stranger:
    name = "stranger"

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def costs(self, candidates: Candidates) -> Sequence[float]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("answer", "counted"),
    [
        (RuntimeError("no"), "raised"),
        (SystemExit(1), "raised"),
        ([1.0], "invalid"),
        ([nan, 1.0], "invalid"),
        ([10**400, 1.0], "raised"),
        (["a", "b"], "raised"),
        (None, "raised"),
    ],
)
def test_a_policy_that_fails_is_counted_and_ours_decides(answer: object, counted: str) -> None:
    guarded = Guarded(Stranger(answer), LeastLoaded(), 1.0, None)
    assert list(guarded.costs(candidates([3, 1]))) == [3, 1]
    assert guarded.failures == {counted: 1}
    assert guarded.last_failure


def test_a_policy_that_refuses_everybody_is_no_failure() -> None:
    guarded = Guarded(Stranger([inf, inf]), LeastLoaded(), 1.0, None)
    assert list(guarded.costs(candidates([3, 1]))) == [inf, inf]
    assert not guarded.failures


def test_a_slow_policy_rests_a_hundred_times_as_long() -> None:
    times = iter([0.0, 0.1, 5.0, 10.1, 10.1001])
    guarded = Guarded(Stranger([0.0, 1.0]), LeastLoaded(), 0.01, lambda: next(times))
    assert list(guarded.costs(candidates([3, 1]))) == [0.0, 1.0], "its late answer is used: it is there now"
    assert list(guarded.costs(candidates([3, 1]))) == [3, 1]
    assert list(guarded.costs(candidates([3, 1]))) == [0.0, 1.0]
    assert guarded.failures == {"slow": 1, "resting": 1}


def test_round_robin_counts_on_when_the_fleet_changes() -> None:
    policy = RoundRobin()
    assert [winners(policy, candidates([0] * n)) for n in (3, 3, 2, 2)] == [{0}, {1}, {0}, {1}]
