"""Listening sockets handed from a running gateway to the one that is to take its place: nobody in their line is lost.

    new -- connects to the path ----------> old
    new <- what it listens on, the sockets themselves -- old        both accept from the same lines now
    new -- `ready`, when it serves -------> old                     old drains, and ends

Invariant: the old one goes on as if nothing had happened until it is told `ready`; if the new one dies first, it never
drains. The path belongs to whoever bound it last; only its owner's user can use it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import msgspec

from warmroute.errors import ConfigError

_log = logging.getLogger(__name__)

_READY = b"ready"
_PATIENCE_S = 10.0
"""How long the other one may take to answer."""
_FDS_MAX = 200
"""Per message; the kernel takes 253."""
_HEAD_BYTES = 4096

Watch: TypeAlias = Callable[[socket.socket, Callable[[], None]], None]
"""Has the second called whenever the first can be read, until it is closed and forgotten."""
Forget: TypeAlias = Callable[[socket.socket], object]


class Doors(msgspec.Struct, frozen=True):
    """What a gateway listens on, by process; empty: operators have no listener of their own."""

    clients: tuple[tuple[socket.socket, ...], ...] = ()
    operators: tuple[tuple[socket.socket, ...], ...] = ()


class Offer:
    """The old one's side: whoever comes to `path` gets the sockets; `leave` is called when it is ready."""

    def __init__(self, path: str, doors: Doors, leave: Callable[[], None], watch: Watch, forget: Forget) -> None:
        """Raises ConfigError if the path cannot be had."""
        self._doors = doors
        self._leave = leave
        self._watch, self._forget = watch, forget
        self._open: list[socket.socket] = []
        self._path = path
        self._listening = _bound(path)
        watch(self._listening, self._accept)
        self._open.append(self._listening)

    def close(self, *, forked: bool = False) -> None:
        """Offer nothing any more. The path stays: it may be another's by now. `forked`: only this process does not."""
        for each in self._open:
            if not forked:
                self._forget(each)
            each.close()
        self._open.clear()

    def _accept(self) -> None:
        try:
            new, _ = self._listening.accept()
        except BlockingIOError:
            return
        new.settimeout(_PATIENCE_S)  # it reads at once, or it is no gateway
        try:
            _give(new, self._doors)
        except OSError as error:
            _log.error("the listening sockets could not be handed over: %s", error)
            new.close()
            return
        _log.info("another gateway has taken the listening sockets; it says when it is ready")
        self._open.append(new)
        self._watch(new, lambda: self._heard(new))

    def _heard(self, new: socket.socket) -> None:
        try:
            said = new.recv(len(_READY))
        except OSError:
            said = b""
        self._forget(new)
        self._open.remove(new)
        new.close()
        if said == _READY:
            _log.info("the other gateway is ready")
            self._leave()
        else:
            _log.warning("the other gateway has gone before it was ready: this one goes on")


class Taken:
    """The new one's side: the sockets, and the word that it serves."""

    def __init__(self, old: socket.socket, doors: Doors) -> None:
        self.doors = doors
        self._old = old

    def ready(self) -> None:
        """The old one may go."""
        try:
            self._old.sendall(_READY)
        except OSError as error:
            _log.warning("the gateway before this one has gone already: %s", error)
        self._old.close()


def take_over(path: str) -> Taken | None:
    """What the gateway that offers it at `path` listens on; None if there is none. Raises ConfigError."""
    old = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old.settimeout(_PATIENCE_S)
    try:
        old.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        old.close()
        return None
    except OSError as error:
        old.close()
        raise ConfigError("gateway.handover", f"{path!r} cannot be used: {error}", "Give another path.") from error
    try:
        return Taken(old, _get(old))
    except (OSError, msgspec.MsgspecError) as error:
        old.close()
        problem = f"the gateway at {path!r} does not hand over: {error}"
        raise ConfigError("gateway.handover", problem, "End it, or give another path.") from error


def _bound(path: str) -> socket.socket:
    """A listening socket at `path`, in the place of whatever socket was there."""
    fresh = f"{path}.{os.getpid()}"
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.setblocking(False)
    try:
        Path(fresh).unlink(missing_ok=True)
        listening.bind(fresh)
        Path(fresh).chmod(0o600)
        listening.listen()
        Path(fresh).replace(path)
    except OSError as error:
        listening.close()
        raise ConfigError("gateway.handover", f"{path!r} cannot be used: {error}", "Give another path.") from error
    return listening


def _give(new: socket.socket, doors: Doors) -> None:
    sizes = [[len(sockets) for sockets in each] for each in (doors.clients, doors.operators)]
    fds = [each.fileno() for group in (*doors.clients, *doors.operators) for each in group]
    head = msgspec.json.encode(sizes)
    new.sendall(len(head).to_bytes(4) + head)
    for at in range(0, len(fds), _FDS_MAX):
        socket.send_fds(new, [b"."], fds[at : at + _FDS_MAX])
        new.recv(1)  # so that no two messages run together


def _get(old: socket.socket) -> Doors:
    head = _exactly(old, int.from_bytes(_exactly(old, 4)))
    sizes: list[list[int]] = msgspec.json.decode(head, type=list[list[int]])
    count, fds = sum(map(sum, sizes)), list[int]()
    while len(fds) < count:
        data, more, _, _ = socket.recv_fds(old, 1, _FDS_MAX)
        if not data or not more:
            raise OSError("it closed the connection")
        fds += more
        old.sendall(b".")
    opened = iter([socket.socket(fileno=fd) for fd in fds])
    clients, operators = ([tuple(next(opened) for _ in range(size)) for size in each] for each in sizes)
    return Doors(tuple(clients), tuple(operators))


def _exactly(old: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < min(size, _HEAD_BYTES):
        piece = old.recv(size - len(data))
        if not piece:
            raise OSError("it closed the connection")
        data += piece
    return data
