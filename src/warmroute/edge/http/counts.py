"""What happened on the data plane, as plain numbers: every anomaly has a name here. Metrics read them from outside."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counts:
    """Counters of one HttpServer since its start."""

    clients: int = 0
    """Client connections accepted."""
    requests: int = 0
    """Requests read to their end."""
    engine_connections: int = 0
    """Connections made to engines."""
    stale_connections: int = 0
    """Reused engine connections that turned out to be closed; the request was sent again on a fresh one."""
    connect_failures: int = 0
    """Attempts to connect to an engine that were refused or took too long."""
    unanswered: int = 0
    """Fresh engine connections that ended before a byte of the answer."""
    engine_faults: Counter[str] = field(default_factory=Counter)
    """Answers cut short or malformed, by reason."""
    clients_gone: int = 0
    """Clients that went away while their request was running."""
    refused: Counter[int] = field(default_factory=Counter)
    """Requests that were refused on the wire, by status; the service never saw them."""
    service_failures: int = 0
    """Exceptions of the service that are nobody's on purpose; answered with 500."""
    cut_by_drain: int = 0
    """Connections that were still busy when the drain timeout ended."""
