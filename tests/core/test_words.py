"""Words that are kept give what the tokenizer gives, whatever the text and the pattern."""

from __future__ import annotations

import json
import re
from array import array
from functools import cache
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, trainers

from warmroute.core import words
from warmroute.core.words import Words, translated

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|\s+"
TRAINED_ON = ["the quick brown fox says hello to the world, isn't it? 1234 naïve façade"] * 3


@cache
def build(source: str | None) -> Any:
    tokenizer: Any = tokenizers.Tokenizer(models.BPE())
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=source is None)
    if source is not None:
        split = pre_tokenizers.Split(tokenizers.Regex(source), behavior="isolated")
        own = pre_tokenizers.Sequence([split, own])
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = own
    trainer: Any = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(TRAINED_ON, trainer)
    return tokenizer


def words_of(tokenizer: Any) -> Words | None:
    def encode(text: str) -> tuple[list[int], list[int | None]]:
        found = tokenizer.encode(text, add_special_tokens=False)
        return found.ids, found.word_ids

    return Words.of(json.loads(tokenizer.to_str()), encode)


def truth(tokenizer: Any, text: str) -> bytes:
    return array("I", tokenizer.encode(text, add_special_tokens=False).ids).tobytes()


PIECES = st.sampled_from(
    [
        "hello",
        " world",
        "isn't",
        "'LL",
        "  ",
        "\n",
        "\r\n",
        " \t",
        "12345",
        "_",
        "é",
        " Ü",
        "—",
        "“x”",
        "x1",
        "\x0b",
        "\x1c",
    ]
)
TEXTS = st.lists(PIECES, max_size=20).map("".join) | st.text(st.characters(max_codepoint=0x2100), max_size=30)


@pytest.mark.parametrize("source", [None, LLAMA_3, QWEN_2])
@given(texts=st.lists(TEXTS, min_size=1, max_size=12))
def test_words_give_what_the_tokenizer_gives(source: str | None, texts: list[str]) -> None:
    tokenizer = build(source)
    own = words_of(tokenizer)
    assert own is not None
    for text in [*texts, *texts]:
        assert own.ids(text) in (None, truth(tokenizer, text)), text
    assert not own.mistaken


@pytest.mark.parametrize("source", [None, LLAMA_3, QWEN_2])
def test_known_words_are_not_encoded_again(source: str | None) -> None:
    tokenizer, asked = build(source), []
    own = words_of(tokenizer)
    assert own is not None
    encode = own._encode
    own._encode = lambda text: asked.append(text) or encode(text)  # type: ignore[func-returns-value]
    text = "The quick brown fox isn't naïve — it says “hello” to 12 worlds.\n\n  So it is!"
    for _ in range(2):
        assert own.ids(text) == truth(tokenizer, text)
    assert asked == [text]
    assert own.ids(text + " Anew") == truth(tokenizer, text + " Anew")
    assert asked == [text, " Anew"], "one new word among many is encoded by itself"


def test_texts_of_another_alphabet_are_left_to_the_tokenizer() -> None:
    own = words_of(build(None))
    assert own is not None
    for other in ("漢字", "a\u00a0b", "x²", "e\u0301", "ſ", "\x85", "🙂"):
        assert own.ids("hello " + other) is None


def test_every_letter_of_the_alphabet_is_what_unicode_says() -> None:
    tokenizer = build(LLAMA_3)
    own = words_of(tokenizer)
    assert own is not None
    taken = [chr(code) for code in range(0x2200) if words._ALPHABET.fullmatch(chr(code))]
    assert len(taken) > 350
    for char in taken:
        for text in (f"a{char}b", f" {char}", f"1{char}2", f"{char}'s", f"\n{char}\n", f" {char} "):
            assert [part for part, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)].__len__() == len(own._cut(text))
            assert own.ids(text) in (None, truth(tokenizer, text))
    assert not own.mistaken


def test_text_without_words_is_not_learned_from_for_ever() -> None:
    tokenizer, asked = build(None), []
    own = words_of(tokenizer)
    assert own is not None
    encode = own._encode
    own._encode = lambda text: asked.append(text) or encode(text)  # type: ignore[func-returns-value]
    for number in range(80):
        own.ids(" ".join(f"x{number}y{i}".translate(str.maketrans("0123456789", "abcdefghij")) for i in range(9)))
    assert len(asked) == words.STRANGE_TEXTS + 9


def test_words_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "WORDS_MAX", 10)
    tokenizer = build(None)
    own = words_of(tokenizer)
    assert own is not None
    for text in ("a b c d e f g h i j k l", "a b c d e f g h i j k l m", "x" * 100, "y z a b c"):
        assert own.ids(text) == truth(tokenizer, text)
        assert len(own._kept) <= 10


def test_a_tokenizer_that_cuts_otherwise_is_noticed() -> None:
    tokenizer = build(None)
    described = json.loads(tokenizer.to_str())
    other = build(LLAMA_3)

    def encode(text: str) -> tuple[list[int], list[int | None]]:
        found = other.encode(text)
        return found.ids, found.word_ids

    own = Words.of(described, encode)
    assert own is not None
    assert own.ids("at 12345 o'clock") is None
    assert own.mistaken
    assert own.ids("hello") is None


@pytest.mark.parametrize(
    "source", [O200K, r"(a|b)", r"\p{Han}+", r"[[a-z]&&[^b]]", r"\bx", r"(?<!a)b", r"a)", r"(?i:a", r"\d+", "[a"]
)
def test_patterns_that_are_not_understood(source: str) -> None:
    assert translated(source) is None


def test_tokenizers_that_look_across_words_are_not_taken() -> None:
    described = json.loads(build(LLAMA_3).to_str())

    def of(**changed: Any) -> Words | None:
        return Words.of({**described, **changed}, lambda _: ((), ()))

    split, level = described["pre_tokenizer"]["pretokenizers"]
    assert of() is not None
    assert of(normalizer=None) is not None
    assert of(normalizer={"type": "Lowercase"}) is None
    assert of(pre_tokenizer=None) is None
    assert of(pre_tokenizer=level) is None
    assert of(pre_tokenizer={"type": "Sequence", "pretokenizers": [split, split, level]}) is None
    assert of(pre_tokenizer={"type": "Sequence", "pretokenizers": [{**split, "behavior": "Removed"}, level]}) is None
    assert of(model={**described["model"], "dropout": 0.1}) is None
    assert of(model={"type": "Unigram"}) is None


def test_the_pattern_is_written_out() -> None:
    pattern = translated(r"\p{N}{1,3}|[^\s\p{L}]\S")
    assert pattern is not None
    assert isinstance(pattern, re.Pattern)
    assert pattern.findall("12345!x") == ["123", "45", "!x"]
