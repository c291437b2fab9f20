"""The command `warmroute`: finds the command, runs it, and turns what it raises into an exit code.

Modules of commands are imported when they are asked for, so `warmroute --help` and completion stay fast.

Invariant: exit code 0 for success, 2 for what the user can mend (usage, configuration, input; told in a line each, on
stderr), 1 for everything else, with its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import click

from warmroute.errors import IndexCorruptionError, WarmrouteError

EXIT_USER: Final = 2
EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, as shells have it."""

COMMANDS: Final = {
    "serve": "Route OpenAI-compatible requests to the engines whose cache is warm for them.",
    "check-config": "Show the effective configuration and where each setting comes from.",
    "key": "Make an API key and print it, with the line for the file that gateway.keys_file names.",
    "replay": "Feed recordings through the production path and compare predictions with what the engine reported.",
    "doctor": "Look for what is wrong with engines, and say which arguments mend it.",
    "k8s": "Turn the KV events of a vLLM Deployment in Kubernetes on or off, or say how they are.",
    "explain": "Print per candidate what was known, what it cost and why it won or lost, and what the engine reported.",
    "simulate": "Compare routing policies on simulated engines: hours of traffic in minutes, the real router.",
    "demo": "Three simulated engines behind the gateway: what was predicted, what was reported, beside round robin.",
    "engine": "Run a simulated vLLM: no model, no GPU, but a real cache and real events.",
}
"""Command -> its line in the help."""


class LazyGroup(click.Group):
    """A group that knows its commands' names and help, and imports a command when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of the table."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"warmroute.cli.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)  # noqa: S101  a slip of ours, seen by the first test
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    del param
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415  slow, and seldom asked for

    try:
        click.echo(f"warmroute {version('warmroute')}")
    except PackageNotFoundError:
        click.echo("warmroute, not installed: run from a source tree")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
def cli() -> None:
    """Warmroute routes each LLM request to the engine whose KV cache is already warm for it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (default: this process's); its exit code."""
    try:
        result = cli.main(
            args=None if arguments is None else list(arguments), prog_name="warmroute", standalone_mode=False
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return EXIT_INTERRUPTED
    except IndexCorruptionError:
        raise  # our fault, not the user's: with its traceback
    except WarmrouteError as error:
        for line in str(error).splitlines():
            click.echo(f"warmroute: {line}", err=True)
        return EXIT_USER
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
