"""A tokenizer without a vocabulary file: ids are arithmetic, every text comes back exactly.

A piece is up to three lower-case letters, with the blank before them if there is one; anything else is its UTF-8 bytes.
So English costs about one token for three characters, and equal beginnings give equal ids up to the last word.

    ids            0..2 special tokens | 3..258 bytes | letters (1, 2, 3 of them) | the same behind a blank

Ids beyond these exist as well (real vocabularies are larger); they read as pseudo-words.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_BYTES = len(SPECIAL_TOKENS)
_LETTERS = _BYTES + 256
_PER_BLANK = 26 + 26**2 + 26**3
TABLE_SIZE = _LETTERS + 2 * _PER_BLANK
_PIECES = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)) + r"|( ?)([a-z]{1,3})|.", re.DOTALL)
_CONSONANTS, _VOWELS = "bcdfgklmnprstvz", "aeiou"


def encode(text: str) -> list[int]:
    """Token ids of `text`; the special tokens' names stand for themselves."""
    ids: list[int] = []
    for piece in _PIECES.finditer(text):
        letters = piece[2]
        if letters:
            ids.append(_letters_id(letters, blank=bool(piece[1])))
        elif piece[0] in SPECIAL_TOKENS:
            ids.append(SPECIAL_TOKENS.index(piece[0]))
        else:
            ids.extend(_BYTES + byte for byte in piece[0].encode("utf-8", "surrogatepass"))
    return ids


def _letters_id(letters: str, *, blank: bool) -> int:
    value = 0
    for letter in letters:
        value = value * 26 + ord(letter) - ord("a") + 1  # bijective base 26: "z" comes right before "aa"
    return _LETTERS + blank * _PER_BLANK + value - 1


def token_bytes(token: int) -> bytes:
    """The bytes that one token id stands for."""
    if token < _BYTES:
        return SPECIAL_TOKENS[token].encode()
    if token < _LETTERS:
        return bytes((token - _BYTES,))
    if token >= TABLE_SIZE:
        token = pseudo_word(token)
    blank, value = divmod(token - _LETTERS, _PER_BLANK)
    letters = b""
    value += 1
    while value:
        value, letter = divmod(value - 1, 26)
        letters = bytes((ord("a") + letter,)) + letters
    return b" " * blank + letters


def pseudo_word(number: int) -> int:
    """A token that reads like a syllable, the same for the same number; two in three begin a word."""
    number, first = divmod(number, len(_CONSONANTS))
    number, vowel = divmod(number, len(_VOWELS))
    number, last = divmod(number, len(_CONSONANTS))
    return _letters_id(_CONSONANTS[first] + _VOWELS[vowel] + _CONSONANTS[last], blank=number % 3 > 0)


class TextStream:
    """Turns tokens into text one by one; a character whose bytes are not complete yet waits."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this token completes, perhaps none."""
        return self._decoder.decode(token_bytes(token))


def decode(tokens: Iterable[int]) -> str:
    """The text of token ids."""
    return b"".join(map(token_bytes, tokens)).decode("utf-8", "replace")


def render_chat(
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> str:
    """ChatML of a conversation; tools go into the system message. Raises ValueError for what is no text."""
    system, rest = "", list(messages)
    if rest and rest[0].get("role") == "system":
        system = _text(rest.pop(0))
    if tools:
        listed = "\n".join(msgspec.json.encode(tool).decode() for tool in tools)
        system = "\n\n".join(part for part in (system, f"# Tools\n{listed}") if part)
    turns = [("system", system)] if system else []
    turns += [(str(message.get("role", "user")), _text(message)) for message in rest]
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    if continue_final_message:
        return text.removesuffix("<|im_end|>\n")
    return text + "<|im_start|>assistant\n" if add_generation_prompt else text


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        if any(not isinstance(part, dict) or part.get("type") != "text" for part in content):
            raise ValueError("This model reads text only: at most content parts of type 'text' may be given.")
        content = "".join(str(part.get("text", "")) for part in content)
    text = content if isinstance(content, str) else ""
    calls = message.get("tool_calls")
    return text + (msgspec.json.encode(calls).decode() if calls else "")
