"""Messages and responses through the gateway: routed by what is cached, once an engine has counted prompts alike."""

from __future__ import annotations

import re
from typing import Any

import pytest
from e2e_client import Answer
from e2e_fleet import Stack

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
_CACHED = re.compile(rb'"(?:cached_tokens|cache_read_input_tokens)":(\d+)')


def turns(count: int, topic: str) -> list[dict[str, Any]]:
    roles, said = ("user", "assistant") * count, "the quick brown fox jumps over the lazy dog"
    return [{"role": roles[number], "content": f"{topic} {number}: {said}"} for number in range(count)]


def reported(answer: Answer) -> int:
    return int(_CACHED.findall(answer.raw)[-1])


def body(path: str, count: int, topic: str) -> dict[str, Any]:
    if path == MESSAGES:
        return {"system": "be brief", "messages": turns(count, topic)}
    return {"instructions": "be brief", "input": turns(count, topic), "max_output_tokens": 4}


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
async def test_a_conversation_stays_where_it_is_warm(stack: Stack, path: str) -> None:
    first = await stack.client.ask(path, **body(path, 1, "other"))
    decision = (await stack.client.get(f"/decisions/{first.request_id}")).body
    assert decision["no_tokens_reason"] == "unproven"
    await stack.settled()
    workers = set()
    for count in (1, 3, 5, 7):
        answer = await stack.client.ask(path, **body(path, count, "this"), stream=count == 5)
        assert answer.status == 200
        assert answer.predicted == reported(answer)
        assert (answer.predicted > 0) == (count > 1)
        workers.add(answer.worker)
        await stack.settled()
    assert len(workers) == 1
    page = (await stack.client.get("/metrics")).raw.decode()
    assert f'warmroute_made_prompts_total{{path="{path}",result="equal"}} 5.0' in page


async def test_what_is_not_certain_is_routed_by_load(stack: Stack) -> None:
    answer = await stack.client.ask(RESPONSES, input="x", previous_response_id="resp_1")
    assert answer.status == 501  # the simulated engine's own answer
    decision = (await stack.client.get(f"/decisions/{answer.request_id}")).body
    assert (decision["reason"], decision["no_tokens_reason"]) == ("no_tokens", "history")
