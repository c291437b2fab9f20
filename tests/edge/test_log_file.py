"""Lines are written whole or counted as lost, and never waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from warmroute.edge.log_file import LogFile
from warmroute.errors import ConfigError


def test_what_nobody_reads_is_lost_and_counted(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = LogFile(str(pipe), "log.access")
    line = b"x" * 999 + b"\n"
    for _ in range(200):
        log.write(line)
    assert 0 < log.lost < 200
    read = os.read(reader, 1 << 20)
    assert read == line * (200 - log.lost)
    log.close()
    os.close(reader)


def test_several_append_to_one_file(tmp_path: Path) -> None:
    logs = [LogFile(str(tmp_path / "log"), "log.access") for _ in range(2)]
    for number in range(4):
        logs[number % 2].write(b"%d\n" % number)
    assert (tmp_path / "log").read_bytes() == b"0\n1\n2\n3\n"
    for log in logs:
        log.close()


def test_a_path_that_cannot_be_opened_is_the_operators_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"log\.access: .* cannot be opened"):
        LogFile(str(tmp_path / "no" / "log"), "log.access")


def test_a_path_that_vanished_for_good_keeps_the_old_file(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = LogFile(str(folder / "log"), "log.access")
    folder.rename(tmp_path / "moved")
    log.look()
    log.write(b"line\n")
    assert (tmp_path / "moved" / "log").read_bytes() == b"line\n"
    log.close()


def test_a_line_that_broke_off_is_lost_alone(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = LogFile(str(pipe), "log.access")
    long, line = b"x" * (1 << 20) + b"\n", b"whole\n"
    log.write(long)
    begun = os.read(reader, 1 << 20)
    assert 0 < len(begun) < len(long)
    log.write(line)
    log.write(line)
    assert os.read(reader, 1 << 20) == b"\n" + line + line
    assert log.lost == 1
    log.close()
    os.close(reader)


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    log = LogFile("/dev/full", "log.access")
    log.write(b"line\n")
    log.look()
    log.write(b"line\n")
    assert log.lost == 2
    log.close()
