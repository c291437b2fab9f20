"""`warmroute doctor`: what is wrong with engines, and the arguments that mend it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from warmroute.cli.settings import SettingsCommand, require_engines
from warmroute.config import Loaded


def _write_reference(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    del param
    if value is None or ctx.resilient_parsing:
        return
    from warmroute.app.doctor_report import with_findings  # noqa: PLC0415  `--help` needs none of it

    page = Path(value)
    page.write_text(with_findings(page.read_text(encoding="utf-8")), encoding="utf-8")
    ctx.exit()


@click.command("doctor", cls=SettingsCommand)
@click.argument("urls", nargs=-1, metavar="[ENGINE]...")
@click.option("as_json", "--json", is_flag=True, help="For machines: every finding with its meaning and remedy.")
@click.option(
    "--send-request",
    is_flag=True,
    help="Have a small prompt computed twice per rank, and compare what is predicted with what the engine reports.",
)
@click.option(
    "--reference",
    metavar="PAGE",
    is_eager=True,
    expose_value=False,
    callback=_write_reference,
    hidden=True,
    help="Make the table of findings in PAGE anew.",
)
def command(loaded: Loaded, urls: tuple[str, ...], as_json: bool, send_request: bool) -> int:
    """Look for what is wrong with engines, and say which arguments mend it.

    ENGINE is a base URL; without any, the configured engines are looked at. Takes what `serve` takes. Exits with 0 if
    all is well, 1 if there are warnings, 2 if there is a fault.
    """
    if not urls:
        require_engines(loaded)
    from rich.console import Console  # noqa: PLC0415

    from warmroute.app.doctor_report import run  # noqa: PLC0415

    width = None if sys.stdout.isatty() else 200
    return run(loaded.config, urls, Console(width=width), as_json=as_json, send_request=send_request)
