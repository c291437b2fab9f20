"""Parts of a text put together have the ids of the whole."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.core.parts import Part, join, never_overlap

SPECIALS = ("<a>", "<bc>")
CUT = re.compile("(<a>|<bc>)")


def ids(text: str) -> bytes:
    """Each segment is one token: what makes it another if it is cut otherwise."""
    return b"".join(f"[{piece}]".encode() for piece in CUT.split(text) if piece)


def part(text: str) -> Part:
    pieces = CUT.split(text)
    if len(pieces) == 1:
        return Part(text, None, "", None if text else b"")
    middle = ids("".join(pieces[1:-1]))
    return Part(pieces[0], middle, pieces[-1], None if pieces[0] else middle + ids(pieces[-1]))


@given(st.text("<abc>", max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_however_a_text_is_cut_its_ids_are_the_same(text: str, cuts: list[int]) -> None:
    ends = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    assert join([part(text[a:b]) for a, b in pairwise(ends)], ids) == ids(text)


def test_where_a_seam_is_not_known_nothing_is() -> None:
    assert join([part("x<a>"), part("y<a>")], lambda _: None) is None
    assert join([part("<a>y"), part("<a>")], lambda _: None) == ids("<a>y<a>")


@pytest.mark.parametrize(
    ("specials", "never"),
    [
        (SPECIALS, True),
        (("[INST]", "[/INST]"), True),
        (("<|im_start|>", "<|im_end|>"), True),
        ((), True),
        (("<|im", "<|im_end|>"), False),
        (("b", "abc"), False),
        (("ab", "bc"), False),
        (("aa",), False),
        (("aba",), False),
        (("a", "a"), True),
        (("",), False),
    ],
)
def test_overlaps(specials: tuple[str, ...], never: bool) -> None:
    assert never_overlap(specials) is never
