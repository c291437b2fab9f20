"""What this gateway listens on: sockets of its own, or those of the gateway whose place it takes."""

from __future__ import annotations

from collections.abc import Sequence

from warmroute.config.tree import Config
from warmroute.edge.handover import Doors, Taken, take_over
from warmroute.edge.sockets import Sockets, close, listen, seats, serves


def open_doors(config: Config) -> tuple[Doors, Taken | None]:
    """Listen for every process; and whom to tell when they serve. Raises ConfigError if an address cannot be had."""
    gateway, admin = config.gateway, config.admin
    taken = None if gateway.handover is None else take_over(gateway.handover)
    before = Doors() if taken is None else taken.doors
    clients = _seats(before.clients, gateway.host, gateway.port, gateway.processes, "gateway.port")
    if admin.port is None:
        close(before.operators)
        return Doors(clients), taken
    return Doors(clients, _seats(before.operators, admin.host, admin.port, gateway.processes, "admin.port")), taken


def _seats(handed: Sequence[Sockets], host: str, port: int, count: int, setting: str) -> tuple[Sockets, ...]:
    if not handed or not all(serves(sockets, host, port) for sockets in handed):
        close(handed)
        return tuple(listen(host, port, count, setting))
    found = seats(handed, count)
    port = handed[0][0].getsockname()[1]
    missing = sum(not sockets for sockets in found)
    fresh = iter(listen(host, port, missing, setting, beside_ours=True))
    return tuple(sockets or next(fresh) for sockets in found)
