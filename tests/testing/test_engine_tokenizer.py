"""The tokenizer without a vocabulary gives every text back, and renders ChatML."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmroute.testing.engine.tokenizer import TABLE_SIZE, TextStream, decode, encode, pseudo_word, render_chat

# no lone surrogates: they are not text that can be sent
TEXT = st.text(st.characters(exclude_categories=("Cs",)))


@settings(deadline=None)
@given(TEXT)
def test_text_comes_back(text: str) -> None:
    tokens = encode(text)
    assert decode(tokens) == text
    assert all(0 <= token < TABLE_SIZE for token in tokens)


@settings(deadline=None)
@given(TEXT)
def test_a_stream_of_tokens_gives_the_same_text(text: str) -> None:
    stream = TextStream()
    assert "".join(map(stream.push, encode(text))) == text


def test_different_pieces_have_different_ids() -> None:
    letters = "abyz"
    pieces = [blank + a + b + c for blank in ("", " ") for a in letters for b in ("", *letters) for c in ("", *letters)]
    assert len({tuple(encode(piece)) for piece in pieces}) == len(set(pieces))
    assert all(len(encode(piece)) == 1 for piece in pieces if 1 <= len(piece.strip()) <= 3)


def test_special_tokens_are_one_id_each() -> None:
    assert encode("<|im_start|>a<|im_end|><|endoftext|>")[0::2] == [1, 2]
    assert len(encode("<|im_start|>")) == 1
    assert len(encode("<|im_star|>")) > 1


@settings(deadline=None)
@given(st.integers(0, 1 << 32))
def test_pseudo_words_are_three_letters(number: int) -> None:
    assert len(decode((pseudo_word(number),)).strip()) == 3
    assert decode((TABLE_SIZE + number,)).strip().isalpha()


def test_chatml() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    rendered = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nab<|im_end|>\n"
    assert render_chat(messages) == rendered + "<|im_start|>assistant\n"
    assert render_chat(messages, add_generation_prompt=False) == rendered
    assert render_chat(messages, continue_final_message=True) == rendered.removesuffix("<|im_end|>\n")
    with_tools = render_chat(messages, tools=[{"type": "function"}])
    assert with_tools.startswith('<|im_start|>system\nBe brief.\n\n# Tools\n{"type":"function"}<|im_end|>\n')
    assert render_chat(messages[1:], tools=[{"a": 1}]).startswith("<|im_start|>system\n# Tools\n")


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match="text only"):
        render_chat([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])
