"""The engine's `/metrics`, under vLLM's names; tokens and requests are counted since the process started."""

from __future__ import annotations

from collections.abc import Iterator

from warmroute.testing.engine.process import Process, Rank


def render(process: Process) -> str:
    """The page in Prometheus' text format."""
    return "\n".join((*_lines(process), ""))


def _lines(process: Process) -> Iterator[str]:
    options = process.options
    yield from ("# TYPE process_start_time_seconds gauge", f"process_start_time_seconds {process.started!r}")
    for name, kind in _KINDS.items():
        yield f"# TYPE vllm:{name.removesuffix('_total')} {kind}"
        for rank in process.ranks:
            value = _values(rank)[name]
            yield f'vllm:{name}{{engine="{rank.number}",model_name="{options.model}"}} {float(value)!r}'
    yield "# TYPE vllm:cache_config_info gauge"
    for rank in process.ranks:
        yield (
            f'vllm:cache_config_info{{block_size="{options.block_size}",enable_prefix_caching="{options.prefix_caching}",'
            f'engine="{rank.number}",num_gpu_blocks="{options.num_blocks}",prefix_caching_hash_algo="sha256"}} 1.0'
        )


_KINDS = {
    "num_requests_running": "gauge",
    "num_requests_waiting": "gauge",
    "kv_cache_usage_perc": "gauge",
    "prefix_cache_queries_total": "counter",
    "prefix_cache_hits_total": "counter",
    "prompt_tokens_total": "counter",
    "prompt_tokens_cached_total": "counter",
    "generation_tokens_total": "counter",
    "num_preemptions_total": "counter",
    "request_success_total": "counter",
}


def _values(rank: Rank) -> dict[str, float]:
    scheduler, totals = rank.scheduler, rank.scheduler.totals
    return {
        "num_requests_running": len(scheduler.running),
        "num_requests_waiting": len(scheduler.waiting),
        "kv_cache_usage_perc": scheduler.cache.usage,
        "prefix_cache_queries_total": totals.cache_queries,
        "prefix_cache_hits_total": totals.cache_hits,
        "prompt_tokens_total": totals.prompt,
        "prompt_tokens_cached_total": totals.prompt_cached,
        "generation_tokens_total": totals.generation,
        "num_preemptions_total": totals.preemptions,
        "request_success_total": totals.finished_requests,
    }
