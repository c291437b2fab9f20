"""The gateway as users run it: a process of its own, started by the command line, spoken to over HTTP only."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from vllm_engine import VllmEngine, free_ports

READY_DEADLINE_S = 30.0
PATIENCE_S = 10
"""How long an engine's /tokenize is waited for: it shares few cores with everything else here, and what is tested is
what the gateway knows, not how fast this machine is."""


class GatewayProcess:
    """One `warmroute serve` in front of some engines; use as `with`. It leaves with SIGTERM and must exit with 0."""

    def __init__(self, engines: Sequence[VllmEngine], log: Path, *arguments: str) -> None:
        self.engines = tuple(engines)
        self.log = log
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        settings = ["--gateway.port", str(port), "--tokenizer.timeout_s", str(PATIENCE_S), *arguments]
        self._command = [sys.executable, "-m", "warmroute", "serve", *settings]
        for engine in engines:
            self._command += ["--engine", engine.url]

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self.wait_for(self.is_ready, READY_DEADLINE_S, "ready with every worker LIVE")
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            status = -signal.SIGKILL
        if error[0] is None:
            assert status == 0, f"exit status {status} after SIGTERM:\n{self.log_end()}"

    def is_ready(self) -> bool:
        """Whether it serves, and knows every engine's cache."""
        with contextlib.suppress(OSError):
            self.get("/ready")
            expected = sum(engine.options.ranks for engine in self.engines)
            return len(self.workers()) == expected and all(map(is_live, self.workers().values()))
        return False

    def workers(self) -> dict[str, dict[str, Any]]:
        """Its workers by `host:port` of their engines, with `#rank` where there are several ranks."""
        listed = self.get("/workers")
        rows = listed["workers"] if isinstance(listed, dict) else listed
        return {row["worker"]: row for row in rows}

    def get(self, path: str) -> Any:
        """The JSON it answers with. Raises OSError for anything but 200."""
        with urllib.request.urlopen(self.url + path, timeout=5) as answer:
            return json.load(answer)

    async def quiet(self, quiet_s: float = 0.1, deadline_s: float = 3.0) -> None:
        """Wait until no event has come for so long: those of a starved engine come later than its answers."""
        began = since = time.monotonic()
        seen: object = None
        while (now := time.monotonic()) - since < quiet_s and now - began < deadline_s:
            rows = await asyncio.to_thread(self.workers)
            if seen != (seen := [row["events"]["events"] for row in rows.values()]):
                since = now
            await asyncio.sleep(quiet_s / 4)

    def why(self, request_id: str) -> str:
        """All it says about one decision, for a failed test's message."""
        try:
            return json.dumps(self.get(f"/decisions/{request_id}"))
        except OSError as error:
            return f"no decision: {error}"

    def wait_for(self, condition: Callable[[], bool], deadline_s: float, what: str) -> None:
        """Poll until `condition` holds. Fails with the log's end if it ends first or the deadline passes."""
        deadline = time.monotonic() + deadline_s
        while not condition():
            assert self._process.poll() is None, f"the gateway ended:\n{self.log_end()}"
            assert time.monotonic() < deadline, f"not {what} after {deadline_s} s:\n{self.state()}\n{self.log_end()}"
            time.sleep(0.05)

    def state(self) -> str:
        """Its workers as text."""
        try:
            return json.dumps(self.workers(), indent=1)
        except OSError as error:
            return repr(error)

    def log_end(self, lines: int = 40) -> str:
        """The last lines it wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def is_live(worker: dict[str, Any]) -> bool:
    """Whether requests may be sent to the worker and its view is in sync."""
    return bool(worker["ready"] and worker["trust"]["state"] == "LIVE")
