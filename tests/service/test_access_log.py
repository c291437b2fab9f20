"""A line of the access log is cut to a length that is written whole, and names a trace only if there is one."""

from __future__ import annotations

import json

import pytest

from warmroute.service.access_log import AccessLog, trace_id
from warmroute.service.ports import RequestHead

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", TRACE),
        (f"cc-{TRACE}-b7ad6b7169203331-01-what-comes-later", TRACE),
        (f"ff-{TRACE}-b7ad6b7169203331-01", None),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-b7ad6b7169203331-01", None),
        ('"}\n{"', None),
        (None, None),
    ],
)
def test_traces(given: str | None, expected: str | None) -> None:
    headers = () if given is None else ((b"TraceParent", given.encode()),)
    assert trace_id(RequestHead(b"POST", b"/", headers)) == expected


def test_a_line_is_short_and_one_line_whatever_was_sent() -> None:
    written: list[bytes] = []
    log = AccessLog(written.append, lambda: 1.0, lambda: 1_700_000_000.5)
    head = RequestHead(b"GET", b"/" + b"x" * 9000 + b"?secret", ((b"x-warmroute-key", b"team"),))
    log.refused(404, "path", head, 'a"\n' * 1000)
    (line,) = written
    assert len(line) < 4096
    assert line.count(b"\n") == 1
    found = json.loads(line)
    assert (found["time"], found["key"], found["status"]) == ("2023-11-14T22:13:20.500Z", "team", 404)
    assert b"secret" not in line
