from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from warmroute.core import openai, words
from warmroute.edge.tokenizer_local import LocalTokenizer, content_format, encoder, templates
from warmroute.edge.tokenizer_local.encoder import INLINE_CHARS_MAX
from warmroute.errors import ConfigError, TokenizeError
from warmroute.types import Endpoint

EP = Endpoint("127.0.0.1", 1)
SPECIALS = ["<s>", "<|im_start|>", "<|im_end|>", "<|im"]
SIMPLE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(folder: Path, template: Any = SIMPLE, *, file: str | None = None, **config: Any) -> Path:
    tokenizer: Any = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer: Any = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the quick brown fox says hello to the world"] * 3, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.enable_truncation(8)
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"bos_token": {"content": "<s>"}, "eos_token": "<|im_end|>", "chat_template": template, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    if file is not None:
        (folder / "chat_template.jinja").write_text(file)
    return folder


def plain(folder: Path) -> Any:
    tokenizer: Any = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    return tokenizer


async def ids(tokenizer: LocalTokenizer, path: str = "/v1/chat/completions", **fields: Any) -> list[int]:
    body = json.dumps({"model": "m", **fields}).encode()
    return list(await tokenizer.tokens(openai.parse(path, body), EP))


async def text(folder: Path, *messages: dict[str, Any], **fields: Any) -> str:
    """The prompt a chat is rendered to."""
    tokenizer = LocalTokenizer(str(folder), now=lambda: datetime(2024, 5, 6, tzinfo=UTC))
    try:
        found = await ids(tokenizer, messages=messages, **fields)
    finally:
        tokenizer.close()
    decoded: str = plain(folder).decode(found, skip_special_tokens=False)
    return decoded


USER = {"role": "user", "content": "hello"}


async def test_a_completion_gets_the_special_tokens_and_a_chat_does_not(tmp_path: Path) -> None:
    tokenizer, truth = LocalTokenizer(str(build(tmp_path))), plain(tmp_path)
    where = "/v1/completions"
    long = "hello world " * 20
    assert await ids(tokenizer, where, prompt=long) == truth.encode(long).ids
    assert (
        await ids(tokenizer, where, prompt="x", add_special_tokens=False)
        == truth.encode("x", add_special_tokens=False).ids
    )
    rendered = "<|im_start|>user\nhello<|im_end|><|im_start|>assistant\n"
    assert await ids(tokenizer, messages=[USER]) == truth.encode(rendered, add_special_tokens=False).ids
    assert await ids(tokenizer, messages=[USER], add_special_tokens=True) == truth.encode(rendered).ids


async def test_a_prompt_that_is_no_text_is_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(TokenizeError) as error:
        await ids(LocalTokenizer(str(build(tmp_path))), "/v1/completions", prompt=None)
    assert error.value.reason == "prompt_form"


async def test_roles_and_turns(tmp_path: Path) -> None:
    system, answer = {"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}
    assert await text(build(tmp_path), system, USER, answer, USER, add_generation_prompt=False) == (
        "<|im_start|>system\ns<|im_end|><|im_start|>user\nhello<|im_end|>"
        "<|im_start|>assistant\na<|im_end|><|im_start|>user\nhello<|im_end|>"
    )


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        ("x", "x"),
        (None, ""),
        ([], ""),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": ""}, {"type": "text", "text": "b"}], "a\nb"),
        ([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}], "a"),
    ],
)
async def test_parts_for_a_template_that_wants_text(tmp_path: Path, content: Any, seen: str) -> None:
    folder = build(tmp_path, "{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert await text(folder, {"role": "user", "content": content}) == f"[{seen}]"


async def test_parts_for_a_template_that_wants_parts(tmp_path: Path) -> None:
    folder = build(
        tmp_path, "{% for m in messages %}{{ m.content | tojson }}{% for p in m.content %}{% endfor %}{% endfor %}"
    )
    assert await text(folder, USER) == '[{"type": "text", "text": "hello"}]'
    assert await text(folder, {"role": "tool", "content": "t", "tool_call_id": "1"}) == '"t"'


EACH = "{% for m in messages %}"
END = "{% endfor %}"
PARTS = "{% macro f(c) %}{% for p in c %}{% endfor %}{% endmacro %}"


@pytest.mark.parametrize(
    ("template", "wants"),
    [
        (EACH + "{{ m.content }}" + END, "string"),
        (EACH + "{% for p in m.content %}" + END * 2, "parts"),
        (EACH + "{% for p in m['content'] | list %}" + END * 2, "parts"),
        ("{% set r = messages[1:] %}{% for m in r %}{% for p in m.content %}" + END * 2, "parts"),
        ("{% set b = a[1:] %}{% set a = messages %}{% for m in b %}{% for p in m.content %}" + END * 2, "parts"),
        (EACH + "{% for p in m.tool_calls %}" + END * 2, "string"),
        (EACH + "{% set content = m.content %}{% for p in content %}" + END * 2, "parts"),
        (PARTS + EACH + "{{ f(m.content) }}" + END, "parts"),
        (PARTS + EACH + "{{ f(c=m.content) }}" + END, "parts"),
        (
            "{% macro f(content) %}{% for p in content %}{% endfor %}{% endmacro %}" + EACH + "{{ f(m.x) }}" + END,
            "string",
        ),
        ("{% for d in documents %}{% for p in d.content %}" + END * 2, "string"),
    ],
)
def test_what_a_template_wants(template: str, wants: str) -> None:
    assert content_format(jinja2.Environment(autoescape=False).parse(template)) == wants


TOOL = {"type": "function", "function": {"parameters": {"b": 1, "a": 1.50}, "name": "f", "description": "<b>é"}}
CALL = {"type": "function", "function": {"name": "f", "arguments": '{"x": "é"}'}, "id": "c", "index": 0}


async def test_tools_are_written_as_the_engine_writes_them(tmp_path: Path) -> None:
    folder = build(tmp_path, "{{ tools | tojson }}")
    assert await text(folder, USER) == "null"
    assert await text(folder, USER, tools=[TOOL, {"function": {"name": "g", "strict": True}}]) == (
        '[{"type": "function", "function": {"name": "f", "description": "<b>é", "parameters": {"b": 1, "a": 1.5}}}, '
        '{"type": "function", "function": {"name": "g", "description": null, "parameters": null, "strict": true}}]'
    )


async def test_tool_calls_are_seen_as_the_engine_validated_them(tmp_path: Path) -> None:
    folder = build(
        tmp_path, "{% for m in messages %}{{ m.tool_calls | tojson if m.tool_calls is defined }}{% endfor %}"
    )
    calls = [CALL, {**CALL, "function": {"name": "f", "arguments": "no json"}}]
    assert await text(folder, {"role": "assistant", "content": None, "tool_calls": calls}) == (
        '[{"id": "c", "function": {"arguments": {"x": "é"}, "name": "f"}, "type": "function", "index": 0}, '
        '{"id": "c", "function": {"arguments": {}, "name": "f"}, "type": "function", "index": 0}]'
    )
    assert await text(folder, USER, {"role": "assistant", "content": "x", "tool_calls": []}) == ""


async def test_what_else_a_message_may_carry(tmp_path: Path) -> None:
    names = ("name", "reasoning", "reasoning_content", "tool_call_id", "odd")
    folder = build(tmp_path, EACH + "|".join("{{ m." + name + " }}" for name in names) + END)
    assert await text(folder, {"role": "user", "content": "x", "name": "bob", "odd": 1, "reasoning": "r"}) == "bob||||"
    assert await text(folder, {"role": "assistant", "content": "x", "reasoning_content": "r"}) == "|r|r||"
    assert await text(folder, {"role": "tool", "content": "x", "tool_call_id": "c"}) == "|||c|"


async def test_the_language_of_templates(tmp_path: Path) -> None:
    folder = build(
        tmp_path,
        "{{ bos_token }}{{ eos_token }}{{ strftime_now('%Y-%m-%d') }}\n"
        "    {% if true %}\n"
        "kept {{ {'a': '<é>'} | tojson }}{{ {'a': 1} | tojson(indent=1) }}\n"
        "    {% endif %}\n"
        "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}"
        "{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"
        "{% generation %}said{% endgeneration %}{{ undefined_thing }}{{ color }}",
    )
    assert await text(folder, USER, chat_template_kwargs={"color": "red"}) == (
        '<s><|im_end|>2024-05-06\nkept {"a": "<é>"}{\n "a": 1\n}\n02saidred'
    )


async def test_reasoning_effort_reaches_the_template(tmp_path: Path) -> None:
    folder = build(tmp_path, "{{ reasoning_effort }} {{ enable_thinking }}")
    assert await text(folder, USER, reasoning_effort="low") == "low True"
    assert await text(folder, USER, reasoning_effort="none") == "none False"
    assert (
        await text(folder, USER, reasoning_effort="low", chat_template_kwargs={"enable_thinking": False}) == "low False"
    )


async def test_continuing_the_last_message(tmp_path: Path) -> None:
    options = {"add_generation_prompt": False, "continue_final_message": True}
    begun = {"role": "assistant", "content": "once upon  "}
    kept = build(tmp_path)
    assert await text(kept, USER, begun, **options) == (
        "<|im_start|>user\nhello<|im_end|><|im_start|>assistant\nonce upon  "
    )
    trimmed = build(tmp_path, "{% for m in messages %}<{{ m.content | trim }}>{% endfor %}")
    assert await text(trimmed, USER, begun, **options) == "<hello><once upon"
    parts = build(tmp_path, "{% for m in messages %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endfor %}")
    assert await text(parts, USER, begun, **options) == "<hello><once upon  "
    for refused in ({**options, "add_generation_prompt": True}, {"continue_final_message": True}):
        with pytest.raises(TokenizeError, match="exclude each other"):
            await text(kept, USER, begun, **refused)
    with pytest.raises(TokenizeError, match="drops the last message"):
        await text(build(tmp_path, "{{ messages[0].content }}"), USER, begun, **options)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": ["x"]},
        {"messages": [{"content": "x"}]},
        {"messages": [{"role": "developer", "content": "x"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": ["x"]}]},
        {"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}]},
        {"messages": [{"role": "system", "content": "x-anthropic-billing-header: y"}]},
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "c"}]}]},
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": "x"}]},
        {"messages": [{"role": "assistant", "content": "x", "reasoning": 5}]},
        {"tools": [{"type": "function", "function": {"name": "f", "odd": 1}}]},
        {"tools": [{"type": "custom", "function": {"name": "f"}}]},
        {"tools": []},
        {"tools": {}},
        {"chat_template": "{{ messages }}"},
        {"documents": [{"text": "x"}]},
        {"chat_template_kwargs": {"tools": []}},
        {"chat_template_kwargs": 5},
    ],
)
async def test_what_is_not_understood_completely_is_not_guessed(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(TokenizeError) as error:
        await ids(LocalTokenizer(str(build(tmp_path))), **{"messages": [USER], **fields})
    assert error.value.reason == "unsupported"


async def test_a_template_that_objects(tmp_path: Path) -> None:
    for template in ("{{ raise_exception('no system here') }}", "{{ 1 / 0 }}", "{{ messages.append(1) }}"):
        with pytest.raises(TokenizeError) as error:
            await text(build(tmp_path, template), USER)
        assert error.value.reason == "refused"


async def test_which_template_is_taken(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    folder = build(tmp_path, named)
    assert await text(folder, USER) == "plain"
    assert await text(folder, USER, tools=[TOOL]) == "tools"
    assert await text(build(tmp_path, "from config", file="from file"), USER) == "from file"
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(TokenizeError, match="no chat template"):
        await text(build(tmp_path, None), USER)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be loaded"):
        LocalTokenizer(str(tmp_path))
    build(tmp_path, "{% if %}")
    with pytest.raises(ConfigError, match=r"chat template 'default' .* is not valid"):
        LocalTokenizer(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        LocalTokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be loaded"):
        LocalTokenizer(str(tmp_path))


async def test_long_texts_are_tokenized_in_a_thread_and_alike(tmp_path: Path) -> None:
    folder = build(tmp_path)
    tokenizer = LocalTokenizer(str(folder))
    long = "the quick fox 漢字 " * INLINE_CHARS_MAX
    expected = plain(folder).encode(long, add_special_tokens=False).ids
    assert await ids(tokenizer, "/v1/completions", prompt=long, add_special_tokens=False) == expected
    tokenizer.close()


@pytest.mark.parametrize(
    "asked",
    [
        *("m.role", "m.absent", "m.absent is defined", "m['role']", "m.items", "m.keys() | list", "m.items() | list"),
        *("m.pop('role')", "m.__class__", "m.__class__.__mro__", "m.role.__class__", "m.get('role')", "m.absent.more"),
        *("loop.first", "loop.index0", "loop.absent", "loop.__class__", "loop.__init__", "loop._len", "loop.length"),
        *("loop.cycle('a', 'b')", "loop.previtem", "loop.changed(m.role)", "m.copy", "m.update({})", "m.clear()"),
    ],
)
def test_the_quick_sandbox_is_the_librarys(asked: str) -> None:
    def says(environment: jinja2.Environment) -> str:
        template = environment.from_string("{% for m in ms %}{{ " + asked + " }},{% endfor %}")
        try:
            found = template.render(ms=[{"role": "user", "keys": 1}, {"absent": None}])
        except Exception as error:
            return repr(error)
        return re.sub(" at 0x[0-9a-f]+", "", found)

    assert says(templates.Sandbox()) == says(jinja2.sandbox.ImmutableSandboxedEnvironment())


async def test_what_is_begun_is_rendered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, rendered = LocalTokenizer(str(build(tmp_path))), []
    render = tokenizer._templates.render
    monkeypatch.setattr(tokenizer._templates, "render", lambda f, **how: rendered.append(f) or render(f, **how))
    long = {"role": "user", "content": "the quick fox " * INLINE_CHARS_MAX}
    request = openai.parse("/v1/chat/completions", json.dumps({"model": "m", "messages": [long]}).encode())
    rest = tokenizer.begin(request)
    assert callable(rest)
    found = await rest()
    assert len(rendered) == 1
    again = tokenizer.begin(request)
    assert not callable(again), "what was long is known now"
    assert again == found
    tokenizer.close()


PIECES = st.sampled_from([*SPECIALS, "hello", " hello", " ", "\n", "é", "漢", "<", "|im_", "start|>", "<|im_star", "a"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(texts=st.lists(st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=20), min_size=1, max_size=4))
async def test_segments_and_kept_ids_change_nothing(tmp_path: Path, texts: list[str]) -> None:
    folder = tmp_path if (tmp_path / "tokenizer.json").exists() else build(tmp_path)
    tokenizer, truth = LocalTokenizer(str(folder)), plain(folder)
    for prompt in [*texts, *texts]:
        found = await ids(tokenizer, "/v1/completions", prompt=prompt, add_special_tokens=False)
        assert found == truth.encode(prompt, add_special_tokens=False).ids
    tokenizer.close()


async def test_kept_text_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "CACHE_CHARS_MAX", 20)
    folder = build(tmp_path)
    made = encoder.Encoder(folder / "tokenizer.json")
    for prompt in ["a" * 8, "b" * 8, "a" * 8, "c" * 8, "d" * 30]:
        found = made.begin(prompt, special=False)
        assert not callable(found)
        assert list(found) == plain(folder).encode(prompt, add_special_tokens=False).ids
        assert made._kept.chars <= 20
    made.close()


async def test_a_file_that_says_another_pattern_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = build(tmp_path)
    monkeypatch.setattr(words, "_GPT2", r"\p{L}+|[^\p{L}]")
    made = encoder.Encoder(folder / "tokenizer.json")
    found = made.begin("the quick fox", special=False)
    assert not callable(found)
    assert list(found) == plain(folder).encode("the quick fox", add_special_tokens=False).ids
    assert "cuts words in another way" in caplog.text
    assert made.given_up == {"words": 1}
    made.close()
