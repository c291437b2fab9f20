"""What only the model's chat template can say of how an engine rewrites a request.

vLLM tries its template out when it starts: with a system message between others, and with each effort of reasoning. The
same is asked here of whoever makes the tokens, once per model: each question is some chats, and what their prompts say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from warmroute.core.openai import RoutingRequest
from warmroute.errors import TokenizeError

Fields: TypeAlias = dict[str, Any]
Prompts: TypeAlias = Sequence[object | None]
"""One for each chat of a question, whatever it is made of; None where the template refused."""

INLINE_SYSTEM, NO_THINKING = "inline_system", "no_thinking"
"""Does the template take system messages between others? How is it told not to think?"""

_EFFORTS = ("none", "low", "medium", "high", "xhigh", "max")


class Question(msgspec.Struct, frozen=True):
    """Chats to be rendered for a model, and what is to be done to a request, as their prompts are."""

    chats: tuple[Fields, ...]
    settle: Callable[[Fields, Prompts], Fields]
    """Takes a request's chat and the prompts of `chats`; gives the chat as the engine has it."""


def asked(question: str, model: str) -> list[RoutingRequest]:
    """The chats of a question, as requests."""
    return [
        RoutingRequest(path="", model=model, body=msgspec.json.encode({"model": model, **chat}), chat=True)
        for chat in QUESTIONS[question].chats
    ]


def answered(prompts: Prompts) -> Prompts:
    """The prompts, if they are an answer. Raises TokenizeError if all were refused: then it was for another reason."""
    if all(prompt is None for prompt in prompts):
        raise TokenizeError("refused", "the chat template takes not even a plain chat")
    return prompts


def settled(request: RoutingRequest, answers: Mapping[str, Prompts]) -> RoutingRequest:
    """A request with the answers to its questions worked in."""
    chat: Fields = msgspec.json.decode(request.body, type=dict[str, msgspec.Raw])
    for question in request.questions:
        chat = QUESTIONS[question].settle(chat, answers[question])
    return msgspec.structs.replace(request, body=msgspec.json.encode(chat), questions=())


def _merge_system(chat: Fields, prompts: Prompts) -> Fields:
    """Where the template refuses system messages between others, their texts go to the first."""
    if prompts[0] is not None:
        return chat
    messages = msgspec.json.decode(chat["messages"], type=list[dict[str, Any]])
    text = "".join(message["content"] for message in messages if message["role"] == "system")
    others = [message for message in messages if message["role"] != "system"]
    return chat | {"messages": [{"role": "system", "content": text}, *others]}


def _think_not(chat: Fields, prompts: Prompts) -> Fields:
    """No effort is told to the template as such if that makes a prompt of its own, else as a low one."""
    none, *others = prompts
    return chat | {"reasoning_effort": "low" if none is None or none in others else "none"}


def _talk(*roles: str) -> list[Fields]:
    return [{"role": role, "content": "t"} for role in roles]


QUESTIONS = {
    INLINE_SYSTEM: Question(
        ({"messages": _talk("system", "user", "system", "user")}, {"messages": _talk("user")}), _merge_system
    ),
    NO_THINKING: Question(
        tuple({"messages": _talk("user"), "reasoning_effort": effort} for effort in _EFFORTS), _think_not
    ),
}
