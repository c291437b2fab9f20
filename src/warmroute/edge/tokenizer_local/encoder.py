"""Text -> token ids: segment by segment, with those of known segments kept."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from array import array
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers

from warmroute.core.kept import Kept
from warmroute.core.parts import Part, never_overlap
from warmroute.core.words import Words
from warmroute.errors import ConfigError, TokenizeError
from warmroute.service.ports import Rest
from warmroute.types import TokenIds

_log = logging.getLogger(__name__)

INLINE_CHARS_MAX = 6000
"""Longer text is tokenized in a thread: this much takes about a millisecond, which the event loop can spare."""

CACHE_CHARS_MAX = 64 * 1024 * 1024
"""Text whose ids are kept; beyond it the least recently used goes. Together some 150 MB at worst."""

SEAMS_MAX = 1024
"""Texts between special tokens of neighbours that are kept: templates have few."""


class Encoder:
    """One model's tokenizer. Raises ConfigError if the file cannot be used."""

    def __init__(self, path: Path) -> None:
        try:
            described = json.loads(path.read_bytes())
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise ConfigError(
                "tokenizer.path", f"{path} cannot be loaded ({error})", "Name a folder with the model's tokenizer.json"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._special = _segment_bounds(described)
        added = (token["content"] for token in described.get("added_tokens") or ())
        ids: dict[str, Any] = {content: self._tokenizer.token_to_id(content) for content in added}
        self._bounds = {content: array("I", [token]).tobytes() for content, token in ids.items()}
        self.separable = self._special is not None and never_overlap(ids)
        """Whether it can be told of each part of a text alone where its special tokens are."""
        self.given_up: Counter[str] = Counter()
        """What was found to give other ids than the tokenizer or the template: `words`, `messages`."""
        self._seams: dict[str, bytes] = {}
        self._words = Words.of(described, self._word_ids)
        self._kept: Kept[str, bytes] = Kept(CACHE_CHARS_MAX, {"": b""})
        self._surrounds = self._encode_all(["a"], special=True) != self._encode_all(["a"], special=False)
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="tokenize")

    def begin(self, text: str, special: bool) -> TokenIds | Rest:
        """Ids of a text, or what brings them if more than `INLINE_CHARS_MAX` of it are new.

        `special`: with those that the tokenizer puts around every text.
        """
        special = special and self._surrounds
        if special or self._special is None:
            if len(text) <= INLINE_CHARS_MAX:
                return array("I", self._encode_all([text], special)[0])
            return partial(self._encode_later, text, special)
        pieces = self._special.split(text)  # segments, with the special tokens between them
        segments = self._kept.all(pieces[::2])
        if segments is not None:
            return self._join(pieces, segments)
        known, missing = self._kept.look(pieces[::2])
        if sum(map(len, missing)) > INLINE_CHARS_MAX:
            return partial(self._keep_later, pieces, known, missing)
        return self._keep(pieces, known, {piece: self._encode(piece) for piece in missing})

    def part(self, text: str) -> Part | None:
        """A part of a text and its ids; None if so much of it is new that it is for a thread.

        Only where `separable`. Its segments are not kept: who asks keeps the part.
        """
        assert self._special is not None  # noqa: S101 - else it is not separable
        pieces = self._special.split(text)
        if len(pieces) == 1:
            return Part(text, None, "", None if text else b"")
        found, new_chars = [self._bounds[pieces[1]]], 0
        for segment, special in zip(pieces[2:-1:2], pieces[3::2], strict=True):
            ids = self._kept.get(segment)
            if ids is None:
                new_chars += len(segment)
                if new_chars > INLINE_CHARS_MAX:
                    return None
                ids = self._encode(segment)
            found += ids, self._bounds[special]
        inner, tail = b"".join(found), self.seam(pieces[-1])
        return None if tail is None else Part(pieces[0], inner, pieces[-1], None if pieces[0] else inner + tail)

    def seam(self, text: str) -> bytes | None:
        """Ids of the short text that parts leave open where they meet; None if it is not short."""
        found = self._seams.get(text)
        if found is None:
            begun = self.begin(text, special=False)
            if callable(begun):
                return None
            if len(self._seams) >= SEAMS_MAX:
                self._seams.clear()
            found = self._seams[text] = array("I", begun).tobytes()
        return found

    async def _encode_later(self, text: str, special: bool) -> TokenIds:
        return array("I", (await self._in_thread([text], special))[0])

    async def _keep_later(self, pieces: list[str], known: dict[str, bytes], missing: list[str]) -> TokenIds:
        fresh = await self._in_thread(missing, special=False)
        return self._keep(pieces, known, dict(zip(missing, fresh, strict=True)))

    def _keep(self, pieces: list[str], known: dict[str, bytes], fresh: dict[str, bytes]) -> TokenIds:
        for piece, ids in fresh.items():
            self._kept.keep(piece, ids)
        known |= fresh
        return self._join(pieces, [known[piece] for piece in pieces[::2]])

    def _join(self, pieces: list[str], segments: list[bytes]) -> TokenIds:
        parts = [b""] * len(pieces)
        parts[::2] = segments
        parts[1::2] = [self._bounds[special] for special in pieces[1::2]]
        ids = array("I")
        ids.frombytes(b"".join(parts))
        return ids

    async def _in_thread(self, texts: list[str], special: bool) -> list[bytes]:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._encode_all, texts, special)

    def _encode(self, text: str) -> bytes:
        """A segment's ids, by its words if they are known."""
        ids = None if self._words is None else self._words.ids(text)
        if self._words is not None and self._words.mistaken:
            _log.warning("the tokenizer cuts words in another way than its file says; all is left to it from now on")
            self._words = None
            self.given_up["words"] += 1
        return self._encode_all([text], special=False)[0] if ids is None else ids

    def _encode_all(self, texts: list[str], special: bool) -> list[bytes]:
        encode = self._tokenizer.encode_batch_fast  # leaves out the offsets
        try:
            return [array("I", encode([text], add_special_tokens=special)[0].ids).tobytes() for text in texts]
        except Exception as error:  # the library raises bare Exceptions, and refuses lone surrogates
            raise TokenizeError("unsupported", f"the tokenizer failed: {error}") from error

    def _word_ids(self, text: str) -> tuple[list[int], list[int | None]]:
        found = self._tokenizer.encode_batch([text], add_special_tokens=False)[0]
        return found.ids, found.word_ids

    def close(self) -> None:
        """Release the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _segment_bounds(described: dict[str, Any]) -> re.Pattern[str] | None:
    """A pattern for the tokens that cut a text into independent segments; None if this tokenizer has no such rule."""
    added = described.get("added_tokens") or []
    looks_around = any(token[key] for token in added for key in ("lstrip", "rstrip", "single_word", "normalized"))
    if not added or looks_around or '"prepend_scheme": "first"' in json.dumps(described.get("pre_tokenizer")):
        return None
    longest_first = sorted((token["content"] for token in added), key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
