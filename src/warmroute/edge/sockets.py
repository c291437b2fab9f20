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


def listen(host: str, port: int, count: int, setting: str, *, beside_ours: bool = False) -> list[Sockets]:
    """`count` processes' sockets, listening: one each per address of `host`.

    Port 0: one that the system chooses, the same for all. `beside_ours`: whoever listens there already is no stranger.
    Raises ConfigError under the name of the `setting`.
    """
    opened: list[Sockets] = []
    try:
        addresses = _addresses(host, port)
        for family, address in () if beside_ours else addresses:  # a stranger shows only if the socket will not share
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


def serves(sockets: Sockets, host: str, port: int) -> bool:
    """Whether these listen where the configuration says. Port 0: wherever they do."""
    hosts = {address[0] for _, address in _addresses(host, port)}
    return all(each.getsockname()[0] in hosts and port in (0, each.getsockname()[1]) for each in sockets)


def seats(handed: Sequence[Sockets], count: int) -> list[Sockets]:
    """Handed sockets for `count` processes: none is left over, and each process gets one while there are some."""
    return [tuple(each for group in handed[number::count] for each in group) for number in range(count)]


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
