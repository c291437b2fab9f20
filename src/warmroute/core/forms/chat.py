"""The chat request that other forms become: what a tokenizer is asked with, and what of a form it was made from."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from warmroute.core.openai import given
from warmroute.errors import TokenizeError


class Chat:
    """A chat request that grows; its prompt is that of the request it is made from."""

    def __init__(self, **fields: Any) -> None:
        self.messages: list[dict[str, Any]] = []
        self.features: set[str] = set()
        """What it was made from beyond plain messages. Each may be converted otherwise by another release."""
        self.questions: list[str] = []
        """What is left open."""
        self._fields = fields

    def add(self, message: dict[str, Any], feature: str | None = None) -> None:
        """One more message."""
        self.messages.append(message)
        if feature is not None:
            self.features.add(feature)

    def set(self, name: str, value: Any) -> None:
        """A field beside the messages, which is a feature as well."""
        self._fields[name] = value
        self.features.add(name)

    def ask(self, question: str) -> None:
        """Leave something open that only the chat template can say, which is a feature as well."""
        if question not in self.questions:
            self.questions.append(question)
        self.features.add(question)

    @property
    def shape(self) -> str:
        """The features as one word, for keys and metrics."""
        return "+".join(sorted(self.features)) or "text"

    def body(self, model: str) -> bytes:
        """As JSON. Raises ValueError for what is no Unicode text."""
        return msgspec.json.encode({"model": model, "messages": self.messages, **self._fields})


class Offered(msgspec.Struct, gc=False):
    """What a tool says of itself in either form."""

    description: str | None = None
    strict: bool | None = None
    defer_loading: bool | None = None


def function_tool(tool: Offered, name: str | None, parameters: dict[str, Raw] | None) -> dict[str, Any]:
    """A tool as a chat offers it. What it does not say of itself is left out, its description aside."""
    function: dict[str, Any] = {"name": name, "description": tool.description, "parameters": parameters}
    if tool.strict is not None:
        function["strict"] = tool.strict
    if tool.defer_loading is not None:
        function["defer_loading"] = tool.defer_loading
    return {"type": "function", "function": function}


def prompt_was_forwarded(transfer: Raw) -> None:
    """Raises TokenizeError if a request between engines brings its prompt along as token ids."""
    if b"prompt_token_ids" in (given(transfer) or b""):
        raise TokenizeError("forwarded", "token ids in kv_transfer_params take the place of the messages")


def hidden_tools() -> TokenizeError:
    """Tools beside a choice of none: engines show them to the model or not, as they were started."""
    return TokenizeError("tool_choice", "tools that must not be called: whether the model sees them is the engine's")
