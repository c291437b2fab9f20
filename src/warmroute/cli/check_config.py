"""`warmroute check-config`: what `serve` would run with, and why; an exit code that says whether it would start."""

from __future__ import annotations

import json
from pathlib import Path

import click

from warmroute.cli.settings import SettingsCommand, require_engines
from warmroute.config import Loaded
from warmroute.config.render import render, render_json, with_reference
from warmroute.config.schema import json_schema
from warmroute.config.values import raise_all


def _write_reference(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    del param
    if value is None or ctx.resilient_parsing:
        return
    page = Path(value)
    page.write_text(with_reference(page.read_text(encoding="utf-8")), encoding="utf-8")
    ctx.exit()


def _print_schema(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    del param
    if value and not ctx.resilient_parsing:
        click.echo(json.dumps(json_schema(), indent=2))
        ctx.exit()


@click.command("check-config", cls=SettingsCommand)
@click.option("as_json", "--json", is_flag=True, help="For machines: the tree, each setting's source, the notes.")
@click.option(
    "--files", is_flag=True, help="Look into the files that it names, too: keys, certificates, tokenizer, policy."
)
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_schema,
    help="Print a JSON Schema of the file, for editors, and nothing else.",
)
@click.option(
    "--reference",
    metavar="PAGE",
    is_eager=True,
    expose_value=False,
    callback=_write_reference,
    hidden=True,
    help="Make the reference tables in PAGE anew.",
)
def command(loaded: Loaded, as_json: bool, files: bool) -> int:
    """Show the effective configuration and where each setting comes from.

    Takes what `serve` takes. Exits with 2 and every problem on stderr if `serve` would refuse these settings; with
    --files, if it would refuse what is in the files that they name.
    """
    click.echo(render_json(loaded) if as_json else render(loaded))
    if not as_json:
        for note in loaded.notes:
            click.echo(f"note: {note}", err=True)
    require_engines(loaded)
    if files:
        from warmroute.app.named_files import problems  # noqa: PLC0415  `--help` and errors need none of it

        raise_all(list(problems(loaded.config)))
    return 0
