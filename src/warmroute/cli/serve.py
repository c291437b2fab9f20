"""`warmroute serve`: the gateway, from the configuration that flags, environment and file give."""

from __future__ import annotations

import logging

import click

from warmroute.cli.logs import set_up_logging
from warmroute.cli.settings import REREAD, SettingsCommand, require_engines
from warmroute.config import Loaded


@click.command("serve", cls=SettingsCommand)
def command(loaded: Loaded) -> int:
    """Route OpenAI-compatible requests to the engines whose cache is warm for them.

    Flags go before WARMROUTE_SECTION_SETTING variables, these before the file given with --config.
    """
    require_engines(loaded)
    set_up_logging(loaded.config.log)
    logger = logging.getLogger(__name__)
    for note in loaded.notes:
        logger.warning("%s", note)
    from warmroute.app.serving import run  # noqa: PLC0415  `--help` and errors need none of it

    read = click.get_current_context().meta[REREAD]

    def reread() -> Loaded:
        loaded: Loaded = read()
        require_engines(loaded)
        return loaded

    return run(loaded.config, reread)
