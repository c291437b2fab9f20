"""Traces: whatever a line may look like is read as it is meant, or named as what cannot be."""

from __future__ import annotations

import gzip
import json
from itertools import islice
from pathlib import Path

import pytest
from click.testing import CliRunner

from warmroute.app.simulation.trace import Trace
from warmroute.app.simulation.workloads import Conversation, Piece
from warmroute.cli.main import main
from warmroute.cli.simulate import command
from warmroute.config.ranges import POLICIES


def line(timestamp: float = 0, input_length: float = 1300, **more: object) -> bytes:
    facts = {"timestamp": timestamp, "input_length": input_length, "output_length": 5, "hash_ids": [0, 1, 2]}
    return json.dumps(facts | more).encode() + b"\n"


def read(path: Path, content: bytes, requests: int) -> list[Conversation]:
    path.write_bytes(content)
    return list(islice(Trace(path)(1), requests))


def prompts(conversations: list[Conversation]) -> list[list[Piece]]:
    return [list(next(each.turns).pieces) for each in conversations]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


def test_prompts_are_as_long_as_the_trace_says_and_share_what_it_says(path: Path) -> None:
    made = prompts(read(path, b"".join(line(1000 * n) for n in range(4)), 6))
    assert [sum(tokens for _, tokens in prompt) for prompt in made] == [1300] * 6
    assert made[0] == made[3]
    assert made[4] == made[5] != made[0], "another lap shares nothing with the first"


@pytest.mark.parametrize(("hash_ids", "shared"), [([], 0), ([7], 512), ([7, 8], 1024), ([7, 8, 9, 10], 1300)])
def test_hash_ids_that_are_too_few_or_one_too_many(path: Path, hash_ids: list[int], shared: int) -> None:
    one, other = prompts(read(path, line(hash_ids=hash_ids) + line(1, hash_ids=hash_ids), 2))
    assert sum(tokens for _, tokens in one) == sum(tokens for _, tokens in other) == 1300
    assert sum(a[1] for a, b in zip(one, other, strict=True) if a == b) == shared


def test_order_form_and_packing_do_not_matter(path: Path) -> None:
    plain = read(path, b"".join(line(1000.0 * n, input_length=100 + n, hash_ids=[n]) for n in range(3)), 3)
    odd = [line(1000 * n, input_length=100.0 + n, hash_ids=[f"h{n}"]).replace(b"\n", b"\r\n") for n in (0, 2, 1)]
    packed = path.with_suffix(".gz")
    unlike = read(packed, gzip.compress(b"\xef\xbb\xbf" + b"\r\n\n".join(odd)), 3)
    assert [each.at for each in unlike] == [each.at for each in plain]
    assert [sum(n for _, n in prompt) for prompt in prompts(unlike)] == [100, 101, 102]


def test_a_trace_of_one_moment_comes_one_after_the_other(path: Path) -> None:
    assert [each.at for each in read(path, line(5000), 3)] == [1.0] * 3


def test_hashes_of_any_size_stay_apart_in_every_lap(path: Path) -> None:
    hashes = [2**60 + n * 2**28 for n in range(3)]
    made = prompts(read(path, line(hash_ids=hashes) + line(1, hash_ids=hashes[::-1]), 40))
    assert len({number for prompt in made for number, _ in prompt}) == 3 * 20


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "holds no request"),
        (b"\n\n", "holds no request"),
        (line() + b"[]\n", "line 2"),
        (b'{"timestamp": 0}\n', "line 1: .*input_length"),
        (line(input_length=-1), "line 1: .*>= 0"),
        (line(input_length=1.5), "line 1: .*int"),
        (line(input_length=10**9), "line 1: .*<= 10000000"),
        (line(input_length=100), "line 1: 3 hash ids for a prompt of 100 tokens"),
        (line().replace(b"1300", b"NaN"), "line 1"),
        (b"\xff\xfe\n", "line 1"),
        (gzip.compress(line())[:-9], "cannot be unpacked"),
    ],
)
def test_what_is_no_trace_is_named(path: Path, content: bytes, what: str) -> None:
    with pytest.raises(ValueError, match=f"trace.jsonl.*{what}"):
        read(path, content, 1)


def test_a_trace_of_one_line_runs_under_every_policy(path: Path) -> None:
    path.write_bytes(line())
    arguments = ["--trace", str(path), "--engines", "1", "--requests", "30", "--quiet"]
    ran = CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)
    assert {row.split()[0] for row in ran.output.splitlines()[1:11]} == set(POLICIES)


def test_prompts_that_no_cache_has_room_for(path: Path) -> None:
    path.write_bytes(line(input_length=700_000, hash_ids=[]) + line(1, input_length=10, hash_ids=[]))
    arguments = ["--trace", str(path), "--engines", "1", "--requests", "10", "--quiet", "--policy", "warmroute"]
    ran = CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)
    assert ran.output.splitlines()[1].startswith("warmroute")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trace", "/nowhere"], "/nowhere: No such file"),
        (["--json", "/nowhere/out.json"], "/nowhere/out.json: No such file"),
        (["--policy", "nope"], "'nope' is no policy. Give one of warmroute"),
        (["--policy", "nope:X"], "'nope:X' cannot be loaded"),
        (["--rate", "nan"], "finite"),
        (["--rate", "0"], "above 0"),
        (["--utilisation", "inf"], "finite"),
        (["--utilisation", "0"], "above 0"),
        (["--event-delay-ms", "-1"], "below 0"),
        (["--host-gib", "-1"], "below 0"),
        (["--fleet", "fail:0@nan"], "give fail:N@S"),
        (["--profile", "x@y"], "'x@y' is no profile"),
    ],
)
def test_what_cannot_be_simulated_is_said_in_a_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--quiet", "--engines", "2", "--requests", "20", *arguments]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("warmroute: ")
    assert said in told


def test_a_fleet_that_fails_altogether_has_figures_too(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--engines", "1", "--requests", "50", "--policy", "random", "--fleet", "fail:0@0", "--quiet"]
    assert main(["simulate", *arguments]) == 0
    assert "50 requests refused" in capsys.readouterr().out
