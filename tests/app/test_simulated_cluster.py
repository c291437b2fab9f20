"""The simulated cluster: engines keep their books, runs repeat themselves, figures are those that can be worked out."""

from __future__ import annotations

import json
from array import array
from itertools import islice
from pathlib import Path

import pytest
from click.testing import CliRunner

from warmroute.app.simulation.cache import BlockCache
from warmroute.app.simulation.cluster import Cluster
from warmroute.app.simulation.engine import Engine, Work
from warmroute.app.simulation.profiles import parse_profile
from warmroute.app.simulation.runs import Wish, simulate
from warmroute.app.simulation.scenario import FleetChange, Scenario, rate_for
from warmroute.app.simulation.workloads import WORKLOADS, tokens_of
from warmroute.cli.simulate import command
from warmroute.config.tree import RoutingConfig
from warmroute.core.hashing import prefix_hashes
from warmroute.core.wire.events import BlockRemoved, BlockStored

FAST = parse_profile("llama-3.1-8b@h100")
SMALL = parse_profile("llama-3.1-8b@l4")
SIZE = 128


def work(number: int, prompt: int, output: int) -> Work:
    made = Work(None, tokens_of([(number, prompt + output)]), prompt, output)
    made.chain = prefix_hashes(made.tokens, SIZE)
    return made


def run_out(engine: Engine, now: float = 0.0) -> tuple[float, dict[int, float], dict[int, float]]:
    """Run to the end; (when, first tokens, last tokens), by the works' ids."""
    first, done = {}, {}
    while engine.ends_at is not None:
        now = engine.ends_at
        engine.step_over(now)
        first |= {id(each): now for each in engine.first}
        done |= {id(each): now for each in engine.done}
        engine.first, engine.done = [], []
    return now, first, done


def scenario(workload: str = "chat", policy: str = "warmroute", engines: int = 3, **more: object) -> Scenario:
    facts: dict[str, object] = {
        "workload": WORKLOADS[workload],
        "engines": [FAST] * engines,
        "requests": 400,
        "requests_per_s": rate_for(0.5, WORKLOADS[workload], [FAST] * engines, SIZE),
        "routing": RoutingConfig(policy=policy),
    }
    return Scenario(**(facts | more))  # type: ignore[arg-type]


def test_one_request_alone_takes_what_the_profile_says() -> None:
    engine, one = Engine(FAST, SIZE), work(1, 4000, 101)
    engine.arrive(one, 0.0)
    _, first, done = run_out(engine)
    prefill = FAST.overhead_s + 4000 * FAST.token_s + FAST.attention_s * 4000 * 2000
    assert first[id(one)] == pytest.approx(prefill)
    decode = 100 * (FAST.overhead_s + FAST.weights_s) + FAST.context_s * sum(range(4000, 4100))
    assert done[id(one)] == pytest.approx(prefill + decode)


def test_an_arrival_waits_for_the_step_under_way_and_changes_nothing_before_it() -> None:
    alone, disturbed = Engine(FAST, SIZE), Engine(FAST, SIZE)
    a, b = work(1, 1000, 500), work(1, 1000, 500)
    alone.arrive(a, 0.0)
    disturbed.arrive(b, 0.0)
    disturbed.step_over(disturbed.ends_at or 0.0)
    second = work(2, 500, 1)
    assert disturbed.arrive(second, 1.0), "the run of steps is cut short"
    assert disturbed.ends_at is not None
    assert 1.0 <= disturbed.ends_at < 1.0 + 0.02
    _, _, done_alone = run_out(alone)
    _, first, done = run_out(disturbed)
    assert first[id(second)] > 1.0
    assert done_alone[id(a)] < done[id(b)] < done_alone[id(a)] + 0.1


def test_a_prefix_that_is_held_is_not_computed_again_and_events_tell_it_all() -> None:
    engine = Engine(FAST, SIZE)
    one, two = work(7, 2000, 10), work(7, 2000, 10)
    engine.arrive(one, 0.0)
    now, _, _ = run_out(engine)
    engine.arrive(two, now)
    run_out(engine, now)
    assert (one.cached_tokens, two.cached_tokens) == (0, 1999 // SIZE * SIZE)
    stored = [block for event in engine.events if isinstance(event, BlockStored) for block in event.block_hashes]
    assert stored == list(one.chain), "each block once"


def test_memory_is_kept_within_bounds_by_eviction_waiting_and_preemption() -> None:
    engine = Engine(SMALL, SIZE)
    blocks = engine.cache.capacity
    works = [work(n, SMALL.kv_tokens // 8, 400 + n) for n in range(30)]
    for each in works:
        engine.arrive(each, 0.0)
    held: set[object] = set()
    finished = 0
    while engine.ends_at is not None:
        engine.step_over(engine.ends_at)
        finished += len(engine.done)
        engine.done = []
        for event in engine.events:
            if isinstance(event, BlockStored):
                assert not held & set(event.block_hashes), "stored twice"
                held |= set(event.block_hashes)
            elif isinstance(event, BlockRemoved):
                assert held >= set(event.block_hashes)
                held -= set(event.block_hashes)
        engine.events = []
        assert engine.cache.in_use <= blocks + 1
        assert len(held) <= blocks + 1
    assert finished == len(works)
    assert engine.cache.in_use == pytest.approx(0, abs=1e-6)


def test_the_host_tier_takes_what_the_gpu_loses() -> None:
    cache = BlockCache(4, host_capacity=2)
    for block in (1, 2, 3, 4, 5, 6, 7):
        cache.pin([block])
        cache.unpin([block])
        cache.make_room()
    assert cache.evicted == [1, 2, 3]
    assert list(cache.host) == [2, 3]
    assert cache.host_evicted == [1]
    assert cache.match([4, 5, 6, 7], 4) == (4, 0)
    assert cache.match([4, 2, 3], 3) == (1, 2)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_workloads_are_functions_of_their_seed(workload: str) -> None:
    def sample(seed: int) -> list[object]:
        return [
            (c.at, c.session, [(t.pieces, t.answer, t.pause_s) for t in islice(c.turns, 5)])
            for c in islice(WORKLOADS[workload](seed), 20)
        ]

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_equal_pieces_are_equal_tokens_and_others_differ_at_once() -> None:
    a, b = tokens_of([(1, 100), (2, 50)]), tokens_of([(1, 100), (3, 50)])
    assert a[:100] == b[:100]
    assert a[100] != b[100]
    assert len(tokens_of([(5, 600_000)])) == 600_000
    assert isinstance(a, array)


def test_a_run_repeats_itself_and_another_seed_gives_another() -> None:
    first, again, other = (Cluster(scenario(seed=seed)).run().summary() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_every_request_is_answered_and_nothing_is_left_behind() -> None:
    cluster = Cluster(scenario("agents", warmup=0.0))
    summary = cluster.run().summary()
    assert summary.requests == 400
    assert (summary.refused, summary.lost) == (0, 0)
    assert 0.5 < summary.hit_rate <= summary.hit_rate_infinite + 0.05
    cluster.router.load.check()
    assert sum(cluster.router.load.requests) == 0
    for engine in cluster.engines:
        assert engine.cache.in_use == pytest.approx(0, abs=1e-6)


def test_predictions_agree_with_what_engines_report() -> None:
    """Events come late, so a prediction may miss what just changed; most are exact."""
    cluster, exact, total = Cluster(scenario("rag", requests_per_s=4.0)), 0, 0
    step_over = cluster._step_over

    def watch(engine: Engine, now: float) -> None:
        nonlocal exact, total
        step_over(engine, now)
        for _, kind, _, first, _ in cluster._agenda:
            if kind == 1:
                for each in first:
                    total += 1
                    exact += each.owner.decision.overlap_tokens == each.cached_tokens

    cluster._step_over = watch  # type: ignore[method-assign]
    cluster.run()
    assert total
    assert exact / total > 0.9


def test_engines_that_fail_drain_and_join() -> None:
    changes = [FleetChange(5.0, "fail", 0), FleetChange(10.0, "drain", 1), FleetChange(8.0, "join", 3)]
    cluster = Cluster(scenario(engines=4, changes=changes, warmup=0.0, requests_per_s=20.0))
    results = cluster.run()
    summary = results.summary()
    assert summary.requests >= 400 - summary.lost
    assert all(results.engine_requests)
    assert cluster.router.index.worker_sizes(0).blocks == 0
    cluster.router.load.check()


def test_hot_prompts_and_bursts_spread_and_keep_their_hits() -> None:
    for workload, kept in (("hot_prompt", 0.95), ("bursts", 0.7)):
        one = scenario(workload, engines=8, requests=2000)
        summary = Cluster(one).run().summary()
        assert summary.load_spread < 2.0
        assert summary.hit_rate > kept * summary.hit_rate_infinite


@pytest.mark.parametrize("workload", ["chat", "rag", "uniform", "mixed"])
def test_what_the_router_expects_is_what_happens(workload: str) -> None:
    """Rates begin at eight thousand tokens a second, which these engines are far from."""
    summary = Cluster(scenario(workload, engines=4, requests=2500)).run().summary()
    assert summary.ttft_correlation > 0.9
    assert summary.ttft_expected_mean_s == pytest.approx(summary.ttft_mean_s, rel=0.15)


def test_unlike_engines_get_work_by_their_speed() -> None:
    engines = [FAST, parse_profile("llama-3.1-8b@a100"), FAST, parse_profile("llama-3.1-8b@a100")]
    rate = rate_for(0.6, WORKLOADS["uniform"], engines, SIZE)
    facts = {"workload": WORKLOADS["uniform"], "engines": engines, "requests": 2000, "requests_per_s": rate}
    means = {
        policy: Cluster(Scenario(**facts, routing=RoutingConfig(policy=policy))).run().summary().ttft_mean_s  # type: ignore[arg-type]
        for policy in ("warmroute", "least_loaded")
    }
    assert means["warmroute"] < 0.9 * means["least_loaded"]


def test_the_command_compares_policies_and_writes_json_and_html(tmp_path: Path) -> None:
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    arguments = ["--workload", "rag", "--engines", "2", "--requests", "300", "--policy", "warmroute"]
    arguments += ["--policy", "random", "--json", str(out), "--html", str(page), "--quiet"]
    ran = CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)
    assert ran.return_value == 0
    assert ran.output.splitlines()[1].startswith("warmroute")
    found = json.loads(out.read_bytes())
    assert [run["policy"] for run in found["runs"]] == ["warmroute", "random"]
    assert page.read_text().count("<svg") == 2
    assert "http" not in page.read_text(), "it needs nothing else"


def test_a_policy_that_fails_is_not_taken_for_one_that_decides(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Mine:\n    name = 'mine'\n\n    def costs(self, candidates):\n        raise KeyError('oh')\n"
    )
    wish = Wish(workload="uniform", engines=2, requests=50, policies=[f"{tmp_path / 'mine.py'}:Mine"], rate=5.0)
    done = simulate(wish, lambda *_: None)
    assert "mine: the default decided 50 times in its place: KeyError: 'oh'" in done.table
    assert json.loads(done.json())["runs"][0]["undecided"] == 50


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    wish = Wish(workload="uniform", engines=2, requests=4100, policies=["random"], rate=50.0)
    simulate(wish, lambda policy, issued, of, _: told.append((policy, issued, of)))
    assert told[-1] == ("random", 4100, 4100)
    assert len(told) >= 3


@pytest.mark.parametrize(
    "wrong",
    [{"workload": "none"}, {"profiles": ["x@y"]}, {"changes": ["fail:9@1"]}, {"changes": ["melt:0@1"]}, {"rate": -1.0}],
)
def test_wishes_that_cannot_be_fulfilled_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"give|above"):
        simulate(Wish(**({"policies": ["random"], "engines": 2} | wrong)), lambda *_: None)  # type: ignore[arg-type]
