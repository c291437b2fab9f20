"""Token ids from an engine's own `/tokenize`: right by construction, at the price of a round trip.

The client's messages and tools are handed on as the JSON they came as. Where `/tokenize` reads a chat otherwise than
the chat endpoint does, the request is worded so that both make the same prompt: `documents` and `reasoning_effort`
become template arguments, and a message's `reasoning_content` becomes `reasoning`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

import aiohttp
import msgspec
from msgspec import Raw

from warmroute.core.openai import Fields, RoutingRequest, given, read_fields
from warmroute.errors import TokenizeError
from warmroute.types import Endpoint, TokenIds

CONCURRENCY_MAX = 32
"""Requests under way at once: an engine's front end tokenizes on few threads, and more would only queue there."""

_VERBATIM = ("messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message")


class _Answer(msgspec.Struct, gc=False):
    tokens: list[Annotated[int, msgspec.Meta(ge=0, lt=2**32)]]


_ANSWER = msgspec.json.Decoder(_Answer)
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
        self._slots = asyncio.Semaphore(CONCURRENCY_MAX)

    async def tokens(self, request: RoutingRequest, endpoint: Endpoint) -> TokenIds:
        """Token ids of the request's prompt. Raises TokenizeError."""
        url = f"{self._base_url or endpoint.url}/tokenize"
        body = tokenize_body(request)
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
            return _ANSWER.decode(answer).tokens
        except msgspec.DecodeError as error:
            raise TokenizeError("bad_answer", f"{url} answered what is not a list of token ids: {error}") from error

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
    if request.raw_calls and b'"tool_calls"' in request.body:
        raise TokenizeError("calls", "/tokenize orders a call's keys by its schema, where the engine itself does not")
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
