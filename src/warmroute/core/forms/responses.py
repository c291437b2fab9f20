"""A request to `/v1/responses` -> the chat request whose prompt vLLM makes of it.

Items of the input become messages; what an assistant thought, said and called in a row becomes one. That is done here
for items that carry text and calls of functions. What engines keep themselves (an earlier response), what they fetch
(images, files) and what other releases may read otherwise is refused with TokenizeError, whose reason says what it was.

Unlike a chat's, the prompt gets the tokens that the tokenizer puts around every text.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec
from msgspec import Raw

from warmroute.core.conversation import ATTRIBUTION
from warmroute.core.forms.chat import Chat, Offered, function_tool, hidden_tools, prompt_was_forwarded
from warmroute.core.openai import flag, given
from warmroute.errors import TokenizeError


class _Part(msgspec.Struct, gc=False):
    type: str
    text: str | None = None


class _Item(msgspec.Struct, gc=False):
    type: str = "message"
    role: str | None = None
    content: str | list[_Part] | None = None
    status: str | None = None
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    output: str | list[_Part] | None = None
    summary: list[_Part] | None = None
    encrypted_content: str | None = None


class _Tool(Offered, gc=False, kw_only=True):
    type: str
    name: str | None = None
    parameters: dict[str, Raw] | None = None


class _Reasoning(msgspec.Struct, gc=False):
    effort: str | None = None


class _Request(msgspec.Struct, gc=False):
    input: str | list[_Item]
    instructions: str | None = None
    tools: list[_Tool] = []
    tool_choice: Raw = Raw()
    reasoning: _Reasoning | None = None
    chat_template_kwargs: Raw = Raw()
    truncation: Raw = Raw(b'"disabled"')
    background: Raw = Raw()
    previous_response_id: Raw = Raw()
    previous_input_messages: Raw = Raw()
    conversation: Raw = Raw()
    prompt: Raw = Raw()
    kv_transfer_params: Raw = Raw()


_REQUEST = msgspec.json.Decoder(_Request)
_ELSEWHERE = ("previous_response_id", "previous_input_messages", "conversation", "prompt")
"""Fields that bring what is not in the request, or not in its input."""
_UNFINISHED = frozenset({"in_progress", "incomplete"})

_Said: TypeAlias = dict[str, Any]


def convert(body: bytes) -> Chat:
    """The chat request. Raises TokenizeError if it cannot be known, ValueError if it is not as the API has it."""
    request = _REQUEST.decode(body)
    _self_contained(request)
    chat = Chat(add_special_tokens=True)
    items = [_Item(role="user", content=request.input)] if isinstance(request.input, str) else request.input
    for item in items:
        _add(chat, item)
    if request.instructions:
        chat.messages.insert(0, {"role": "system", "content": request.instructions})
        chat.features.add("system")
    if items and items[-1].status in _UNFINISHED:
        _continue(chat, items[-1])
    if request.tools:
        _offer(chat, request)
    if request.reasoning is not None and request.reasoning.effort is not None:
        chat.set("reasoning_effort", request.reasoning.effort)
    if given(request.chat_template_kwargs) is not None:
        chat.set("chat_template_kwargs", request.chat_template_kwargs)
    return chat


def _self_contained(request: _Request) -> None:
    for name in _ELSEWHERE:
        if given(getattr(request, name)) is not None:
            raise TokenizeError("history", f"{name}: what it stands for is not in the request")
    if flag(request.background):
        raise TokenizeError("background", "the answer says nothing of the prompt")
    if request.truncation != Raw(b'"disabled"'):
        raise TokenizeError("truncated", "the engine may cut the prompt")
    prompt_was_forwarded(request.kv_transfer_params)


def _add(chat: Chat, item: _Item) -> None:
    match item.type:
        case "message" if item.role == "assistant":
            _say(chat, "content", _said(item))
        case "message" if item.role in ("user", "system", "developer"):
            chat.add({"role": item.role, "content": _content(chat, item)}, None if item.role == "user" else "system")
        case "reasoning":
            _say(chat, "reasoning", _thought(item), "thinking")
        case "function_call":
            _call(chat, item)
        case "function_call_output":
            _result(chat, item)
        case _:
            raise TokenizeError("item", f"an item of the type {item.type!r} and the role {item.role!r}")


def _say(chat: Chat, part: str, text: str, feature: str | None = None) -> None:
    """Add to the assistant's message that came right before if it has none of that yet, else begin another."""
    last = _assistants(chat)
    if last is not None and part not in last:
        last[part] = text
    else:
        chat.messages.append({"role": "assistant", part: text})
    if feature is not None:
        chat.features.add(feature)


def _assistants(chat: Chat) -> _Said | None:
    last = chat.messages[-1] if chat.messages else None
    return last if last is not None and last["role"] == "assistant" else None


def _said(item: _Item) -> str:
    """What an assistant said: the first part alone, as engines have it."""
    if isinstance(item.content, str):
        if item.status in _UNFINISHED:
            raise TokenizeError("item", "a message that is not finished, as text alone")
        return item.content
    first = item.content[0] if item.content else None
    if first is None or first.type not in ("output_text", "input_text") or first.text is None:
        raise TokenizeError("item", "a message of the assistant that does not begin with text")
    return first.text


def _content(chat: Chat, item: _Item) -> str | list[_Said]:
    if item.status in _UNFINISHED:
        raise TokenizeError("item", f"a message of the {item.role} that is not finished")
    if isinstance(item.content, str):
        return item.content
    texts = _texts(item.content)
    if item.role == "system" and any(text.startswith(ATTRIBUTION) for text in texts):
        raise TokenizeError("item", "a system text that engines shorten or not, by its form")
    chat.features.add("parts")
    return [{"type": "text", "text": text} for text in texts]


def _texts(parts: list[_Part] | None) -> list[str]:
    texts = []
    for part in parts or []:
        if part.type in ("input_image", "input_file", "input_audio"):
            raise TokenizeError("multimodal", f"a part of the type {part.type!r}")
        if part.type != "input_text" or part.text is None:
            raise TokenizeError("item", f"a part of the type {part.type!r}")
        texts.append(part.text)
    return texts


def _thought(item: _Item) -> str:
    if item.encrypted_content or item.summary is None:
        raise TokenizeError("item", "reasoning that is encrypted or has no summary")
    told = item.content or item.summary
    if isinstance(told, str) or (told and told[0].text is None):
        raise TokenizeError("item", "reasoning that is not a list of texts")
    return (told[0].text or "") if told else ""


def _call(chat: Chat, item: _Item) -> None:
    if item.call_id is None or item.name is None or item.arguments is None or item.namespace is not None:
        raise TokenizeError("item", "a call without id, name or arguments, or one in a namespace")
    function = {"name": item.name, "arguments": item.arguments}
    call = {"id": item.call_id, "function": function, "type": "function"}
    last = _assistants(chat)
    if last is None:
        chat.messages.append({"role": "assistant", "tool_calls": [call]})
    else:
        last.setdefault("tool_calls", []).append(call)
    chat.features.add("calls")


def _result(chat: Chat, item: _Item) -> None:
    content: str | list[_Said]
    if isinstance(item.output, str):
        content = item.output
    else:
        if item.output is None or item.id is not None or item.status is not None:
            raise TokenizeError("item", "a result in parts that has an id or a status")
        content = [{"type": "text", "text": text} for text in _texts(item.output)]
        chat.features.add("parts")
    if item.call_id is None:
        raise TokenizeError("item", "a result without the id of its call")
    chat.add({"role": "tool", "content": content, "tool_call_id": item.call_id}, "results")


def _continue(chat: Chat, last: _Item) -> None:
    """The last message is to be continued, not answered."""
    if last.type == "reasoning":
        raise TokenizeError("item", "reasoning that is not finished")
    if last.type == "message":
        chat.set("continue_final_message", True)
        chat.set("add_generation_prompt", False)


def _offer(chat: Chat, request: _Request) -> None:
    if given(request.tool_choice) == b'"none"':
        raise hidden_tools()
    offered = []
    for tool in request.tools:
        if tool.type in ("custom", "namespace") or (tool.type == "function" and tool.name is None):
            raise TokenizeError("tools", f"a tool of the type {tool.type!r}")
        if tool.type != "function":  # tools that the engine would have to run itself are not shown to the model
            chat.features.add("unseen_tools")
            continue
        offered.append(function_tool(tool, tool.name, tool.parameters))
    chat.set("tools", offered)
