"""Every default, pinned; and the table of leaves, which flags, variables and the reference page are made from."""

from __future__ import annotations

import pytest

from warmroute.config import Config, EngineConfig, load
from warmroute.config.leaves import ENGINE_LEAVES, LEAVES, REQUIRED, Leaf
from warmroute.config.ranges import RANGES

DEFAULTS = {
    "engines": (),
    "gateway.host": "127.0.0.1",
    "gateway.port": 8080,
    "gateway.processes": 1,
    "gateway.handover": None,
    "gateway.max_body_bytes": 32 * 1024 * 1024,
    "gateway.max_head_bytes": 64 * 1024,
    "gateway.head_timeout_s": 10.0,
    "gateway.connect_timeout_s": 2.0,
    "gateway.first_byte_timeout_s": 1800.0,
    "gateway.idle_timeout_s": 300.0,
    "gateway.keepalive_timeout_s": 75.0,
    "gateway.drain_timeout_s": 30.0,
    "gateway.retries": 2,
    "gateway.decision_headers": True,
    "gateway.keys_file": None,
    "admin.host": "127.0.0.1",
    "admin.port": None,
    "admin.keys_file": None,
    "admin.tls": False,
    "tls.certificate": None,
    "tls.key": None,
    "tls.engine_ca": None,
    "tls.engine_verify": True,
    "admission.requests_max": None,
    "admission.model_requests_max": None,
    "admission.model_body_bytes_max": None,
    "admission.worker_requests_max": None,
    "admission.queue_requests_max": 1000,
    "admission.queue_timeout_s": 30.0,
    "admission.key_requests_per_min": None,
    "admission.key_tokens_per_min": None,
    "admission.redis_url": None,
    "admission.redis_password_file": None,
    "admission.redis_timeout_s": 0.05,
    "events.enabled": True,
    "events.port": 5557,
    "events.replay_port": 5558,
    "events.replay_timeout_s": 5.0,
    "events.replays_max": 64,
    "events.reconnect_backoff_s": 1.0,
    "events.reconnect_backoff_max_s": 30.0,
    "events.probe_idle_s": 30.0,
    "events.pending_batches_max": 100_000,
    "events.orphan_blocks_max": 65_536,
    "events.blocks_max": None,
    "events.worker_blocks_max": None,
    "tokenizer.mode": "auto",
    "tokenizer.path": None,
    "tokenizer.remote_endpoint": None,
    "tokenizer.timeout_s": 2.0,
    "routing.policy": "warmroute",
    "routing.policy_ms_max": 5.0,
    "routing.session_header": "x-session-id",
    "routing.overrides": True,
    "routing.prefill_tokens_per_s": 8000.0,
    "routing.decode_weight": 10.0,
    "routing.others_weight": 4.0,
    "routing.memory_weight": 0.3,
    "routing.replication_weight": 1.0,
    "routing.eviction_weight": 1.0,
    "routing.speculative_ttl_s": 2.0,
    "routing.session_worth": 0.7,
    "routing.cpu_hit_worth": 0.8,
    "routing.storage_hit_worth": 0.5,
    "routing.degraded_belief": 0.5,
    "membership.probe_interval_s": 2.0,
    "membership.probe_timeout_s": 2.0,
    "membership.retry_interval_s": 1.0,
    "membership.failures_max": 3,
    "membership.drain_timeout_s": 300.0,
    "discovery.kubernetes.enabled": False,
    "discovery.kubernetes.namespaces": None,
    "discovery.kubernetes.selector": None,
    "discovery.kubernetes.kubeconfig": None,
    "discovery.kubernetes.context": None,
    "discovery.file.path": None,
    "discovery.service.name": None,
    "discovery.service.namespace": None,
    "discovery.service.port_name": None,
    "discovery.service.events": True,
    "membership.api_key": None,
    "membership.api_key_file": None,
    "breaker.failures_max": 5,
    "breaker.open_s": 5.0,
    "breaker.open_max_s": 60.0,
    "log.level": "info",
    "log.access": None,
}
ENGINE_DEFAULTS = {
    "url": REQUIRED,
    "events_endpoint": None,
    "events_listen": None,
    "replay_endpoint": None,
    "topic": None,
    "data_parallel_size": None,
    "weight": 1.0,
    "events": True,
    "api_key": None,
    "api_key_file": None,
}
ALL_LEAVES = [*LEAVES.values(), *ENGINE_LEAVES.values()]


def test_every_default_is_pinned() -> None:
    assert {key: leaf.default for key, leaf in LEAVES.items()} == DEFAULTS
    assert {name: leaf.default for name, leaf in ENGINE_LEAVES.items()} == ENGINE_DEFAULTS


def test_the_table_agrees_with_the_constructors() -> None:
    assert load(flags={}, environ={}).config == Config()
    given = {name: value for name, value in ENGINE_DEFAULTS.items() if value is not REQUIRED}
    assert EngineConfig(url="http://a:1", **given) == EngineConfig(url="http://a:1")  # type: ignore[arg-type]


def test_names_are_unique() -> None:
    for names in ([leaf.flag for leaf in LEAVES.values()], [leaf.variable for leaf in LEAVES.values()]):
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("leaf", ALL_LEAVES, ids=lambda leaf: leaf.key)
def test_every_leaf_is_documented_and_ranged(leaf: Leaf) -> None:
    assert leaf.doc
    assert leaf.expects
    if leaf.key != "engines" and leaf.kind is not bool and not leaf.choices:
        assert leaf.range is not None, f"add {leaf.key} to config/ranges.py"
        if leaf.default is not None and leaf.default is not REQUIRED:
            assert leaf.range.refuse(leaf.default) is None


def test_every_range_is_of_a_leaf() -> None:
    assert RANGES.keys() <= {leaf.key for leaf in ALL_LEAVES}


def test_documentation_spells_values_as_operators_do() -> None:
    assert LEAVES["events.enabled"].doc.startswith("false: no subscriptions")
    assert "null: nowhere" in LEAVES["events.replay_port"].doc
