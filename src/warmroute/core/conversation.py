"""A chat request -> the variables its engine's chat template sees.

Engines do not hand the client's messages to the template as they are: parts are joined, tool arguments parsed, unknown
keys dropped, tools written out with their defaults. This module does the same for what is understood completely and
refuses the rest with TokenizeError("unsupported"): no prompt at all is better than a wrong one, and the engine itself
can still be asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import msgspec

from warmroute.core.openai import Fields, flag, given
from warmroute.errors import TokenizeError

ContentFormat: TypeAlias = Literal["string", "parts"]
"""Whether the template wants a message's content as one string or as a list of parts."""

Variables: TypeAlias = dict[str, Any]

_ROLES = frozenset({"system", "user", "assistant", "tool"})
_RESERVED = frozenset(
    {"messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt"}
    | {"continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"}
    | {"return_assistant_tokens_mask", "tokenizer_kwargs"}
)
"""Template arguments that mean something to the engine's renderer itself."""

ATTRIBUTION = "x-anthropic-billing-header"
"""Newer engines drop a system text's line that begins so, older ones keep it."""


def variables(fields: Fields, content_format: ContentFormat, *, raw_calls: bool = False) -> Variables:
    """The template's variables for a chat request; `messages` is the conversation. Raises TokenizeError.

    `raw_calls`: calls of tools come as they were given, not in the order of the engine's schema.
    """
    seen = settings(fields)
    seen["messages"] = [seen_message(each, content_format, raw_calls) for each in _array(fields.messages, "messages")]
    return seen


def settings(fields: Fields) -> Variables:
    """All of them but `messages`. Raises TokenizeError."""
    if given(fields.chat_template) or given(fields.documents):
        raise _unsupported("chat_template or documents in the request")
    return {
        **_arguments(fields),
        "tools": None if given(fields.tools) is None else [_tool(tool) for tool in _array(fields.tools, "tools")],
        "documents": None,
        "add_generation_prompt": flag(fields.add_generation_prompt, default=True),
    }


def _arguments(fields: Fields) -> Variables:
    raw = given(fields.chat_template_kwargs)
    arguments = {} if raw is None else _decode(raw)
    if not isinstance(arguments, dict) or not _RESERVED.isdisjoint(arguments):
        raise _unsupported("chat_template_kwargs")
    effort = given(fields.reasoning_effort)
    if effort is not None:
        word = _decode(effort)
        arguments.setdefault("enable_thinking", word != "none")
        arguments["reasoning_effort"] = word
    return arguments


def decoded_message(raw: bytes, content_format: ContentFormat, raw_calls: bool) -> Variables:
    """`seen_message`, of a message as the client wrote it."""
    return seen_message(_decode(raw), content_format, raw_calls)


def seen_message(message: Any, content_format: ContentFormat, raw_calls: bool) -> Variables:
    """One message as the template sees it, whatever the others are. Raises TokenizeError."""
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise _unsupported("a message without a role that is known")
    role, content = message["role"], message.get("content")
    if len(message) == 2 and type(content) is str and role != "system" and content_format == "string":
        return {"role": role, "content": content}  # nearly every message
    texts = _texts(content, extras=content_format == "string")
    if role == "system" and any(text.startswith(ATTRIBUTION) for text in texts):
        raise _unsupported("a system text that some engines shorten")
    seen: Variables = {"role": role, "content": "\n".join(text for text in texts if text)}
    if content_format == "parts":
        parts = [{"type": "text", "text": text} for text in texts]
        seen["content"] = "\n".join(texts) if role == "tool" else parts
    if role == "assistant":
        seen |= _assistant(message, raw_calls)
    elif role == "tool" and "tool_call_id" in message:
        seen["tool_call_id"] = message["tool_call_id"]
    if isinstance(message.get("name"), str):
        seen["name"] = message["name"]
    return seen


def _texts(content: Any, extras: bool) -> list[str]:
    """A content's texts. With `extras`, what else a text part carries (a cache mark) never reaches the template."""
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    texts = []
    for part in content if isinstance(content, list) else [None]:
        match part:
            case {"type": "text", "text": str(text), **rest} if extras or not rest:
                texts.append(text)
            case _:
                raise _unsupported("a message's content")
    return texts


def _assistant(message: Mapping[str, Any], raw_calls: bool) -> Variables:
    seen: Variables = {}
    if calls := message.get("tool_calls"):
        if not isinstance(calls, list):
            raise _unsupported("tool_calls")
        seen["tool_calls"] = [_tool_call(call, raw_calls) for call in calls]
    reasoning = message.get("reasoning")
    if reasoning is None:
        reasoning = message.get("reasoning_content")
    if reasoning is not None:
        if not isinstance(reasoning, str):
            raise _unsupported("reasoning that is not text")
        seen["reasoning"] = seen["reasoning_content"] = reasoning
    return seen


def _tool_call(call: Any, raw: bool) -> Variables:
    """A call as validated by the engine: the schema's fields first, in its order, and the arguments as an object.

    `raw`: one that the engine has made itself, and does not validate.
    """
    match call:
        case {"id": str(number), "type": "function", "function": {"name": str(name), "arguments": str(text), **more}}:
            try:
                parsed = json.loads(text) if text else {}
            except ValueError:
                parsed = {}
            arguments = parsed if isinstance(parsed, dict) else {}
            function = {"name": name, "arguments": arguments} if raw else {"arguments": arguments, "name": name, **more}
            seen = {"id": number, "function": function, "type": "function"}
            return seen | {key: value for key, value in call.items() if key not in seen}
    raise _unsupported("a tool call")


def _tool(tool: Any) -> Variables:
    """A tool as the engine writes it out: in the schema's order, with null for what was left out."""
    match tool:
        case {"function": {"name": str(name), **rest}} if tool.keys() <= {"type", "function"}:
            function = {"name": name, "description": rest.pop("description", None)}
            function["parameters"] = rest.pop("parameters", None)
            strict = rest.pop("strict", None)
            if strict is not None:
                function["strict"] = strict
            if not rest and tool.get("type", "function") == "function":
                return {"type": "function", "function": function}
    raise _unsupported("a tool")


def _array(raw: msgspec.Raw, name: str) -> list[Any]:
    value = _decode(bytes(raw))
    if not isinstance(value, list) or not value:
        raise _unsupported(name)
    return value


def _decode(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (ValueError, RecursionError) as error:
        raise _unsupported(f"JSON: {error}") from error


def _unsupported(what: str) -> TokenizeError:
    return TokenizeError("unsupported", f"not rendered in process: {what}")
