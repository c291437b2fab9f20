"""The file of API keys: what it takes, what it refuses, and that it never tells what is in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.core.keys import Keys, digest_of, parse_keys
from warmroute.errors import ConfigError

HASH = digest_of("secret")


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_keys(text, "gateway.keys_file")
    assert caught.value.key == "gateway.keys_file"
    return caught.value.problem


def test_a_key_is_found_by_its_secret_and_nothing_else() -> None:
    keys = parse_keys(f"# who may\n\nalice {HASH}  # since May\n bob\t{digest_of('other')} priority=-5\n", "k")
    found = keys.find(b"secret")
    assert found is not None
    assert (found.name, found.requests_per_min, found.tokens_per_min, found.priority) == ("alice", None, None, 0)
    assert keys.by_name["bob"].priority == -5
    for wrong in (b"", b"Secret", b"secret ", b"alice", HASH.encode(), bytes.fromhex(HASH[7:])):
        assert keys.find(wrong) is None


def test_an_equal_beginning_of_a_hash_is_not_enough() -> None:
    alike = digest_of("secret")[:-1] + ("0" if digest_of("secret")[-1] != "0" else "1")
    assert parse_keys(f"alice {alike}", "k").find(b"secret") is None


def test_limits_are_read() -> None:
    keys = parse_keys(f"a {HASH} tokens_per_min=5 priority=7 requests_per_min=600", "k")
    key = keys.by_name["a"]
    assert (key.requests_per_min, key.tokens_per_min, key.priority) == (600, 5, 7)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("alice", "line 1 of the file is not NAME HASH"),
        (f"\nal/ice {HASH}", "line 2 of the file is not NAME HASH"),
        ("alice wr-plain-secret", "line 1 of the file has no sha256:HEX"),
        ("alice sha256:abcd", "line 1 of the file has no sha256:HEX"),
        (f"alice {HASH.upper()}", "line 1 of the file has no sha256:HEX"),
        (f"alice {HASH} speed=1", "line 1 of the file has something behind the hash that is no limit"),
        (f"alice {HASH} priority=1 priority=2", "that is no limit"),
        (f"alice {HASH} requests_per_min=0", "that is no limit"),
        (f"alice {HASH} tokens_per_min=-1", "that is no limit"),
        (f"alice {HASH} tokens_per_min=1e3", "that is no limit"),
        (f"alice {HASH} priority=10000000", "that is no limit"),
        (f"alice {HASH}\nalice {digest_of('b')}", "line 2 of the file has a name or a hash again"),
        (f"alice {HASH}\nbob {HASH}", "line 2 of the file has a name or a hash again"),
    ],
)
def test_what_is_no_file_of_keys_is_refused(text: str, problem: str) -> None:
    assert problem in refusal(text)


@given(st.text(max_size=200))
def test_garbage_is_refused_or_read_and_never_quoted(text: str) -> None:
    told = ""
    try:
        assert isinstance(parse_keys(text, "k"), Keys)
    except ConfigError as error:
        told = str(error)
    assert not [field for field in text.split() if len(field) > 12 and field in told]
