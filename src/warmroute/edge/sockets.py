"""Sockets that several processes listen on together, one each, and that outlive a process.

The system spreads new connections over all sockets that listen on one port with SO_REUSEPORT. Whoever opened them keeps
them open, so what waits in the line of a process that crashed is accepted by the next one.

Invariant: a port that a stranger listens on is refused, though SO_REUSEPORT would let us share it.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any, TypeAlias

from warmroute.errors import ConfigError

BACKLOG = 4096
"""Connections the kernel keeps for a process while it is busy: bursts of clients must not be refused."""

Sockets: TypeAlias = tuple[socket.socket, ...]


def listen(host: str, port: int, count: int, setting: str) -> list[Sockets]:
    """`count` processes' sockets, listening: one each per address of `host`.

    Port 0: one that the system chooses, the same for all. Raises ConfigError under the name of the `setting`.
    """
    opened: list[Sockets] = []
    try:
        addresses = _addresses(host, port)
        for family, address in addresses:  # a stranger is only found out by a socket that will not share
            _open(family, address, shared=False).close()
        for _ in range(count):
            mine: list[socket.socket] = []
            opened.append(())
            for family, address in addresses:
                mine.append(_open(family, (address[0], port, *address[2:]), shared=True))
                opened[-1] = tuple(mine)
                port = mine[0].getsockname()[1]
        for sockets in opened:
            for each in sockets:
                each.listen(BACKLOG)
    except OSError as error:
        close(opened)
        raise ConfigError(setting, f"cannot listen on {host}:{port}: {error}", "Choose another one.") from error
    return opened


def close(opened: Sequence[Sockets]) -> None:
    """Close them here."""
    for sockets in opened:
        for each in sockets:
            each.close()


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, tuple(address)) for family, *_, address in found))


def _open(family: socket.AddressFamily, address: tuple[Any, ...], *, shared: bool) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family is socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(address)
    except OSError:
        opened.close()
        raise
    return opened
