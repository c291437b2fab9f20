"""Every finding of the catalogue, from facts alone: raised where it should be, and nothing else said in its place."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from warmroute.config.tree import EngineConfig
from warmroute.service.doctor.catalogue import CATALOGUE, Finding, Severity
from warmroute.service.doctor.checks import check_engine
from warmroute.service.doctor.facts import (
    EngineReport,
    FollowedFacts,
    HttpFacts,
    Listening,
    PeerFacts,
    SaidSource,
    StreamFacts,
    TokenizerFacts,
    TrialFacts,
    release_numbers,
)
from warmroute.service.doctor.fleet_checks import check_fleet
from warmroute.service.ports import EngineFacts, EventAddress
from warmroute.types import Endpoint, ModelInfo, Trust, TrustState

EVENTS, REPLAY = "tcp://10.0.0.7:5557", "tcp://10.0.0.7:5567"
LIVE = Trust(TrustState.LIVE, "in sync", 0.0)
SAID = SaidSource("tcp://*:5557", "tcp://*:5567", "kv", "zmq", True, 10_000)
FOLLOWED = FollowedFacts(LIVE, 0, True, 12, topics=frozenset({"kv"}), block_sizes=(16,), newest_ts=900.0, at=1000.0)
STREAM = StreamFacts(
    0,
    EventAddress(EVENTS, REPLAY, "kv"),
    PeerFacts(EVENTS, Listening.OPEN, "PUB"),
    PeerFacts(REPLAY, Listening.OPEN, "ROUTER"),
    FOLLOWED,
)
HTTP = HttpFacts(
    engine=EngineFacts((ModelInfo("tiny"),), None, "0.32.0", 16, 800.0),
    software="vllm",
    version="0.32.0",
    sources={0: SAID},
    cache={"enable_prefix_caching": "True", "prefix_caching_hash_algo": "sha256"},
    ranks=1,
    skew_s=0.4,
)
TOKENS = TokenizerFacts(((1, 2), (3,)), None)


def report(
    http: Mapping[str, Any] | None = None, stream: Mapping[str, Any] | None = None, **changes: Any
) -> EngineReport:
    """A healthy engine, but for the changes. `followed` among the stream's changes is itself a set of changes."""
    facts = dict(stream or {})
    if isinstance(facts.get("followed"), Mapping):
        facts["followed"] = replace(FOLLOWED, **facts["followed"])
    endpoint = Endpoint("10.0.0.7", 8000)
    engine = EngineReport(
        EngineConfig(url=endpoint.url), endpoint, replace(HTTP, **(http or {})), (replace(STREAM, **facts),), TOKENS
    )
    return replace(engine, **changes)


def peer(listening: Listening, socket_type: str | None = None, address: str = EVENTS) -> PeerFacts:
    return PeerFacts(address, listening, socket_type)


def bad(findings: Sequence[Finding]) -> list[str]:
    return [finding.code for finding in findings if finding.severity is not Severity.OK]


REFUSED = peer(Listening.REFUSED)
NO_REPLAY = peer(Listening.REFUSED, address=REPLAY)
OLD = {"version": "0.19.1", "sources": None}
ADAPTED = EngineFacts((ModelInfo("tiny"), ModelInfo("sql", parent="tiny")), None, "0.13.0", 16)

CASES: list[tuple[str, EngineReport]] = [
    ("unreachable", report({"problem": "no route", "problem_code": "unreachable"})),
    ("not_ready", report({"problem": "503", "problem_code": "not_ready"})),
    ("no_engine", report({"problem": "404", "problem_code": "no_engine"})),
    ("api_key", report({"problem": "401", "problem_code": "api_key"})),
    ("no_model", report({"engine": EngineFacts((), None)})),
    ("version_unknown", report({"version": None})),
    ("version_unknown", report({"software": None})),
    ("version_untried", report({"version": "0.34.0"})),
    ("version_untried", report({"software": "sglang", "version": "0.6.0"})),
    ("version_too_old", report({"version": "0.8.5.post1"})),
    ("lora_unnamed keys_unpublished", report({"version": "0.13.0", "engine": ADAPTED})),
    ("keys_unpublished", report({"version": "0.16.0"})),
    ("keys_unpublished hashes_unencodable", report({"version": "0.10.1"})),
    ("hashes_unchained", report({"software": "sglang", "version": "0.5.2"})),
    ("prefix_caching_off", report({"cache": {"enable_prefix_caching": "False"}})),
    ("block_size_one", report(stream={"followed": {"block_sizes": (1,)}})),
    ("block_size_differs", report(stream={"followed": {"block_sizes": (16, 32)}})),
    ("clock_skew", report({"skew_s": -30.0})),
    ("clock_skew", report(stream={"followed": {"newest_ts": 1010.0}})),
    ("not_followed", report(events_wanted=False, streams=())),
    ("events_off", report({"sources": {}})),
    ("events_off", report({"sources": {0: replace(SAID, publisher="null")}})),
    ("events_off", report({"sources": {0: replace(SAID, enabled=False)}})),
    ("events_off", report(OLD, {"publisher": REFUSED, "replay": NO_REPLAY, "followed": None})),
    ("events_off", report({"sources": {1: SAID}}, {"address": None})),
    ("publisher_connects", report({"sources": {0: replace(SAID, endpoint=EVENTS)}}, {"publisher": REFUSED})),
    (
        "publisher_connects",
        report({"sources": {0: replace(SAID, endpoint="tcp://0.0.0.0:5557")}}, {"publisher": REFUSED}),
    ),
    ("publisher_connects", report(OLD, {"publisher": REFUSED})),
    ("publisher_loopback", report({"sources": {0: replace(SAID, endpoint="tcp://127.0.0.1:5557")}}, {"address": None})),
    ("events_elsewhere", report({"sources": {0: replace(SAID, endpoint="tcp://*:6557")}}, {"publisher": REFUSED})),
    ("events_unreachable", report(stream={"publisher": peer(Listening.SILENT)})),
    ("events_unreachable", report(OLD, {"publisher": peer(Listening.UNRESOLVED)})),
    ("events_not_zmq", report(stream={"publisher": peer(Listening.FOREIGN)})),
    ("events_not_zmq", report(stream={"publisher": peer(Listening.OPEN, "REP")})),
    ("events_is_replay", report(stream={"publisher": peer(Listening.OPEN, "ROUTER")})),
    ("address_bad", report(stream={"publisher": None})),
    ("ranks_unfollowed", report({"ranks": 2})),
    ("rank_mismatch", report(stream={"followed": {"rank_mismatches": 3}})),
    ("topic_mismatch", report(stream={"address": EventAddress(EVENTS, REPLAY, "kv-events")})),
    ("topic_mismatch", report(OLD, {"address": EventAddress(EVENTS, REPLAY, "kv-events")})),
    ("undecodable", report(stream={"followed": {"rejected": {"unknown_tag": 1}}})),
    ("medium_unknown", report(stream={"followed": {"unknown_media": 1}})),
    ("stream_degraded", report(stream={"followed": {"trust": Trust(TrustState.REPLAYING, "slow", 0.0)}})),
    ("replay_missing", report(stream={"replay": None})),
    ("replay_missing", report(OLD, {"replay": NO_REPLAY})),
    ("replay_unreachable", report(stream={"replay": peer(Listening.SILENT, address=REPLAY)})),
    ("replay_is_publisher", report(stream={"replay": peer(Listening.OPEN, "PUB", REPLAY)})),
    ("replay_silent", report(stream={"followed": {"replay_ended": False}})),
    ("replay_truncated", report(stream={"followed": {"first_seq": 17}})),
    ("tokenize_missing", report(tokenizer=TokenizerFacts((None, None), "404"))),
    ("tokenizer_differs", report(tokenizer=replace(TOKENS, local=True, difference="at token 0"))),
    ("trial_failed", report(stream={"trial": TrialFacts("503")})),
    ("trial_silent", report(stream={"trial": TrialFacts(None, 0, 40, 0, 32)})),
    ("trial_differs", report(stream={"trial": TrialFacts(None, 1, 40, 32, 16)})),
    ("cached_tokens_hidden", report(stream={"trial": TrialFacts(None, 1, 40, 32, None)})),
]


def test_a_healthy_engine_has_nothing_wrong() -> None:
    for healthy in (report(), report(stream={"trial": TrialFacts(None, 1, 40, 32, 32)}), report(OLD)):
        findings = check_engine(healthy)
        assert bad(findings) == []
        assert {"answers", "version", "prefix_caching", "block_size", "clock", "tokenizer", "events", "replay"} <= {
            finding.code for finding in findings
        }


@pytest.mark.parametrize(("code", "engine"), CASES, ids=[f"{n}-{code}" for n, (code, _) in enumerate(CASES)])
def test_each_fault_is_found_alone_and_explained(code: str, engine: EngineReport) -> None:
    findings = check_engine(engine)
    assert bad(findings) == code.split()
    for found in (finding for finding in findings if finding.severity is not Severity.OK):
        assert found.severity is CATALOGUE[found.code].severity
        assert all((found.found, found.meaning, found.remedy))


def test_every_finding_of_the_catalogue_has_its_case() -> None:
    of_fleets = {"publisher_shared", "tokenizers_disagree"}
    assert {code for codes, _ in CASES for code in codes.split()} | of_fleets == CATALOGUE.keys()


# Several engines.


def other(**changes: Any) -> EngineReport:
    address = EventAddress("tcp://10.0.0.8:5557")
    return replace(report(stream={"address": address}), endpoint=Endpoint("10.0.0.8", 8000), **changes)


def test_two_engines_that_agree() -> None:
    assert bad(check_fleet([report(), other()])) == []
    assert check_fleet([report()]) == []


def test_two_engines_at_one_publisher() -> None:
    assert bad(check_fleet([report(), other(streams=(STREAM,))])) == ["publisher_shared"]


def test_engines_of_one_model_that_tokenize_differently() -> None:
    odd = other(tokenizer=TokenizerFacts(((1, 2), (4,))))
    assert bad(check_fleet([report(), odd])) == ["tokenizers_disagree"]
    another_model = replace(HTTP, engine=EngineFacts((ModelInfo("big"),), None))
    assert bad(check_fleet([report(), replace(odd, http=another_model)])) == []
    assert bad(check_fleet([report(), other(tokenizer=TokenizerFacts(((1, 2), None)))])) == [], "refusals tell nothing"


def test_hash_algorithms_and_seeds_are_said_to_be_no_matter() -> None:
    odd = other(http=replace(HTTP, version="0.20.0", cache={"prefix_caching_hash_algo": "xxhash"}))
    (hashes,) = [finding for finding in check_fleet([report(), odd]) if finding.code == "hashes"]
    assert hashes.severity is Severity.OK
    assert "sha256, xxhash" in hashes.found
    assert "PYTHONHASHSEED" in hashes.found


# Remedies.


def remedy(engine: EngineReport) -> str:
    (found,) = [finding for finding in check_engine(engine) if finding.severity is not Severity.OK]
    return found.remedy


def events_config(command: str) -> dict[str, Any]:
    words = shlex.split(command.splitlines()[0])
    config: dict[str, Any] = json.loads(words[words.index("--kv-events-config") + 1])
    return config


def test_events_are_turned_on_as_vllm_takes_it() -> None:
    said = remedy(report({"sources": {}}))
    assert said.startswith("vllm serve ... ")
    assert events_config(said) == {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": "tcp://*:5557",
        "replay_endpoint": "tcp://*:5567",
    }


def test_ports_and_topic_stay_as_they_are() -> None:
    said = {0: SaidSource("tcp://0.0.0.0:7000", topic="kv", publisher="zmq")}
    moved = replace(STREAM, address=EventAddress("tcp://10.0.0.7:7000"), publisher=REFUSED)
    config = events_config(remedy(report({"sources": said}, streams=(moved,))))
    assert (config["endpoint"], config["replay_endpoint"], config["topic"]) == ("tcp://*:7000", "tcp://*:7010", "kv")


def test_the_replay_port_lies_clear_of_every_rank() -> None:
    close = replace(STREAM, replay=peer(Listening.OPEN, "PUB", REPLAY))
    ranks = tuple(replace(close, rank=rank) for rank in range(16))
    findings = check_engine(report({"ranks": 16}, streams=ranks))
    config = events_config(next(finding.remedy for finding in findings if finding.code == "replay_is_publisher"))
    assert config["replay_endpoint"] == "tcp://*:5573"


def test_an_engine_that_does_not_say_where_it_publishes_is_told_where_it_is_looked_for() -> None:
    near = replace(STREAM, address=EventAddress(EVENTS, "tcp://10.0.0.7:5558"), followed=None)
    silent = replace(near, publisher=REFUSED, replay=NO_REPLAY)
    said = remedy(report(OLD, streams=(silent,)))
    assert events_config(said)["replay_endpoint"] == "tcp://*:5558"
    assert "replay_endpoint:" not in said.partition("\n")[2]
    said = remedy(report({**OLD, "ranks": 2}, streams=(silent,)))
    assert events_config(said)["replay_endpoint"] == "tcp://*:5567"
    assert 'replay_endpoint: "tcp://10.0.0.7:5567"' in said.partition("\n")[2], "and Warmroute is told as well"


def test_a_replay_port_that_meets_a_publisher_is_moved() -> None:
    met = replace(STREAM, address=EventAddress(EVENTS, "tcp://10.0.0.7:5558"), replay=peer(Listening.OPEN, "PUB"))
    assert events_config(remedy(report(OLD, streams=(met,))))["replay_endpoint"] == "tcp://*:5567"


def test_sglang_has_no_key_to_enable_events() -> None:
    said = remedy(report({"sources": {}, "software": "sglang", "version": "0.5.20"}))
    assert said.startswith("python -m sglang.launch_server ... ")
    assert "enable_kv_cache_events" not in events_config(said)


def test_a_host_of_ipv6_alone_needs_ports_that_the_system_chooses() -> None:
    engine = replace(report({"sources": {}}), endpoint=Endpoint("fd00::7", 8000))
    assert remedy(engine).startswith("VLLM_HOST_IP=fd00::7 vllm serve ...")
    assert events_config(remedy(engine))["endpoint"] == "tcp://*:0"


def test_a_larger_replay_buffer_is_larger_than_the_one_there_is() -> None:
    few = remedy(report(stream={"followed": {"first_seq": 17}}))
    assert events_config(few)["buffer_steps"] == 100_000
    many = {0: replace(SAID, buffer_steps=400_000)}
    assert events_config(remedy(report({"sources": many}, {"followed": {"first_seq": 17}})))["buffer_steps"] == 800_000


def test_swapped_addresses_are_swapped_back() -> None:
    swapped = {"publisher": peer(Listening.OPEN, "ROUTER"), "replay": peer(Listening.OPEN, "PUB", REPLAY)}
    assert remedy(report(stream=swapped)) == (
        f'engines: [{{url: "http://10.0.0.7:8000", events_endpoint: "{REPLAY}", replay_endpoint: "{EVENTS}"}}]'
    )


def test_an_engine_that_says_where_it_publishes_is_quoted() -> None:
    said = {0: replace(SAID, endpoint="tcp://*:6557")}
    assert 'events_endpoint: "tcp://10.0.0.7:6557"' in remedy(report({"sources": said}, {"publisher": REFUSED}))


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("0.10.2", (0, 10, 2)),
        ("0.9", (0, 9)),
        ("v0.5.20.post1", (0, 5, 20)),
        ("0.32.0+cpu", (0, 32, 0)),
        ("0.34.1rc2.dev3+g12", (0, 34, 1)),
        ("dev", ()),
        (None, ()),
    ],
)
def test_versions(version: str | None, numbers: tuple[int, ...]) -> None:
    assert release_numbers(version) == numbers
