"""What engines counted is found at the end of an answer, wherever in its last bytes it stands."""

from __future__ import annotations

import pytest

from warmroute.core.usage import cached_tokens

DETAILS = b'"prompt_tokens_details":{"cached_tokens":%d}'
TEXT = b'{"choices":[{"text":"so long"}],'


@pytest.mark.parametrize(
    ("tail", "cached"),
    [
        (TEXT + b'"usage":{"prompt_tokens":9,' + DETAILS % 8 + b"}}", 8),
        (TEXT + b'"usage":{' + DETAILS % 8 + b',"prompt_tokens":9},"user":null}', 8),
        (TEXT + b'"usage":{"prompt_tokens":9,"prompt_tokens_details":null}}', None),
        (TEXT + b'"usage": {"input_tokens": 9, "input_tokens_details": {"cached_tokens" : 7}}}', 7),
        (b'{"usage":{"input_tokens":9,"cache_read_input_tokens":6}}\n\n{"usage":{"output_tokens":3}}', 6),
        (b'{"usage":{"input_tokens":9,"cache_read_input_tokens":6}}\n\n{"usage":{"cache_read_input_tokens":5}}', 5),
        (b'{"usage":{"prompt_tokens":9,' + DETAILS % 8 + b'}}\n\n{"usage":null}', 8),
        (DETAILS % 4, 4),
        (TEXT + rb'"say":"\"usage\":{\"cached_tokens\":3}"}', None),
        (b"", None),
    ],
)
def test_cached_tokens_are_the_last_that_are_told(tail: bytes, cached: int | None) -> None:
    assert cached_tokens(tail) == cached
