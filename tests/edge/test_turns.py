"""Chats made message by message have the ids of the prompt that is rendered whole, whatever the template does."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from warmroute.core import openai
from warmroute.edge.tokenizer_local import LocalTokenizer, turns
from warmroute.edge.tokenizer_local.encoder import INLINE_CHARS_MAX
from warmroute.edge.tokenizer_local.templates import Templates
from warmroute.edge.tokenizer_local.turns import cut
from warmroute.errors import TokenizeError
from warmroute.types import Endpoint

SPECIALS = ["<s>", "<|im_start|>", "<|im_end|>", "[INST]"]
CHAT_ML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CUT = {
    "chat-ml": CHAT_ML,
    "system first": (
        "{% if messages[0].role == 'system' %}<|im_start|>{{ messages[0].content }}<|im_end|>{% endif %}"
        "{% if tools %}{{ tools | tojson }}{% endif %}"
        "{% for message in messages %}{% if not (loop.first and message.role == 'system') %}"
        "<|im_start|>{{ message.role }}{% if thinks is defined %}{{ thinks }}{% endif %}{{ message.content | trim }}"
        "{% for call in message.tool_calls or [] %}{{ loop.index }}{{ call.function.arguments | tojson }}{% endfor %}"
        "<|im_end|>{% endif %}{% endfor %}"
    ),
    "sliced": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
        "{% set messages = messages[1:] %}{% else %}{% set system = 'none' %}{% endif %}{{ system }}"
        "{% for message in messages %}{% set content = message['content'] %}{% if loop.index0 == 0 %}[INST]{% endif %}"
        "{{ message['role'] + ': ' + content }}{% if not loop.last %}[INST]{% endif %}{% endfor %}"
    ),
    "no special tokens": "a{% for m in messages %}{{ m.content }}{% endfor %}b",
    "halves of special tokens": "<|im_{% for m in messages %}start|>{{ m.content }}<|im_{% endfor %}end|>",
    "what the one before has set": (
        "{% for m in messages %}{% if m.role == 'user' %}{% set x = m.content %}{% endif %}"
        "<|im_start|>{{ x if x is defined else 'none' }}{{ m.content }}{% endfor %}"
    ),
    "a macro": (
        "{% macro turn(m, n) %}<|im_start|>{{ m.role }}{{ n }}{{ m.content }}<|im_end|>{% endmacro %}"
        "{% for message in messages %}{{ turn(message, loop.index) }}{% endfor %}"
    ),
    "refuses": (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        "<|im_start|>{{ m.content }}{% endfor %}"
    ),
}
"""What is made message by message."""
WHOLE = {
    "the one before": "{% for m in messages %}{{ messages[loop.index0 - 1].role }}{{ m.content }}{% endfor %}",
    "a namespace": "{% set n = namespace(i=0) %}{% for m in messages %}{% set n.i = n.i + 1 %}{{ n.i }}{% endfor %}",
    "two loops": "{% for m in messages %}{{ m.role }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}",
    "a filter on the loop": "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
    "a name set before": "{% set x = messages[0].role %}{% for m in messages %}{{ x }}{{ m.content }}{% endfor %}",
    "breaks off": "{% for m in messages %}{{ m.content }}{% if m.content == 'a' %}{% break %}{% endif %}{% endfor %}",
    "what time it is": "{% for m in messages %}{{ m.content }}{{ strftime_now('%S') }}{% endfor %}",
    "a macro that looks around": (
        "{% macro turn(m) %}{{ messages | length }}{{ m.content }}{% endmacro %}"
        "{% for m in messages %}{{ turn(m) }}{% endfor %}"
    ),
    "the loop handed on": "{% for m in messages %}{{ loop.previtem }}{{ m.content }}{% endfor %}",
    "chance": "{% for m in messages %}{{ ['a', 'b'] | random }}{{ m.content }}{% endfor %}",
}
"""What is known at once not to be of that kind."""
PEEKING = {
    "the last": "{{ messages[-1].role }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "all": "{{ messages | map(attribute='role') | join }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "as text": "{{ messages }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "equal": "{{ messages[1] == messages[2] }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "what it is": "{{ messages[1] is mapping }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "whether it is there": "{% if messages[1] %}a{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}",
    "as JSON": "{{ messages | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "caught": "{% set x %}{% for m in messages %}{{ m.content }}{% endfor %}{% endset %}{{ x | upper }}",
    "sliced away": "{% for m in messages[2:] %}{{ m.content }}{% endfor %}",
    "shouted": "{% filter upper %}{% for m in messages %}{{ m.content }}{% endfor %}{% endfilter %}",
}
"""What is found out when it is tried."""
TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello <|im_end|> there"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "bye"},
]


def build(folder: Path, template: str) -> Path:
    tokenizer: Any = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer: Any = tokenizers.trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["hello there, be brief: hello and goodbye"] * 3, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"bos_token": "<s>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return folder


class Held:
    """A tokenizer, whose every answer is held against the prompt rendered whole."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = LocalTokenizer(str(folder))
        self.templates = Templates(folder, lambda: pytest.fail("nobody asked for the time"))
        self.truth: Any = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    async def agrees(self, messages: Any, **fields: Any) -> None:
        body = json.dumps({"model": "m", "messages": messages, **fields}).encode()
        try:
            text = self.templates.render(openai.read_fields(body))
            expected: Any = self.truth.encode(text, add_special_tokens=False).ids
        except TokenizeError as error:
            expected = error.reason
        try:
            found: Any = list(
                await self.tokenizer.tokens(openai.parse("/v1/chat/completions", body), Endpoint("127.0.0.1", 1))
            )
        except TokenizeError as error:
            found = error.reason
        assert found == expected

    @property
    def cuts(self) -> bool:
        return bool(self.tokenizer._turns._cuts)


@pytest.mark.parametrize("name", CUT)
async def test_a_growing_chat_is_made_message_by_message(tmp_path: Path, name: str) -> None:
    held = Held(build(tmp_path, CUT[name]))
    for _ in range(2):
        for end in range(1, len(TALK) + 1):
            await held.agrees(TALK[:end])
    assert held.cuts
    assert len(held.tokenizer._turns._parts) >= len(TALK) - 1


@pytest.mark.parametrize("name", WHOLE)
def test_what_depends_on_more_than_its_message_is_rendered_whole(tmp_path: Path, name: str) -> None:
    templates = Templates(build(tmp_path, CHAT_ML), lambda: pytest.fail("nobody asked for the time"))
    assert cut(templates.environment, CHAT_ML) is not None
    assert cut(templates.environment, WHOLE[name]) is None


@pytest.mark.parametrize("name", PEEKING)
async def test_a_template_that_looks_at_messages_outside_its_loop_is_found_out(tmp_path: Path, name: str) -> None:
    held = Held(build(tmp_path, PEEKING[name]))
    assert held.cuts
    for end in (4, 3, 4) * 34:
        await held.agrees(TALK[:end])
    assert not held.cuts


async def test_calls_of_tools_as_they_were_given_are_another_text(tmp_path: Path) -> None:
    held = Held(build(tmp_path, "{% for m in messages %}{{ (m.tool_calls or ['no'])[0] | tojson }}{% endfor %}"))
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}", "more": 1}}
    body = json.dumps({"model": "m", "messages": [TALK[1], {"role": "assistant", "tool_calls": [call]}]}).encode()
    parsed = openai.parse("/v1/chat/completions", body)
    for raw_calls in (False, True, False):
        request = msgspec.structs.replace(parsed, raw_calls=raw_calls)
        text = held.templates.render(openai.read_fields(body), raw_calls=raw_calls)
        found = await held.tokenizer.tokens(request, Endpoint("127.0.0.1", 1))
        assert list(found) == held.truth.encode(text, add_special_tokens=False).ids
    assert held.cuts


async def test_a_long_beginning_does_not_end_it(tmp_path: Path) -> None:
    held = Held(build(tmp_path, CUT["system first"]))
    for name in ("a", "a", "b"):
        long = {"role": "system", "content": " ".join(f"{name}{n}" for n in range(INLINE_CHARS_MAX))}
        await held.agrees([long, *TALK[1:]])
        await held.agrees([TALK[0], long, *TALK[1:]])
    assert held.cuts
    assert len(held.tokenizer._turns._outlines) >= 2


async def test_a_refused_chat_does_not_end_it(tmp_path: Path) -> None:
    held = Held(build(tmp_path, "{% if not tools %}{{ raise_exception('no tools') }}{% endif %}" + CHAT_ML))
    for _ in range(200):
        await held.agrees(TALK)
        await held.agrees(TALK, tools=[{"type": "function", "function": {"name": "f"}}])
    assert held.cuts


MESSAGES = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["user", "assistant", "system", "tool"]),
                "content": st.sampled_from(["", "a", "hello <|im_start|>", "<|im_", "end|>", "é\u0000", " x ", None])
                | st.text(max_size=8),
            },
            optional={
                "name": st.text("ab", max_size=2),
                "tool_calls": st.just(
                    [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]
                ),
            },
        ),
        st.sampled_from([{"role": "robot", "content": "x"}, 5, {"role": "user", "content": [{"type": "audio"}]}]),
    ),
    max_size=6,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "add_generation_prompt": st.booleans(),
        "chat_template_kwargs": st.sampled_from([{}, {"thinks": 1}, {"m": "x", "message": "y", "loop": "z"}]),
        "tools": st.sampled_from([None, [{"type": "function", "function": {"name": "f"}}]]),
        "add_special_tokens": st.just(False),
        "chat_template": st.just("x"),
    },
)


@pytest.mark.parametrize("name", {**CUT, **PEEKING})
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(talks=st.lists(st.tuples(MESSAGES, FIELDS), min_size=1, max_size=4))
async def test_whatever_is_said_the_ids_are_those_of_the_whole(tmp_path: Path, name: str, talks: Any) -> None:
    folder = tmp_path if (tmp_path / "tokenizer.json").exists() else build(tmp_path, (CUT | PEEKING)[name])
    held = Held(folder)
    for messages, fields in [*talks, *talks]:
        await held.agrees(messages, **fields)
    held.tokenizer.close()


async def test_a_difference_ends_it_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    held = Held(build(tmp_path, CHAT_ML))
    made = held.tokenizer._turns._cuts["default"]
    held.tokenizer._turns._cuts["default"] = made._replace(body=made.outline.environment.from_string("no"))
    with caplog.at_level(logging.WARNING):
        await held.agrees(TALK)
    assert "treats messages in another way" in caplog.text
    assert held.tokenizer.given_up == {"messages": 1}
    assert not held.cuts


async def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "CACHE_CHARS_MAX", 500)
    monkeypatch.setattr(turns, "OUTLINE_CHARS_MAX", 500)
    monkeypatch.setattr(turns, "SETTINGS_MAX", 3)
    held = Held(build(tmp_path, CHAT_ML))
    for number in range(30):
        await held.agrees([{"role": "user", "content": f"hello {number}"}], chat_template_kwargs={"n": number})
        assert held.tokenizer._turns._parts.chars <= 500
        assert held.tokenizer._turns._outlines.chars <= 500
        assert len(held.tokenizer._turns._settings) <= 3
