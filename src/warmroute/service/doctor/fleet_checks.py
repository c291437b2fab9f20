"""What only several engines side by side show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from warmroute.service.doctor.catalogue import Finding, finding, ok
from warmroute.service.doctor.facts import EngineReport
from warmroute.service.doctor.launch import engine_entry

VLLM_FIXED_ROOT = (0, 29)
"""Since then sha256 hashes are equal in all processes; before, only with an equal PYTHONHASHSEED."""


def check_fleet(engines: Sequence[EngineReport]) -> list[Finding]:
    """Everything that can be said of engines together; nothing of fewer than two."""
    if len(engines) < 2:
        return []
    return [*_publishers(engines), *_tokenizers(engines), *_hashes(engines)]


def _publishers(engines: Sequence[EngineReport]) -> Iterator[Finding]:
    first: dict[str, EngineReport] = {}
    for engine in engines:
        for endpoint in sorted({stream.address.endpoint for stream in engine.streams if stream.address}):
            other = first.setdefault(endpoint, engine)
            if other is not engine:
                remedy = engine_entry(engine, events_endpoint="tcp://HOST:PORT")
                yield finding("publisher_shared", f"{other.url} and {engine.url} at {endpoint}", remedy)


def _tokenizers(engines: Sequence[EngineReport]) -> Iterator[Finding]:
    compared = 0
    for one, other in combinations(engines, 2):
        models = sorted(_models(one) & _models(other))
        if not models or one.tokenizer is None or other.tokenizer is None:
            continue
        pairs = [
            (mine, theirs)
            for mine, theirs in zip(one.tokenizer.answers, other.tokenizer.answers, strict=False)
            if mine is not None and theirs is not None
        ]
        compared += bool(pairs)
        differing = sum(list(mine) != list(theirs) for mine, theirs in pairs)
        if differing:
            found = f"{one.url} and {other.url} differ on {differing} of {len(pairs)} samples for {models[0]}"
            yield finding("tokenizers_disagree", found)
            return
    if compared:
        yield ok("tokenizers", "engines of the same model tokenize alike")


def _hashes(engines: Sequence[EngineReport]) -> Iterator[Finding]:
    """Nothing here can be wrong for us, which people coming from other routers need to be told."""
    algorithms = {engine.http.cache["prefix_caching_hash_algo"] for engine in engines if _says_algorithm(engine)}
    seeded = any(engine.http.software == "vllm" and () < engine.release < VLLM_FIXED_ROOT for engine in engines)
    notes = [f"hash algorithms: {', '.join(sorted(algorithms))}"] if algorithms else []
    notes += ["hashes before vLLM 0.29 depend on each process's PYTHONHASHSEED"] if seeded else []
    said = "; ".join(notes) or "unknown"
    yield ok("hashes", f"{said}. No matter: Warmroute hashes the token ids itself, so engines need not agree")


def _says_algorithm(engine: EngineReport) -> bool:
    return "prefix_caching_hash_algo" in engine.http.cache


def _models(engine: EngineReport) -> set[str]:
    return {model.id for model in engine.models}
