"""`warmroute replay`: judge the index and the predictions by recordings of real engines."""

from __future__ import annotations

import sys

import click


@click.command("replay")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("as_json", "--json", is_flag=True, help="For machines: per file requests, exact, misses with causes.")
@click.option("--events", is_flag=True, help="Print the decoded events instead, one JSON object a line.")
def command(files: tuple[str, ...], as_json: bool, events: bool) -> int:
    """Feed recordings through the production path and compare predictions with what the engine reported.

    Exits with 1 if a file cannot be read.
    """
    from rich.console import Console  # noqa: PLC0415  `--help` needs none of it

    from warmroute.app.replay_report import run  # noqa: PLC0415

    width = None if sys.stdout.isatty() else 200
    return run(files, Console(width=width), as_json=as_json, events=events)
