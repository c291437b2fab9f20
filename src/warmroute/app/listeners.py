"""Where the gateway is reached: the clients' listener and, if it is configured, one of their own for operators.

Invariant: with a listener for operators, what only they may do is refused on the clients'; without one, all is served
on one port to whoever is let in there.
"""

from __future__ import annotations

import ssl
from collections import Counter
from dataclasses import replace

from warmroute.app.discovery import discovers
from warmroute.config.tree import Config, GatewayConfig
from warmroute.core.keys import Keys, parse_keys
from warmroute.edge.files import WatchedFiles, read_text
from warmroute.edge.http.server import HttpServer
from warmroute.edge.sockets import Sockets
from warmroute.edge.tls import ServerTls, engine_context
from warmroute.errors import ConfigError
from warmroute.service.access import Access
from warmroute.service.ports import GatewayService


class Listeners:
    """Both listeners, and the files that say who may use them. Raises ConfigError if one of these cannot be read."""

    def __init__(
        self, config: Config, engine_tls: ssl.SSLContext | None, clients: GatewayService, operators: GatewayService
    ) -> None:
        self.watched: dict[str, WatchedFiles] = {}
        self.access: dict[str, Access] = {}
        self.admin_port: int | None = None
        tls = self._server_tls(config)
        separate = config.admin.port is not None
        self.clients = HttpServer(
            clients,
            config.gateway,
            guard=self._access("gateway", config.gateway.keys_file, inference_only=separate),
            tls=tls,
            engine_tls=engine_tls,
        )
        self.operators: HttpServer | None = None
        if config.admin.port is not None:
            address = _for_operators(config)
            self.operators = HttpServer(
                operators,
                address,
                guard=self._access("admin", config.admin.keys_file),
                tls=tls if config.admin.tls else None,
                engine_tls=engine_tls,
                counts=self.clients.counts,  # what happens on connections is counted once for all
            )

    def keys(self) -> Keys | None:
        """The clients' keys that are in force; None if none are asked for."""
        access = self.access.get("gateway")
        return None if access is None else access.keys

    async def start(self, clients: Sockets = (), operators: Sockets = ()) -> int:
        """Listen, on these sockets if there are any; the clients' port. Raises ConfigError if one cannot be had."""
        port = await self.clients.start(clients)
        if self.operators is not None:
            try:
                self.admin_port = await self.operators.start(operators)
            except ConfigError as error:
                raise ConfigError("admin.port", error.problem, error.remedy) from error
        return port

    def tick(self) -> None:
        """Take up files that changed."""
        for watched in self.watched.values():
            watched.look()

    def reconfigure(self, config: Config) -> None:
        """Take up what is configured now but for addresses, keys' files and certificates' files."""
        self.clients.reconfigure(config.gateway)
        if self.operators is not None:
            self.operators.reconfigure(_for_operators(config))

    async def drain(self) -> None:
        """Let the clients' requests end; operators are served until then."""
        await self.clients.drain()

    async def close(self) -> None:
        """Cut everything."""
        await self.clients.close()
        if self.operators is not None:
            await self.operators.close()

    def refused(self) -> Counter[tuple[str, ...]]:
        """(listener, reason) -> requests that were not let in."""
        return Counter({(name, why): n for name, access in self.access.items() for why, n in access.refused.items()})

    def reloads(self) -> Counter[tuple[str, ...]]:
        """(files, result) -> times they were read again."""
        found = Counter({(name, "done"): watched.reloads for name, watched in self.watched.items()})
        return found + Counter({(name, "failed"): watched.failures for name, watched in self.watched.items()})

    def _server_tls(self, config: Config) -> ssl.SSLContext | None:
        certificate, key = config.tls.certificate, config.tls.key
        if certificate is None or key is None:
            return None
        tls = ServerTls(certificate, key)
        self.watched["certificate"] = WatchedFiles((certificate, key), tls.reload)
        return tls.context

    def _access(self, listener: str, path: str | None, *, inference_only: bool = False) -> Access | None:
        if path is None and not inference_only:
            return None
        access = Access(None if path is None else Keys(), inference_only=inference_only)
        self.access[listener] = access
        if path is not None:
            setting = f"{listener}.keys_file"

            def load() -> None:
                access.keys = parse_keys(read_text(path, setting), setting)

            self.watched[f"{listener}_keys"] = WatchedFiles((path,), load)
        return access


def _for_operators(config: Config) -> GatewayConfig:
    return replace(config.gateway, host=config.admin.host, port=config.admin.port or 0)


def tls_to_engines(config: Config) -> ssl.SSLContext | None:
    """What https:// addresses are spoken to with; None if there are none and none can come. Raises ConfigError."""
    urls = [*(engine.url for engine in config.engines), config.tokenizer.remote_endpoint or ""]
    needed = discovers(config) or any(url.lower().startswith("https:") for url in urls)
    return engine_context(config.tls) if needed else None
