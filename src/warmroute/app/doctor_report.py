"""What `warmroute doctor` prints: per engine a table of what was found, then what to do; or all of it as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import msgspec
from rich.console import Console
from rich.table import Table

from warmroute.app.doctor import chosen, examine
from warmroute.config.tree import Config
from warmroute.service.doctor.catalogue import CATALOGUE, Finding, Severity
from warmroute.service.doctor.checks import check_engine
from warmroute.service.doctor.facts import EngineReport
from warmroute.service.doctor.fleet_checks import check_fleet

EXIT_CODES = {Severity.OK: 0, Severity.WARNING: 1, Severity.FAULT: 2}
BEGIN, END = "<!-- findings -->", "<!-- end of findings -->"

_STYLES = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.FAULT: "bold red"}


class Examined(msgspec.Struct):
    """One engine with everything that was found."""

    url: str
    software: str | None
    version: str | None
    findings: list[Finding]


class Report(msgspec.Struct):
    """All engines, and what only all together show."""

    engines: list[Examined]
    fleet: list[Finding]
    worst: Severity


def judged(reports: Sequence[EngineReport]) -> Report:
    """Have everything judged that was seen."""
    engines = [Examined(each.url, each.http.software, each.http.version, check_engine(each)) for each in reports]
    fleet = check_fleet(reports)
    found = [finding for engine in engines for finding in engine.findings] + fleet
    worst = max((finding.severity for finding in found), key=list(Severity).index, default=Severity.OK)
    return Report(engines, fleet, worst)


def run(config: Config, urls: Sequence[str], console: Console, *, as_json: bool, send_request: bool) -> int:
    """See to the engines and print what was found; the exit code says how bad the worst of it is."""
    report = judged(asyncio.run(examine(config, chosen(config, urls), send_request=send_request)))
    if as_json:
        console.out(msgspec.json.format(msgspec.json.encode(report)).decode(), highlight=False)
    else:
        show(console, report)
    return EXIT_CODES[report.worst]


def show(console: Console, report: Report) -> None:
    """For people."""
    for engine in report.engines:
        release = " ".join(filter(None, (engine.software, engine.version)))
        _show(console, f"{engine.url}  {release}".rstrip(), engine.findings)
    if report.fleet:
        _show(console, "all engines together", report.fleet)


def _show(console: Console, title: str, findings: Sequence[Finding]) -> None:
    console.print(title, style="bold", highlight=False, markup=False)
    table = Table("", "", "", box=None, show_header=False, pad_edge=False)
    for finding in findings:
        table.add_row(f"  [{_STYLES[finding.severity]}]{finding.severity}[/]", finding.code, _text(finding.found))
    console.print(table, highlight=False)
    for finding in findings:
        if finding.severity is not Severity.OK:
            console.print(f"\n  {finding.code}: {finding.meaning}", highlight=False, markup=False)
            for line in finding.remedy.splitlines():  # not wrapped: it is to be copied
                console.print(f"    {line}", style="cyan", highlight=False, markup=False, soft_wrap=True)
    console.print()


def _text(found: str) -> str:
    return found.replace("[", r"\[")


def with_findings(page: str) -> str:
    """`page` with the table between its two markers made anew. Raises ValueError if it has no such part."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no part between {BEGIN!r} and {END!r}")
    table = "\n".join(_rows())
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def _rows() -> Iterator[str]:
    yield "| finding | | what it means | what mends it |"
    yield "| --- | --- | --- | --- |"
    for code, entry in CATALOGUE.items():
        yield f"| `{code}` | {entry.severity} | {entry.meaning} | {entry.remedy} |"
