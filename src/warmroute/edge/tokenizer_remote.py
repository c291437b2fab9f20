"""Token ids from an engine's own `/tokenize`: right by construction, at the price of a round trip.

The client's messages and tools are handed on as the JSON they came as. Where `/tokenize` reads a chat otherwise than
the chat endpoint does, the request is worded so that both make the same prompt: `documents` and `reasoning_effort`
become template arguments, and a message's `reasoning_content` becomes `reasoning`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, TypeVar

import aiohttp
import msgspec
from msgspec import Raw

from warmroute.core.forms.questions import Prompts, answered, asked, settled
from warmroute.core.openai import Fields, RoutingRequest, given, read_fields
from warmroute.errors import TokenizeError
from warmroute.types import Endpoint, TokenIds

CONCURRENCY_MAX = 32
"""Requests under way at once: an engine's front end tokenizes on few threads, and more would only queue there."""

TEMPLATES_MAX = 1024
"""Answers of templates that are remembered; beyond it all are asked again."""

_NAME, _ARGUMENT = "warmroutename", "warmrouteargument"
_FUNCTION = {"name": _NAME, "arguments": f'{{"text": "{_ARGUMENT}"}}'}
_CALL = {
    "messages": [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "tool_calls": [{"id": "warmroute", "type": "function", "function": _FUNCTION}]},
        {"role": "tool", "tool_call_id": "warmroute", "content": "hello"},
    ],
    "tools": [{"type": "function", "function": {"name": "hello", "description": "hello", "parameters": {}}}],
}
"""A chat whose template shows how it writes a call."""
_VERBATIM = ("messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message")


class _Answer(msgspec.Struct, gc=False):
    tokens: list[Annotated[int, msgspec.Meta(ge=0, lt=2**32)]]


class _Text(msgspec.Struct, gc=False):
    prompt: str


_T = TypeVar("_T")

_ANSWER = msgspec.json.Decoder(_Answer)
_TEXT = msgspec.json.Decoder(_Text)
_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_OBJECTS = msgspec.json.Decoder(list[dict[str, Raw]])


class RemoteTokenizer:
    """The port `Tokenizer`, by HTTP. The session belongs to whoever made it.

    `base_url` is asked instead of the request's own engine, if it is given. `keys` go to the engines they are of only.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base_url: str | None,
        timeout_s: float,
        keys: Mapping[Endpoint, str] = MappingProxyType({}),
    ) -> None:
        self._session = session
        self._keys = keys
        self._base_url = base_url.rstrip("/") if base_url else None
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._answers: dict[tuple[str, str, str], Prompts] = {}
        self._named_calls: dict[tuple[str, str], bool] = {}
        self._slots = asyncio.Semaphore(CONCURRENCY_MAX)

    async def tokens(self, request: RoutingRequest, endpoint: Endpoint) -> TokenIds:
        """Token ids of the request's prompt. Raises TokenizeError."""
        if request.questions:
            answers = {name: await self._answer(name, request.model, endpoint) for name in request.questions}
            request = settled(request, answers)
        body = tokenize_body(request)
        if request.raw_calls and b'"tool_calls"' in request.body:
            await self._require_named_calls(request.model, endpoint)
        return (await self._ask("tokenize", body, endpoint, _ANSWER)).tokens

    async def _answer(self, question: str, model: str, endpoint: Endpoint) -> Prompts:
        """What the engine's template makes of a question's chats."""
        where = self._base_url or endpoint.url, model, question
        if where not in self._answers:
            prompts: list[TokenIds | None] = []
            for chat in asked(question, model):
                try:
                    prompts.append((await self._ask("tokenize", tokenize_body(chat), endpoint, _ANSWER)).tokens)
                except TokenizeError as error:
                    if error.reason != "refused":
                        raise
                    prompts.append(None)
            if len(self._answers) >= TEMPLATES_MAX:
                self._answers.clear()
            self._answers[where] = answered(prompts)
        return self._answers[where]

    async def _require_named_calls(self, model: str, endpoint: Endpoint) -> None:
        """Raises TokenizeError if the template may write a call down in the order of its keys.

        `/tokenize` puts them into the order of its schema, arguments first; other paths leave the name first. A
        template that has the name first in an answer of `/tokenize` asks for each: their order is nothing to it.
        """
        where = self._base_url or endpoint.url, model
        if where not in self._named_calls:
            if len(self._named_calls) >= TEMPLATES_MAX:
                self._named_calls.clear()
            found = await self._ask("tokenize", msgspec.json.encode({"model": model, **_CALL}), endpoint, _ANSWER)
            body = msgspec.json.encode({"model": model, "tokens": found.tokens})
            text = (await self._ask("detokenize", body, endpoint, _TEXT)).prompt
            self._named_calls[where] = 0 <= text.find(_NAME) < text.find(_ARGUMENT)
        if not self._named_calls[where]:
            raise TokenizeError(
                "calls", "the template writes calls in the order of their keys, which /tokenize changes"
            )

    async def _ask(self, path: str, body: bytes, endpoint: Endpoint, decoder: msgspec.json.Decoder[_T]) -> _T:
        url = f"{self._base_url or endpoint.url}/{path}"
        headers = {"content-type": "application/json"}
        if self._base_url is None and (key := self._keys.get(endpoint)) is not None:
            headers["authorization"] = f"Bearer {key}"
        async with self._slots:
            try:
                status, answer = await self._post(url, body, headers)
            except TimeoutError as error:
                raise TokenizeError("timeout", f"{url} did not answer within {self._timeout.total} s") from error
            except aiohttp.ClientError as error:
                raise TokenizeError("unreachable", f"{url}: {error}") from error
        if status != 200:
            reason = "refused" if status < 500 or status == 501 else "engine_error"
            raise TokenizeError(reason, f"{url} answered {status}: {answer[:200].decode('utf-8', 'replace')}")
        try:
            return decoder.decode(answer)
        except msgspec.DecodeError as error:
            raise TokenizeError("bad_answer", f"{url} answered what it should not: {error}") from error

    async def _post(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        try:
            return await self._post_once(url, body, headers)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if isinstance(error, aiohttp.ClientConnectorError):
                raise
            return await self._post_once(
                url, body, headers
            )  # a kept connection had ended; asking twice changes nothing

    async def _post_once(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        async with self._session.post(
            url,
            data=body,
            headers=headers,
            timeout=self._timeout,
            allow_redirects=False,
        ) as response:
            return response.status, await response.read()


def tokenize_body(request: RoutingRequest) -> bytes:
    """The body to send to `/tokenize` for a request. Raises TokenizeError if the request cannot be put so."""
    fields = read_fields(request.body)
    sent: dict[str, object] = {"model": request.model}
    if request.chat:
        for name in _VERBATIM:
            value = getattr(fields, name)
            if given(value) is not None:
                sent[name] = value
        sent["messages"] = _messages(fields.messages)
        if arguments := _template_arguments(fields):
            sent["chat_template_kwargs"] = arguments
    else:
        if request.prompt is None:
            raise TokenizeError("prompt_form", "the prompt is neither text nor token ids")
        sent["prompt"] = request.prompt
    if given(fields.add_special_tokens) is not None:
        sent["add_special_tokens"] = fields.add_special_tokens
    return msgspec.json.encode(sent)


def _messages(messages: Raw) -> object:
    """The messages as they are; only the older name `reasoning_content`, unknown to `/tokenize`, is replaced."""
    if b"reasoning_content" not in bytes(messages):
        return messages
    try:
        parsed = _OBJECTS.decode(messages)
    except msgspec.DecodeError:
        return messages
    for message in parsed:
        older = message.pop("reasoning_content", None)
        if older is not None and given(older) and not given(message.get("reasoning", Raw())):
            message["reasoning"] = older
    return parsed


def _template_arguments(fields: Fields) -> dict[str, Raw]:
    """What the chat endpoint hands to the template: the client's own arguments, overridden by fields of their own."""
    own = given(fields.chat_template_kwargs)
    try:
        arguments = _OBJECT.decode(own) if own else {}
    except msgspec.DecodeError as error:
        raise TokenizeError("refused", f"chat_template_kwargs is not an object: {error}") from error
    thinking = "enable_thinking" in arguments
    if given(fields.documents):
        arguments["documents"] = fields.documents
    effort = given(fields.reasoning_effort)
    if effort:
        arguments["reasoning_effort"] = fields.reasoning_effort
        if not thinking:
            arguments["enable_thinking"] = Raw(b"false" if effort == b'"none"' else b"true")
    return arguments
