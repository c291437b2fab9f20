"""How runs are shown: a table for people, JSON for programs, one HTML page with plots that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import msgspec

from warmroute.app.simulation.results import Results, Summary, quantile

_COLUMNS = (
    ("policy", "policy", "{}"),
    ("TTFT mean", "ttft_mean_s", "{:.3f}"),
    ("p50", "ttft_p50_s", "{:.3f}"),
    ("p90", "ttft_p90_s", "{:.3f}"),
    ("p99 s", "ttft_p99_s", "{:.3f}"),
    ("ITL ms", "itl_mean_s", "{:.1f}"),
    ("p99 ms", "itl_p99_s", "{:.1f}"),
    ("tokens/s", "output_tokens_per_s", "{:.0f}"),
    ("hit rate", "hit_rate", "{:.3f}"),
    ("load max/mean", "load_spread", "{:.2f}"),
    ("busy", "utilisation", "{:.2f}"),
)


def table(summaries: Sequence[Summary]) -> str:
    """One line per policy, the lowest mean TTFT first, and what bounds the hit rate."""
    ordered = sorted(summaries, key=lambda summary: summary.ttft_mean_s)
    rows = [
        [title for title, _, _ in _COLUMNS],
        *([_cell(s, name, form) for _, name, form in _COLUMNS] for s in ordered),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = []
    for row in rows:
        cells = [cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells))
    first = ordered[0]
    best = max(summary.hit_rate for summary in ordered)
    lines.append(
        f"hit rate: {first.hit_rate_infinite:.3f} with one endless cache for all, {best:.3f} the best found here; "
        f"{first.requests} requests counted on {first.engines} engines"
    )
    lines += [
        f"{s.policy}: {s.refused} requests refused, {s.lost} answers broken off, {s.preemptions} preemptions"
        for s in ordered
        if s.refused or s.lost or s.preemptions
    ]
    return "\n".join(lines)


def _cell(summary: Summary, name: str, form: str) -> str:
    value = getattr(summary, name)
    return form.format(value * 1e3 if name.startswith("itl") else value)


def as_json(about: Mapping[str, object], runs: Sequence[Results]) -> bytes:
    """Everything but the single requests."""
    return msgspec.json.format(
        msgspec.json.encode({**about, "runs": [results.summary().as_dict() for results in runs]}), indent=1
    )


_COLOURS = tuple(
    f"#{c}"
    for c in ["d62728", "1f77b4", "2ca02c", "9467bd", "8c564b", "e377c2", "7f7f7f", "bcbd22", "17becf", "ff7f0e"]
)
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 760, 320, 60, 40


def as_html(about: Mapping[str, object], runs: Sequence[Results]) -> str:
    """A page of its own: the table, how TTFT is distributed, and how evenly engines were used."""
    summaries = [results.summary() for results in runs]
    said = "".join(f"<li>{escape(str(key))}: {escape(str(value))}</li>" for key, value in about.items())
    return (
        "<!doctype html><meta charset=utf-8><title>Warmroute simulation</title>"
        "<style>body{font:14px/1.5 system-ui;margin:2em;max-width:60em}pre{overflow:auto}svg{background:#fff}</style>"
        f"<h1>Simulated routing</h1><ul>{said}</ul><pre>{escape(table(summaries))}</pre>"
        f"<h2>Time to first token: share of requests below</h2>{_distribution(runs)}"
        f"<h2>Requests per engine, relative to the mean</h2>{_spread(runs)}"
    )


def _distribution(runs: Sequence[Results]) -> str:
    ordered = [(results.policy, results.ttft_s()) for results in runs]
    ordered = [(policy, ttft) for policy, ttft in ordered if ttft]
    top = sorted(quantile(ttft, 0.95) for _, ttft in ordered)[len(ordered) // 2] * 1.5 if ordered else 1.0
    shares = [i / 100 for i in range(101)]
    lines = []
    for number, (policy, ttft) in enumerate(ordered):
        points = ((min(quantile(ttft, share), top) / top, share) for share in shares)
        lines.append(_line(policy, number, [(x, y) for x, y in points]))
    return _svg(lines, f"0 to {top:.2f} s")


def _spread(runs: Sequence[Results]) -> str:
    lines = []
    for number, results in enumerate(runs):
        loads = sorted(results.engine_requests)
        mean = sum(loads) / len(loads) or 1.0
        last = max(1, len(loads) - 1)
        lines.append(_line(results.policy, number, [(i / last, min(1.0, n / mean / 3)) for i, n in enumerate(loads)]))
    return _svg(lines, "engines, the least used first; full height is three times the mean")


def _line(label: str, number: int, points: Sequence[tuple[float, float]]) -> str:
    colour = _COLOURS[number % len(_COLOURS)]
    wide, high = _WIDTH - _LEFT - 150, _HEIGHT - _BOTTOM - 10
    path = " ".join(f"{_LEFT + x * wide:.1f},{10 + (1 - y) * high:.1f}" for x, y in points)
    return (
        f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{path}"/>'
        f'<text x="{_WIDTH - 140}" y="{24 + 18 * number}" fill="{colour}">{escape(label)}</text>'
    )


def _svg(lines: Sequence[str], caption: str) -> str:
    axes = (
        f'<path d="M{_LEFT} 10V{_HEIGHT - _BOTTOM}H{_WIDTH - 150}" fill="none" stroke="#333"/>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 12}">{escape(caption)}</text>'
    )
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img">{axes}{"".join(lines)}</svg>'
