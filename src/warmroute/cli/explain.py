"""`warmroute explain`: why a request went where it went, or where it would go, asked of a running gateway."""

from __future__ import annotations

import http.client
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import click

from warmroute.errors import ExplainError


@click.command("explain")
@click.argument("request_id", required=False)
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="Where the gateway is.")
@click.option("--last", type=click.IntRange(1, 10_000), help="The last so many decisions.")
@click.option(
    "--request", "path", type=click.Path(path_type=Path, allow_dash=True), help="A request body to send; `-` is stdin."
)
@click.option("--endpoint", help="Path the request is sent to  [default: by its content]")
@click.option("--json", "as_json", is_flag=True, help="As the gateway gives it.")
def command(request_id: str | None, url: str, last: int | None, path: Path | None, **how: Any) -> int:
    """Print per candidate what was known, what it cost and why it won or lost, and what the engine reported.

    Give a REQUEST_ID (the answer's x-request-id), --last N, or --request FILE, which is sent and then explained.
    """
    if sum(given is not None for given in (request_id, last, path)) != 1:
        raise click.UsageError("give exactly one of REQUEST_ID, --last and --request")
    if path is not None:
        request_id = _send(url, path, how["endpoint"])
    if request_id is not None:
        decisions = [_get(url, f"/decisions/{quote(request_id, safe='')}")]
    else:
        decisions = _get(url, f"/decisions?last={last}")["decisions"]
    if how["as_json"]:
        click.echo(json.dumps(decisions if last else decisions[0], indent=1))
    else:
        click.echo("\n\n".join(render(decision) for decision in decisions))
    return 0


def render(decision: dict[str, Any]) -> str:
    """One decision for people: its outcome, and a line per candidate, the cheapest first."""
    first = decision["first_byte_s"]
    reported = decision["reported_tokens"]
    lines = [
        f"{decision['request_id']}: {decision['worker']}, by {decision['policy']} ({decision['reason']})",
        f"  {decision['prompt_tokens']} prompt tokens, {decision['overlap_tokens']} predicted cached"
        + (f", {decision['claimed_tokens']} of them by requests under way" if decision["claimed_tokens"] else "")
        + (f", {reported} reported by the engine" if reported is not None else ""),
        f"  first token expected after {decision['expected_s']:.3f} s"
        + (f", came after {first:.3f} s" if first is not None else "")
        + f"; outcome: {decision['outcome'] or 'under way'}",
    ]
    best = min((row["cost"] for row in decision["candidates"] if row["cost"] is not None), default=0.0)
    for row in decision["candidates"]:
        held = " + ".join(f"{tokens} {medium}" for medium, tokens in row["overlap_by_medium"].items()) or "nothing"
        claimed = f" + {row['claimed_tokens']} claimed" if row["claimed_tokens"] else ""
        terms = ", ".join(f"{name} {value:.4f}" for name, value in row["terms"].items() if value)
        lines.append(
            f"  {'>' if row['chosen'] else ' '} {row['worker']} {row['trust']}: cost {_number(row['cost'])}"
            + (f" (+{row['cost'] - best:.4f})" if row["cost"] is not None and row["cost"] > best else "")
            + f"; holds {held}{claimed}; {row['requests']} in flight, {row['prefill_tokens']} tokens queued"
            + (f"; {terms}" if terms else "")
        )
    if decision["left_out"]:
        lines.append(f"    and {decision['left_out']} more expensive candidates")
    return "\n".join(lines)


def _number(cost: float | None) -> str:
    return "none" if cost is None else f"{cost:.4f}"


def _send(url: str, path: Path, endpoint: str | None) -> str:
    body = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    try:
        content = json.loads(body)
    except ValueError as error:
        raise ExplainError(f"{path} is not JSON: {error}") from error
    if endpoint is None:
        endpoint = "/v1/chat/completions" if "messages" in content else "/v1/completions"
    status, headers, answer = _http(url, "POST", endpoint, body)
    request_id = headers.get("x-request-id")
    if request_id is None:
        raise ExplainError(
            f"the gateway answered {status} and named no request: {answer[:300].decode(errors='replace')}"
        )
    return request_id


def _get(url: str, path: str) -> dict[str, Any]:
    status, _, answer = _http(url, "GET", path)
    if status != 200:
        raise ExplainError(f"{url}{path} answered {status}: {answer[:300].decode(errors='replace')}")
    found: dict[str, Any] = json.loads(answer)
    return found


def _http(url: str, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
    parts = urlsplit(url)
    make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = make(parts.hostname or "", parts.port, timeout=300)
    try:
        connection.request(method, path, body, {"content-type": "application/json"} if body else {})
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    except OSError as error:
        raise ExplainError(f"no gateway answers at {url}: {error}") from error
    finally:
        connection.close()
