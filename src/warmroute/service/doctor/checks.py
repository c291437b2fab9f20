"""Checks of one engine as a whole: whether it answers, its release, its cache, its clock, its tokenizer.

Each takes what was seen and gives findings: one that all is well, or what is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from warmroute.service.doctor import stream_checks
from warmroute.service.doctor.catalogue import Finding, finding, ok
from warmroute.service.doctor.facts import EngineReport
from warmroute.service.doctor.launch import engine_entry, with_arguments

Check: TypeAlias = Callable[[EngineReport], Iterator[Finding]]

NEWEST_TRIED = {"vllm": (0, 33), "sglang": (0, 5, 23)}
OLDEST_WITH_EVENTS = {"vllm": (0, 9), "sglang": (0, 4, 7)}
VLLM_NAMES_ADAPTERS = (0, 14)
VLLM_ENCODES_DIGESTS = (0, 10, 2)
VLLM_PUBLISHES_KEYS = (0, 17)
SGLANG_CHAINS_HASHES = (0, 5, 6)
SKEW_S_MAX = 2.0
"""The clocks are compared by a header that counts whole seconds."""


def check_engine(engine: EngineReport) -> list[Finding]:
    """Everything that can be said of one engine."""
    if engine.http.problem is not None:
        return [_problem(engine)]
    return [found for check in CHECKS for found in check(engine)]


def _problem(engine: EngineReport) -> Finding:
    return finding(engine.http.problem_code or "unreachable", engine.http.problem or "")


def _serves(engine: EngineReport) -> Iterator[Finding]:
    names = ", ".join(model.id for model in engine.models)
    yield ok("answers", f"serves {names}") if names else finding("no_model", "its list of models is empty")


def _release(engine: EngineReport) -> Iterator[Finding]:
    software, release = engine.http.software, engine.release
    if software is None or not release:
        yield finding("version_unknown", f"{software or 'an engine'}, version {engine.http.version or 'unknown'}")
        return
    said = f"{'SGLang' if software == 'sglang' else 'vLLM'} {engine.http.version}"
    newest = NEWEST_TRIED[software]
    if release < OLDEST_WITH_EVENTS[software]:
        yield finding("version_too_old", said)
    elif release[: len(newest)] > newest:
        yield finding("version_untried", said)
    else:
        yield ok("version", said)


def _limits(engine: EngineReport) -> Iterator[Finding]:
    """What the release itself cannot do."""
    adapters = [model.id for model in engine.models if model.parent is not None]
    if adapters and _vllm_within(engine, OLDEST_WITH_EVENTS["vllm"], VLLM_NAMES_ADAPTERS):
        yield finding("lora_unnamed", f"it serves {', '.join(adapters)}")
    if _vllm_within(engine, OLDEST_WITH_EVENTS["vllm"], VLLM_PUBLISHES_KEYS):
        yield finding("keys_unpublished", f"vLLM {engine.http.version}")
    if engine.http.software == "sglang" and OLDEST_WITH_EVENTS["sglang"] <= engine.release < SGLANG_CHAINS_HASHES:
        yield finding("hashes_unchained", f"SGLang {engine.http.version}")


def _vllm_within(engine: EngineReport, since: tuple[int, ...], before: tuple[int, ...]) -> bool:
    return engine.http.software == "vllm" and since <= engine.release < before


def _caching(engine: EngineReport) -> Iterator[Finding]:
    enabled = engine.http.cache.get("enable_prefix_caching")
    if enabled == "False":
        remedy = with_arguments(engine, vllm="--enable-prefix-caching", sglang="(without --disable-radix-cache)")
        yield finding("prefix_caching_off", "prefix caching is off", remedy)
    elif enabled is not None:
        yield ok("prefix_caching", "on")
    algorithm = engine.http.cache.get("prefix_caching_hash_algo")
    if algorithm == "sha256" and _vllm_within(engine, OLDEST_WITH_EVENTS["vllm"], VLLM_ENCODES_DIGESTS):
        remedy = with_arguments(engine, vllm="--prefix-caching-hash-algo builtin", sglang="")
        yield finding("hashes_unencodable", f"{algorithm} on release {engine.http.version}", remedy)


def _block_size(engine: EngineReport) -> Iterator[Finding]:
    announced = engine.block_size
    seen = sorted({size for stream in engine.streams if stream.followed for size in stream.followed.block_sizes})
    sizes = ", ".join(map(str, seen))
    if seen == [1] or (announced == 1 and not seen):
        remedy = with_arguments(engine, vllm="--block-size 16", sglang="--page-size 16")
        yield finding("block_size_one", "blocks of one token", remedy)
    elif announced is not None and seen and seen != [announced]:
        yield finding("block_size_differs", f"it announces {announced}, its events say {sizes}")
    elif seen or announced:
        yield ok("block_size", f"{sizes or announced} tokens, {'as its events say' if seen else 'as it announces'}")


def _clock(engine: EngineReport) -> Iterator[Finding]:
    skew = engine.http.skew_s
    for stream in engine.streams:
        if stream.followed and stream.followed.newest_ts is not None:
            skew = max(skew or 0.0, stream.followed.newest_ts - stream.followed.at)  # an event from the future
    if skew is None:
        return
    if abs(skew) > SKEW_S_MAX:
        yield finding("clock_skew", f"its clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} ours")
    else:
        yield ok("clock", f"within {SKEW_S_MAX:g} s of ours")


def _tokenizer(engine: EngineReport) -> Iterator[Finding]:
    tokens = engine.tokenizer
    if tokens is None:
        return
    compared = sum(answer is not None for answer in tokens.answers)
    if not compared:
        yield finding("tokenize_missing", tokens.refusal or "it has no /tokenize")
    elif tokens.difference is not None:
        yield finding("tokenizer_differs", tokens.difference)
    elif tokens.local:
        yield ok("tokenizer", f"the one in process agrees on {compared} samples, chat template included")
    else:
        yield ok("tokenizer", f"/tokenize answers, {compared} samples of {len(tokens.answers)}")


def _events(engine: EngineReport) -> Iterator[Finding]:
    if not engine.events_wanted:
        remedy = engine_entry(engine, events=True)
        yield finding("not_followed", "events are off in Warmroute's configuration", remedy)
        return
    silent = stream_checks.published_nowhere(engine)
    if silent is not None:
        yield silent
        return
    yield from stream_checks.ranks(engine)
    for stream in engine.streams:
        yield from stream_checks.check_stream(engine, stream)


CHECKS: tuple[Check, ...] = (_serves, _release, _limits, _caching, _block_size, _clock, _tokenizer, _events)
