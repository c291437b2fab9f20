"""Reading recordings: what is wrong with a file is said, with its line."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
from recordings import meta, pub, request, stored, write
from rich.console import Console

from warmroute.app import recording, replay_report
from warmroute.app.recording import Meta, Published, Recording, Request, WireSamples
from warmroute.errors import RecordingError

GOLDEN = Path(__file__).parents[1] / "golden" / "wire_by_version.jsonl"

GOOD = json.dumps(meta()) + "\n"
UNREADABLE = [
    pytest.param(GOOD + "{", 2, "truncated", id="no JSON"),
    pytest.param(GOOD + "[1]", 2, "object", id="no object"),
    pytest.param(GOOD + "\n\n" + '{"x": 1}', 4, "neither `k`", id="no record, after empty lines"),
    pytest.param(GOOD + '{"k": 5}', 2, "`$.k`", id="a kind that is no text"),
    pytest.param(GOOD + '{"k": "pub", "t": 1.0}', 2, "frames", id="a publication without frames"),
    pytest.param(GOOD + '{"k": "pub", "t": "now", "frames": []}', 2, "`$.t`", id="a time that is none"),
    pytest.param(
        GOOD + '{"k": "req", "t0": 1, "t1": 2, "id": 1, "path": "/x"}', 2, "body", id="a request without a body"
    ),
    pytest.param(
        GOOD + GOOD + '{"k": "pub", "t": 1, "frames": ["aGk=", 7]}', 3, "frames", id="a frame that is no text"
    ),
    pytest.param('{"version": "vllm-9", "pub": [["a", 1]]}', 1, "pub", id="a wire sample's frame that is no text"),
    pytest.param(GOOD.encode() + b"\xff\xfe", 2, "", id="no text"),
    pytest.param(GOOD + '{"k": "pub", "t": 1, "frames": ["a"]}', 2, "base64", id="a frame that is no base64"),
    pytest.param('{"version": "vllm-9", "pub": [["!"]]}', 1, "base64", id="a wire sample's frame that is no base64"),
]


def printed(*paths: str, as_json: bool = False, events: bool = False) -> tuple[int, str]:
    out = io.StringIO()
    code = replay_report.run(paths, Console(file=out, width=240), as_json=as_json, events=events)
    return code, out.getvalue()


@pytest.mark.parametrize("events", [False, True], ids=["judged", "events"])
@pytest.mark.parametrize(("content", "line", "said"), UNREADABLE)
def test_what_cannot_be_read_is_said_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | bytes, line: int, said: str, events: bool
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, out = printed(str(path), events=events)
    error = capsys.readouterr().err
    assert code == 1
    assert error.startswith(f"warmroute replay: {path}:{line}: ")
    assert said in error
    assert "Traceback" not in error + out


@pytest.mark.parametrize("content", ["", "\n\n", '{"k": "of another time"}\n'])
def test_a_file_without_records_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    with pytest.raises(RecordingError, match="holds no record"):
        recording.read(str(path))


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path, [meta(), pub(1, 0, stored(range(8)))])
    code, out = printed(str(tmp_path / "absent"), good, as_json=True)
    assert code == 1
    assert "absent: cannot be read (No such file or directory)" in capsys.readouterr().err
    assert [judged["file"] for judged in json.loads(out)] == [good]  # the others are judged all the same


def test_records_are_read_in_order_and_unknown_kinds_left_out(tmp_path: Path) -> None:
    lines = [
        meta(),
        {"k": "weather", "t": 3},
        pub(1, 0, stored(range(8))),
        request(2, 3, 1, range(8), None, hits_delta=4),
    ]
    read = recording.read(write(tmp_path, lines))
    assert isinstance(read, Recording)
    assert [type(record) for record in read.records] == [Meta, Published, Request]
    assert (read.meta.version, read.meta.block_size) == ("0.32.0", 4)
    asked = read.records[2]
    assert isinstance(asked, Request)
    assert asked.reported_tokens == 4  # by the engine's counter, where the answer says nothing


@pytest.mark.parametrize("size", [None, "", "many"])
def test_a_block_size_that_is_not_said(size: str | None) -> None:
    assert Meta(cache_config={"block_size": size}).block_size is None
    assert Meta().block_size is None


def test_wire_samples_of_every_release_are_read() -> None:
    read = recording.read(str(GOLDEN))
    assert isinstance(read, WireSamples)
    assert len(read.samples) == len(GOLDEN.read_text().splitlines())
    first = json.loads(GOLDEN.read_text().splitlines()[0])["pub"][0]
    assert read.samples[0].pub[0] == tuple(map(base64.b64decode, first))
