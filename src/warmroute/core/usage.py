"""What an engine counted for a request, from the end of its answer.

Answers are not parsed: their last few KiB are searched for the numbers, the last of each name. A generated text cannot
be taken for them, since in JSON its quotes are escaped.
"""

from __future__ import annotations

import re

_OUTPUT_TOKENS = re.compile(rb'"output_tokens"\s*:\s*(\d+)')
_INPUT_TOKENS = re.compile(rb'"(input_tokens|cache_read_input_tokens|cache_creation_input_tokens)"\s*:\s*(\d+)')


def prompt_tokens(tail: bytes) -> int | None:
    """Tokens of the prompt, as `/v1/responses` and `/v1/messages` say; None if they do not.

    Messages count apart what came from the cache and what was left there.
    """
    counted = {name: int(number) for name, number in _INPUT_TOKENS.findall(tail)}
    return sum(counted.values()) if b"input_tokens" in counted else None


def total_tokens(tail: bytes) -> int | None:
    """Tokens of the prompt and of what was generated; None if not both are told."""
    prompt, generated = prompt_tokens(tail), _OUTPUT_TOKENS.findall(tail)
    return prompt + int(generated[-1]) if prompt is not None and generated else None
