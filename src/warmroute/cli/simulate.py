"""`warmroute simulate`: policies against each other, on virtual time."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from warmroute.config.ranges import POLICIES
from warmroute.errors import SimulationError


@click.command("simulate")
@click.option("--workload", default="chat", show_default=True, help="A generated one; see `--list`.")
@click.option("--trace", type=click.Path(path_type=Path), help="A trace in Mooncake's format instead (JSON lines).")
@click.option("--engines", type=click.IntRange(1, 100_000), default=16, show_default=True, help="How many.")
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    help="MODEL@GPU or MODEL@GPUxN; several are dealt out in turn.",
)
@click.option("--host-gib", type=float, default=0.0, show_default=True, help="Host tier, per engine.")
@click.option("--policy", "policies", multiple=True, help="Name, MODULE:CLASS or FILE.py:CLASS; several are compared.")
@click.option("--requests", type=click.IntRange(10), help="How many  [default: 300 per engine, at least 4000]")
@click.option("--rate", type=float, help="Requests per second  [default: by --utilisation]")
@click.option(
    "--utilisation",
    type=float,
    default=0.7,
    show_default=True,
    help="Share of time busy, with perfect caches.",
)
@click.option("--block-size", type=click.IntRange(1), default=128, show_default=True, help="Tokens per cached block.")
@click.option("--event-delay-ms", type=float, default=10.0, show_default=True, help="From step to index.")
@click.option("--fleet", "changes", multiple=True, help="fail:N@S, drain:N@S or join:N@S: engine N at second S.")
@click.option("--seed", type=int, default=1, show_default=True, help="Decides everything that is drawn.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures there.")
@click.option("--html", "html_path", type=click.Path(path_type=Path), help="Write a page with plots there.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@click.option("--list", "listing", is_flag=True, help="Show workloads, models, GPUs and policies, and end.")
def command(**options: object) -> int:
    """Compare routing policies on simulated engines: hours of traffic in minutes, the real router."""
    if options["listing"]:
        return _list()
    from warmroute.app.simulation.runs import Wish, simulate  # noqa: PLC0415  `--help` needs none of it

    named = {
        name: value for name, value in options.items() if name not in ("json_path", "html_path", "quiet", "listing")
    }
    wanted = [options["json_path"], options["html_path"]]
    try:
        for path in wanted:
            if isinstance(path, Path):
                path.open("ab").close()  # whether it can be written is better known before a long run than after it
        wish = Wish(**named)  # type: ignore[arg-type]
        done = simulate(wish, _no_progress if options["quiet"] else _progress)
    except OSError as error:
        raise SimulationError(f"{error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise SimulationError(str(error)) from error
    click.echo(done.table)
    for path, content in zip(wanted, (done.json, done.html), strict=True):
        if isinstance(path, Path):
            path.write_bytes(content())
    return 0


def _list() -> int:
    from warmroute.app.simulation.profiles import GPUS, MODELS  # noqa: PLC0415
    from warmroute.app.simulation.workloads import WORKLOADS  # noqa: PLC0415

    for name, workload in WORKLOADS.items():
        click.echo(f"{name:12} {(workload.__doc__ or '').splitlines()[0]}")
    for title, names in (("models", MODELS), ("GPUs", GPUS), ("policies", POLICIES)):
        click.echo(f"{title}: {', '.join(names)}")
    return 0


def _no_progress(policy: str, issued: int, of: int, virtual_s: float) -> None:
    del policy, issued, of, virtual_s


def _progress(policy: str, issued: int, of: int, virtual_s: float) -> None:
    end = "\n" if issued >= of else "\r"
    sys.stderr.write(f"{policy:>16}: {issued:,} of {of:,} requests, {virtual_s:,.0f} s simulated  {end}")
    sys.stderr.flush()
