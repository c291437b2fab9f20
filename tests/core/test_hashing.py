"""PrefixHash: the specification's properties, its statistics, and that both forms of it agree."""

from __future__ import annotations

import random
from array import array
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.core import hashing
from warmroute.core.hashing import (
    block_digests,
    chain,
    extend,
    extra_digest,
    prefix_hashes,
    reference_block_digests,
    reference_prefix_hashes,
)
from warmroute.types import PrefixHash

token_ids = st.integers(0, 2**32 - 1) | st.integers(0, 300)


def test_golden_values() -> None:
    """The specification may not drift: snapshots and other processes depend on it."""
    tokens = [*range(32), 2**32 - 1]
    assert reference_prefix_hashes(tokens, 16) == [0x95636435EDC5E4F8, 0xF5B2C37864833B0A]
    assert reference_prefix_hashes(tokens, 11, lora="sql", cache_salt="tenant")[2] == 0x45111767514C08B9
    assert extra_digest("sql", ("img", b"\x00\xff")) == 0xF312EBCCA289A0F4


def test_the_specification_spelled_out() -> None:
    def mum(a: int, b: int) -> int:
        return (a * b % 2**64) ^ (a * b // 2**64)

    s = [hashing.secret(j + 1) | 2**63 | 2**31 for j in range(4)]
    digest = hashing.mix(5) + mum((1 + (2 << 32)) ^ s[0], (3 + (4 << 32)) ^ s[1]) + mum(5 ^ s[2], 0 ^ s[3])
    assert block_digests([1, 2, 3, 4, 5], 5) == [digest % 2**64]
    prefix = mum(hashing.secret(-1) ^ hashing.secret(-2), ((digest + 7) % 2**64) ^ hashing.secret(-3))
    assert extend(None, [1, 2, 3, 4, 5], 7) == prefix


def test_splitmix64_is_the_known_one() -> None:
    assert [hashing.secret(j) for j in (1, 2, 3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_prefixes_extend_one_another() -> None:
    whole = prefix_hashes(range(40), 16)
    assert len(whole) == 2
    assert whole == [first := extend(None, range(16)), extend(first, range(16, 32))]
    assert whole[:1] == prefix_hashes(range(31), 16)


def test_the_salt_is_the_first_blocks_and_the_adapter_every_blocks() -> None:
    tokens = list(range(32))
    salted = prefix_hashes(tokens, 16, cache_salt="tenant")
    first = extend(None, tokens[:16], extra_digest(None, ("tenant",)))
    assert salted == [first, extend(first, tokens[16:])]
    both = prefix_hashes(tokens, 16, lora="sql", cache_salt="tenant")
    first = extend(None, tokens[:16], extra_digest("sql", ("tenant",)))
    assert both == [first, extend(first, tokens[16:], extra_digest("sql"))]


def test_extras_are_framed_and_typed() -> None:
    extras = [
        extra_digest(lora, keys)
        for lora in (None, "", "a", "ab", "b")
        for keys in ((), ("",), (b"",), ("", ""), ("a",), (b"a",), ("b",), ("ab",), ("a", "b"), ("b", "a"), ("a\0",))
    ]
    assert extras[0] == 0
    assert len(set(extras)) == len(extras)
    assert extra_digest("\ud800") != 0  # JSON may carry what UTF-8 may not


@pytest.mark.parametrize("hashes", [prefix_hashes, reference_prefix_hashes, block_digests, reference_block_digests])
class TestRefusals:
    @pytest.mark.parametrize("wrong", [-1, 2**32, 2**64, -(2**70)])
    def test_token_ids_that_are_none(self, hashes, wrong) -> None:
        with pytest.raises(ValueError, match=f"token id {wrong} at position 5: token ids are unsigned 32-bit integers"):
            hashes([0, 1, 2, 3, 4, wrong, -7, 7], 4)

    @pytest.mark.parametrize("wrong", ["1", 1.0, None])
    def test_things_that_are_no_integers(self, hashes, wrong) -> None:
        with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
            hashes([0, 1, wrong, 3], 4)

    @pytest.mark.parametrize("block_size", [0, -1])
    def test_block_sizes_that_are_none(self, hashes, block_size) -> None:
        with pytest.raises(ValueError, match=f"block_size is {block_size}: it must be a positive number of tokens"):
            hashes([1, 2, 3], block_size)

    def test_an_incomplete_block_is_not_looked_at(self, hashes) -> None:
        assert len(hashes([0, 1, 2, 3, -1], 4)) == 1
        assert hashes([], 4) == hashes([1, 2, 3], 4) == hashes([1], 2**40) == []


class IntegerLike:
    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


def test_all_ways_to_give_tokens_are_equal() -> None:
    tokens = [7, 2**31, 2**32 - 1, 0, *range(60)]
    words = array("I", tokens)
    spread = array("I", [t for token in tokens for t in (token, 1)])
    unaligned = memoryview(b"x" + words.tobytes())[1:].cast("I")
    ways = [
        tokens,
        tuple(tokens),
        words,
        memoryview(words),
        memoryview(spread)[::2],
        unaligned,
        array("Q", tokens),
        array("q", tokens),
        [IntegerLike(token) for token in tokens],
    ]
    for size in (1, 5, 16):
        expected = reference_prefix_hashes(tokens, size)
        for way in ways:
            assert prefix_hashes(way, size) == expected
            assert reference_prefix_hashes(way, size) == expected


@pytest.mark.skipif(not hashing.NATIVE, reason="the native core is not built: `pip install -e .` builds it")
class TestNative:
    @given(
        tokens=st.lists(token_ids, max_size=80),
        size=st.integers(1, 40),
        lora=st.none() | st.text(max_size=5),
        salt=st.none() | st.text(max_size=5),
    )
    def test_equals_the_reference(self, tokens: list[int], size: int, lora: str | None, salt: str | None) -> None:
        expected = reference_prefix_hashes(tokens, size, lora=lora, cache_salt=salt)
        assert prefix_hashes(tokens, size, lora=lora, cache_salt=salt) == expected
        assert prefix_hashes(array("I", tokens), size, lora=lora, cache_salt=salt) == expected
        assert block_digests(tokens, size) == reference_block_digests(tokens, size)

    @pytest.mark.parametrize("size", [1023, 1024, 1025, 1027, 1028, 4096, 5001])
    def test_blocks_larger_than_its_table_of_secrets(self, size: int) -> None:
        tokens = [random.Random(size).randrange(2**32) for _ in range(size)]
        assert prefix_hashes(tokens, size) == reference_prefix_hashes(tokens, size)

    def test_a_list_that_shrinks_while_it_is_read(self) -> None:
        class Shrinking(IntegerLike):
            def __index__(self) -> int:
                tokens.clear()
                return 1

        tokens: list[object] = [Shrinking(1), *range(31)]
        with pytest.raises(ValueError, match="changed while they were read"):
            prefix_hashes(tokens, 16)  # type: ignore[arg-type]


def flip_rates(make, bits: int, samples: int) -> list[float]:
    """How often each of 64 output bits changes when one of the input's bits does, for all pairs of them."""
    counts = [Counter[str]() for _ in range(bits)]
    for _ in range(samples):
        before, changed = make()
        for bit, count in enumerate(counts):
            count.update(f"{i}" for i, flipped in enumerate(f"{before ^ changed(bit):064b}") if flipped == "1")
    return [count[f"{i}"] / samples for count in counts for i in range(64)]


@pytest.mark.parametrize("vocabulary", [2**17, 2**32])
def test_every_bit_of_a_block_reaches_every_bit_of_the_prefix(vocabulary: int) -> None:
    """Strict avalanche: each of 64 x 512 flips happens about half of the time."""
    rng, samples = random.Random(1), 256

    def make():
        block = [rng.randrange(vocabulary) for _ in range(16)]
        parent = PrefixHash(rng.getrandbits(64))

        def changed(bit: int) -> int:
            other = block.copy()
            other[bit // 32] ^= 1 << bit % 32
            return extend(parent, other)

        return extend(parent, block), changed

    rates = flip_rates(make, 512, samples)
    assert abs(sum(rates) / len(rates) - 0.5) < 0.005
    assert min(rates) > 0.3  # 6.4 standard deviations
    assert max(rates) < 0.7


@pytest.mark.parametrize("part", ["parent", "extra"])
def test_every_bit_of_parent_and_extra_reaches_every_bit_of_the_prefix(part: str) -> None:
    rng, samples = random.Random(2), 1024

    def make():
        parent, digest, extra = (rng.getrandbits(64) for _ in range(3))

        def changed(bit: int) -> int:
            if part == "parent":
                return chain(PrefixHash(parent ^ 1 << bit), digest, extra)
            return chain(PrefixHash(parent), digest, extra ^ 1 << bit)

        return chain(PrefixHash(parent), digest, extra), changed

    rates = flip_rates(make, 64, samples)
    assert min(rates) > 0.4
    assert max(rates) < 0.6


def structured_blocks():
    """A million blocks as alike as blocks can be: counters, runs, zeros, one or two tokens changed."""
    for i in range(1, 300_001):
        yield [i] * 4
        yield [i, 0, 0, 0]
        yield [0, 0, 0, i]
    for j in range(16):
        for i in range(j):
            for a in range(1, 30):
                for b in range(1, 30):
                    block = [0] * 16
                    block[i], block[j] = a, b
                    yield block


def test_a_million_blocks_that_are_alike_do_not_collide() -> None:
    prefixes = [extend(None, block) for block in structured_blocks()]
    assert len(prefixes) > 1_000_000
    assert len(set(prefixes)) == len(prefixes)
    assert len({prefix & 0xFFFF for prefix in prefixes}) == 2**16  # tables may use the low bits as they are


def test_chains_do_not_collide_across_order_size_and_padding() -> None:
    zeros = [prefix for size in range(1, 40) for prefix in prefix_hashes([0] * (5 * size), size)]
    assert len(set(zeros)) == len(zeros) == 39 * 5
    rng = random.Random(3)
    pieces = [[rng.randrange(200) for _ in range(4)] for _ in range(6)]
    assert len({prefix_hashes(a + b + c, 4)[-1] for a in pieces for b in pieces for c in pieces}) == 6**3
