from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmroute.core import openai
from warmroute.errors import ClientError

CHAT = "/v1/chat/completions"
RARE: dict[str, Any] = {
    "cache_salt": "s",
    "n": 2,
    "echo": True,
    "prompt_logprobs": 1,
    "priority": 3,
    "vllm_xargs": {"kv_cache_report_mode": "full"},
    "truncate_prompt_tokens": 5,
    "suffix": "s",
    "prompt_embeds": "x",
}
"""What few chats say, each with a value that changes how they are routed."""
COMPLETIONS = "/v1/completions"


def chat(**fields: Any) -> openai.RoutingRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return openai.parse(CHAT, json.dumps(body).encode())


def completion(**fields: Any) -> openai.RoutingRequest:
    return openai.parse(COMPLETIONS, json.dumps({"model": "m", "prompt": "hi", **fields}).encode())


def test_defaults_of_a_chat_request() -> None:
    body = b'{"model": "m", "messages": []}'
    parsed = openai.parse(CHAT, body)
    assert parsed == openai.RoutingRequest(path=CHAT, model="m", body=body, chat=True, fields=parsed.fields)


@pytest.mark.parametrize("stream", [True, False, None])
def test_a_chat_is_read_alike_whether_rare_fields_are_absent_or_null(stream: Any) -> None:
    """Most chats are read in a shorter way, by which no field may be overlooked."""
    short, long = chat(stream=stream), chat(stream=stream, **dict.fromkeys(RARE))
    assert short == msgspec.structs.replace(long, body=short.body, fields=short.fields)


@pytest.mark.parametrize("name", RARE)
def test_no_rare_field_of_a_chat_is_overlooked(name: str) -> None:
    said = chat(**{name: RARE[name]})
    assert said != msgspec.structs.replace(chat(), body=said.body, fields=said.fields)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"", None, None),
        (b"{", None, None),
        (b'{"model": "m"} x', None, None),
        (b'"\xff"', None, None),
        (b"[" * 100_000, None, None),
        (b"[]", None, "invalid_type"),
        (b"null", None, "invalid_type"),
        (b"NaN", None, "invalid_type"),
        (b"{}", "model", "missing_required_parameter"),
        (b'{"model": null}', "model", "missing_required_parameter"),
        (b'{"model": 3}', "model", "invalid_type"),
        (b'{"model": "m"}', "messages", "missing_required_parameter"),
        (b'{"model": "m", "messages": "hi"}', "messages", "invalid_type"),
        (b'{"model": "m", "messages": {}}', "messages", "invalid_type"),
    ],
)
def test_what_no_engine_could_take_is_refused(body: bytes, param: str | None, code: str | None) -> None:
    with pytest.raises(ClientError) as error:
        openai.parse(CHAT, body)
    assert (error.value.status, error.value.param, error.value.code) == (400, param, code)


@pytest.mark.parametrize("prompt", [b"7", b"true", b"1.5", b'{"a": 1}'])
def test_a_prompt_that_is_neither_text_nor_array_is_refused(prompt: bytes) -> None:
    with pytest.raises(ClientError, match="'prompt': expected a string") as error:
        openai.parse(COMPLETIONS, b'{"model": "m", "prompt": %s}' % prompt)
    assert error.value.param == "prompt"


@pytest.mark.parametrize(
    ("prompt", "token_ids", "text", "prompts", "opaque"),
    [
        ("some text", None, "some text", 1, None),
        ("", None, "", 1, None),
        (["a", "b", "c"], None, "a", 3, None),
        ([5, 6, 7], [5, 6, 7], None, 1, None),
        ([0, 2**32 - 1], [0, 2**32 - 1], None, 1, None),
        ([[1, 2], [3]], [1, 2], None, 2, None),
        (None, None, None, 1, "prompt_form"),
        ([], None, None, 1, "prompt_form"),
        ([1, "a"], None, None, 1, "prompt_form"),
        ([-1], None, None, 1, "prompt_form"),
        ([2**32], None, None, 1, "prompt_form"),
        ([["a"]], None, None, 1, "prompt_form"),
        ([None], None, None, 1, "prompt_form"),
    ],
)
def test_prompt_forms(prompt: Any, token_ids: Any, text: str | None, prompts: int, opaque: str | None) -> None:
    found = completion(prompt=prompt)
    assert (found.token_ids, found.prompt, found.prompts, found.opaque) == (token_ids, text, prompts, opaque)


def test_fields_that_routing_needs() -> None:
    found = chat(stream=True, n=3, cache_salt="s")
    assert (found.stream, found.n, found.cache_salt) == (True, 3, "s")
    assert [chat(**asked).priority for asked in ({"priority": -3}, {"priority": "high"}, {})] == [-3, 0, 0]


def test_values_are_read_as_the_engines_validation_would() -> None:
    found = chat(stream="yes", n="2")
    assert (found.stream, found.n, chat(n=3.0).n) == (True, 2, 3)


@pytest.mark.parametrize("odd", [[], {}, "x", -1, 10**40, 1.5, True, None])
def test_odd_values_are_left_to_the_engine(odd: Any) -> None:
    found = chat(stream=odd if odd is not True else [], n=odd, cache_salt=odd if odd != "x" else 1)
    assert (found.stream, found.cache_salt) == (False, None)
    assert found.n >= 1


@pytest.mark.parametrize(
    ("request_", "skips"),
    [
        (chat(), False),
        (chat(prompt_logprobs=None), False),
        (chat(prompt_logprobs=0), True),
        (chat(prompt_logprobs=5), True),
        (chat(logprobs=True, top_logprobs=3), False),
        (chat(echo=True), True),
        (completion(echo=True), False),
        (completion(logprobs=2), False),
        (completion(echo=True, logprobs=0), True),
        (completion(echo=False, logprobs=1), False),
        (completion(prompt_logprobs=1), True),
    ],
)
def test_requests_that_do_not_read_the_cache(request_: openai.RoutingRequest, skips: bool) -> None:
    assert request_.skips_cache_read is skips


@pytest.mark.parametrize(
    ("part", "multimodal"),
    [
        ({"type": "text", "text": "x"}, False),
        ({"type": "refusal", "refusal": "no"}, False),
        ({"text": "x"}, False),
        ("x", False),
        ({"type": "image_url", "image_url": {"url": "data:"}}, True),
        ({"image_url": {"url": "data:"}}, True),
        ({"type": "text", "text": "x", "input_audio": {}}, True),
        ({"type": "hologram"}, True),
        ({"type": ["text"]}, True),
    ],
)
def test_parts_that_are_not_text(part: Any, multimodal: bool) -> None:
    found = chat(messages=[{"role": "system", "content": "s"}, {"role": "user", "content": [part]}])
    assert found.multimodal is multimodal
    assert found.opaque == ("multimodal" if multimodal else None)


@pytest.mark.parametrize(
    ("fields", "opaque"),
    [
        ({"truncate_prompt_tokens": 5}, "truncated"),
        ({"suffix": "end"}, "suffix"),
        ({"prompt_embeds": "AAAA"}, "embeds"),
        ({"truncate_prompt_tokens": None, "suffix": None}, None),
    ],
)
def test_a_prompt_that_the_engine_changes_is_not_guessed(fields: dict[str, Any], opaque: str | None) -> None:
    found = completion(prompt=[1, 2], **fields)
    assert found.opaque == opaque
    assert found.token_ids == (None if opaque else [1, 2])


def test_the_last_of_equal_keys_counts() -> None:
    body = b'{"model": "a", "messages": [], "model": "b", "m\\u006fdel": "c"}'
    assert openai.parse(CHAT, body).model == json.loads(body)["model"] == "c"


@pytest.mark.parametrize(
    "extra",
    [
        b'"temperature": NaN',
        b'"x": -Infinity, "temperature": 1e999',
        b'"user": "\\ud800"',
        b'"seed": ' + b"9" * 4000,
        b'"x": 1e999',
    ],
)
def test_what_pythons_parser_takes_is_not_refused(extra: bytes) -> None:
    body = b'{"model": "m", "messages": [], %s}' % extra
    assert openai.parse(CHAT, body).body == body


def test_other_encodings_of_json_are_read() -> None:
    text = '{"model": "m", "messages": []}'
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        assert openai.parse(CHAT, text.encode(encoding)).model == "m"


def test_the_model_of_any_body() -> None:
    assert openai.model_of(b'{"model": "m", "input": "x"}') == "m"
    assert openai.model_of(b'{"model": 3}') is None
    assert openai.model_of(b"{}") is None
    assert openai.model_of(b"\x00binary") is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(openai.Fields.__struct_fields__)


def parsed(path: str, body: bytes) -> openai.RoutingRequest | ClientError:
    try:
        return openai.parse(path, body)
    except ClientError as error:
        return error


@given(st.sampled_from([CHAT, COMPLETIONS]), st.binary() | st.builds(lambda v: json.dumps(v).encode(), JSON))
def test_garbage_parses_or_raises_client_error(path: str, body: bytes) -> None:
    found = parsed(path, body)
    assert isinstance(found, openai.RoutingRequest) or found.status == 400
    openai.model_of(body)


@settings(max_examples=300)
@given(st.sampled_from([CHAT, COMPLETIONS]), st.dictionaries(NAMES, JSON, max_size=8))
def test_strange_fields_parse_or_are_refused_for_what_routing_needs(path: str, fields: dict[str, Any]) -> None:
    fields.setdefault("model", "m")
    found = parsed(path, json.dumps(fields).encode())
    if isinstance(found, ClientError):
        assert found.param in ("model", "messages", "prompt")
    else:
        assert found.prompts >= 1
        assert found.n >= 1


@given(st.binary(max_size=40), st.integers(0, 60))
def test_a_damaged_body_parses_or_raises_client_error(noise: bytes, at: int) -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a"}]}],"n":1}'
    parsed(CHAT, body[:at] + noise + body[at + len(noise) :])
