"""Whatever bytes come to the paths that are rewritten: a request, or nothing; and never an error of ours."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmroute.core import forms
from warmroute.core.forms import MESSAGES, RESPONSES
from warmroute.core.forms.questions import QUESTIONS, settled

NAMES = """
model messages input system instructions role content type text user assistant tool_use tool_result thinking id name
input_schema tools tool_choice function function_call function_call_output call_id arguments output reasoning summary
status incomplete message output_text input_text disabled effort kv_transfer_params truncation
"""
WORDS = NAMES.split()

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
values = st.recursive(
    leaves | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=6),
    max_leaves=30,
)
bodies = st.dictionaries(st.sampled_from(WORDS), values, max_size=8)


def check(path: str, body: bytes) -> None:
    request = forms.parse(path, body)
    if request is None or request.opaque is not None:
        return
    assert request.shape
    made = settled(request, dict.fromkeys(QUESTIONS, (None, 1)))
    assert msgspec.json.decode(made.body)["model"] == request.model


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
@given(body=bodies)
@settings(max_examples=300, deadline=None)
def test_any_json(path: str, body: dict[str, Any]) -> None:
    check(path, msgspec.json.encode({**body, "model": "m"}))


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
@given(body=st.binary(max_size=60))
def test_any_bytes(path: str, body: bytes) -> None:
    check(path, body)
    check(path, b'{"model":"m","input":"x","messages":[],"chat_template_kwargs":' + body + b"}")


@pytest.mark.parametrize(
    "broken",
    [
        b'{"type":"tool_use","id":"1","input":{"\xff":1}}',
        b'{"type":"text","text":"\xff"}',
        b'{"type":"text","text":"\\ud800"}',
        b'{"type":"text","text":' + b"[" * 100_000 + b"}",
    ],
)
def test_what_is_no_text(broken: bytes) -> None:
    request = forms.parse(MESSAGES, b'{"model":"m","messages":[{"role":"assistant","content":[%s]}]}' % broken)
    assert request is None or request.opaque == "form"
