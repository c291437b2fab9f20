"""What listens at a ZMQ address, without a ZMQ library: the greeting tells the kind of socket, a library would not.

A ZMQ peer introduces itself unasked: 64 bytes of greeting (with the version and the security mechanism), then, if it
wants no credentials, a READY command with its socket type. We send our greeting, read its two, and go: no socket is
subscribed, nothing is asked of the engine.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from warmroute.config.addresses import IpcAddress, TcpAddress, parse_zmq
from warmroute.service.doctor.facts import Listening, PeerFacts

_MECHANISM = b"NULL"
_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + _MECHANISM.ljust(20, b"\0") + bytes(32)
_SIGNATURE_BYTES = 10
_LONG = 0x02
_COMMAND = 0x04


async def identify(address: str, timeout_s: float) -> PeerFacts:
    """What answers at `address` (`tcp://HOST:PORT` or `ipc://PATH`). Raises ValueError for another address."""
    parsed = parse_zmq(address)
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await _open(parsed)
            try:
                return await _introduced(address, reader, writer)
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError:
        return PeerFacts(address, Listening.SILENT, detail=f"for {timeout_s:g} s")
    except socket.gaierror as error:
        return PeerFacts(address, Listening.UNRESOLVED, detail=error.strerror or str(error))
    except (ConnectionRefusedError, FileNotFoundError):
        return PeerFacts(address, Listening.REFUSED)
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return PeerFacts(address, Listening.FOREIGN, detail="it hung up")
    except OSError as error:
        return PeerFacts(address, Listening.SILENT, detail=error.strerror or str(error))


async def _open(address: TcpAddress | IpcAddress) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(address, IpcAddress):
        return await asyncio.open_unix_connection(address.path)
    return await asyncio.open_connection(address.host, address.port)


async def _introduced(address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> PeerFacts:
    writer.write(_GREETING)
    signature = await reader.readexactly(_SIGNATURE_BYTES)
    if signature[0] != 0xFF or signature[-1] != 0x7F:
        return PeerFacts(address, Listening.FOREIGN, detail=f"it says {signature!r}")
    greeting = await reader.readexactly(len(_GREETING) - _SIGNATURE_BYTES)
    mechanism = greeting[2:22].rstrip(b"\0")
    if mechanism != _MECHANISM:
        return PeerFacts(address, Listening.FOREIGN, detail=f"it wants {mechanism.decode('ascii', 'replace')}")
    return _ready(address, await _command(reader))


async def _command(reader: asyncio.StreamReader) -> bytes:
    flags, length = await reader.readexactly(2)
    if not flags & _COMMAND or flags & _LONG:  # a long one has more than 255 bytes: no READY that we know
        return b""
    return await reader.readexactly(length)


def _ready(address: str, command: bytes) -> PeerFacts:
    """Read `5 READY`, then properties of a name's length, the name, the value's length in four bytes, the value."""
    _, found, rest = command.partition(b"\x0bSocket-Type")
    length = int.from_bytes(rest[:4], "big")
    if not command.startswith(b"\x05READY") or not found:
        return PeerFacts(address, Listening.FOREIGN, detail="it does not say what kind of socket it is")
    return PeerFacts(address, Listening.OPEN, rest[4 : 4 + length].decode("ascii", "replace"))
