"""What one process of a gateway is given by the one that started it; nothing, if it is the only one."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from warmroute.core.sharing import Sharing
from warmroute.edge.sockets import Sockets


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One of `processes` processes, by its number."""

    process: int = 0
    processes: int = 1
    clients: Sockets = ()
    """Where clients are listened for; empty: where the configuration says."""
    operators: Sockets = ()
    """The same for operators."""
    page: memoryview[float] | None = None
    """Where all processes see what each has in flight."""
    channel: socket.socket | None = None
    """To the control process."""
    patience_s: float = 0.0
    """How long to wait for an engine before clients are accepted: others serve meanwhile, or what comes waits."""

    def sharing(self) -> Sharing | None:
        """Its part of the page."""
        return None if self.page is None else Sharing(self.page, self.process, self.processes)
