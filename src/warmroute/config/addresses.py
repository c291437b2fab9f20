"""What an address in the configuration may look like, and its parts.

Pure text: no name is resolved. A host name is allowed wherever something is dialled; an all-numeric last label makes it
an IP address, so a mistyped `10.0.0.256` is refused here and not looked up as a name.

Invariant: each function returns parts that a socket can use as they are, or raises ValueError with a clause that
completes the sentence "VALUE ...".
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from warmroute.types import Endpoint

PORT_MAX: Final = 65535
_LABEL: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_HOST_PORT: Final = re.compile(r"(?:\[(?P<bracketed>[^\]]*)\]|(?P<plain>[^:\[\]]*))(?::(?P<port>-?[0-9]*))?")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A ZMQ address of TCP: rank r of the same engine is at `port + r`."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class IpcAddress:
    """A ZMQ address in the file system: it has no port, so it serves one rank only."""

    path: str

    def __str__(self) -> str:
        return f"ipc://{self.path}"


def parse_url(url: str) -> Endpoint:
    """The endpoint that a base URL (`http://HOST:PORT`) names; without a port, the scheme's own. Raises ValueError."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in _DEFAULT_PORTS:
        raise ValueError("is no http:// or https:// URL")
    authority, after = re.split(r"(?=[/?#]|$)", rest, maxsplit=1)
    if "@" in authority:
        raise ValueError("carries a user name or password, which engines do not take")
    if after not in ("", "/"):
        raise ValueError("has more than scheme, host and port: leave out the path, such as /v1")
    tls = scheme.lower() == "https"
    host, port = _host_and_port(authority, port_default=_DEFAULT_PORTS[scheme.lower()])
    return Endpoint(host=host, port=port, tls=tls)


def parse_zmq(address: str) -> TcpAddress | IpcAddress:
    """The parts of a ZMQ address to connect to (`tcp://HOST:PORT` or `ipc://PATH`). Raises ValueError."""
    scheme, separator, rest = address.partition("://")
    if separator and scheme == "ipc":
        if not rest:
            raise ValueError("has no path")
        return IpcAddress(rest)
    if not separator or scheme != "tcp":
        raise ValueError("is no tcp://HOST:PORT or ipc://PATH address")
    if rest.startswith("*"):
        raise ValueError("is what an engine binds; * names no host to connect to")
    return TcpAddress(*_host_and_port(rest, port_default=None))


def parse_zmq_listen(address: str) -> TcpAddress | IpcAddress:
    """The parts of a ZMQ address to listen on: as `parse_zmq`, and `*` for every interface. Raises ValueError."""
    scheme, separator, rest = address.partition("://")
    if (scheme, separator) == ("tcp", "://") and rest.startswith("*:"):
        return TcpAddress("*", _host_and_port("0.0.0.0" + rest[1:], port_default=None)[1])  # noqa: S104 - a stand-in
    return parse_zmq(address)


def without_credentials(text: str) -> str:
    """`text` for an error or a log, with no user name or password that a URL in it carries."""
    return re.sub(r"//[^/@]*@", "//...@", text)


def check_listen_host(host: str) -> None:
    """Refuse what cannot be listened on: anything but an IP address or `localhost`. Raises ValueError."""
    if host == "localhost":
        return
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError("is no IP address") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def _host_and_port(text: str, *, port_default: int | None) -> tuple[str, int]:
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        raise ValueError("is not HOST:PORT (an IPv6 address stands in brackets)")
    port_text = match["port"]
    if port_text is None and port_default is None:
        raise ValueError("has no port")
    port = port_default if port_text is None else int(port_text) if len(port_text.strip("-")) in range(1, 6) else -1
    if port is None or not 1 <= port <= PORT_MAX:
        raise ValueError(f"has a port that is not from 1 to {PORT_MAX}")
    bracketed, plain = match["bracketed"], match["plain"]
    if bracketed is not None:
        return _ipv6(bracketed), port
    return _host_name(plain), port


def _ipv6(text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        raise ValueError(f"has no IPv6 address in its brackets: {text!r}") from None


def _host_name(text: str) -> str:
    if not text:
        raise ValueError("has no host")
    labels = text.removesuffix(".").split(".")
    if labels[-1].isdecimal():
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            raise ValueError(f"has no valid IP address: {text!r}") from None
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in labels):  # 253: the longest name DNS can carry
        raise ValueError(f"has no valid host: {text!r}")
    return text.lower()
