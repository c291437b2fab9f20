"""Every decision can be explained, and the explanation agrees with what happened."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from e2e_client import Json
from e2e_fleet import MODEL, QUICK, Stack, stack_of

from warmroute.cli.explain import command, render
from warmroute.cli.main import main
from warmroute.core.keys import digest_of
from warmroute.errors import ExplainError
from warmroute.testing.engine import EngineOptions

REQUESTS = 1000


async def explain(stack: Stack, *arguments: str) -> str:
    runner = CliRunner()
    ran = await asyncio.to_thread(
        runner.invoke, command, [*arguments, "--url", stack.gateway.url], catch_exceptions=False, standalone_mode=False
    )
    assert ran.return_value == 0, ran.output
    return ran.output


async def test_a_thousand_explanations_agree_with_what_happened(stack: Stack) -> None:
    dice = random.Random(3)
    beginnings = [[dice.randrange(300, 50_000) for _ in range(16 * n)] for n in (2, 5, 9)]
    sent: dict[str, tuple[str, int, int]] = {}
    for n in range(REQUESTS):
        prompt = [*dice.choice(beginnings), *(dice.randrange(300, 50_000) for _ in range(dice.randrange(1, 40)))]
        body: Json = {"model": MODEL, "prompt": prompt, "max_tokens": 2, "stream": n % 2 == 0}
        answer = await stack.client.ask(**body)
        assert answer.status == 200
        sent[answer.request_id] = (answer.worker, answer.predicted, len(prompt))
    decisions = (await stack.client.get(f"/decisions?last={REQUESTS}")).body["decisions"]
    assert [d["request_id"] for d in decisions] == list(sent)[::-1]
    for decision in decisions:
        worker, overlap, prompt_tokens = sent[decision["request_id"]]
        assert (decision["worker"], decision["overlap_tokens"]) == (worker, overlap)
        assert (decision["prompt_tokens"], decision["outcome"], decision["status"]) == (prompt_tokens, "complete", 200)
        assert decision["first_byte_s"] > 0
        rows = decision["candidates"]
        assert [row["chosen"] for row in rows] == [True, False], "the chosen one is the cheapest"
        assert rows[0]["worker"] == worker
        assert rows[0]["overlap_tokens"] == overlap
        for row in rows:
            assert sum(row["terms"].values()) == pytest.approx(row["cost"])
            assert sum(row["overlap_by_medium"].values()) + row["claimed_tokens"] == row["overlap_tokens"]
        assert render(decision).startswith(decision["request_id"])


async def test_one_request_the_last_ones_and_one_that_is_sent(stack: Stack, tmp_path: Path) -> None:
    body = {"model": MODEL, "prompt": list(range(300, 380)), "max_tokens": 2}
    path = tmp_path / "request.json"
    path.write_text(json.dumps(body))
    for _ in range(2):
        said = await explain(stack, "--request", str(path))
    assert "80 prompt tokens, 64 predicted cached" in said
    assert "outcome: complete" in said
    assert sum(line.startswith("  > ") for line in said.splitlines()) == 1
    request_id = said.partition(":")[0]
    assert await explain(stack, request_id) == said
    assert len(json.loads(await explain(stack, "--last", "2", "--json"))) == 2


async def test_headers_ask_for_a_policy_a_worker_and_a_session(stack: Stack) -> None:
    body = {"model": MODEL, "prompt": list(range(300, 400)), "max_tokens": 1}
    names = [worker.name for worker in stack.gateway.membership.fleet.workers]
    for name in names:
        answer = await stack.client.ask(headers={"x-warmroute-worker": name}, **body)
        assert answer.worker == name
    answer = await stack.client.ask(headers={"x-warmroute-worker": "nobody:1"}, **body)
    assert answer.status == 404
    workers = set()
    for _ in range(2):
        answer = await stack.client.ask(headers={"routing-strategy": "round_robin"}, **body)
        workers.add(answer.worker)
    assert workers == set(names)
    same = set()
    for _ in range(4):
        asked = {"routing-strategy": "consistent_hash", "x-session-id": "one"}
        same.add((await stack.client.ask(headers=asked, **body)).worker)
    assert len(same) == 1
    assert (await stack.client.get("/decisions?last=1")).body["decisions"][0]["policy"] == "consistent_hash"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--url", "127.0.0.1:1", "--last", "1"], "is no http:// or https:// URL"),
        (["--url", "http://127.0.0.1:1/v1", "--last", "1"], "leave out the path"),
        (["--url", "http://127.0.0.1:1", "--last", "1"], "no gateway answers"),
        (["--request", "/nowhere"], "/nowhere cannot be read"),
        (["--key-file", "/nowhere", "--last", "1"], "--key-file '/nowhere'"),
        (["--url", "https://127.0.0.1:1", "--ca", "/nowhere", "--last", "1"], "--ca '/nowhere'"),
    ],
)
def test_what_cannot_be_explained_is_said_in_a_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *arguments]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert said in told


@pytest.mark.parametrize("body", ["5", "[]", "{}", "nonsense", '{"messages": '])
def test_a_request_that_is_none_is_not_sent(body: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "request.json"
    path.write_text(body)
    assert main(["explain", "--request", str(path), "--url", "http://127.0.0.1:1"]) == 2
    assert capsys.readouterr().err.startswith(f"warmroute: {path} ")


async def test_a_gateway_that_asks_for_a_key(tmp_path: Path) -> None:
    keys, key, body = tmp_path / "keys", tmp_path / "key", tmp_path / "request.json"
    keys.write_text(f"alice {digest_of('secret')}\n")
    key.write_text("secret\n")
    body.write_text(json.dumps({"model": MODEL, "prompt": [1, 2, 3], "max_tokens": 1}))
    config = replace(QUICK, gateway=replace(QUICK.gateway, keys_file=str(keys)))
    async with stack_of(EngineOptions(), config=config) as stack:
        assert "3 prompt tokens" in await explain(stack, "--request", str(body), "--key-file", str(key))
        with pytest.raises(ExplainError, match=r"401.*give --key-file"):
            await explain(stack, "--last", "1")
