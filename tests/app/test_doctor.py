"""The doctor before simulated engines, set up right and in each way that users get wrong."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import zmq
from rich.console import Console

from warmroute.app import doctor as examination
from warmroute.app.doctor import Doctor, chosen, examine
from warmroute.app.doctor_report import BEGIN, END, EXIT_CODES, judged, show, with_findings
from warmroute.cli.main import main
from warmroute.config.tree import Config, EngineConfig, EventsConfig, MembershipConfig, TokenizerConfig
from warmroute.core.openai import RoutingRequest
from warmroute.edge.tokenizer_remote import RemoteTokenizer
from warmroute.edge.zmq import zmq_event_sources
from warmroute.service.doctor.catalogue import Severity
from warmroute.service.doctor.checks import check_engine
from warmroute.service.doctor.facts import EngineReport
from warmroute.testing.engine import EngineOptions, SimulatedEngine, Time
from warmroute.types import Endpoint, TokenIds

PATIENT = Config(membership=MembershipConfig(probe_timeout_s=10.0), tokenizer=TokenizerConfig(timeout_s=10.0))


def free_ports(count: int) -> list[int]:
    """So many ports in a row that nobody listens on."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
        try:
            for each in range(port, port + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", each))
        except OSError:
            continue
        return list(range(port, port + count))


async def look(
    engine: SimulatedEngine, config: Config = PATIENT, *, send_request: bool = False, **settings: Any
) -> EngineReport:
    (report,) = await examine(config, [EngineConfig(url=engine.url, **settings)], send_request=send_request)
    return report


def codes(report: EngineReport) -> dict[str, str]:
    """Code -> severity, for what is not well."""
    return {f.code: str(f.severity) for f in check_engine(report) if f.severity is not Severity.OK}


async def prompts(engine: SimulatedEngine, count: int = 1) -> None:
    """Have the engine compute something, so that it publishes."""
    async with aiohttp.ClientSession(engine.url) as client:
        for number in range(count):
            body = {"prompt": [number + 1] * 40, "max_tokens": 1}
            async with client.post("/v1/completions", json=body) as answer:
                assert answer.status == 200


async def test_all_is_well() -> None:
    async with SimulatedEngine(EngineOptions(topic="kv", data_parallel_size=2)) as engine:
        await prompts(engine, 4)
        report = await look(engine, send_request=True)
    assert codes(report) == {}
    assert [stream.trial.reported_tokens for stream in report.streams if stream.trial] == [32, 32]
    assert {f.code for f in check_engine(report)} == {
        *("answers", "version", "prefix_caching", "block_size", "clock", "tokenizer"),
        *("ranks", "replay", "events", "trial"),
    }


@pytest.mark.parametrize("release", ["0.9", "0.10.2", "0.17", "0.24", "0.26", "0.30", "0.33"])
async def test_every_release_is_understood(release: str) -> None:
    events, _, replay = free_ports(3)
    options = EngineOptions(release=release, events_port=events, replay_port=replay)
    config = replace(PATIENT, events=EventsConfig(port=events, replay_port=replay))
    async with SimulatedEngine(options) as engine:
        report = await look(engine, config, send_request=True)
    old = {"0.9": ["hashes_unencodable", "keys_unpublished"], "0.10.2": ["keys_unpublished"]}
    assert sorted(codes(report)) == old.get(release, [])


@pytest.mark.parametrize("release", ["0.26", "0.32"])
async def test_events_off(release: str) -> None:
    events, replay = free_ports(2)
    config = replace(PATIENT, events=EventsConfig(port=events, replay_port=replay))
    async with SimulatedEngine(EngineOptions(release=release, events=False)) as engine:
        assert codes(await look(engine, config)) == {"events_off": "fault"}


@pytest.mark.parametrize("release", ["0.26", "0.32"])
async def test_a_publisher_that_connects(release: str) -> None:
    events, _, replay = free_ports(3)
    config = replace(PATIENT, events=EventsConfig(port=events, replay_port=replay))
    options = EngineOptions(release=release, events_port=events, replay_port=replay, events_bind=False)
    async with SimulatedEngine(options) as engine:
        assert codes(await look(engine, config)) == {"publisher_connects": "fault"}


async def test_no_replay() -> None:
    async with SimulatedEngine(EngineOptions(replay=False)) as engine:
        assert codes(await look(engine)) == {"replay_missing": "warning"}


async def test_a_replay_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "SETTLE_S_MAX", 0.5)
    config = replace(PATIENT, events=EventsConfig(replay_timeout_s=0.1))
    async with SimulatedEngine() as engine:
        engine.faults.silent_replays = -1
        assert codes(await look(engine, config)) == {"replay_silent": "warning"}


async def test_a_replay_that_has_forgotten_the_beginning() -> None:
    async with SimulatedEngine(EngineOptions(buffer_steps=2)) as engine:
        await prompts(engine, 5)
        assert codes(await look(engine)) == {"replay_truncated": "warning"}


async def test_the_documented_ports_with_two_ranks() -> None:
    """5557 and 5558: what is taken for rank 0's replay socket is rank 1's publisher."""
    events, next_rank = free_ports(2)
    options = EngineOptions(release="0.26", data_parallel_size=2, events_port=events)
    addresses = {"events_endpoint": f"tcp://127.0.0.1:{events}", "replay_endpoint": f"tcp://127.0.0.1:{next_rank}"}
    async with SimulatedEngine(options) as engine:
        assert codes(await look(engine, **addresses)) == {"ranks_unfollowed": "fault", "replay_is_publisher": "fault"}


async def test_swapped_ports() -> None:
    async with SimulatedEngine() as engine:
        (address,) = engine.events
        assert address.replay_endpoint is not None
        swapped = {"events_endpoint": address.replay_endpoint, "replay_endpoint": address.endpoint}
        assert codes(await look(engine, **swapped)) == {"events_is_replay": "fault"}


async def test_a_rank_taken_for_another() -> None:
    async with SimulatedEngine(EngineOptions(release="0.26", data_parallel_size=2)) as engine:
        await prompts(engine, 2)
        address = engine.events[1]
        wrong = {"events_endpoint": address.endpoint, "replay_endpoint": address.replay_endpoint}
        assert codes(await look(engine, **wrong)) == {"ranks_unfollowed": "fault", "rank_mismatch": "fault"}


async def test_events_looked_for_where_nobody_is() -> None:
    (port,) = free_ports(1)
    async with SimulatedEngine() as engine:
        report = await look(engine, events_endpoint=f"tcp://127.0.0.1:{port}")
    assert codes(report) == {"events_elsewhere": "fault"}


async def test_events_looked_for_at_the_api_itself() -> None:
    async with SimulatedEngine() as engine:
        report = await look(engine, events_endpoint=f"tcp://127.0.0.1:{engine.endpoint.port}")
        assert codes(report) == {"events_elsewhere": "fault"}
    async with SimulatedEngine(EngineOptions(release="0.26")) as engine:
        report = await look(engine, events_endpoint=f"tcp://127.0.0.1:{engine.endpoint.port}")
        assert codes(report) == {"events_not_zmq": "fault"}


async def test_an_address_that_is_none() -> None:
    async with SimulatedEngine() as engine:
        assert codes(await look(engine, events_endpoint="5557")) == {"address_bad": "fault"}


@pytest.mark.parametrize("release", ["0.26", "0.32"])
async def test_a_topic_that_matches_nothing(release: str) -> None:
    events, _, replay = free_ports(3)
    config = replace(PATIENT, events=EventsConfig(port=events, replay_port=replay))
    options = EngineOptions(release=release, topic="kv", events_port=events, replay_port=replay)
    async with SimulatedEngine(options) as engine:
        await prompts(engine)
        assert codes(await look(engine, config, topic="kv-events")) == {"topic_mismatch": "fault"}
        assert codes(await look(engine, config, topic="k")) == {}


async def test_events_that_cannot_be_read() -> None:
    async with SimulatedEngine() as engine:
        engine.faults.foreign_events = 1
        await prompts(engine, 2)
        assert codes(await look(engine)) == {"undecodable": "fault"}


async def test_prefix_caching_off() -> None:
    async with SimulatedEngine(EngineOptions(prefix_caching=False)) as engine:
        assert codes(await look(engine)) == {"prefix_caching_off": "fault"}


async def test_a_trial_without_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "EVENT_S_MAX", 0.1)
    async with SimulatedEngine(EngineOptions(prefix_caching=False)) as engine:
        found = codes(await look(engine, send_request=True))
    assert found == {"prefix_caching_off": "fault", "trial_silent": "fault"}


async def test_a_trial_that_is_refused() -> None:
    async with SimulatedEngine() as engine:
        engine.faults.refuse_requests = -1
        assert codes(await look(engine, send_request=True)) == {"trial_failed": "warning"}


async def test_a_trial_of_an_engine_with_room_for_no_block() -> None:
    async with SimulatedEngine(EngineOptions(max_model_len=16)) as engine:
        assert codes(await look(engine, send_request=True)) == {"trial_failed": "warning"}


async def test_cached_tokens_that_are_not_reported() -> None:
    async with SimulatedEngine(EngineOptions(prompt_tokens_details=False)) as engine:
        assert codes(await look(engine, send_request=True)) == {"cached_tokens_hidden": "warning"}


async def test_nothing_is_computed_unless_asked_for() -> None:
    async with SimulatedEngine() as engine:
        await look(engine)
        assert engine.process.ranks[0].scheduler.totals.prompt == 0


async def test_a_key_is_wanted() -> None:
    async with SimulatedEngine(EngineOptions(api_key="secret")) as engine:
        assert codes(await look(engine)) == {"api_key": "fault"}
        assert codes(await look(engine, api_key="wrong")) == {"api_key": "fault"}
        assert codes(await look(engine, api_key="secret", send_request=True)) == {}
        common = replace(PATIENT, membership=replace(PATIENT.membership, api_key="secret"))
        assert codes(await look(engine, common)) == {}


async def test_an_engine_that_is_not_ready_and_one_that_is_not_there() -> None:
    engine = SimulatedEngine()
    async with engine:
        engine.faults.unhealthy_probes = -1
        assert codes(await look(engine)) == {"not_ready": "fault"}
    assert codes(await look(engine)) == {"unreachable": "fault"}


async def test_a_clock_that_is_ahead() -> None:
    ahead = Time(now=lambda: time.time() + 100, sleep=asyncio.sleep)
    async with SimulatedEngine(time=ahead) as engine:
        await prompts(engine)
        assert codes(await look(engine)) == {"clock_skew": "warning"}


async def test_adapters_without_names() -> None:
    events, _, replay = free_ports(3)
    config = replace(PATIENT, events=EventsConfig(port=events, replay_port=replay))
    options = EngineOptions(release="0.13", loras=("sql",), events_port=events, replay_port=replay)
    async with SimulatedEngine(options) as engine:
        assert codes(await look(engine, config)) == {"lora_unnamed": "warning", "keys_unpublished": "warning"}


@pytest.mark.parametrize("off", [{"events": False}, {}])
async def test_an_engine_that_is_not_to_be_followed(off: dict[str, Any]) -> None:
    config = PATIENT if off else replace(PATIENT, events=EventsConfig(enabled=False))
    async with SimulatedEngine() as engine:
        assert codes(await look(engine, config, **off)) == {"not_followed": "warning"}


async def test_two_engines_at_one_publisher() -> None:
    async with SimulatedEngine() as one, SimulatedEngine() as other:
        there = one.events[0]
        shared = {"events_endpoint": there.endpoint, "replay_endpoint": there.replay_endpoint}
        engines = [EngineConfig(url=one.url), EngineConfig(url=other.url, **shared)]
        report = judged(await examine(PATIENT, engines))
    assert [f.code for f in report.fleet if f.severity is not Severity.OK] == ["publisher_shared"]
    assert report.worst is Severity.FAULT


# Tokenizers.


class Shifted:
    """A tokenizer that differs from the engine's in one kind of request."""

    def __init__(self, inner: RemoteTokenizer, *, chats: bool, texts: bool) -> None:
        self._inner = inner
        self._differs = {True: chats, False: texts}

    async def tokens(self, request: RoutingRequest, endpoint: Endpoint) -> TokenIds:
        found = list(await self._inner.tokens(request, endpoint))
        return [*found[:-1], found[-1] + 1] if self._differs[request.chat] else found


@pytest.mark.parametrize(("chats", "texts"), [(False, False), (True, False), (False, True)])
async def test_a_tokenizer_in_process_is_compared_on_texts_and_chats(chats: bool, texts: bool) -> None:
    with zmq.Context() as context:
        async with SimulatedEngine() as engine, aiohttp.ClientSession() as session:
            local = Shifted(RemoteTokenizer(session, None, 10.0), chats=chats, texts=texts)
            sources = zmq_event_sources(context, PATIENT.events)
            report = await Doctor(PATIENT, session, sources, local, {}, send_request=False).see(
                EngineConfig(url=engine.url)
            )
    assert codes(report) == ({"tokenizer_differs": "fault"} if chats or texts else {})
    found = next(f.found for f in check_engine(report) if f.code in ("tokenizer", "tokenizer_differs"))
    assert ("a chat" in found, "a text" in found) == (chats, texts)
    assert ("chat template included" in found) == (not (chats or texts))


# What is shown.


def printed(reports: Sequence[EngineReport]) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    show(console, judged(reports))
    console.file.close()
    return console.export_text()


async def test_what_people_see() -> None:
    async with SimulatedEngine(EngineOptions(events=False, model="a[b]c")) as engine:
        report = await look(engine)
    shown = printed([report])
    assert f"{engine.url}  vllm 0.32.0" in shown
    assert "serves a[b]c" in shown
    assert "fault  events_off" in shown
    command = next(line.strip() for line in shown.splitlines() if "--kv-events-config" in line)
    assert command.endswith("}'"), "a command is on one line, however long it is"


async def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    async with SimulatedEngine() as good, SimulatedEngine(EngineOptions(replay=False)) as bad:
        patience = ("--membership.probe_timeout_s", "10")
        assert await asyncio.to_thread(main, ["doctor", good.url, *patience]) == 0
        assert "ok  events" in capsys.readouterr().out
        assert await asyncio.to_thread(main, ["doctor", "--engine", bad.url, "--json", *patience]) == 1
        shown = json.loads(capsys.readouterr().out)
    assert shown["worst"] == "warning"
    assert [engine["url"] for engine in shown["engines"]] == [bad.url]
    (missing,) = [f for f in shown["engines"][0]["findings"] if f["severity"] != "ok"]
    assert missing["code"] == "replay_missing"
    assert "--kv-events-config" in missing["remedy"]
    assert await asyncio.to_thread(main, ["doctor", good.url, *patience]) == EXIT_CODES[Severity.FAULT] == 2


def test_without_engines_there_is_nothing_to_look_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 2
    assert "engines" in capsys.readouterr().err
    assert main(["doctor", "no-url"]) == 2
    assert "http://HOST:PORT" in capsys.readouterr().err


def test_engines_that_are_named_keep_their_settings() -> None:
    known = EngineConfig(url="http://10.0.0.1:8000/", topic="kv")
    config = Config(engines=(known,))
    assert chosen(config, ()) == [known]
    assert chosen(config, ("http://10.0.0.1:8000", "http://b:1")) == [known, EngineConfig(url="http://b:1")]


def test_the_page_lists_every_finding() -> None:
    page = Path(__file__).parents[2] / "docs" / "doctor.md"
    assert with_findings(page.read_text()) == page.read_text(), "warmroute doctor --reference docs/doctor.md"
    assert len(re.findall(r"^\| `\w+` \|", page.read_text(), re.MULTILINE)) > 30
    with pytest.raises(ValueError, match="no part between"):
        with_findings(f"{BEGIN} and no {END[:-1]}")
