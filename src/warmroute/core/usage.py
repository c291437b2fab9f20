"""What an engine counted for a request, from the end of its answer.

Answers are not parsed: their last few KiB are searched for the numbers, the last of each name. A generated text cannot
be taken for them, since in JSON its quotes are escaped. Names are those of chats and completions, of `/v1/responses`,
and of `/v1/messages`.
"""

from __future__ import annotations

import re

_PROMPT = re.compile(rb'"prompt_tokens"\s*:\s*(\d+)')
_INPUT = re.compile(rb'"(input_tokens|cache_read_input_tokens|cache_creation_input_tokens)"\s*:\s*(\d+)')
_GENERATED = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d+)')
_OUTPUT = re.compile(rb'"output_tokens"\s*:\s*(\d+)')
_TOTAL = re.compile(rb'"total_tokens"\s*:\s*(\d+)')
_CACHED = re.compile(rb'"cache(?:d_tokens|_read_input_tokens)"\s*:\s*(\d+)')


def prompt_tokens(tail: bytes) -> int | None:
    """Tokens of the prompt, as `/v1/responses` and `/v1/messages` say; None if they do not.

    Messages count apart what came from the cache and what was left there.
    """
    counted = {name: int(number) for name, number in _INPUT.findall(tail)}
    return sum(counted.values()) if b"input_tokens" in counted else None


def any_prompt_tokens(tail: bytes) -> int | None:
    """Tokens of the prompt, as any of the paths says; None if it does not."""
    told = _last(_PROMPT, tail)
    return prompt_tokens(tail) if told is None else told


def generated_tokens(tail: bytes) -> int | None:
    """Tokens that were generated; None if the answer does not say."""
    return _last(_GENERATED, tail)


def total_tokens(tail: bytes) -> int | None:
    """Tokens of the prompt and of what was generated; None if not both are told."""
    if (told := _last(_TOTAL, tail)) is not None:
        return told
    prompt, generated = prompt_tokens(tail), _last(_OUTPUT, tail)
    return None if prompt is None or generated is None else prompt + generated


def cached_tokens(tail: bytes) -> int | None:
    """Tokens of the prompt that were taken from the cache; None if the answer does not say."""
    usage = tail.rfind(b'"usage"')  # nearly always some hundred bytes before the end: what is before it is long
    if usage > 0 and ((told := _last(_CACHED, tail[usage:])) is not None or _PROMPT.search(tail, usage)):
        return told
    return _last(_CACHED, tail)


def _last(name: re.Pattern[bytes], tail: bytes) -> int | None:
    found = name.findall(tail)
    return int(found[-1]) if found else None
