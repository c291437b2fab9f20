"""`warmroute` as users run it: a process of its own, by the command line, spoken to over sockets and signals only."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from types import TracebackType
from typing import Self

from e2e_fleet import DEADLINE_S

SOURCES = Path(__file__).parents[2] / "src"


class Command:
    """One running command; use as `async with`. Whatever happens, it is gone afterwards."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.arguments = arguments
        self._environment = environment
        self.output = ""
        """Everything it has written so far, to both streams."""
        self._grown = asyncio.Event()

    async def __aenter__(self) -> Self:
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("WARMROUTE_", "AIBRIX_"))}
        self.process: Process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-u", "-m", "warmroute", *self.arguments),
            env={**mine, "PYTHONPATH": str(SOURCES), **self._environment},
            stdout=PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while piece := await self.process.stdout.read(65536):
            self.output += piece.decode()
            self._grown.set()
        self._grown.set()

    async def says(self, pattern: str) -> str:
        """Wait until it has written what matches; the match's first group, or all of it."""
        async with asyncio.timeout(DEADLINE_S):
            while not (found := re.search(pattern, self.output)):
                assert not self._reading.done(), f"{self.arguments} ended without saying {pattern!r}:\n{self.output}"
                self._grown.clear()
                await self._grown.wait()
        return found[1] if found.re.groups else found[0]

    def children(self) -> list[int]:
        """The processes that it has started, the oldest first."""
        own = self.process.pid
        return [int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text().split()]

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    async def exit_code(self) -> int:
        """Wait for its end."""
        async with asyncio.timeout(3 * DEADLINE_S):
            code = await self.process.wait()
            await self._reading
        return code


def serve(*engines: str, **settings: str) -> Command:
    """`warmroute serve` on a free port before these engines."""
    given = {
        "gateway.port": "0",
        "membership.probe_interval_s": "0.1",
        "membership.retry_interval_s": "0.1",
        **{name.replace("__", "."): value for name, value in settings.items()},
    }
    arguments = [part for name, value in given.items() for part in (f"--{name}", value)]
    return Command("serve", *arguments, *(part for engine in engines for part in ("--engine", engine)))


def engine(**options: str) -> Command:
    """`warmroute engine` on free ports."""
    given = {"model": "tiny", **options}
    return Command(
        "engine", *(part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value))
    )
