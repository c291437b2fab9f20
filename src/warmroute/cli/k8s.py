"""`warmroute k8s`: the KV events of a Deployment in Kubernetes, on, off and how they are."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from warmroute.app.k8s import Change, Target

TIMEOUT_S: Final = 900.0
"""Longest wait for a rollout: engines load their models for minutes."""


def _options(of: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.argument("deployment", metavar="DEPLOYMENT"),
        click.option("-n", "--namespace", metavar="NS", help="Namespace; the kubeconfig's own if not given."),
        click.option("--kubeconfig", metavar="FILE", help="As kubectl finds it, if not given."),
        click.option("--context", metavar="NAME", help="Context of the kubeconfig."),
    )[::-1]:
        of = option(of)
    return of


def _writing(of: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--dry-run", is_flag=True, help="Show what would be, and change nothing."),
        click.option("-o", "--output", type=click.Choice(["diff", "yaml"]), default="diff", help="How it is shown."),
        click.option("-f", "--filename", metavar="FILE", help="Read it from a manifest; implies --dry-run."),
        click.option("--timeout", "timeout_s", type=float, default=TIMEOUT_S, help="Seconds to wait for the rollout."),
        click.option("--no-wait", is_flag=True, help="Do not wait for the rollout."),
    )[::-1]:
        of = option(of)
    return _options(of)


@click.group("k8s")
def command() -> None:
    """Turn the KV events of a vLLM Deployment in Kubernetes on or off, or say how they are."""


@command.command("enable")
@_writing
@click.option("--container", metavar="NAME", help="Container that runs vLLM, if that is not plain.")
@click.option("--image", metavar="IMAGE", help="Newer image for it, in the same rollout.")
def enable(deployment: str, container: str | None, image: str | None, **given: Any) -> int:
    """Turn events on: shows the change, asks, applies it, waits for the rollout, and looks whether events flow."""
    from warmroute.app.k8s import enabling  # noqa: PLC0415  `--help` needs none of it

    target = _target(deployment, given, container=container, image=image)
    return _change(target, functools.partial(enabling, target=target), given, verify=True)


@command.command("disable")
@_writing
def disable(deployment: str, **given: Any) -> int:
    """Put back exactly what was there before `enable`."""
    from warmroute.app.k8s import disabling  # noqa: PLC0415

    return _change(_target(deployment, given), disabling, given, verify=False)


@command.command("status")
@_options
def status(deployment: str, **given: Any) -> int:
    """Say whether events are on, and look at the engines if they can be reached from here."""
    from warmroute.app.k8s import Cluster, described  # noqa: PLC0415

    target = _target(deployment, given)

    async def look() -> tuple[dict[str, Any], list[Any]]:
        async with Cluster(target) as cluster:
            found = await cluster.get()
            return found, await cluster.engines(found)

    found, engines = asyncio.run(look())
    for what, how in described(found, target):
        click.echo(f"{what}: {how}")
    return _verify(engines)


def _target(deployment: str, given: dict[str, Any], **more: str | None) -> Target:
    from warmroute.app.k8s import Target  # noqa: PLC0415

    taken = {name: given[name] for name in ("namespace", "kubeconfig", "context")}
    return Target(name=deployment.removeprefix("deployment/"), **taken, **more)


def _change(target: Target, make: Callable[[dict[str, Any]], Change], given: dict[str, Any], *, verify: bool) -> int:
    from warmroute.app.k8s import Cluster  # noqa: PLC0415

    if given["filename"] is not None:
        return _in_file(target, make, given)

    async def run() -> tuple[int, list[Any]]:
        async with Cluster(target) as cluster:
            change = make(await cluster.get())
            if not _agreed(change, given):
                return 0, []
            found = await cluster.apply(change)
            click.echo(f"deployment/{target.name} is changed")
            if given["no_wait"]:
                return 0, []
            await cluster.rolled_out(click.echo, given["timeout_s"])
            return 0, await cluster.engines(found) if verify else []

    code, engines = asyncio.run(run())
    return _verify(engines) if engines else code


def _in_file(target: Target, make: Callable[[dict[str, Any]], Change], given: dict[str, Any]) -> int:
    from warmroute.app.k8s import deployments_in, to_yaml  # noqa: PLC0415
    from warmroute.core.event_arguments import PatchError  # noqa: PLC0415

    name = given["filename"]
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise PatchError(f"{name} cannot be read: {error}") from error
    documents, number = deployments_in(text, target.name)
    change = make(documents[number])
    _warn(change)
    if given["output"] == "diff":
        click.echo(change.diff(), nl=False)
    else:
        documents[number] = change.after
        click.echo("---\n".join(map(to_yaml, documents)), nl=False)
    return 0


def _agreed(change: Change, given: dict[str, Any]) -> bool:
    """Show the change; whether it is to be made."""
    from warmroute.app.k8s import to_yaml  # noqa: PLC0415
    from warmroute.core.event_arguments import PatchError  # noqa: PLC0415

    if given["dry_run"] and given["output"] == "yaml":
        _warn(change)
        click.echo(to_yaml(change.after), nl=False)
        return False
    if change.empty:
        click.echo("nothing to change")
        return False
    click.echo(change.diff(), nl=False)
    _warn(change)
    if given["dry_run"]:
        return False
    if change.obstacles:
        raise PatchError("; ".join(change.obstacles))
    return bool(given["yes"] or click.confirm("Apply this? Its pods will be replaced", err=True))


def _warn(change: Change) -> None:
    for note in (*change.notes, *change.obstacles):
        click.echo(f"note: {note}", err=True)
    if change.managers:
        others = ", ".join(dict.fromkeys(change.managers))
        click.echo(f"note: it is managed by {others} too, whose next apply may take this back", err=True)


def _verify(engines: list[Any]) -> int:
    """Have the doctor look at engines that can be reached from here; its exit code."""
    from rich.console import Console  # noqa: PLC0415

    from warmroute.app.doctor_report import run  # noqa: PLC0415
    from warmroute.app.k8s import reachable  # noqa: PLC0415
    from warmroute.config.tree import Config  # noqa: PLC0415

    if not engines:
        click.echo("no pod of it takes requests now", err=True)
        return 1
    if not asyncio.run(reachable(engines)):
        urls = " ".join(engine.url for engine in engines)
        click.echo(f"its pods cannot be reached from here; look from inside the cluster: warmroute doctor {urls}")
        return 0
    width = None if sys.stdout.isatty() else 200
    return run(Config(engines=tuple(engines)), (), Console(width=width), as_json=False, send_request=False)
