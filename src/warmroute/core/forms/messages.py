"""A request to `/v1/messages` -> the chat request that vLLM makes of it.

vLLM has no prompt of its own for this form: it rewrites the request as a chat and renders that. The same rewriting is
done here, for what is known to come out alike whatever the engine's template and arguments are; anything else is
refused with TokenizeError, whose reason says what it was.

Invariant: values that only pass through (arguments of calls, schemas) stay as the client wrote them.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec
from msgspec import Raw

from warmroute.core.conversation import ATTRIBUTION
from warmroute.core.forms.chat import Chat, Offered, function_tool, hidden_tools, prompt_was_forwarded
from warmroute.core.forms.questions import INLINE_SYSTEM, NO_THINKING
from warmroute.core.openai import given
from warmroute.errors import TokenizeError


class _Item(msgspec.Struct, gc=False):
    """One part of a tool's result."""

    type: str | None = None
    text: str = ""


class _Block(msgspec.Struct, gc=False):
    type: str
    text: str | None = None
    id: str | None = None
    tool_use_id: str | None = None
    name: str | None = None
    input: Raw = Raw()
    content: str | list[_Item] | None = None
    thinking: str | None = None


class _Message(msgspec.Struct, gc=False):
    role: str
    content: str | list[_Block]


class _Tool(Offered, gc=False, kw_only=True):
    name: str
    input_schema: dict[str, Raw]


class _Kind(msgspec.Struct, gc=False):
    """`tool_choice` and `thinking`, of which only the type matters."""

    type: str


class _OutputConfig(msgspec.Struct, gc=False):
    effort: str | None = None


class _Request(msgspec.Struct, gc=False):
    messages: list[_Message]
    system: str | list[_Block] | None = None
    tools: list[_Tool] | None = None
    tool_choice: _Kind | None = None
    thinking: _Kind | None = None
    output_config: _OutputConfig | None = None
    chat_template_kwargs: Raw = Raw()
    kv_transfer_params: Raw = Raw()


_REQUEST = msgspec.json.Decoder(_Request)
_OBJECT = Raw(b'"object"')

_Said: TypeAlias = dict[str, Any]


def convert(body: bytes) -> Chat:
    """The chat request. Raises TokenizeError if it cannot be known, ValueError if it is not as the API has it."""
    request = _REQUEST.decode(body)
    prompt_was_forwarded(request.kv_transfer_params)
    chat = Chat()
    if system := _system_text(request.system):
        chat.add({"role": "system", "content": system}, "system")
    for message in request.messages:
        _add(chat, message)
    if request.tools is not None:
        _offer(chat, request.tools, request.tool_choice)
    _think(chat, request)
    if given(request.chat_template_kwargs) is not None:
        chat.set("chat_template_kwargs", request.chat_template_kwargs)
    return chat


def _system_text(system: str | list[_Block] | None) -> str:
    if not isinstance(system, list):
        return system or ""
    texts = [block.text for block in system if block.type == "text" and block.text]
    return "".join(text for text in texts if not text.startswith(ATTRIBUTION))


def _add(chat: Chat, message: _Message) -> None:
    if message.role == "system":
        _add_system(chat, message.content)
    elif message.role not in ("user", "assistant"):
        raise TokenizeError("form", f"a message of the role {message.role!r}")
    elif isinstance(message.content, str):
        chat.add({"role": message.role, "content": message.content})
    else:
        _add_blocks(chat, message.role, message.content)


def _add_system(chat: Chat, content: str | list[_Block]) -> None:
    """A system message among the others.

    Engines leave it where it is or move it to the beginning, as their template permits. At the beginning that is the
    same.
    """
    if isinstance(content, list):
        if any(block.type in ("tool_addition", "tool_removal") for block in content):
            raise TokenizeError("tool_changes", "tools that are added or removed on the way")
        text = _system_text(content)
    else:
        text = "" if content.startswith(ATTRIBUTION) else content
    if text and chat.messages:
        chat.ask(INLINE_SYSTEM)
    if text:
        chat.add({"role": "system", "content": text}, "system")


def _add_blocks(chat: Chat, role: str, blocks: list[_Block]) -> None:
    """The message of these blocks; before it the results of tools, which are messages of their own."""
    said: _Said = {"role": role}
    texts: list[str] = []
    for block in blocks:
        match block.type:
            case "text":
                texts += [block.text] if block.text else []
            case "thinking" if block.thinking is not None:
                said["reasoning"] = said.get("reasoning", "") + block.thinking
                chat.features.add("thinking")
            case "tool_use":
                said.setdefault("tool_calls", []).append(_call(block))
                chat.features.add("calls")
            case "tool_result" if role == "user":
                chat.add(_result(block), "results")
            case "thinking" | "redacted_thinking" | "tool_reference":
                pass  # nothing of them reaches the prompt
            case "image":
                raise TokenizeError("multimodal", "an image")
            case _:
                raise TokenizeError("form", f"a block of the type {block.type!r} from {role}")
    if len(texts) == 1:
        said["content"] = texts[0]
    elif texts:
        said["content"] = [{"type": "text", "text": text} for text in texts]
        chat.features.add("parts")
    if role == "assistant" or texts:
        chat.add(said)


def _call(block: _Block) -> _Said:
    if not block.id:
        raise TokenizeError("form", "a call of a tool without an id, for which the engine makes one up")
    arguments = given(block.input) or b"{}"
    return {
        "id": block.id,
        "type": "function",
        "function": {"name": block.name or "", "arguments": arguments.decode()},
    }


def _result(block: _Block) -> _Said:
    content = block.content or ""
    if isinstance(content, list):
        if any(item.type in ("image", "tool_reference") for item in content):
            raise TokenizeError("multimodal", "a tool's result that is not text alone")
        content = "\n".join(item.text for item in content if item.type == "text")
    return {"role": "tool", "tool_call_id": block.tool_use_id or "", "content": content}


def _offer(chat: Chat, tools: list[_Tool], choice: _Kind | None) -> None:
    if choice is not None and choice.type == "none":
        raise hidden_tools()
    offered = []
    for tool in tools:
        tool.input_schema.setdefault("type", _OBJECT)
        offered.append(function_tool(tool, tool.name, tool.input_schema))
    chat.set("tools", offered)


def _think(chat: Chat, request: _Request) -> None:
    if request.thinking is not None and request.thinking.type == "disabled":
        chat.ask(NO_THINKING)
    elif request.output_config is not None and request.output_config.effort is not None:
        chat.set("reasoning_effort", request.output_config.effort)
