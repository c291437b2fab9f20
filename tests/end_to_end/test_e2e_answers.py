"""What a client gets through the gateway: the engine's answers, the gateway's headers, and its own pages."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from e2e_client import CHAT, COMPLETIONS, Client, Json
from e2e_fleet import QUICK, Stack, before, config_for, stack_of, until
from e2e_recording_engine import ANSWER, RecordingEngine
from prometheus_client.parser import text_string_to_metric_families

from warmroute.config.tree import EngineConfig, GatewayConfig, TokenizerConfig
from warmroute.testing.engine import EngineOptions

MESSAGES = [{"role": "system", "content": "You are brief. " * 12}, {"role": "user", "content": "Say something."}]
PROMPTS: list[tuple[str, Json]] = [
    (CHAT, {"messages": MESSAGES}),
    (COMPLETIONS, {"prompt": "the quick brown fox jumps over the lazy dog " * 4}),
    (COMPLETIONS, {"prompt": list(range(300, 350))}),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "prompt"), PROMPTS, ids=["chat", "text", "token ids"])
async def test_an_answer_is_the_engines_own(stack: Stack, path: str, prompt: Json, stream: bool) -> None:
    cold = await stack.client.ask(path, **prompt, stream=stream, max_tokens=20)
    await stack.settled()
    warm = await stack.client.ask(path, **prompt, stream=stream, max_tokens=20)
    assert (cold.predicted, cold.reported) == (0, 0)
    assert warm.predicted == warm.reported == (warm.usage["prompt_tokens"] - 1) // 16 * 16 > 0
    assert warm.worker == cold.worker
    async with Client(stack.engine_of(warm.worker).url) as direct:
        own = await direct.ask(path, **prompt, stream=stream, max_tokens=20)
    assert (warm.status, warm.text, warm.usage) == (own.status, own.text, own.usage)
    assert len(warm.text) > 20
    assert warm.headers["content-type"] == own.headers["content-type"]
    if stream:
        assert warm.done
        assert len(warm.events) == len(own.events)


async def test_every_answer_has_a_request_id_and_says_who_served_it(stack: Stack) -> None:
    made = [await stack.client.ask(prompt=[1, 2, 3]) for _ in range(3)]
    assert len({answer.request_id for answer in made}) == 3
    assert {answer.worker for answer in made} <= {engine.endpoint.authority for engine in stack.engines}
    kept = await stack.client.ask(prompt=[1, 2, 3], headers={"X-Request-ID": "mine-1"})
    assert kept.request_id == "mine-1"
    assert kept.body["id"] == "cmpl-mine-1"  # the engine knows it by the same name
    chosen = next(answer for answer in made if answer.request_id in answer.body["id"])
    assert chosen.body["id"] == f"cmpl-{chosen.request_id}"


async def test_names_that_are_longer_than_is_kept(stack: Stack) -> None:
    """Ids and sessions are kept by the thousand: what a client makes of them must not be the gateway's memory."""
    long = {"x-request-id": "i" * 5000, "x-session-id": "s" * 5000}
    answers = [await stack.client.ask(prompt=[1, 2, 3], headers=long) for _ in range(2)]
    for answer in answers:
        assert len(answer.request_id) < 100
        assert (await stack.client.get(f"/decisions/{answer.request_id}")).status == 200
    (session,) = stack.gateway.router.policy._sessions  # type: ignore[attr-defined]
    assert len(session) < 100


async def test_a_body_is_let_go_with_its_request(stack: Stack) -> None:
    for _ in range(2):
        assert (await stack.client.ask(prompt=[1, 2, 3], user="u" * 1_000_000)).status == 200
    (connection,) = stack.gateway.server.clients
    assert not hasattr(connection, "_plain")
    assert (connection._body, connection._request.body) == ([], b"")


async def test_decision_headers_can_be_left_out() -> None:
    config = replace(QUICK, gateway=GatewayConfig(port=0, decision_headers=False))
    async with stack_of(EngineOptions(), config=config) as stack:
        answer = await stack.client.ask(prompt=[1, 2, 3])
        assert not [name for name in answer.headers if name.startswith("x-warmroute")]
        assert answer.request_id


BODY = (
    b'{ "model":"tiny",\t"prompt" : [ 1,2,\n3],"seed":123456789012345678901234567890, "temperature":0.70,"x":1e400,'
    b'"logit_bias":{"9007199254740993":-1.0},"nested":{"b":1,"a":[null,true,{}],"b":2},"u":"\\u00e9\\ud83d\\ude00\xc3\xa9"}'
)


async def test_the_clients_bytes_reach_the_engine_and_the_engines_bytes_the_client() -> None:
    async with RecordingEngine() as engine:
        told = EngineConfig(url=engine.url, events=False)
        config = config_for([told], replace(QUICK, tokenizer=TokenizerConfig(mode="off")))
        async with before([], config) as stack:
            await until(lambda: stack.gateway.membership.fleet.serving("tiny"), "the engine is known")
            for path, body in (
                (COMPLETIONS, BODY),
                (CHAT, BODY.replace(b'"prompt"', b'"messages"')),
                ("/v1/embeddings", BODY),
            ):
                answer = await stack.client.post(path, body, {"X-Odd": "kept\tas it is", "authorization": "Bearer k"})
                assert answer.status == 200
                assert answer.raw == ANSWER
                head, received = engine.requests.pop()
                assert received == body
                assert head.startswith(b"POST %b HTTP/1.1\r\nHost: %b\r\n" % (path.encode(), engine.url[7:].encode()))
                assert b"\r\nX-Odd: kept\tas it is\r\n" in head
                assert b"Bearer k" in head
                assert head.lower().count(b"x-request-id: ") == 1
                assert b"x-data-parallel-rank" not in head.lower()


async def test_what_the_gateway_does_not_serve_itself_passes(stack: Stack) -> None:
    answer = await stack.client.post("/tokenize", b'{"prompt": "hello world", "model": "tiny"}')
    assert answer.body["count"] == len(answer.body["tokens"]) > 0
    assert (await stack.client.get("/version")).body == {"version": "0.32.0"}
    missing = await stack.client.get("/v1/absent")
    assert missing.status == 404
    assert missing.worker  # the engine said so, not the gateway
    refused = await stack.client.ask(prompt=[1], n=0)
    assert (refused.status, refused.error["type"]) == (400, "BadRequestError")


async def test_an_adapter_loaded_through_the_gateway_is_served_at_once() -> None:
    config = replace(QUICK, membership=replace(QUICK.membership, probe_interval_s=1000.0))
    async with stack_of(EngineOptions(), config=config) as stack:
        assert (await stack.client.ask(prompt=[1], model="new")).status == 404
        body = b'{"lora_name": "new", "lora_path": "somewhere"}'
        assert (await stack.client.post("/v1/load_lora_adapter", body)).status == 200
        fleet = stack.gateway.membership
        await until(lambda: fleet.fleet.serving("new"), "the adapter is known though no probe is due")
        assert (await stack.client.ask(prompt=[1], model="new")).status == 200
        assert fleet.fleet.lora("new") == "new"
        assert (await stack.client.post("/v1/unload_lora_adapter", b'{"lora_name": "new"}')).status == 200
        await until(lambda: not fleet.fleet.serving("new"), "the adapter is gone")
        assert (await stack.client.ask(prompt=[1], model="new")).status == 404


async def test_its_own_pages(stack: Stack) -> None:
    answer = await stack.client.ask(prompt=list(range(300, 350)))
    await stack.settled()
    assert (await stack.client.get("/health")).body == {"status": "ok"}
    ready = await stack.client.get("/ready")
    assert (ready.status, ready.body) == (200, {"ready": True, "draining": False, "workers": 2, "workers_ready": 2})
    models = (await stack.client.get("/v1/models")).body
    assert models["object"] == "list"
    assert [(m["id"], m["parent"], m["object"]) for m in models["data"]] == [
        ("tiny", None, "model"),
        ("sql", "tiny", "model"),
    ]
    worker = await stack.worker(stack.engine_of(answer.worker))
    assert worker["worker"] == answer.worker
    assert (worker["ready"], worker["trust"]["state"], worker["trust"]["reason"]) == (True, "LIVE", "in sync")
    assert (worker["blocks"], worker["orphan_blocks"], worker["block_size"]) == (3, 0, 16)
    assert worker["models"] == ["tiny", "sql"]
    assert worker["load"] == {"requests": 0, "prefill_tokens": 0, "decoding": 0}
    assert (worker["events"]["state"], worker["events"]["batches"], worker["events"]["next_seq"]) == ("live", 1, 1)


async def test_a_decision_is_kept_with_its_reasons(stack: Stack) -> None:
    prompt = list(range(300, 350))
    await stack.client.ask(prompt=prompt)
    await stack.settled()
    answer = await stack.client.ask(prompt=prompt, headers={"x-request-id": "why me"})
    decision = (await stack.client.get("/decisions/why%20me")).body
    assert decision["request_id"] == "why me"
    assert (decision["worker"], decision["reason"], decision["policy"]) == (answer.worker, "overlap", "warmroute")
    assert (decision["prompt_tokens"], decision["overlap_tokens"], decision["reported_tokens"]) == (50, 48, 48)
    assert (decision["outcome"], decision["status"]) == ("complete", 200)
    chosen, other = decision["candidates"]
    assert (chosen["worker"], chosen["chosen"], chosen["overlap_by_medium"]) == (answer.worker, True, {"GPU": 48})
    assert (other["chosen"], other["overlap_tokens"]) == (False, 0)
    assert chosen["cost"] < other["cost"]
    missing = await stack.client.get("/decisions/nobody")
    assert missing.status == 404
    assert "nobody" in missing.error["message"]
    for last in ("-1", "many", "9" * 5000):
        assert (await stack.client.get(f"/decisions?last={last}")).status == 400
    assert len((await stack.client.get("/decisions?last=999999999")).body["decisions"]) == 2


async def test_streams_leave_their_reported_tokens_in_the_decision(stack: Stack) -> None:
    prompt = list(range(300, 350))
    await stack.client.ask(prompt=prompt)
    await stack.settled()
    told = await stack.client.ask(prompt=prompt, stream=True)
    untold = await stack.client.ask(prompt=prompt, stream=True, stream_options=None)
    decisions = [(await stack.client.get(f"/decisions/{a.request_id}")).body for a in (told, untold)]
    assert [decision["reported_tokens"] for decision in decisions] == [48, None]


METRICS = {
    "warmroute_build_info": {"version"},
    "warmroute_worker_trust": {"worker", "state"},
    "warmroute_worker_ready": {"worker"},
    "warmroute_worker_requests": {"worker"},
    "warmroute_worker_prefill_tokens": {"worker"},
    "warmroute_worker_decoding": {"worker"},
    "warmroute_worker_blocks": {"worker"},
    "warmroute_worker_orphan_blocks": {"worker"},
    "warmroute_decisions_total": {"worker", "reason"},
    "warmroute_attempts_total": {"worker", "outcome"},
    "warmroute_predictions_total": {"worker", "result"},
    "warmroute_prompt_tokens_total": {"worker"},
    "warmroute_predicted_cached_tokens_total": {"worker"},
    "warmroute_reported_cached_tokens_total": {"worker"},
    "warmroute_requests_without_tokens_total": {"reason"},
    "warmroute_requests_refused_total": {"status"},
    "warmroute_retries_total": set(),
    "warmroute_tokenized_total": {"source"},
    "warmroute_tokenize_seconds_total": {"source"},
    "warmroute_data_plane_total": {"event"},
    "warmroute_event_messages_total": {"worker"},
    "warmroute_event_batches_total": {"worker"},
    "warmroute_events_total": {"worker"},
    "warmroute_event_purges_total": {"worker"},
    "warmroute_event_stream_total": {"worker", "kind"},
    "warmroute_event_blocks_total": {"worker", "kind"},
    "warmroute_event_lag_seconds": {"worker"},
    "warmroute_index_nodes": set(),
    "warmroute_index_copies": set(),
    "warmroute_index_bytes": set(),
    "warmroute_claims": set(),
    "process_resident_memory_bytes": set(),
}


async def test_metrics_are_what_prometheus_reads(stack: Stack) -> None:
    prompt = list(range(300, 350))
    for _ in range(3):
        answer = await stack.client.ask(prompt=prompt)
        await stack.settled()
    await stack.client.ask(CHAT, messages=MESSAGES)
    await stack.client.get("/version")
    assert (await stack.client.ask(prompt=prompt, model="none")).status == 404
    await stack.settled()
    page = await stack.client.get("/metrics")
    assert page.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples = [s for family in text_string_to_metric_families(page.raw.decode()) for s in family.samples]
    labels = {sample.name: set(sample.labels) for sample in samples}
    assert {name: labels.get(name) for name in METRICS} == METRICS

    def value(name: str, **wanted: str) -> float:
        found = [s.value for s in samples if s.name == name and wanted.items() <= s.labels.items()]
        assert len(found) == 1, (name, wanted, found)
        return found[0]

    worker = answer.worker
    assert value("warmroute_worker_trust", worker=worker, state="LIVE") == 1
    assert value("warmroute_worker_trust", worker=worker, state="BLIND") == 0
    assert value("warmroute_decisions_total", worker=worker, reason="overlap") == 2
    assert value("warmroute_predictions_total", worker=worker, result="exact") >= 3
    assert value("warmroute_reported_cached_tokens_total", worker=worker) == 96
    assert value("warmroute_predicted_cached_tokens_total", worker=worker) == 96
    assert value("warmroute_requests_without_tokens_total", reason="path") == 1
    assert value("warmroute_requests_refused_total", status="404") == 1
    assert value("warmroute_tokenized_total", source="remote") == 1
    assert value("warmroute_data_plane_total", event="requests") == 7
    assert value("warmroute_event_batches_total", worker=worker) >= 1


async def test_metrics_that_the_pages_name_exist(stack: Stack) -> None:
    root = Path(__file__).parents[2]
    named = {
        name
        for page in (root / "README.md", *sorted((root / "docs").glob("*.md")))
        for name in re.findall(r"\bwarmroute_[a-z_]+(?:_total|_seconds|_info)\b", page.read_text())
    }
    await stack.client.get("/version")
    exposed = (await stack.client.get("/metrics")).raw.decode()
    assert named
    assert {name for name in named if not re.search(rf"^# TYPE {name} ", exposed, re.MULTILINE)} == set()


async def test_token_ids_that_cannot_be_had_fail_nobody() -> None:
    for tokenizer, reason in (
        (TokenizerConfig(mode="off"), "off"),
        (TokenizerConfig(mode="remote", remote_endpoint="http://127.0.0.1:9"), "unreachable"),
    ):
        async with stack_of(
            EngineOptions(), EngineOptions(seed=1), config=replace(QUICK, tokenizer=tokenizer)
        ) as stack:
            answer = await stack.client.ask(CHAT, messages=MESSAGES)
            assert (answer.status, answer.predicted) == (200, 0)
            decision = (await stack.client.get(f"/decisions/{answer.request_id}")).body
            assert (decision["reason"], decision["no_tokens_reason"]) == ("no_tokens", reason)
            page = (await stack.client.get("/metrics")).raw.decode()
            assert f'warmroute_requests_without_tokens_total{{reason="{reason}"}} 1.0' in page
            given = await stack.client.ask(prompt=list(range(300, 350)))
            assert json.loads(given.raw)["usage"]["prompt_tokens"] == 50
            decision = (await stack.client.get(f"/decisions/{given.request_id}")).body
            assert decision["no_tokens_reason"] is None


async def test_a_chat_with_an_image_is_routed_by_load(stack: Stack) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    answer = await stack.client.ask(CHAT, messages=[{"role": "user", "content": [picture]}])
    assert answer.status == 400  # the simulated engine reads text only, and says so itself
    assert "text only" in answer.error["message"]
    decision = (await stack.client.get(f"/decisions/{answer.request_id}")).body
    assert (decision["reason"], decision["no_tokens_reason"]) == ("no_tokens", "multimodal")


async def test_a_prompt_with_fewer_tokens_than_there_are_workers(stack: Stack) -> None:
    for stream in (False, True):
        assert (await stack.client.ask(prompt=[7], stream=stream)).status == 200
    assert stack.gateway.server.counts.service_failures == 0
