"""A real Redis server for tests, on a free port of the loopback: started, killed and started again."""

from __future__ import annotations

import asyncio
import shutil
import socket
from asyncio.subprocess import DEVNULL, Process
from pathlib import Path
from typing import Self

DEADLINE_S = 20.0
"""Longer than a start takes on a starved machine."""

INSTALLED = shutil.which("redis-server") is not None
"""Whether there is one to start."""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class RedisProcess:
    """Use as `async with`; whatever happens, it is gone afterwards."""

    def __init__(self, folder: Path, password: str | None = None) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder, self._password = folder, password
        self.process: Process | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Empty, and ready when this returns."""
        password = ("--requirepass", self._password) if self._password else ()
        self.process = await asyncio.create_subprocess_exec(
            *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
            *("--dir", str(self._folder), *password),
            stdout=DEVNULL,
            stderr=DEVNULL,
        )
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.02)
                    continue
                writer.close()
                return

    async def stop(self) -> None:
        """Gone at once, with all it knew."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
