"""Words of a text as a byte-level tokenizer cuts it: each is encoded by itself, so the ids of each can be kept.

A tokenizer spends most of its time on words that it has seen a moment ago. What cuts words is a pattern that the
tokenizer's own file names. For texts of a small alphabet (Latin letters, digits, punctuation) it means the same to
Python's `re`, once its character classes are written out. Only patterns whose every part is understood are taken, only
tokenizers in which nothing but the pattern looks across words, and only texts that the pattern covers whole; for all
other there is the tokenizer itself, whose own cuts are compared whenever many words are new.

Invariant: `ids` gives what the tokenizer gives, or None.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

WORD_CHARS_MAX = 32
"""Longer words are not kept: they do not come again."""
WORDS_MAX = 100_000
"""Words kept, some 20 MB; beyond it all are forgotten, since the common ones come back at once."""
NEW_SHARE_MAX = 1 / 8
"""If more of a text's words are new, the tokenizer is quicker with the whole text."""
STRANGE_TEXTS = 8
"""After so many texts in a row whose words were new, only each so many-th is learned from: random text has no words."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern of `ByteLevel` with `use_regex`, as its library has it."""

# What of these is a letter, a number or a space has not changed since Unicode 1.1, and normalizes to itself.
_LETTERS = "a-zA-Zªµº\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017e"
_SPACES = r" \t\n\r\x0b\x0c"
_OTHERS = "¡-©«-±´¶-¸»¿×÷\u2013\u2014\u2018-\u201e\u2020-\u2022\u2026€"
_ALPHABET = re.compile(f"[\x00-\x7f{_LETTERS}{_OTHERS}]*")
_CLASSES = {r"\p{L}": _LETTERS, r"\p{N}": "0-9", r"\s": _SPACES, r"\r": r"\r", r"\n": r"\n"}
_PIECE = re.compile(r"\\p\{\w+\}|\\.|\[\^?|\]|\(\?i:|\(\?:|\(\?=|\(\?!|\(|[^\\\[\]()]|\)")

Encode: TypeAlias = Callable[[str], tuple[Sequence[int], Sequence[int | None]]]
"""A text's ids, and for each the number of its word."""


class Words:
    """The words of one tokenizer. `encode` is the tokenizer's own, without special tokens."""

    def __init__(self, pattern: re.Pattern[str], encode: Encode) -> None:
        self._cut = pattern.findall
        self._encode = encode
        self._kept: dict[str, bytes] = {}
        self._strange = 0
        self.mistaken = False
        """Whether the tokenizer was seen to cut otherwise: then nothing is known any more."""

    @classmethod
    def of(cls, described: dict[str, Any], encode: Encode) -> Words | None:
        """For the tokenizer that a `tokenizer.json` describes; None if its words are not understood."""
        source = _pattern(described.get("pre_tokenizer"))
        model, normalizer = described.get("model") or {}, described.get("normalizer")
        plain = model.get("type") == "BPE" and not model.get("dropout")
        if source is None or not plain or (normalizer is not None and normalizer.get("type") != "NFC"):
            return None
        pattern = translated(source)
        return None if pattern is None else cls(pattern, encode)

    def ids(self, text: str) -> bytes | None:
        """The text's ids as 32-bit integers of this machine; None if only the tokenizer knows."""
        if self.mistaken or not (text.isascii() or _ALPHABET.fullmatch(text)):
            return None
        kept, words = self._kept, self._cut(text)
        if sum(map(len, words)) != len(text):
            return None
        try:
            found = [kept[word] for word in words]
        except KeyError:
            new = {word for word in words if word not in kept}
            if len(new) > NEW_SHARE_MAX * len(words):
                return self._learn(text, words)
            for word in new:
                self._keep(word, self._alone(word))
            found = [kept.get(word) or self._alone(word) for word in words]
        self._strange = 0
        return b"".join(found)

    def _learn(self, text: str, words: list[str]) -> bytes | None:
        """Have the whole text encoded, and keep the words that it has."""
        self._strange += 1
        if self._strange > STRANGE_TEXTS and self._strange % STRANGE_TEXTS:
            return None
        ids, numbers = self._encode(text)
        by_word: list[list[int]] = [[] for _ in words]
        try:
            for token, number in zip(ids, numbers, strict=True):
                by_word[number].append(token)  # type: ignore[index]  # no number is a mistake as well
        except (IndexError, TypeError):
            self.mistaken = True
        if self.mistaken or not all(by_word):
            self.mistaken = True
            return None
        for word, own in zip(words, by_word, strict=True):
            self._keep(word, array("I", own).tobytes())
        return array("I", ids).tobytes()

    def _keep(self, word: str, ids: bytes) -> None:
        if len(word) <= WORD_CHARS_MAX:
            if len(self._kept) >= WORDS_MAX:
                self._kept.clear()
            self._kept[word] = ids

    def _alone(self, word: str) -> bytes:
        return array("I", self._encode(word)[0]).tobytes()


def _pattern(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """What cuts a text into words; None if more than one pattern does."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return _GPT2
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(source)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return source
    return None


def translated(source: str) -> re.Pattern[str] | None:
    """A pattern of the tokenizers' dialect that finds the same words in our alphabet; None if it is not understood."""
    out, inside, at = [], False, 0
    while at < len(source):
        piece = _PIECE.match(source, at)
        if piece is None:
            return None
        at, part = piece.end(), piece[0]
        if part == r"\S" and not inside:
            out.append(f"[^{_SPACES}]")
        elif part.startswith("\\"):
            known = _CLASSES.get(part)
            if known is None:
                return None
            out.append(known if inside else f"[{known}]")
        elif part == "(" or (inside and part.startswith("[")):
            return None  # a group that captures; a set within a set
        else:
            inside = part.startswith("[") or (inside and part != "]")
            out.append(part)
    try:
        return re.compile("".join(out))
    except re.error:
        return None
