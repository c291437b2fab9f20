"""Bodies of `/v1/messages` and the chats they become, as vLLM's own rewriting has them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from warmroute.core import forms
from warmroute.core.forms import MESSAGES
from warmroute.core.forms.questions import INLINE_SYSTEM, NO_THINKING, answered, asked, settled
from warmroute.core.openai import RoutingRequest
from warmroute.errors import TokenizeError

HELLO: dict[str, Any] = {"role": "user", "content": "hello"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def parse(body: dict[str, Any] | bytes) -> RoutingRequest:
    raw = body if isinstance(body, bytes) else json.dumps({"model": "m", "max_tokens": 5, **body}).encode()
    request = forms.parse(MESSAGES, raw)
    assert request is not None
    return request


def chat(**body: Any) -> dict[str, Any]:
    """The chat that a body becomes, without its model."""
    request = parse({"messages": [HELLO], **body})
    assert request.opaque is None
    made = json.loads(request.body)
    assert made.pop("model") == "m"
    return made


def said(*content: dict[str, Any], role: str = "user") -> list[dict[str, Any]]:
    """The messages that one message of these blocks becomes."""
    return list(chat(messages=[{"role": role, "content": list(content)}])["messages"])


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def test_plain_messages_are_a_chat() -> None:
    talk = [HELLO, {"role": "assistant", "content": "hi"}, HELLO]
    assert chat(messages=talk) == {"messages": talk}


def test_what_routing_needs_is_kept() -> None:
    request = parse({"messages": [HELLO], "stream": True, "cache_salt": "s"})
    assert (request.path, request.model, request.chat, request.shape) == (MESSAGES, "m", True, "text")
    assert (request.stream, request.cache_salt, request.raw_calls) == (True, "s", False)


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("be brief", "be brief"),
        ([text("be "), text("brief", cache_control={"type": "ephemeral"})], "be brief"),
        ([text("x-anthropic-billing-header: cch=1;"), text(""), text("be brief")], "be brief"),
        ("x-anthropic-billing-header: 1\nbe brief", "x-anthropic-billing-header: 1\nbe brief"),
        ("", None),
        ([], None),
        (None, None),
    ],
)
def test_the_system_text_comes_first(system: Any, expected: str | None) -> None:
    first = [] if expected is None else [{"role": "system", "content": expected}]
    assert chat(system=system)["messages"] == [*first, HELLO]


def test_a_system_message_at_the_beginning_is_the_system_text() -> None:
    talk = [{"role": "system", "content": [text("be "), text("brief")]}, HELLO]
    assert chat(messages=talk)["messages"] == [{"role": "system", "content": "be brief"}, HELLO]
    silent = [HELLO, {"role": "system", "content": "x-anthropic-billing-header: 1"}, HELLO]
    assert chat(messages=silent)["messages"] == [HELLO, HELLO]


def test_blocks_of_text() -> None:
    assert said(text("one")) == [{"role": "user", "content": "one"}]
    assert said(text("one"), text(""), text("two")) == [{"role": "user", "content": [text("one"), text("two")]}]
    assert said(text("")) == []
    assert said(text(""), role="assistant") == [{"role": "assistant"}]


def test_thoughts_and_calls_are_the_assistants() -> None:
    made = said(
        {"type": "thinking", "thinking": "two ", "signature": "s"},
        {"type": "redacted_thinking", "data": "?"},
        {"type": "thinking", "thinking": "and two"},
        text("four"),
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"n": 1.50, "big": 12345678901234567890123}},
        {"type": "tool_use", "id": "c2", "name": "g", "input": None},
        role="assistant",
    )
    functions = [
        {"name": "f", "arguments": '{"n": 1.5, "big": 12345678901234567890123}'},
        {"name": "g", "arguments": "{}"},
    ]
    calls = [{"id": f"c{i}", "type": "function", "function": function} for i, function in enumerate(functions, 1)]
    assert made == [{"role": "assistant", "reasoning": "two and two", "tool_calls": calls, "content": "four"}]


def test_results_of_tools_come_before_what_the_user_says() -> None:
    blocks = [text("one"), text("two"), {"type": "search_result", "text": "left out"}]
    made = said(
        text("and now?"),
        {"type": "tool_result", "tool_use_id": "c1", "content": blocks},
        {"type": "tool_result", "tool_use_id": "c2", "content": "three", "is_error": True},
        {"type": "tool_result", "tool_use_id": "c3"},
    )
    results = [
        {"role": "tool", "tool_call_id": name, "content": words}
        for name, words in (("c1", "one\ntwo"), ("c2", "three"), ("c3", ""))
    ]
    assert made == [*results, {"role": "user", "content": "and now?"}]


def test_tools_are_written_out() -> None:
    tools = [
        {"name": "f", "description": "d", "input_schema": SCHEMA, "strict": True, "cache_control": {}},
        {"name": "g", "input_schema": {"properties": {}}},
    ]
    functions = [
        {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True},
        {"name": "g", "description": None, "parameters": {"properties": {}, "type": "object"}},
    ]
    made = chat(tools=tools, tool_choice={"type": "any"})
    assert made["tools"] == [{"type": "function", "function": function} for function in functions]
    assert list(made["tools"][1]["function"]["parameters"]) == ["properties", "type"]
    assert chat(tools=[])["tools"] == []


def test_effort_and_template_arguments_are_handed_on() -> None:
    made = chat(
        output_config={"effort": "high"},
        thinking={"type": "enabled", "budget_tokens": 1024},
        chat_template_kwargs={"x": 1.0},
    )
    assert made == {"messages": [HELLO], "reasoning_effort": "high", "chat_template_kwargs": {"x": 1.0}}


@pytest.mark.parametrize(
    ("reason", "body"),
    [
        ("tool_changes", {"messages": [{"role": "system", "content": [{"type": "tool_removal"}]}]}),
        ("tool_choice", {"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "none"}}),
        ("forwarded", {"kv_transfer_params": {"prompt_token_ids": [1]}}),
        ("form", {"messages": [{"role": "developer", "content": "x"}]}),
        ("form", {"messages": [{"role": "user", "content": 5}]}),
        ("form", {"messages": "x"}),
        ("form", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        ("form", {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "f"}]}]}),
        ("form", {"messages": [{"role": "assistant", "content": [{"type": "tool_result", "content": "x"}]}]}),
        ("form", {"messages": [{"role": "user", "content": [{"type": "document"}]}]}),
        ("multimodal", {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}),
        (
            "multimodal",
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [{"type": "image"}]}]}]},
        ),
    ],
)
def test_what_is_not_certain_is_named(reason: str, body: dict[str, Any]) -> None:
    request = parse({"messages": [HELLO], **body})
    assert (request.opaque, request.shape) == (reason, None)


def test_what_the_template_has_to_say_is_left_open() -> None:
    quick = parse({"messages": [HELLO], "thinking": {"type": "disabled"}, "output_config": {"effort": "high"}})
    assert (quick.questions, quick.shape) == (("no_thinking",), "no_thinking")
    assert b"reasoning_effort" not in quick.body
    for system, first in (("be brief", []), (None, [HELLO])):
        inline = parse({"system": system, "messages": [*first, {"role": "system", "content": "very"}, HELLO]})
        assert inline.questions == ("inline_system",)
        assert json.loads(inline.body)["messages"][-2:] == [{"role": "system", "content": "very"}, HELLO]


SIX = (1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    ("prompts", "effort"),
    [(SIX, "none"), ((None, *SIX[1:]), "low"), ((1, None, None, 1, None, None), "low"), ((1, *[None] * 5), "none")],
)
def test_how_a_template_is_told_not_to_think(prompts: tuple[Any, ...], effort: str) -> None:
    request = parse({"messages": [HELLO], "thinking": {"type": "disabled"}})
    assert len(asked(NO_THINKING, "m")) == len(prompts)
    made = settled(request, {NO_THINKING: prompts})
    assert (json.loads(made.body)["reasoning_effort"], made.questions, made.shape) == (effort, (), "no_thinking")


def test_system_messages_stay_or_go_to_the_front() -> None:
    very = {"role": "system", "content": "very"}
    request = parse({"system": "be brief ", "messages": [HELLO, very, HELLO], "chat_template_kwargs": {"x": 1.50}})
    stay = settled(request, {INLINE_SYSTEM: (1, 2)})
    assert json.loads(stay.body) == json.loads(request.body)
    front = settled(request, {INLINE_SYSTEM: (None, 2)})
    assert json.loads(front.body)["messages"] == [{"role": "system", "content": "be brief very"}, HELLO, HELLO]
    assert b'{"x": 1.5}' in front.body


def test_a_template_that_refuses_all_has_said_nothing() -> None:
    assert answered((None, 1)) == (None, 1)
    with pytest.raises(TokenizeError):
        answered((None, None))


def test_shapes_name_what_was_converted() -> None:
    results = [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "x"}]}]
    assert parse({"messages": results, "system": "s"}).shape == "results+system"


def test_what_names_no_model_is_left_to_the_engine() -> None:
    for body in (b"", b"{}", b'{"model": 3}', b'{"model": null, "messages": []}', b"[" * 100_000):
        assert forms.parse(MESSAGES, body) is None
    assert parse(b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}').opaque == "form"
