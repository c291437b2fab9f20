"""`warmroute serve`: one process, or several and the control process that watches over them.

SIGTERM and SIGINT end it by draining: nothing new is accepted, what runs may finish within `gateway.drain_timeout_s`.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import signal

import uvloop

from warmroute.app.control import TAKEOVER_PATIENCE_S, Control
from warmroute.app.doors import open_doors
from warmroute.app.gateway import running
from warmroute.app.reload import Reread, reload
from warmroute.app.seat import Seat
from warmroute.config.tree import Config
from warmroute.edge.handover import Doors, Offer, Taken

_log = logging.getLogger(__name__)

GC_THRESHOLDS = (50_000, 20, 100)
"""Allocations between collections of each generation; measured with benchmarks/http/run.py."""


def run(config: Config, reread: Reread) -> int:
    """Serve until a signal ends it; the exit code. Raises ConfigError if it cannot begin.

    `reread` reads the configuration again, for SIGHUP and operators.
    """
    # Requests leave no cycles behind, but thousands of kept decisions would be walked again and again to find none.
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    if config.gateway.processes > 1:
        return Control(config, run_seat, reread).run()
    if config.gateway.handover is None:
        return uvloop.run(_serve(config, Seat(), reread))
    doors, taken = open_doors(config)
    operators = doors.operators[0] if doors.operators else ()
    patience_s = 0.0 if taken is None else TAKEOVER_PATIENCE_S
    seat = Seat(clients=doors.clients[0], operators=operators, patience_s=patience_s)
    return uvloop.run(_serve(config, seat, reread, doors, taken))


def run_seat(config: Config, seat: Seat) -> int:
    """Serve as one process of several, on an event loop of its own; the exit code."""
    return uvloop.run(_serve(config, seat))


async def _serve(
    config: Config,
    seat: Seat,
    reread: Reread | None = None,
    doors: Doors | None = None,
    taken: Taken | None = None,
) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    if seat.channel is None:
        loop.add_signal_handler(signal.SIGINT, stop.set)
    async with running(config, seat, stop) as gateway:
        if reread is not None:
            gateway.administration.reload = again = functools.partial(reload, gateway, reread)
            loop.add_signal_handler(signal.SIGHUP, again)
        offer = None
        if doors is not None and config.gateway.handover is not None:
            offer = Offer(config.gateway.handover, doors, stop.set, loop.add_reader, loop.remove_reader)
        if taken is not None:
            taken.ready()
        if seat.channel is None:
            _log.info("listening on %s, %d engines configured", gateway.url, len(config.engines))
            if gateway.admin_url is not None:
                _log.info("operators are served on %s", gateway.admin_url)
        await stop.wait()
        _log.info("draining for at most %g s", config.gateway.drain_timeout_s)
        if offer is not None:
            offer.close()
        gateway.status.draining = True
        await gateway.listeners.drain()
    _log.info("stopped")
    return 0
