"""`warmroute key`: an API key and the line that lets it in."""

from __future__ import annotations

import secrets

import click

from warmroute.core.keys import KEY_PREFIX, digest_of, is_name


@click.command("key")
@click.argument("name")
def command(name: str) -> int:
    """Make an API key and print it, with the line for the file that gateway.keys_file names.

    The key itself is shown once and kept nowhere: the file holds its hash.
    """
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    line = f"{name} {digest_of(key)}"
    if not is_name(name):
        raise click.BadParameter("Give at most 64 letters, digits, dots, dashes, underscores and @.", param_hint="NAME")
    click.echo(f"key:  {key}")
    click.echo(f"line: {line}")
    return 0
