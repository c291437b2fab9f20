"""Engines that announce what they were asked, so that a gateway pays for following events as it does in life.

The C mock answers and tells this process each body. Here a thread per engine keeps what an engine would have in its
prefix cache, publishes over ZMQ what is new in it as vLLM does, and counts how much of each prompt was there already:
that is the hit rate, whoever routed.
"""

from __future__ import annotations

import struct
import subprocess
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import zmq

from warmroute.core.wire.events import BlockStored
from warmroute.testing.events import encode_batch

BLOCK = 16

TokenIds = Callable[[bytes], Sequence[int]]
"""The ids of a body, as its engine makes them."""


class Publisher:
    """Announces one engine's blocks, each named by a number of its own."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self._socket = context.socket(zmq.PUB)
        self._socket.set_hwm(0)
        self._socket.bind("tcp://127.0.0.1:*")
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._named: dict[tuple[int, bytes], int] = {}
        self._seq = 0

    def store(self, ids: Sequence[int]) -> int:
        """Announce the full blocks of one prompt that are not announced yet; how many leading ones were."""
        tokens = array("I", ids).tobytes()
        parent, held, fresh, first = 0, 0, [], (0, 0)
        for start in range(0, len(ids) - BLOCK + 1, BLOCK):
            key = (parent, tokens[4 * start : 4 * (start + BLOCK)])
            name = self._named.get(key)
            if name is not None:
                held += 1
            else:
                name = self._named[key] = len(self._named) + 1
                first = first if fresh else (parent, start)
                fresh.append(name)
            parent = name
        if fresh:
            own = tuple(ids[first[1] : first[1] + BLOCK * len(fresh)])
            event = BlockStored(block_hashes=tuple(fresh), parent=first[0] or None, token_ids=own, block_size=BLOCK)
            payload = encode_batch([event], ts=time.time())
            self._socket.send_multipart((b"", self._seq.to_bytes(8, "big"), payload))
            self._seq += 1
        return held

    @property
    def blocks(self) -> int:
        return len(self._named)


class Engine:
    """One mock engine on `port` and its cache."""

    def __init__(self, port: int, publisher: Publisher, ids_of: TokenIds) -> None:
        self.port = port
        self.publisher = publisher
        self.requests = self.blocks = self.held = 0
        """Requests so far, the full blocks of their prompts, and those of them that were there."""
        self._ids_of = ids_of

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def listen(self, told: Any) -> None:
        """Take in what the mock tells, until it ends."""
        while len(size := told.read(4)) == 4:
            ids = self._ids_of(told.read(struct.unpack("=I", size)[0]))
            self.held += self.publisher.store(ids)
            self.blocks += len(ids) // BLOCK
            self.requests += 1


@contextmanager
def engine(tools: Path, port: int, context: zmq.Context[Any], ids_of: TokenIds) -> Iterator[Engine]:
    made = Engine(port, Publisher(context), ids_of)
    command = [str(tools / "mock"), str(port), "64", "5000", "tell"]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "pipesize": 1 << 20}
    with subprocess.Popen(command, **options) as process:
        listening = threading.Thread(target=made.listen, args=(process.stdout,), daemon=True)
        listening.start()
        try:
            yield made
        finally:
            process.terminate()
            listening.join()


@lru_cache(maxsize=256)
def rendered_ids(body: bytes) -> list[int]:
    """What the mock's `/render` gives for a body: a number for every four bytes, as mock.c has it."""
    words = array("I", body[: len(body) // 4 * 4])
    return [(word * 2654435761 & 0xFFFFFFFF) >> 15 for word in words]
