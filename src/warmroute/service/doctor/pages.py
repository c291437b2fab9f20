"""What an engine's pages say of its setup: `/kv_event_sources`, `/metrics`, `/server_info`, read leniently.

A page that is missing or not understood says nothing. vLLM has `/kv_event_sources` since 0.31 and `/server_info` in
development mode; SGLang has `/server_info`, earlier called `/get_server_info`, with its arguments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from warmroute.service.doctor.facts import HttpFacts, SaidSource, Software
from warmroute.service.ports import EngineFacts

_CACHE_CONFIG = re.compile(rb"^vllm:cache_config_info\{([^}]*)\}", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class _Source(msgspec.Struct):
    endpoint: str | None = None
    replay_endpoint: str | None = None
    topic: str = ""
    publisher: str | None = None
    enable_kv_cache_events: bool = True
    buffer_steps: int | None = None


class _VllmConfig(msgspec.Struct):
    kv_events_config: _Source | None = None


class _ServerInfo(msgspec.Struct):
    """Of vLLM its configuration, of SGLang its arguments; only what is of use here (there is a key among them)."""

    vllm_config: _VllmConfig | None = None
    version: str | None = None
    kv_events_config: str | None = None
    page_size: int | None = None
    disable_radix_cache: bool | None = None
    dp_size: int | None = None


_SOURCES = msgspec.json.Decoder(dict[int, _Source])
_SOURCE = msgspec.json.Decoder(_Source)
_SERVER_INFO = msgspec.json.Decoder(_ServerInfo)


def read_pages(
    facts: EngineFacts, sources: bytes | None, metrics: bytes | None, infos: Sequence[bytes | None]
) -> HttpFacts:
    """All that the pages say together; None stands for a page that is not there."""
    info = _server_info(infos) or _ServerInfo()
    said = None if sources is None else _said(sources)
    if said is None:
        said = _said_by_server(info)
    engines = cache_configs(metrics or b"")
    cache: Mapping[str, str] = engines[0] if engines else {}
    if info.disable_radix_cache is not None:
        cache = {"enable_prefix_caching": str(not info.disable_radix_cache)}
    ranks = max(len({engine.get("engine") for engine in engines}), len(said or ()), info.dp_size or 0)
    return HttpFacts(
        engine=replace(facts, block_size=facts.block_size or info.page_size),
        software=_software(facts, metrics, cache, info),
        version=facts.version or info.version,
        sources=said,
        cache=cache,
        ranks=ranks or None,
    )


def cache_configs(metrics: bytes) -> list[dict[str, str]]:
    """The labels of vLLM's `cache_config_info`, one dictionary for each of its engine cores."""
    return [dict(_LABEL.findall(page.decode("utf-8", "replace"))) for page in _CACHE_CONFIG.findall(metrics)]


def _software(
    facts: EngineFacts, metrics: bytes | None, cache: Mapping[str, str], info: _ServerInfo
) -> Software | None:
    owners = {model.owned_by for model in facts.models}
    if "sglang" in owners or info.page_size is not None or b"\nsglang:" in (metrics or b""):
        return "sglang"
    return "vllm" if cache or "vllm" in owners else None


def _said(body: bytes) -> dict[int, SaidSource] | None:
    try:
        return {rank: _as_said(source) for rank, source in _SOURCES.decode(body).items()}
    except msgspec.DecodeError:
        return None


def _as_said(source: _Source) -> SaidSource:
    return SaidSource(
        endpoint=source.endpoint,
        replay_endpoint=source.replay_endpoint,
        topic=source.topic,
        publisher=source.publisher,
        enabled=source.enable_kv_cache_events,
        buffer_steps=source.buffer_steps,
    )


def _server_info(bodies: Sequence[bytes | None]) -> _ServerInfo | None:
    for body in bodies:
        try:
            if body is not None:
                return _SERVER_INFO.decode(body)
        except msgspec.DecodeError:
            continue
    return None


def _said_by_server(info: _ServerInfo) -> dict[int, SaidSource] | None:
    """What the server's own arguments say of rank 0's publisher; {} if they say that there is none."""
    if info.vllm_config is not None:
        config = info.vllm_config.kv_events_config
        return {} if config is None else {0: _as_said(config)}
    if info.page_size is None:
        return None
    try:
        return {0: _as_said(_SOURCE.decode(info.kv_events_config))} if info.kv_events_config else {}
    except msgspec.DecodeError:
        return None
