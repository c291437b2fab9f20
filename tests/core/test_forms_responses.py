"""Bodies of `/v1/responses` and the chats they become, as vLLM's own rewriting has them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from warmroute.core import forms
from warmroute.core.forms import RESPONSES
from warmroute.core.openai import RoutingRequest

HELLO: dict[str, Any] = {"role": "user", "content": "hello"}
FIXED = {"add_special_tokens": True}


def parse(**body: Any) -> RoutingRequest:
    request = forms.parse(RESPONSES, json.dumps({"model": "m", "input": "hello", **body}).encode())
    assert request is not None
    return request


def chat(**body: Any) -> dict[str, Any]:
    """The chat that a body becomes, without its model."""
    request = parse(**body)
    assert request.opaque is None
    assert request.raw_calls
    made = json.loads(request.body)
    assert made.pop("model") == "m"
    return made


def said(*items: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages that these items become."""
    return list(chat(input=list(items))["messages"])


def part(words: str, kind: str = "input_text") -> dict[str, Any]:
    return {"type": kind, "text": words}


def answer(*words: str, **more: Any) -> dict[str, Any]:
    content = [{**part(each, "output_text"), "annotations": []} for each in words]
    return {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "content": content, **more}


def call(number: int, **more: Any) -> dict[str, Any]:
    return {"type": "function_call", "call_id": f"c{number}", "name": "f", "arguments": '{"n": 1}', **more}


def called(*numbers: int) -> list[dict[str, Any]]:
    function = {"name": "f", "arguments": '{"n": 1}'}
    return [{"id": f"c{number}", "function": function, "type": "function"} for number in numbers]


def thought(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "reasoning", "summary": [], "content": [part(words, "reasoning_text")], **more}


def test_a_text_is_what_the_user_says() -> None:
    assert chat() == {"messages": [HELLO], **FIXED}
    system = {"role": "system", "content": "be brief"}
    assert chat(instructions="be brief") == {"messages": [system, HELLO], **FIXED}
    assert chat(instructions="") == {"messages": [HELLO], **FIXED}


def test_what_routing_needs_is_kept() -> None:
    request = parse(stream=True, cache_salt="s", priority=-1, store=False, truncation="disabled")
    assert (request.path, request.shape) == (RESPONSES, "text")
    assert (request.stream, request.cache_salt, request.priority) == (True, "s", -1)


def test_messages_and_their_parts() -> None:
    rules = {"role": "developer", "content": "rules"}
    parts = {"type": "message", "role": "user", "content": [part("one"), part("two")]}
    expected = {"role": "user", "content": [part("one", "text"), part("two", "text")]}
    assert said(rules, parts) == [rules, expected]


def test_of_an_answer_the_first_part_counts() -> None:
    assert said(HELLO, answer("one", "two"), HELLO) == [HELLO, {"role": "assistant", "content": "one"}, HELLO]
    assert said({"role": "assistant", "content": "one"}) == [{"role": "assistant", "content": "one"}]
    assert said({"role": "assistant", "content": [part("one")]}) == [{"role": "assistant", "content": "one"}]


def test_what_an_assistant_does_in_a_row_is_one_message() -> None:
    result = {"type": "function_call_output", "call_id": "c1", "output": "x"}
    made = said(HELLO, thought("hm"), answer("one"), call(1), call(2), result)
    assert made == [
        HELLO,
        {"role": "assistant", "reasoning": "hm", "content": "one", "tool_calls": called(1, 2)},
        {"role": "tool", "content": "x", "tool_call_id": "c1"},
    ]
    assert said(call(1)) == [{"role": "assistant", "tool_calls": called(1)}]


def test_what_a_message_has_already_begins_another() -> None:
    made = said(answer("one"), answer("two"), thought("hm"), thought("so"))
    assert made == [
        {"role": "assistant", "content": "one"},
        {"role": "assistant", "content": "two", "reasoning": "hm"},
        {"role": "assistant", "reasoning": "so"},
    ]


def test_thoughts_are_their_first_text_or_their_summary() -> None:
    assert said(thought("hm", content=None, summary=[part("short", "summary_text")]))[0]["reasoning"] == "short"
    assert said(thought("hm", content=[], summary=[]))[0]["reasoning"] == ""
    assert said(thought("hm", encrypted_content=None))[0]["reasoning"] == "hm"


def test_instructions_are_no_part_of_the_input() -> None:
    made = chat(instructions="be brief", input=[call(1)])["messages"]
    assert [message["role"] for message in made] == ["system", "assistant"]


def test_results_in_parts() -> None:
    result = {"type": "function_call_output", "call_id": "c1", "output": [part("one"), part("two")]}
    parts = [part("one", "text"), part("two", "text")]
    assert said(result) == [{"role": "tool", "content": parts, "tool_call_id": "c1"}]


@pytest.mark.parametrize("status", ["in_progress", "incomplete"])
def test_an_answer_that_is_not_finished_is_continued(status: str) -> None:
    made = chat(input=[HELLO, answer("one", status=status)])
    assert (made["continue_final_message"], made["add_generation_prompt"]) == (True, False)
    assert "continue_final_message" not in chat(input=[answer("one", status=status), HELLO])
    assert "continue_final_message" not in chat(input=[HELLO, call(1, status=status)])


def test_tools_are_written_out() -> None:
    tools = [
        {"type": "function", "name": "f", "description": "d", "parameters": {"a": 1.50}, "strict": False},
        {"type": "function", "name": "g"},
    ]
    functions = [
        {"name": "f", "description": "d", "parameters": {"a": 1.5}, "strict": False},
        {"name": "g", "description": None, "parameters": None},
    ]
    assert chat(tools=tools)["tools"] == [{"type": "function", "function": each} for each in functions]
    assert "tools" not in chat(tools=[], tool_choice="none")


def test_tools_that_engines_run_themselves_are_not_shown() -> None:
    search = {"type": "web_search_preview"}
    made = parse(tools=[search, {"type": "function", "name": "g"}])
    assert [tool["function"]["name"] for tool in json.loads(made.body)["tools"]] == ["g"]
    assert made.shape == "tools+unseen_tools"
    assert chat(tools=[search])["tools"] == []


def test_effort_and_template_arguments_are_handed_on() -> None:
    made = chat(reasoning={"effort": "low", "summary": "auto"}, chat_template_kwargs={"x": 1})
    assert made == {"messages": [HELLO], **FIXED, "reasoning_effort": "low", "chat_template_kwargs": {"x": 1}}
    assert chat(reasoning={"effort": None}) == {"messages": [HELLO], **FIXED}


@pytest.mark.parametrize(
    ("reason", "body"),
    [
        ("history", {"previous_response_id": "resp_1"}),
        ("history", {"previous_input_messages": []}),
        ("history", {"conversation": "conv_1"}),
        ("history", {"prompt": {"id": "p"}}),
        ("background", {"background": True}),
        ("truncated", {"truncation": "auto"}),
        ("truncated", {"truncation": None}),
        ("forwarded", {"kv_transfer_params": {"prompt_token_ids": [1]}}),
        ("tools", {"tools": [{"type": "namespace", "name": "n", "tools": []}]}),
        ("tools", {"tools": [{"type": "function"}]}),
        ("tools", {"tools": [{"type": "custom", "name": "f"}]}),
        ("tool_choice", {"tools": [{"type": "function", "name": "f"}], "tool_choice": "none"}),
        ("multimodal", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}),
        ("item", {"input": [{"type": "item_reference", "id": "x"}]}),
        ("item", {"input": [{"role": "tool", "content": "x"}]}),
        ("item", {"input": [{"role": "user", "content": [part("x", "text")]}]}),
        ("item", {"input": [{"role": "user", "content": [part("x")], "status": "incomplete"}]}),
        ("item", {"input": [{"role": "system", "content": [part("x-anthropic-billing-header: 1")]}]}),
        ("item", {"input": [answer()]}),
        ("item", {"input": [{"role": "assistant", "content": "x", "status": "incomplete"}]}),
        ("item", {"input": [call(1, namespace="n")]}),
        ("item", {"input": [call(1, arguments=None)]}),
        ("item", {"input": [thought("x", encrypted_content="x")]}),
        ("item", {"input": [thought("x", summary=None)]}),
        ("item", {"input": [thought("x", status="incomplete")]}),
        ("item", {"input": [{"type": "function_call_output", "call_id": "c", "output": [], "id": "x"}]}),
        ("item", {"input": [{"type": "function_call_output", "output": "x"}]}),
        ("form", {"input": [{"type": None, "role": "user", "content": "x"}]}),
        ("form", {"input": 5}),
    ],
)
def test_what_is_not_certain_is_named(reason: str, body: dict[str, Any]) -> None:
    request = parse(**body)
    assert (request.opaque, request.shape) == (reason, None)


def test_what_names_no_model_is_left_to_the_engine() -> None:
    assert forms.parse(RESPONSES, b'{"input": "x"}') is None
