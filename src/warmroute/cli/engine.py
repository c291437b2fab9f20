"""`warmroute engine`: one simulated engine, until it is told to stop. Its options are `EngineOptions`' fields."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

import click
import zmq

from warmroute.config.leaves import docstrings
from warmroute.errors import ConfigError
from warmroute.testing.engine import EngineOptions, SimulatedEngine, options


def _options() -> list[click.Option]:
    docs = docstrings(options)
    hints = get_type_hints(EngineOptions)
    return [
        _option(each.name, hints[each.name], each.default, docs[f"EngineOptions.{each.name}"])
        for each in fields(EngineOptions)
    ]


def _option(name: str, hint: Any, default: Any, doc: str) -> click.Option:
    flag = f"--{name.replace('_', '-')}"
    if hint is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}"], default=default, show_default=True, help=doc)
    if get_origin(hint) is tuple:
        return click.Option(
            [name, flag.removesuffix("s")], multiple=True, metavar="NAME", help=f"{doc} May be repeated."
        )
    values = [value for arm in (hint, *get_args(hint)) for value in get_args(arm) if isinstance(value, str)]
    kind = click.Choice(values) if values else hint
    return click.Option([flag], type=kind, default=default, show_default=default not in (None, ""), help=doc)


async def _run(engine_options: EngineOptions) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    engine = SimulatedEngine(engine_options)
    try:
        await engine.start()
    except (OSError, zmq.ZMQError) as error:
        raise ConfigError("engine", f"cannot listen: {error}", "Choose other ports, or 0 for free ones.") from error
    try:
        click.echo(f"serving {engine_options.model} at {engine.url}")
        for rank, address in enumerate(engine.events):
            click.echo(f"rank {rank} publishes at {address.endpoint}, replays at {address.replay_endpoint}")
        await stopping.wait()
    finally:
        await engine.stop()


@click.command("engine", params=[*_options()])
def command(**given: Any) -> int:
    """Run a simulated vLLM: no model, no GPU, but a real cache and real events.

    Runs until SIGINT or SIGTERM. What it listens on is printed, one address per line.
    """
    asyncio.run(_run(EngineOptions(**given)))
    return 0
