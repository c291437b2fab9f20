"""TLS contexts: for clients, with a certificate that can be replaced, and for engines.

Invariant: a connection is served with a certificate and a key that belong together; a pair that does not is refused and
the one before it stays. Connections that are open are not touched.
"""

from __future__ import annotations

import ssl

from warmroute.config.tree import TlsConfig
from warmroute.errors import ConfigError

_PROTOCOLS = ["http/1.1"]


class ServerTls:
    """What clients are served with. `context` is for the listener; it stays the same over every `reload`."""

    def __init__(self, certificate: str, key: str) -> None:
        self._certificate, self._key = certificate, key
        self._current = self._loaded()
        self.context = self._loaded()
        # OpenSSL asks at each handshake, also of clients that name no server: a swap there is whole or not at all,
        # while loading a new pair into a context in use can fail between its two halves.
        self.context.sni_callback = self._choose

    def reload(self) -> None:
        """Read both files again. Raises ConfigError, and nothing changes, if they are no pair."""
        self._current = self._loaded()

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current

    def _loaded(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(_PROTOCOLS)
        try:
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                "tls.certificate",
                f"{self._certificate!r} and {self._key!r} cannot be used: {reason}",
                "Give a PEM certificate with its chain, and its private key without a password.",
            ) from error
        return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # or OpenSSL would ask for the password on the terminal


def engine_context(config: TlsConfig) -> ssl.SSLContext:
    """What https:// engines are spoken to with. Raises ConfigError if the authorities cannot be read."""
    try:
        context = ssl.create_default_context(cafile=config.engine_ca)
    except OSError as error:
        raise ConfigError(
            "tls.engine_ca", f"{config.engine_ca!r} cannot be used: {error}", "Give a PEM file with certificates."
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(_PROTOCOLS)
    if not config.engine_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
