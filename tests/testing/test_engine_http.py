"""The simulated engine over real sockets: HTTP as vLLM speaks it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from warmroute.testing.engine import EngineOptions, SimulatedEngine, Time
from warmroute.testing.engine.tokenizer import decode, encode

PROMPT = list(range(300, 340))  # two blocks of 16, and 8 tokens


@pytest.fixture
async def engine() -> AsyncIterator[SimulatedEngine]:
    async with SimulatedEngine(EngineOptions(loras=("sql",), max_model_len=200)) as running:
        yield running


@pytest.fixture
async def client(engine: SimulatedEngine) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(engine.url) as session:
        yield session


async def ask(client: aiohttp.ClientSession, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    method = "GET" if body is None else "POST"
    async with client.request(method, path, json=body, headers=headers) as response:
        return response.status, await response.json(content_type=None)


async def complete(client: aiohttp.ClientSession, headers: dict[str, str] | None = None, **body: Any) -> Any:
    body = {"prompt": PROMPT, "max_tokens": 4, **body}
    async with client.post("/v1/completions", json=body, headers=headers) as response:
        answer = await response.json()
        assert response.status == 200, answer
        return answer


def cached(answer: Any) -> int:
    tokens: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


async def streamed(client: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> list[Any]:
    async with client.post(path, json={**body, "stream": True}) as response:
        assert response.content_type == "text/event-stream"
        *events, done, empty = (await response.read()).split(b"\n\n")
    assert (done, empty) == (b"data: [DONE]", b"")
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


async def test_completions_report_what_the_cache_had(engine: SimulatedEngine, client: aiohttp.ClientSession) -> None:
    assert engine.held_tokens(PROMPT) == 0
    first = await complete(client, return_token_ids=True)
    assert first["usage"] == {
        "prompt_tokens": 40,
        "total_tokens": 44,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    (choice,) = first["choices"]
    assert (choice["prompt_token_ids"], decode(choice["token_ids"])) == (PROMPT, choice["text"])
    assert choice["finish_reason"] == "length"
    assert engine.held_tokens(PROMPT) == 32
    again = await complete(client)
    assert (cached(again), again["choices"][0]["text"]) == (32, choice["text"])
    assert cached(await complete(client, prompt_logprobs=0)) == 0


async def test_adapters_and_salts_have_caches_of_their_own(
    engine: SimulatedEngine, client: aiohttp.ClientSession
) -> None:
    for extra in ({}, {"model": "sql"}, {"cache_salt": "t"}, {"model": "sql", "cache_salt": "t"}):
        assert cached(await complete(client, **extra)) == 0
        assert cached(await complete(client, **extra)) == 32
    assert engine.held_tokens(PROMPT, model="sql", salt="t") == 32
    assert engine.held_tokens(PROMPT, model="sql", salt="u") == 0


async def test_several_prompts_and_copies(client: aiohttp.ClientSession) -> None:
    answer = await complete(client, prompt=["one", "two"], n=2, max_tokens=3)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts[0] == texts[1] != texts[2]
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["usage"]["prompt_tokens"] == len(encode("one")) + len(encode("two"))


async def test_a_stream_says_the_same_as_a_whole_answer(client: aiohttp.ClientSession) -> None:
    body = {"messages": [{"role": "user", "content": "Where is my cache?"}], "max_tokens": 5, "return_token_ids": True}
    _, whole = await ask(client, "/v1/chat/completions", body)
    opening, *chunks, usage = await streamed(
        client, "/v1/chat/completions", {**body, "stream_options": {"include_usage": True}}
    )
    assert opening["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert opening["prompt_token_ids"] == whole["prompt_token_ids"]
    assert (
        "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
        == whole["choices"][0]["message"]["content"]
    )
    assert [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]] == whole["choices"][0]["token_ids"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["length"]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 5
    chunks = await streamed(client, "/v1/completions", {"prompt": "x", "max_tokens": 2})
    assert [chunk["object"] for chunk in chunks] == ["text_completion"] * 2


async def test_tokenize_gives_the_ids_that_generation_uses(client: aiohttp.ClientSession) -> None:
    messages = [{"role": "user", "content": "Grüße, dear cache"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    for extra in ({}, {"tools": tools}):
        _, tokenized = await ask(client, "/tokenize", {"messages": messages, **extra})
        body = {"messages": messages, "max_tokens": 1, "return_token_ids": True, **extra}
        _, answer = await ask(client, "/v1/chat/completions", body)
        assert answer["prompt_token_ids"] == tokenized["tokens"]
        assert (tokenized["count"], tokenized["max_model_len"]) == (len(tokenized["tokens"]), 200)
    _, plain = await ask(client, "/tokenize", {"prompt": "Grüße", "return_token_strs": True})
    assert len(plain["token_strs"]) == plain["count"]
    assert await ask(client, "/detokenize", {"tokens": plain["tokens"]}) == (200, {"prompt": "Grüße"})
    _, bare = await ask(client, "/tokenize", {"messages": messages, "add_generation_prompt": False})
    assert decode(bare["tokens"]).endswith("<|im_end|>\n")


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/completions", {"prompt": "x", "model": "nobody"}, 404, "model"),
        ("/v1/completions", {}, 400, "prompt"),
        ("/v1/completions", {"prompt": ""}, 400, "prompt"),
        ("/v1/completions", {"prompt": [1, "x"]}, 400, "prompt"),
        ("/v1/completions", {"prompt": [1, -1]}, 400, "prompt"),
        ("/v1/completions", {"prompt": [1] * 200}, 400, "input_tokens"),
        ("/v1/completions", {"prompt": [1] * 190, "max_tokens": 11}, 400, "max_tokens"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 0}, 400, "max_tokens"),
        ("/v1/completions", {"prompt": "x", "max_tokens": "many"}, 400, None),
        ("/v1/completions", {"prompt": "x", "n": 0}, 400, "n"),
        ("/v1/completions", {"prompt": "x", "cache_salt": ""}, 400, "cache_salt"),
        ("/v1/completions", {"prompt": "x", "stream_options": {"include_usage": True}}, 400, "stream_options"),
        ("/v1/completions", [], 400, None),
        ("/v1/chat/completions", {"messages": []}, 400, "messages"),
        ("/v1/chat/completions", {"messages": [{"content": [{"type": "image_url"}]}]}, 400, "messages"),
        ("/tokenize", {}, 400, "prompt"),
        ("/faults", {"earthquakes": 1}, 400, "earthquakes"),
        ("/v1/load_lora_adapter", {"lora_name": "sql", "lora_path": "/x"}, 400, None),
        ("/v1/load_lora_adapter", {"lora_name": "law"}, 400, None),
        ("/v1/unload_lora_adapter", {"lora_name": "law"}, 404, None),
    ],
)
async def test_errors_in_openais_form(
    client: aiohttp.ClientSession, path: str, body: Any, status: int, param: str | None
) -> None:
    answered, answer = await ask(client, path, body)
    assert answered == status, answer
    assert answer["error"]["code"] == status
    assert answer["error"]["param"] == param
    assert answer["error"]["message"]


async def test_request_ids_are_echoed(client: aiohttp.ClientSession) -> None:
    for body in ({"prompt": "x"}, {"prompt": "x", "stream": True}, {"prompt": ""}):
        async with client.post("/v1/completions", json=body, headers={"X-Request-Id": "abc"}) as response:
            assert response.headers["X-Request-Id"] == "abc"
            assert b"cmpl-abc" in await response.read() or response.status == 400


async def test_models_and_adapters(client: aiohttp.ClientSession) -> None:
    async def models() -> dict[str, str | None]:
        _, listed = await ask(client, "/v1/models")
        return {model["id"]: model["parent"] for model in listed["data"]}

    async def post(path: str, **body: Any) -> str:
        async with client.post(path, json=body) as response:
            return await response.text()

    assert await models() == {"tiny": None, "sql": "tiny"}
    loaded = await post("/v1/load_lora_adapter", lora_name="law", lora_path="/a")
    assert loaded == "Success: LoRA adapter 'law' added successfully."
    await complete(client, model="law")
    await post("/v1/unload_lora_adapter", lora_name="law")
    assert await models() == {"tiny": None, "sql": "tiny"}
    await post("/v1/load_lora_adapter", lora_name="law", lora_path="/a")
    assert cached(await complete(client, model="law")) == 32
    await post("/v1/load_lora_adapter", lora_name="law", lora_path="/b", load_inplace=True)
    assert cached(await complete(client, model="law")) == 0


async def test_metrics(engine: SimulatedEngine, client: aiohttp.ClientSession) -> None:
    await complete(client)
    await complete(client)
    async with client.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    label = '{engine="0",model_name="tiny"}'
    assert values[f"vllm:prefix_cache_queries_total{label}"] == "80.0"
    assert values[f"vllm:prefix_cache_hits_total{label}"] == "32.0"
    assert values[f"vllm:kv_cache_usage_perc{label}"] == "0.0"
    assert float(values["process_start_time_seconds"]) == engine.process.started
    (info,) = (name for name in values if name.startswith("vllm:cache_config_info"))
    assert 'block_size="16"' in info
    assert 'num_gpu_blocks="1024"' in info


async def test_ranks_have_caches_of_their_own() -> None:
    async with (
        SimulatedEngine(EngineOptions(data_parallel_size=2)) as engine,
        aiohttp.ClientSession(engine.url) as client,
    ):
        pin = {"X-data-parallel-rank": "1"}
        assert [cached(await complete(client, pin)) for _ in range(2)] == [0, 32]
        assert [engine.held_tokens(PROMPT, rank=rank) for rank in (0, 1)] == [0, 32]
        assert sorted([cached(await complete(client)) for _ in range(2)]) == [0, 32]
        for wrong in ("2", "-1", "x"):
            status, _ = await ask(client, "/v1/completions", {"prompt": "x"}, **{"X-data-parallel-rank": wrong})
            assert status == 400


async def eventually(holds: Any) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - what is waited for is state of the engine, not an event of ours
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_aborts_its_request(stream: bool) -> None:
    async with SimulatedEngine(EngineOptions(decode_per_token_s=0.01)) as engine:
        scheduler = engine.process.ranks[0].scheduler
        async with aiohttp.ClientSession(engine.url) as client:
            asked = asyncio.create_task(complete(client, max_tokens=8000, stream=stream))
            await eventually(lambda: scheduler.running and scheduler.running[0].generated)
            status, reset = await ask(client, "/reset_prefix_cache", {})
            assert (status, reset) == (200, {"success": False})
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        await eventually(lambda: not scheduler.busy)
        assert scheduler.totals.aborted_requests == 1
        assert engine.held_tokens(PROMPT) == 32


async def test_faults_of_requests(engine: SimulatedEngine, client: aiohttp.ClientSession) -> None:
    await ask(client, "/faults", {"refuse_requests": 1, "unhealthy_probes": 1})
    for path, body in (("/v1/completions", {"prompt": "x"}), ("/health", None)):
        assert [(await ask_status(client, path, body)) for _ in range(2)] == [503, 200]
    engine.faults.break_answers, engine.faults.break_after_tokens = 2, 2
    with pytest.raises(aiohttp.ClientError):
        await complete(client)
    async with client.post("/v1/completions", json={"prompt": "x", "stream": True}) as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    _, faults = await ask(client, "/faults")
    assert faults["break_answers"] == 0


async def ask_status(client: aiohttp.ClientSession, path: str, body: Any) -> int:
    async with client.request("GET" if body is None else "POST", path, json=body) as response:
        return response.status


async def test_a_killed_engine_resets_its_connections_and_comes_back_cold() -> None:
    async with (
        SimulatedEngine(EngineOptions(decode_per_token_s=0.01)) as engine,
        aiohttp.ClientSession(engine.url) as client,
    ):
        former, url = engine.process.started, engine.url
        await complete(client)
        async with client.post("/v1/completions", json={"prompt": "x", "stream": True, "max_tokens": 8000}) as response:
            await response.content.readline()
            await engine.restart()
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        assert (engine.url, engine.held_tokens(PROMPT)) == (url, 0)
        assert engine.process.started > former
        assert cached(await complete(client)) == 0


class VirtualTime:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    async def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s
        await asyncio.sleep(0)

    def engine(self, options: EngineOptions) -> SimulatedEngine:
        return SimulatedEngine(options, time=Time(lambda: self.now_s, self.sleep))


async def test_a_step_takes_as_long_as_its_tokens() -> None:
    options = EngineOptions(prefill_per_token_s=0.5, decode_per_token_s=2.0)
    virtual = VirtualTime()
    async with virtual.engine(options) as engine, aiohttp.ClientSession(engine.url) as client:
        await complete(client)
        assert virtual.now_s == 1000 + 40 * 0.5 + 3 * 2
        await complete(client)
        assert virtual.now_s == 1026 + 8 * 0.5 + 3 * 2


async def test_the_same_seed_takes_the_same_time() -> None:
    ends = []
    for seed in (1, 1, 2):
        virtual = VirtualTime()
        options = EngineOptions(prefill_per_token_s=0.5, jitter=0.2, seed=seed)
        async with virtual.engine(options) as engine, aiohttp.ClientSession(engine.url) as client:
            await complete(client)
        ends.append(virtual.now_s)
    assert ends[0] == ends[1] != ends[2]


async def test_an_address_in_use_is_an_error_and_leaves_nothing_behind(engine: SimulatedEngine) -> None:
    second = SimulatedEngine(EngineOptions(port=engine.endpoint.port))
    with pytest.raises(OSError, match="address already in use"):
        await second.start()
    with pytest.raises(RuntimeError, match="not running"):
        _ = second.process
