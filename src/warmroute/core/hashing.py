"""PrefixHash: what a block's content, and all content before it, is called everywhere.

Engines name blocks as they like; this is our name, a pure function of token ids and extra keys. So that long prompts
cost little, the expensive part of a block does not depend on the block before it: digests of all blocks can be
computed side by side, and the chain through them is a single multiplication per block.

The specification, in arithmetic modulo 2^64, `^` being exclusive or:

    mum(a, b)     = low ^ high 64-bit half of the 128-bit product a * b
    mix(x)        = the splitmix64 finaliser: x ^= x >> 30; x *= 0xBF58476D1CE4E5B9; x ^= x >> 27;
                    x *= 0x94D049BB133111EB; x ^= x >> 31
    secret(j)     = mix(j * 0x9E3779B97F4A7C15)
    S(j)          = secret(j + 1) | 2^63 | 2^31                                              for j >= 0
    ROOT, P, B, X = secret(-1), secret(-2), secret(-3), secret(-4)

    words:   a block's n token ids, zero-padded to a multiple of four, are unsigned 32-bit; two make one 64-bit word,
             w(j) = t(2j) + 2^32 t(2j + 1)
    digest:  D = mix(n) + the sum over even j of mum(w(j) ^ S(j), w(j + 1) ^ S(j + 1))
    chain:   prefix(i) = mum(prefix(i - 1) ^ P, (D(i) + extra(i)) ^ B),  prefix before the first block = ROOT
    extra:   0 if the block has neither LoRA nor extra keys; else the bytes of tag, length (8 bytes, little-endian) and
             content of the LoRA name and of each key (tags L, S for str, B for bytes; text as UTF-8), zero-padded to
             32-bit words that are digested like token ids: mum(X ^ P, D ^ B), and 1 if that is 0

Why so: the secrets' bits 63 and 31 are set, so no word of token ids below 2^31 can make a factor zero and swallow its
partner. The token count is part of the digest, so block sizes and zero padding do not collide. An extra is added off
the chain's critical path. It is a fast hash, not a cryptographic one: whoever crafts a collision gains a wrong guess
about where a request's prefix is cached, and nothing else; engines verify by their own hashes.

Two forms of it stand side by side: the `reference_` functions here, and the native ones, which the public names mean
where the native core is built. They give equal results for equal input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from operator import index
from typing import Final, cast

from warmroute.core.wire.events import ExtraKeys
from warmroute.types import PrefixHash, TokenIds

try:
    from warmroute import _native
except ImportError:
    NATIVE = False
else:
    NATIVE = True
"""Whether the native core is built: without it, the public functions are slower and give the same results."""

_MASK: Final = 2**64 - 1
_ZERO_GUARD: Final = 1 << 63 | 1 << 31
_TOKENS_PER_PAIR: Final = 4
_EXTRAS_CACHED: Final = 4096  # distinct (LoRA, keys) combinations in use at a time; more only costs time


def mum(a: int, b: int) -> int:
    """The low half of the 128-bit product, exclusive-or the high half: the one non-linear step."""
    product = a * b
    return (product & _MASK) ^ (product >> 64)


def mix(x: int) -> int:
    """The splitmix64 finaliser: a bijection on 64 bits in which every bit depends on every bit."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31


def secret(j: int) -> int:
    """The j-th number of the one stream of constants (j may be negative)."""
    return mix(j * 0x9E3779B97F4A7C15 & _MASK)


ROOT: Final = PrefixHash(secret(-1))
"""The prefix before the first block."""
_PARENT_SECRET: Final = secret(-2)
_BLOCK_SECRET: Final = secret(-3)
_EXTRA_ROOT: Final = PrefixHash(secret(-4))


@lru_cache(maxsize=64)
def _position_secrets(pairs: int) -> tuple[tuple[int, int], ...]:
    guarded = [secret(j + 1) | _ZERO_GUARD for j in range(2 * pairs)]
    return tuple(zip(guarded[::2], guarded[1::2], strict=True))


def chain(parent: PrefixHash | None, digest: int, extra: int = 0) -> PrefixHash:
    """The prefix that ends with a block of this content digest; `parent` is the one before it, None at the root."""
    before = ROOT if parent is None else parent
    return PrefixHash(mum(before ^ _PARENT_SECRET, (digest + extra & _MASK) ^ _BLOCK_SECRET))


def reference_block_digests(tokens: TokenIds, block_size: int) -> list[int]:
    """`block_digests` in Python: slow, and obviously what the specification says."""
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}: it must be a positive number of tokens")
    if len(tokens) < block_size:
        return []
    secrets = _position_secrets(-(-block_size // _TOKENS_PER_PAIR))
    padding = (0,) * (-block_size % _TOKENS_PER_PAIR)
    digests = []
    for start in range(0, len(tokens) - block_size + 1, block_size):
        block = [*map(index, tokens[start : start + block_size]), *padding]
        if min(block) < 0 or max(block) >= 2**32:
            at, wrong = next((start + i, t) for i, t in enumerate(block) if not 0 <= t < 2**32)
            raise ValueError(f"token id {wrong} at position {at}: token ids are unsigned 32-bit integers")
        digest = mix(block_size)
        for (a, b, c, d), (even, odd) in zip(zip(*[iter(block)] * 4, strict=True), secrets, strict=True):
            digest += mum((a | b << 32) ^ even, (c | d << 32) ^ odd)
        digests.append(digest & _MASK)
    return digests


def reference_prefix_hashes(
    tokens: TokenIds, block_size: int, *, lora: str | None = None, cache_salt: str | None = None
) -> list[PrefixHash]:
    """`prefix_hashes` in Python: slow, and obviously what the specification says."""
    first, rest = _request_extras(lora, cache_salt)
    prefixes: list[PrefixHash] = []
    prefix: PrefixHash | None = None
    for digest in reference_block_digests(tokens, block_size):
        prefix = chain(prefix, digest, rest if prefixes else first)
        prefixes.append(prefix)
    return prefixes


def block_digests(tokens: TokenIds, block_size: int) -> list[int]:
    """The content digest of each full block of `tokens`: what `chain` takes.

    Raises ValueError if a token id is not an unsigned 32-bit integer or `block_size` is not positive.
    """
    return _native.block_digests(tokens, block_size) if NATIVE else reference_block_digests(tokens, block_size)


def prefix_hashes(
    tokens: TokenIds, block_size: int, *, lora: str | None = None, cache_salt: str | None = None
) -> list[PrefixHash]:
    """The PrefixHash of each full block of a request's prompt; an incomplete last block has none.

    As engines publish extra keys: the salt makes the first block distinct (and by the chain all that follow), the
    LoRA name every block. Raises ValueError if a token id is not an unsigned 32-bit integer or `block_size` is not
    positive.
    """
    if not NATIVE:
        return reference_prefix_hashes(tokens, block_size, lora=lora, cache_salt=cache_salt)
    return _native.prefix_hashes(tokens, block_size, *_request_extras(lora, cache_salt))


def prefix_hash_array(
    tokens: TokenIds, block_size: int, *, lora: str | None = None, cache_salt: str | None = None
) -> Sequence[PrefixHash]:
    """`prefix_hashes` in the form that is cheapest here: a buffer of 64-bit numbers where the native core is built."""
    if not NATIVE:
        return reference_prefix_hashes(tokens, block_size, lora=lora, cache_salt=cache_salt)
    array = _native.prefix_hash_array(tokens, block_size, *_request_extras(lora, cache_salt))
    return cast("Sequence[PrefixHash]", array)


def extend(parent: PrefixHash | None, tokens: TokenIds, extra: int = 0) -> PrefixHash:
    """The prefix that ends with the one block `tokens`, after `parent`. Raises ValueError if there are no tokens."""
    return chain(parent, block_digests(tokens, len(tokens))[0], extra)


@lru_cache(maxsize=_EXTRAS_CACHED)
def extra_digest(lora: str | None, keys: ExtraKeys = ()) -> int:
    """One 64-bit number for what else makes a block's content distinct; 0 if nothing does."""
    if lora is None and not keys:
        return 0
    framed = b"".join(_framed(lora, keys))
    framed += bytes(-len(framed) % 4)
    words = [int.from_bytes(framed[i : i + 4], "little") for i in range(0, len(framed), 4)]
    return chain(_EXTRA_ROOT, reference_block_digests(words, len(words))[0]) or 1


def _framed(lora: str | None, keys: ExtraKeys) -> Iterable[bytes]:
    typed = [] if lora is None else [(b"L", _utf8(lora))]
    typed += [(b"S", _utf8(key)) if isinstance(key, str) else (b"B", key) for key in keys]
    for tag, content in typed:
        yield tag + len(content).to_bytes(8, "little") + content


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # JSON may carry lone surrogates; a name is never refused


def _request_extras(lora: str | None, cache_salt: str | None) -> tuple[int, int]:
    """Extras of a request's first block and of the others."""
    rest = extra_digest(lora)
    return (rest if cache_salt is None else extra_digest(lora, (cache_salt,))), rest
