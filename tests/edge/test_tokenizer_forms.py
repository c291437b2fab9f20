"""Messages and responses before both tokenizers: what the template has to say, and the order of a call's keys."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import tokenizers
from aiohttp import web

from warmroute.core import forms
from warmroute.core.forms import MESSAGES, RESPONSES
from warmroute.core.openai import RoutingRequest
from warmroute.edge.tokenizer_local import LocalTokenizer
from warmroute.edge.tokenizer_remote import RemoteTokenizer
from warmroute.errors import TokenizeError
from warmroute.types import Endpoint

Serve = Callable[..., Awaitable[Endpoint]]

SPECIALS = ["<s>", "<|im_end|>"]
PLAIN = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
STRICT = """{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}
{{- m.role[0] }}:{{ m.content }};{% endfor %}"""
EFFORT = "{{ reasoning_effort }}{{ enable_thinking }}"
CALLS = (
    "{% for m in messages %}{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{% endfor %}"
)

INLINE = {"system": "a", "messages": [{"role": "user", "content": "b"}, {"role": "system", "content": "c"}]}
QUICK = {"messages": [{"role": "user", "content": "b"}], "thinking": {"type": "disabled"}}
CALLED = {"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"x": 1}'}]}


def request(path: str, body: dict[str, Any]) -> RoutingRequest:
    made = forms.parse(path, json.dumps({"model": "m", **body}).encode())
    assert made is not None
    assert made.opaque is None
    return made


def build(folder: Path, template: str) -> Path:
    tokenizer: Any = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer: Any = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["some text"], trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


async def local(folder: Path, template: str, path: str, body: dict[str, Any]) -> str:
    """The prompt that is made in process."""
    tokenizer = LocalTokenizer(str(build(folder, template)))
    ids = list(await tokenizer.tokens(request(path, body), Endpoint("127.0.0.1", 1)))
    tokenizer.close()
    plain: Any = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return str(plain.decode(ids, skip_special_tokens=False))


@pytest.mark.parametrize(
    ("template", "body", "expected"),
    [
        (PLAIN, INLINE, "s:a;u:b;s:c;"),
        (STRICT, INLINE, "s:ac;u:b;"),
        (EFFORT, QUICK, "noneFalse"),
        ("{{ reasoning_effort if reasoning_effort != 'none' else 'max' }}", QUICK, "low"),
        ("{{ raise_exception('no') if reasoning_effort == 'none' else reasoning_effort }}", QUICK, "low"),
    ],
)
async def test_what_the_template_says_in_process(
    tmp_path: Path, template: str, body: dict[str, Any], expected: str
) -> None:
    assert await local(tmp_path, template, MESSAGES, body) == expected


async def test_calls_in_process_are_in_the_order_of_their_path(tmp_path: Path) -> None:
    assert await local(tmp_path, CALLS, RESPONSES, CALLED) == '<s>{"name": "f", "arguments": {"x": 1}}'
    use = {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}}
    body = {"messages": [{"role": "assistant", "content": [use]}]}
    assert await local(tmp_path, CALLS, MESSAGES, body) == '{"arguments": {"x": 1}, "name": "f"}'


async def test_a_tokenizer_that_adds_nothing_keeps_segments_of_responses(tmp_path: Path) -> None:
    folder = build(tmp_path, PLAIN + "<|im_end|>")
    described = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**described, "post_processor": None}))
    tokenizer = LocalTokenizer(str(folder))
    await tokenizer.tokens(request(RESPONSES, {"input": "hello"}), Endpoint("127.0.0.1", 1))
    assert tokenizer._encoder._kept.all(["u:hello;", ""]) is not None
    tokenizer.close()


class Engine:
    """Answers `/tokenize` with the bytes of what its template makes of a chat, and `/detokenize` with the text."""

    def __init__(self, template: Callable[[dict[str, Any]], str]) -> None:
        self.template = template
        self.asked: Counter[str] = Counter()

    async def __call__(self, asked: web.Request) -> web.Response:
        body = await asked.json()
        self.asked[asked.path] += 1
        if asked.path == "/detokenize":
            return web.json_response({"prompt": bytes(body["tokens"]).decode()})
        try:
            return web.json_response({"tokens": list(self.template(body).encode())})
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)


def strict(body: dict[str, Any]) -> str:
    if any(message["role"] == "system" for message in body["messages"][1:]):
        raise ValueError("system must come first")
    return lenient(body)


def lenient(body: dict[str, Any]) -> str:
    return "".join(f"{message['role'][0]}:{message['content']};" for message in body["messages"])


def effort(body: dict[str, Any]) -> str:
    return str(body["chat_template_kwargs"]["reasoning_effort"])


def never_none(body: dict[str, Any]) -> str:
    return effort(body).replace("none", "max")


@pytest.mark.parametrize(
    ("template", "body", "expected", "questions"),
    [
        (lenient, INLINE, "s:a;u:b;s:c;", 2),
        (strict, INLINE, "s:ac;u:b;", 2),
        (effort, QUICK, "none", 6),
        (never_none, QUICK, "low", 6),
    ],
)
async def test_what_the_template_says_is_asked_once(
    session: aiohttp.ClientSession, serve: Serve, template: Any, body: dict[str, Any], expected: str, questions: int
) -> None:
    engine = Engine(template)
    endpoint, tokenizer = await serve(engine), RemoteTokenizer(session, None, 5.0)
    for _ in range(3):
        assert bytes(await tokenizer.tokens(request(MESSAGES, body), endpoint)).decode() == expected
    assert engine.asked == {"/tokenize": questions + 3}


async def test_an_engine_that_refuses_all_is_asked_again(session: aiohttp.ClientSession, serve: Serve) -> None:
    def refuse(_: dict[str, Any]) -> str:
        raise ValueError

    engine = Engine(refuse)
    endpoint, tokenizer = await serve(engine), RemoteTokenizer(session, None, 5.0)
    with pytest.raises(TokenizeError):
        await tokenizer.tokens(request(MESSAGES, INLINE), endpoint)
    engine.template = lenient
    assert bytes(await tokenizer.tokens(request(MESSAGES, INLINE), endpoint)).decode() == "s:a;u:b;s:c;"


def _calls(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [call["function"] for message in body["messages"] for call in message.get("tool_calls", ())]


@pytest.mark.parametrize(
    ("template", "sure"),
    [
        (lambda body: "".join(f"{call['name']}({call['arguments']})" for call in _calls(body)), True),
        (lambda body: "".join(json.dumps(call, sort_keys=True) for call in _calls(body)), False),
        (lambda body: "hello", False),
    ],
)
async def test_calls_are_sure_where_the_template_names_them_first(
    session: aiohttp.ClientSession, serve: Serve, template: Any, sure: bool
) -> None:
    engine = Engine(template)
    endpoint, tokenizer = await serve(engine), RemoteTokenizer(session, None, 5.0)
    for _ in range(2):
        if sure:
            assert bytes(await tokenizer.tokens(request(RESPONSES, CALLED), endpoint)) == b'f({"x": 1})'
        else:
            with pytest.raises(TokenizeError) as error:
                await tokenizer.tokens(request(RESPONSES, CALLED), endpoint)
            assert error.value.reason == "calls"
    assert engine.asked["/detokenize"] == 1
    await tokenizer.tokens(request(RESPONSES, {"input": "no calls"}), endpoint)
    assert engine.asked["/detokenize"] == 1
