"""Claims: believed behind the confirmed overlap, until an event, the first byte or time ends them."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from warmroute.core.rows import HELD
from warmroute.core.speculation import Claim, Speculation
from warmroute.types import PrefixHash, WorkerId

W1, W2 = WorkerId(1), WorkerId(2)
SIZE = 16


def chain(*numbers: int) -> list[PrefixHash]:
    return [PrefixHash(n) for n in numbers]


def buffer(prefixes: list[PrefixHash]) -> Sequence[PrefixHash]:
    """As `prefix_hash_array` gives them."""
    return memoryview(array("Q", prefixes))  # type: ignore[return-value]


def claim(
    claims: Speculation, worker: WorkerId, chain: list[PrefixHash], now: float, ttl_s: float, start: int = 0
) -> Claim:
    made = Claim(worker, buffer(chain), SIZE, start, now + ttl_s)
    claims.add(made, now)
    return made


def extended(
    claims: Speculation, prefixes: list[PrefixHash], confirmed: Mapping[WorkerId, int], now: float
) -> dict[WorkerId, int]:
    """Blocks that claims add behind each worker's confirmed ones."""
    positions = {W1: 0, W2: 1}
    held = array("q", [tokens for w in positions for tokens in (confirmed.get(w, 0) * SIZE, 0, 0, 0)])
    natively = held[:]
    claims.extend(held, prefixes, positions, SIZE, now)
    claims.extend(natively, memoryview(array("Q", prefixes)), positions, SIZE, now)  # type: ignore[arg-type]
    assert natively == held
    for worker, i in positions.items():
        overlap, _, _, claimed = held[HELD * i : HELD * i + HELD]
        assert overlap == confirmed.get(worker, 0) * SIZE + claimed
    return {worker: held[HELD * i + 3] // SIZE for worker, i in positions.items() if held[HELD * i + 3]}


def test_t28_a_claim_is_believed_before_its_time_to_live_and_not_after() -> None:
    claims = Speculation()
    claim(claims, W1, chain(1, 2), now=0.0, ttl_s=2.0)
    assert extended(claims, chain(1, 2, 3), {}, now=1.9) == {W1: 2}
    assert extended(claims, chain(1, 2, 3), {}, now=2.0) == {}


def test_t28_a_confirmed_entry_survives_the_claim() -> None:
    claims = Speculation()
    claim(claims, W1, chain(1, 2), now=0.0, ttl_s=2.0)
    assert extended(claims, chain(1, 2, 3), {W1: 1}, now=1.0) == {W1: 1}
    assert extended(claims, chain(1, 2, 3), {W1: 1}, now=3.0) == {}


def test_a_claim_counts_only_where_the_confirmed_overlap_ends() -> None:
    claims = Speculation()
    claim(claims, W1, chain(1, 2, 3, 4), now=0.0, ttl_s=2.0, start=2)
    assert extended(claims, chain(1, 2, 3, 4), {W1: 2}, now=1.0) == {W1: 2}
    assert extended(claims, chain(1, 2, 3, 4), {W1: 1}, now=1.0) == {}, "block 2 was evicted meanwhile"
    assert extended(claims, chain(1, 2, 3, 4), {}, now=1.0) == {}


def test_a_claim_that_ended_is_not_believed_though_its_time_is_not_over() -> None:
    claims = Speculation()
    made = claim(claims, W1, chain(1), now=0.0, ttl_s=2.0)
    made.end()
    assert extended(claims, chain(1), {}, now=0.1) == {}


def test_a_claim_covers_only_what_was_not_known_to_be_held() -> None:
    claims = Speculation()
    claims.add(Claim(W1, buffer(chain(1, 2, 3)), 16, 2, 9.0), 0.0)
    assert extended(claims, chain(1, 2, 3), {W1: 2}, now=1.0) == {W1: 1}
    assert extended(claims, chain(1, 2, 3), {W1: 1}, now=1.0) == {}


def test_claims_of_workers_do_not_mix_and_are_forgotten_together() -> None:
    claims = Speculation()
    claim(claims, W1, chain(1, 2), now=0.0, ttl_s=2.0)
    claim(claims, W2, chain(1), now=0.0, ttl_s=2.0)
    assert extended(claims, chain(1, 2), {}, now=1.0) == {W1: 2, W2: 1}
    claims.forget(W1)
    assert extended(claims, chain(1, 2), {}, now=1.0) == {W2: 1}
    claims.forget(W1)


def test_expired_claims_take_no_memory() -> None:
    claims = Speculation()
    for n in range(100):
        claim(claims, W1, chain(*range(n * 10, n * 10 + 10)), now=float(n), ttl_s=2.0)
    assert sum(map(len, claims._by_start.values())) <= 3
    assert claims.claimed_blocks(99.5) == 20
    assert claims.claimed_blocks(200.0) == 0


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6), st.floats(0.1, 5.0))),
    st.integers(0, 6),
    st.floats(0, 60),
)
def test_a_claim_never_reaches_beyond_what_was_claimed(
    adds: list[tuple[int, int, float]], confirmed: int, asked_after: float
) -> None:
    claims, now, believed = Speculation(), 0.0, dict[int, float]()
    for start, end, ttl_s in adds:
        now += 1.0
        if start >= end:
            continue
        claim(claims, W1, chain(*range(end)), now, ttl_s, start)
        believed |= {block: max(believed.get(block, 0.0), now + ttl_s) for block in range(start, end)}
    now += asked_after
    at = confirmed
    while at < 8 and believed.get(at, 0.0) > now:
        at += 1
    assert extended(claims, chain(*range(8)), {W1: confirmed}, now).get(W1, 0) == at - confirmed


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(1, 6), st.integers(1, 6))),
    st.integers(0, 6),
    st.integers(0, 6),
)
def test_claims_of_many_prompts_reach_as_far_as_the_prompts_are_the_same(
    made: list[tuple[int, int, int, int]], confirmed: int, common: int
) -> None:
    """Block n of a prompt that leaves the asked one at block `until` is n, then 10 * until + n."""

    def prompt(until: int, blocks: int) -> list[PrefixHash]:
        return chain(*(n if n < until else 10 * until + n for n in range(blocks)))

    claims, reach = Speculation(), confirmed
    for other, start, blocks, until in sorted(made, key=lambda one: one[1]):
        if start < blocks:
            claim(claims, W2 if other else W1, prompt(until, blocks), 0.0, 9.0, start)
    for other, start, blocks, until in sorted(made, key=lambda one: one[1]):
        shared = min(blocks, until, common)
        if not other and start < shared and start <= reach < shared:
            reach = shared
    asked = [*prompt(common, common), *chain(98, 99)]
    assert extended(claims, asked, {W1: confirmed}, 1.0).get(W1, 0) == reach - confirmed


def test_a_claim_that_waits_is_looked_at_ever_more_rarely_and_ended_all_the_same() -> None:
    speculation, claim = Speculation(), Claim(W1, chain(1, 2), 16, 0, 1e9)
    speculation.add(claim, 0.0)
    speculation.served(claim, 0.0)
    batches, looks = 0, []

    def confirmed(_: Claim) -> bool:
        looks.append(batches)
        return batches >= 40

    while batches < 100:
        batches += 1
        speculation.confirm(W1, confirmed, 1.0)
    assert looks == [1, 2, 3, 4, 8, 16, 32, 64]
    assert speculation.idle
    assert speculation.unconfirmed(W1) == 0
