"""An OpenAI request's bytes -> what routing needs to know of it.

Only what routing needs is read; the bytes themselves travel on verbatim. Fields are checked as far as routing depends
on them: an engine judges the rest. So what is merely read here is read leniently, as the engines' own validation would
(`"n": "2"` is two), and a value that makes no sense counts as absent: the engine's refusal is better than ours.

Invariant: any bytes either parse or raise ClientError, nothing else.
"""

from __future__ import annotations

import json
import math
from operator import attrgetter
from typing import Annotated, Any

import msgspec
from msgspec import Raw

from warmroute.errors import ClientError
from warmroute.types import TokenIds

_ABSENT = Raw()


class Fields(msgspec.Struct, frozen=True, gc=False):
    """Top-level fields of a request body, each as the client wrote it: what is unknown, big or odd costs nothing.

    The last of several equal keys counts, as for the engines.
    """

    model: Raw = _ABSENT
    messages: Raw = _ABSENT
    prompt: Raw = _ABSENT
    tools: Raw = _ABSENT
    documents: Raw = _ABSENT
    chat_template: Raw = _ABSENT
    chat_template_kwargs: Raw = _ABSENT
    reasoning_effort: Raw = _ABSENT
    add_generation_prompt: Raw = _ABSENT
    continue_final_message: Raw = _ABSENT
    add_special_tokens: Raw = _ABSENT
    truncate_prompt_tokens: Raw = _ABSENT
    suffix: Raw = _ABSENT
    prompt_embeds: Raw = _ABSENT
    cache_salt: Raw = _ABSENT
    stream: Raw = _ABSENT
    n: Raw = _ABSENT
    echo: Raw = _ABSENT
    logprobs: Raw = _ABSENT
    prompt_logprobs: Raw = _ABSENT
    priority: Raw = _ABSENT
    vllm_xargs: Raw = _ABSENT


class RoutingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One generation request, as far as routing is concerned."""

    path: str
    """`/v1/chat/completions`, `/v1/completions`, or one that is rewritten as a chat (`core.forms`)."""
    model: str
    body: bytes
    """The client's bytes, for a tokenizer that must see messages and tools as they are; or the chat they became."""
    chat: bool
    shape: str | None = None
    """Of a request that was rewritten as a chat: what it was made from. None: it is the client's own."""
    questions: tuple[str, ...] = ()
    """Of one that was rewritten: what the chat template has yet to say (`core.forms.questions`)."""
    raw_calls: bool = False
    """True if the engine hands calls of tools to the template as they are, not in the order of its schema."""
    fields: Fields | None = None
    """What the body says, if it was taken apart already."""
    token_ids: TokenIds | None = None
    """The prompt, if it was given as token ids."""
    prompt: str | None = None
    """The prompt, if it was given as one text (completions only)."""
    prompts: int = 1
    """How many prompts the request carries; with more than one, the first is what is routed by."""
    further_prompts: tuple[TokenIds, ...] | None = ()
    """The prompts after the first, if all were given as token ids; None if there are others."""
    cache_salt: str | None = None
    stream: bool = False
    n: int = 1
    skips_cache_read: bool = False
    """True if the engine will not read its cache for this request (`prompt_logprobs`): prediction is 0."""
    full_report: bool = False
    """Whether the engine is asked to announce again what it reuses (`kv_cache_report_mode`)."""
    priority: int = 0
    """As vLLM has it: the lower, the earlier."""
    multimodal: bool = False
    """True if a message has parts that are not text: their blocks carry extra keys we cannot compute."""
    opaque: str | None = None
    """Why the engine's prompt cannot be known from the request, a short word for metrics (`multimodal`, `truncated`,
    `suffix`, `embeds`, `prompt_form`); None if it can."""


class _Adapter(msgspec.Struct, frozen=True, gc=False):
    lora_name: Raw = _ABSENT
    lora_path: Raw = _ABSENT


class _Message(msgspec.Struct, frozen=True, gc=False):
    content: Raw = _ABSENT


_FIELDS = msgspec.json.Decoder(Fields)
_ADAPTER = msgspec.json.Decoder(_Adapter)
_MESSAGES = msgspec.json.Decoder(list[_Message])
_RAW_LIST = msgspec.json.Decoder(list[Raw])
_PART = msgspec.json.Decoder(dict[str, Raw])
_TOKEN_IDS = msgspec.json.Decoder(list[Annotated[int, msgspec.Meta(ge=0, lt=2**32)]])
_STRING = msgspec.json.Decoder(str)

_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal", "thinking", "tool_reference"})
_MEDIA_KEYS = frozenset(
    {"image_url", "input_image", "image_embeds", "image_pil", "audio_url", "input_audio", "audio_embeds"}
    | {"video_url", "video_embeds", "prompt_embeds", "file"}
)
_TRUE_WORDS = frozenset({"true", "t", "yes", "y", "on", "1"})

_rarely_said = attrgetter(
    "cache_salt",
    "n",
    "echo",
    "prompt_logprobs",
    "priority",
    "vllm_xargs",
    "truncate_prompt_tokens",
    "suffix",
    "prompt_embeds",
)
_NOTHING_RARE = (_ABSENT,) * 9

# msgspec's ValidationError and DecodeError and the codec's UnicodeDecodeError are all ValueErrors.
_UNREADABLE = (ValueError, RecursionError)


def parse(path: str, body: bytes) -> RoutingRequest:
    """Read a request to `path`. Raises ClientError (400) for what no engine could take."""
    fields = read_fields(body)
    chat = path.endswith("/chat/completions")
    model = _model(fields.model)
    multimodal = chat and _multimodal(fields.messages)
    if chat and not multimodal and _rarely_said(fields) == _NOTHING_RARE:  # nearly every chat
        return RoutingRequest(
            path=path,
            model=model,
            body=body,
            chat=True,
            fields=fields,
            stream=flag(fields.stream),
        )
    token_ids, prompt, prompts, opaque = (None, None, [], None) if chat else _prompt(fields)
    if opaque := _opaque(fields, multimodal) or opaque:
        token_ids = prompt = None
    return RoutingRequest(
        path=path,
        model=model,
        body=body,
        chat=chat,
        fields=fields,
        token_ids=token_ids,
        prompt=prompt,
        prompts=max(1, len(prompts)),
        further_prompts=_further(prompts),
        cache_salt=_text(fields.cache_salt) or None,
        stream=flag(fields.stream),
        n=max(1, _integer(fields.n) or 1),
        skips_cache_read=_skips_cache_read(fields, chat),
        full_report=_full_report(fields),
        priority=_integer(fields.priority) or 0,
        multimodal=multimodal,
        opaque=opaque,
    )


def outline(path: str, body: bytes) -> RoutingRequest | None:
    """What requests of all forms have in common, as a chat without messages; None if the body names no model."""
    try:
        fields = read_fields(body)
    except ClientError:
        return None
    model = _text(fields.model)
    if model is None:
        return None
    return RoutingRequest(
        path=path,
        model=model,
        body=body,
        chat=True,
        cache_salt=_text(fields.cache_salt) or None,
        stream=flag(fields.stream),
        full_report=_full_report(fields),
        priority=_integer(fields.priority) or 0,
    )


def model_of(body: bytes) -> str | None:
    """The model that a body names, whatever request it is; None if it names none."""
    try:
        return _text(read_fields(body).model)
    except ClientError:
        return None


def adapter_of(body: bytes) -> tuple[str | None, str | None]:
    """(name, path) of the adapter that a request to load or unload one names."""
    try:
        fields = _ADAPTER.decode(body)
    except _UNREADABLE:
        return None, None
    return _text(fields.lora_name), _text(fields.lora_path)


def read_fields(body: bytes) -> Fields:
    """Take a request body apart. Raises ClientError (400) if it is not a JSON object."""
    try:
        return _FIELDS.decode(body)
    except _UNREADABLE:
        return _read_fields_leniently(body)


def elements(raw: Raw) -> list[bytes]:
    """The elements of a field that is an array, each as the client wrote it; none if it is not one."""
    try:
        return [bytes(each) for each in _RAW_LIST.decode(raw)]
    except _UNREADABLE:
        return []


def given(raw: Raw) -> bytes | None:
    """The bytes of a field's value, or None if it is absent or null."""
    if raw is _ABSENT:
        return None
    value = bytes(raw)
    return None if value in (b"", b"null") else value


def flag(raw: Raw, default: bool = False) -> bool:
    """A field's truth value, as the engines' validation takes it."""
    if raw is _ABSENT:
        return default
    value = _value(raw)
    if isinstance(value, str):
        return value.lower() in _TRUE_WORDS
    return default if value is None else value in (True, 1)


def _read_fields_leniently(body: bytes) -> Fields:
    """Read what Python's own parser, which the engines use, takes beyond the standard: NaN, a BOM, lone surrogates."""
    try:
        value = json.loads(body, parse_constant=lambda _: None, parse_float=_finite)
        if isinstance(value, dict):
            return _FIELDS.decode(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except _UNREADABLE as error:
        raise ClientError(
            400,
            f"We could not parse the JSON body of your request: {error}. Send one JSON object, encoded as UTF-8.",
        ) from error
    raise _wrong_type(None, "an object", value)


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _value(raw: Raw) -> Any:
    value = given(raw)
    try:
        return None if value is None else msgspec.json.decode(value)
    except _UNREADABLE:
        return None


def _text(raw: Raw) -> str | None:
    value = _value(raw)
    return value if isinstance(value, str) else None


def _integer(raw: Raw) -> int | None:
    if raw is _ABSENT:
        return None
    value = _value(raw)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 19:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _model(raw: Raw) -> str:
    try:
        return _STRING.decode(raw)
    except _UNREADABLE as error:
        if given(raw) is not None:
            raise _wrong_type("model", "a string", _value(raw)) from error
    raise ClientError(400, "You must provide a model parameter.", param="model", code="missing_required_parameter")


def _prompt(fields: Fields) -> tuple[TokenIds | None, str | None, list[Raw], str | None]:
    """(first prompt's token ids, its text, all prompts if they are a list, opaque) of a completion."""
    raw = given(fields.prompt)
    if raw is None:
        return None, None, [], "prompt_form"
    if raw[:1] not in (b'"', b"["):
        raise _wrong_type(
            "prompt", "a string, an array of strings, or one or more arrays of token ids", _value(fields.prompt)
        )
    try:
        if raw[:1] == b'"':
            return None, _STRING.decode(raw), [], None
        inner = raw[1:].lstrip(b" \t\r\n")[:1]
        if inner not in (b'"', b"["):
            return _TOKEN_IDS.decode(raw) or None, None, [], "prompt_form" if inner == b"]" else None
        prompts = _RAW_LIST.decode(raw)
        first = bytes(prompts[0])
        if inner == b'"':
            return None, _STRING.decode(first), prompts, None
        return _TOKEN_IDS.decode(first), None, prompts, None
    except _UNREADABLE:
        return None, None, [], "prompt_form"


def _further(prompts: list[Raw]) -> tuple[TokenIds, ...] | None:
    try:
        return tuple(_TOKEN_IDS.decode(prompt) for prompt in prompts[1:])
    except _UNREADABLE:
        return None


def _multimodal(messages: Raw) -> bool:
    raw = given(messages)
    if raw is None:
        raise ClientError(
            400, "Missing required parameter: 'messages'.", param="messages", code="missing_required_parameter"
        )
    if raw[:1] != b"[":
        raise _wrong_type("messages", "an array of objects", _value(messages))
    if raw.find(b"[", 1) < 0:
        return False  # no message has parts
    try:
        contents = [bytes(message.content) for message in _MESSAGES.decode(raw)]
        return any(_has_media(content) for content in contents if content[:1] == b"[")
    except _UNREADABLE:
        return False


def _has_media(content: bytes) -> bool:
    for part in _RAW_LIST.decode(content):
        if bytes(part)[:1] != b"{":
            continue
        keys = _PART.decode(part)
        if not _MEDIA_KEYS.isdisjoint(keys) or ("type" in keys and _text(keys["type"]) not in _TEXT_PARTS):
            return True
    return False


def _opaque(fields: Fields, multimodal: bool) -> str | None:
    if multimodal:
        return "multimodal"
    if given(fields.truncate_prompt_tokens):
        return "truncated"
    if given(fields.suffix):
        return "suffix"
    return "embeds" if given(fields.prompt_embeds) else None


def _skips_cache_read(fields: Fields, chat: bool) -> bool:
    """Whether the engine computes log-probabilities of the prompt, for which it needs all of it computed anew.

    With `echo` a completion takes `logprobs` for them, and a chat `top_logprobs`, which is never absent (0).
    """
    if given(fields.prompt_logprobs) is not None:
        return True
    return flag(fields.echo) and (chat or given(fields.logprobs) is not None)


def _full_report(fields: Fields) -> bool:
    arguments = _value(fields.vllm_xargs)
    return isinstance(arguments, dict) and arguments.get("kv_cache_report_mode") == "full"


def _wrong_type(param: str | None, wanted: str, got: Any) -> ClientError:
    names = {str: "a string", bool: "a boolean", int: "an integer", float: "a number", list: "an array"}
    found = "an object" if isinstance(got, dict) else names.get(type(got), "null")
    subject = f"Invalid type for '{param}'" if param else "Invalid request body"
    return ClientError(400, f"{subject}: expected {wanted}, but got {found} instead.", param=param, code="invalid_type")
