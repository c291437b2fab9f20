"""Request bodies -> what to generate, judged as vLLM judges them.

Invariant: whatever a client sends is understood or refused with Refusal, nothing else.
"""

from __future__ import annotations

from typing import Any

import msgspec

from warmroute.core import forms
from warmroute.testing.engine import tokenizer
from warmroute.testing.engine.process import Generation, Process

VOCABULARY_SIZE = 1 << 20


class Refusal(Exception):  # noqa: N818 - an answer, not a failure of ours
    """The client's fault, in OpenAI's form."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


class StreamOptions(msgspec.Struct, frozen=True):
    """`stream_options` of a request."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that the simulation heeds, of both generation endpoints and of /tokenize. All others are accepted."""

    model: str | None = None
    messages: list[dict[str, Any]] | None = None
    prompt: Any = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: str | None = None
    session_id: str | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    return_token_strs: bool | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


def bad_request(message: str, param: str | None = None) -> Refusal:
    """A 400."""
    return Refusal(400, "BadRequestError", message, param)


def read_body(raw: bytes, process: Process) -> Body:
    """Decode a body and check its model. Raises Refusal."""
    try:
        body = msgspec.json.decode(raw, type=Body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(str(error)) from error
    if body.model and not process.serves(body.model):
        message = f"The model `{body.model}` does not exist. Valid aliases: {process.options.model}."
        raise Refusal(404, "NotFoundError", message, "model")
    return body


def rewritten(path: str, raw: bytes, body: Body) -> Body:
    """The chat that a request to `/v1/messages` or `/v1/responses` stands for, as vLLM has it. Raises Refusal."""
    request = forms.parse(path, raw)
    if request is None or request.opaque is not None:
        reason = "it names no model" if request is None else request.opaque
        raise Refusal(501, "NotImplementedError", f"The simulated engine does not understand this request: {reason}.")
    chat = msgspec.json.decode(request.body, type=Body)
    wanted = body.max_output_tokens if path == forms.RESPONSES else body.max_tokens
    return msgspec.structs.replace(
        body,
        messages=chat.messages,
        tools=chat.tools,
        add_generation_prompt=chat.add_generation_prompt,
        continue_final_message=chat.continue_final_message,
        max_tokens=wanted,
        stream_options=None,
    )


def chat_prompt(body: Body) -> list[int]:
    """Token ids of a conversation. Raises Refusal."""
    if not body.messages:
        raise bad_request("'messages' must be a list of at least one message.", "messages")
    try:
        text = tokenizer.render_chat(
            body.messages,
            tools=body.tools,
            add_generation_prompt=body.add_generation_prompt and not body.continue_final_message,
            continue_final_message=body.continue_final_message,
        )
    except ValueError as error:
        raise bad_request(str(error), "messages") from error
    return tokenizer.encode(text)


def completion_prompts(body: Body) -> list[list[int]]:
    """Token ids of each prompt: one text, several, one list of token ids, or several. Raises Refusal."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [tokenizer.encode(prompt)]
    if isinstance(prompt, list) and prompt:
        if all(isinstance(each, str) for each in prompt):
            return [tokenizer.encode(each) for each in prompt]
        nested = prompt if isinstance(prompt[0], list) else [prompt]
        if all(isinstance(each, list) and all(map(_is_token, each)) for each in nested):
            return nested
    raise bad_request("'prompt' must be a text, a list of texts, token ids, or a list of those.", "prompt")


def _is_token(value: object) -> bool:
    return type(value) is int and 0 <= value < VOCABULARY_SIZE


def generation(body: Body, process: Process, *, chat: bool, session_id: str | None) -> Generation:
    """What the request asks to generate. Raises Refusal."""
    if body.stream_options and not body.stream:
        raise bad_request("Stream options can only be defined when `stream=True`.", "stream_options")
    prompts = [chat_prompt(body)] if chat else completion_prompts(body)
    longest, limit = max(map(len, prompts)), process.options.max_model_len
    if not min(map(len, prompts)):
        raise bad_request("The prompt cannot be empty.", "prompt")
    if longest >= limit:
        raise bad_request(
            f"This model's maximum context length is {limit} tokens. However, your request has {longest} input tokens. "
            "Please reduce the length of the input messages.",
            "input_tokens",
        )
    default = min(process.options.output_tokens, limit - longest) if chat else min(16, limit - longest)
    asked = body.max_completion_tokens if chat and body.max_completion_tokens is not None else body.max_tokens
    tokens_max = default if asked is None else asked
    if tokens_max < 1:
        raise bad_request(f"max_tokens must be at least 1, got {tokens_max}.", "max_tokens")
    if longest + tokens_max > limit:
        raise bad_request(
            f"'max_tokens' or 'max_completion_tokens' is too large: {tokens_max}. This model's maximum context length "
            f"is {limit} tokens and your request has {longest} input tokens.",
            "max_tokens",
        )
    copies = 1 if body.n is None else body.n
    if copies < 1:
        raise bad_request(f"n must be at least 1, got {copies}.", "n")
    if body.cache_salt == "":
        raise bad_request("Parameter 'cache_salt' must be a non-empty string if provided.", "cache_salt")
    content = process.content(body.model, body.cache_salt, body.session_id or session_id)
    return Generation(prompts, tokens_max, content, copies, reads_cache=body.prompt_logprobs is None)
