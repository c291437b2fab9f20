"""`warmroute demo`: simulated engines, the gateway, traffic, and why each request went where it went."""

from __future__ import annotations

import click


@click.command("demo")
@click.option("--seed", type=int, default=1, show_default=True, help="Decides the conversations.")
def command(seed: int) -> int:
    """Three simulated engines behind the gateway: what was predicted, what was reported, beside round robin."""
    from warmroute.app.demo import run  # noqa: PLC0415  `--help` needs none of it

    return run(seed)
