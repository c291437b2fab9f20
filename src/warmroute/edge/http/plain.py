"""Heads that are plain, as nearly all are: read, and put together for the other side, by the native core.

What it reads, the Python readers (`client`'s parser, and `head`) would read in the same way; it declines the rest, and
where it is not built everything. A differential test holds it to that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from warmroute.core.hashing import NATIVE
from warmroute.service.ports import Headers

if NATIVE:
    from warmroute import _native


class PlainHead(Protocol):
    """The head of a POST with one Host, one Content-Length and nothing rare; besides, it is as a `RequestHead` is."""

    @property
    def end(self) -> int:
        """How many bytes it has."""
        ...

    @property
    def length(self) -> int:
        """Bytes of the body."""
        ...

    @property
    def target(self) -> bytes:
        """What is asked for."""
        ...

    def message(self, authority: bytes, headers: Headers, body: bytes) -> bytes:
        """What `head.request_bytes` gives, and the body behind it."""
        ...


def plain(head: object) -> PlainHead | None:
    """The head, if it is plain."""
    return head if NATIVE and isinstance(head, _native.PlainHead) else None


Relayed: TypeAlias = tuple[int, int, int, bytes]
"""Of an answer: status; length of its body, -1 if it is chunked; where its head ends in the bytes it was read from; and
the head to send on, with the body behind it if all of that was there."""


def _decline(_data: bytes, _at: int = 0) -> PlainHead | None:
    return None


def _decline_answer(_data: bytes, _headers: Headers, _close: bool) -> Relayed | None:
    return None


read_request: Callable[[bytes, int], PlainHead | None] = _native.read_request if NATIVE else _decline
"""The head that begins at a place in the bytes, if it is plain."""
relay_answer: Callable[[bytes, Headers, bool], Relayed | None] = _native.relay_answer if NATIVE else _decline_answer
"""A plain answer, but to a HEAD, for an HTTP/1.1 client: with headers set, and `Connection: close` if wanted."""
