"""The configuration read again while the gateway runs: all of it is taken up, or nothing.

First everything is made that could fail, then it is put in place, which cannot. What a running gateway cannot take up
is named and stays as it was; the next look names it again.

    prepare   a policy of one's own is loaded, engines' addresses are read           ConfigError: nothing has changed
    commit    engines come and go, timeouts, limits, weights and the log's level are taken up, files are looked at
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from warmroute.app.own_policy import load_policy
from warmroute.config import Loaded
from warmroute.config.differences import Difference, differences, take_up
from warmroute.config.tree import Config
from warmroute.core.roster import CONFIG, Listed
from warmroute.errors import ConfigError
from warmroute.service.addressing import endpoint_of
from warmroute.service.ports import Reply

if TYPE_CHECKING:
    from warmroute.app.gateway import Gateway

_log = logging.getLogger(__name__)

Reread = Callable[[], Loaded]
"""Reads flags, environment and file again, as at the start. Raises ConfigError."""


def encode_config(config: Config) -> bytes:
    """A configuration for another process of the same gateway."""
    return msgspec.msgpack.encode(config)


def decode_config(data: bytes) -> Config:
    """The other way."""
    return msgspec.msgpack.decode(data, type=Config)


def prepare(config: Config) -> Callable[[Gateway], None]:
    """Make what could fail; what is returned puts it in place. Raises ConfigError."""
    policy = load_policy(config.routing.policy)
    for engine in config.engines:
        endpoint_of(engine.url)

    def commit(gateway: Gateway) -> None:
        gateway.config = config
        gateway.membership.reconfigure(config)
        gateway.reconciler.reconfigure(config)
        gateway.reconciler.replace(CONFIG, map(Listed, config.engines))
        gateway.router.reconfigure(config.routing, policy)
        gateway.routing.reconfigure(config.gateway)
        gateway.breakers.reconfigure(config.breaker)
        gateway.limiting.reconfigure(config.admission)
        gateway.listeners.reconfigure(config)
        gateway.look_at_files()
        logging.getLogger().setLevel(config.log.level.upper())

    return commit


def compare(running: Config, loaded: Loaded, *, gated: bool) -> tuple[Config, list[Difference]]:
    """What to run with from now on, and what differs; said to the log."""
    differing = differences(running, loaded.config, gated=gated)
    for note in loaded.notes:
        _log.warning("%s", note)
    for each in differing:
        if each.live:
            _log.info("reload: %s", each)
        else:
            _log.warning("reload: %s needs a restart", each)
    if not differing:
        _log.info("reload: no setting has changed; files were looked at")
    return take_up(running, loaded.config, differing), differing


def said(differing: list[Difference]) -> Reply:
    """What a reload did, for who asked for it."""

    def rows(*, live: bool) -> list[dict[str, Any]]:
        return [{"key": each.key, "old": each.old, "new": each.new} for each in differing if each.live is live]

    return Reply(200, msgspec.json.encode({"changed": rows(live=True), "needs_restart": rows(live=False)}))


def refused(why: ConfigError | str) -> Reply:
    """Nothing has changed, and why."""
    _log.error("reload: nothing has changed: %s", why)
    message = f"Nothing has changed: {why}"
    body = {"error": {"message": message, "type": "invalid_request_error", "code": "bad_config"}}
    return Reply(400, msgspec.json.encode(body))


def reload(gateway: Gateway, reread: Reread) -> Reply:
    """Do it in a gateway of one process."""
    try:
        gated = gateway.limiting.admission is not None
        config, differing = compare(gateway.config, reread(), gated=gated)
        commit = prepare(config)
    except ConfigError as error:
        return refused(error)
    commit(gateway)
    return said(differing)
