"""Ids that are kept: what is in use stays, and the bound holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from warmroute.core.kept import Kept


def ids(text: str) -> bytes:
    return text.encode() * 4


def test_what_is_kept_is_found() -> None:
    kept = Kept(100, {"": b""})
    kept.keep("a", b"1")
    assert kept.all(["a", "", "a"]) == [b"1", b"", b"1"]
    assert kept.all(["a", "b"]) is None
    assert kept.look(["b", "a", "b", ""]) == ({"a": b"1", "": b""}, ["b"])


def test_what_is_in_use_outlives_what_is_not() -> None:
    kept = Kept(40, {"": b""})
    for number in range(100):
        kept.keep(f"{number:04}", b"x")
        kept.look(["0000"])
    assert "0000" in kept
    assert "0001" not in kept
    assert "0099" in kept


def test_a_text_is_counted_once() -> None:
    kept = Kept(10, {"": b""})
    for _ in range(3):
        kept.keep("abcd", b"x")
    assert (kept.chars, len(kept)) == (4, 1)


@given(st.lists(st.text("ab", max_size=6), max_size=60), st.integers(1, 12))
def test_the_bound_holds_and_nothing_is_confused(texts: list[str], most: int) -> None:
    kept = Kept(most, {"": b""})
    for text in texts:
        known, missing = kept.look([text, ""])
        assert known.get(text, ids(text)) == ids(text)
        assert missing == [text] * (text not in known)
        if missing:
            kept.keep(text, ids(text))
        everything = {*kept._young, *kept._old}
        assert kept.chars == sum(map(len, everything)) <= most
        assert kept._young.keys().isdisjoint(kept._old)
