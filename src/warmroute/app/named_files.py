"""What `serve` would refuse of the files that a configuration names: told beforehand, all of it.

Invariant: nothing is written, listened on or connected to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from warmroute.app.discovery import read_engines
from warmroute.app.listeners import tls_to_engines
from warmroute.app.own_policy import load_policy
from warmroute.app.tokenizing import local_tokenizer
from warmroute.config.tree import Config
from warmroute.core.keys import parse_keys
from warmroute.edge.files import read_text
from warmroute.edge.tls import ServerTls
from warmroute.errors import ConfigError


def problems(config: Config) -> Iterator[ConfigError]:
    """One error per file that cannot be used."""
    for look in _looks(config):
        try:
            look()
        except ConfigError as error:
            yield error


def _looks(config: Config) -> Iterator[Callable[[], object]]:
    tls, password, engines = config.tls, config.admission.redis_password_file, config.discovery.file.path
    for setting, path in (("gateway.keys_file", config.gateway.keys_file), ("admin.keys_file", config.admin.keys_file)):
        if path is not None:
            yield partial(_keys, path, setting)
    if tls.certificate is not None and tls.key is not None:
        yield partial(ServerTls, tls.certificate, tls.key)
    yield partial(tls_to_engines, config)
    if password is not None:
        yield partial(read_text, password, "admission.redis_password_file")
    if engines is not None:
        yield partial(read_engines, engines)
    yield partial(local_tokenizer, config.tokenizer)
    yield partial(load_policy, config.routing.policy)


def _keys(path: str, setting: str) -> None:
    parse_keys(read_text(path, setting), setting)
