"""`warmroute explain`: why a request went where it went, or where it would go, asked of a running gateway."""

from __future__ import annotations

import http.client
import json
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from warmroute.config.addresses import parse_url
from warmroute.errors import ExplainError

_TIMEOUT_S = 300.0


_PATHS = {"messages": "/v1/chat/completions", "prompt": "/v1/completions", "input": "/v1/responses"}
"""What a body has -> where it is sent."""


@click.command("explain")
@click.argument("request_id", required=False)
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="Where the gateway is.")
@click.option("--last", type=click.IntRange(1, 10_000), help="The last so many decisions.")
@click.option(
    "--request", "path", type=click.Path(path_type=Path, allow_dash=True), help="A request body to send; `-` is stdin."
)
@click.option("--endpoint", help="Path the request is sent to  [default: by its content]")
@click.option("--key-file", metavar="FILE", help="File with the API key, if the gateway asks for one.")
@click.option("--ca", metavar="FILE", help="PEM file that vouches for an https:// gateway  [default: the system's]")
@click.option("--json", "as_json", is_flag=True, help="As the gateway gives it.")
def command(request_id: str | None, url: str, last: int | None, path: Path | None, **how: Any) -> int:
    """Print per candidate what was known, what it cost and why it won or lost, and what the engine reported.

    Give a REQUEST_ID (the answer's x-request-id), --last N, or --request FILE, which is sent and then explained.
    """
    if sum(given is not None for given in (request_id, last, path)) != 1:
        raise click.UsageError("give exactly one of REQUEST_ID, --last and --request")
    gateway = _gateway(url, how["key_file"], how["ca"])
    if path is not None:
        request_id = _send(gateway, path, how["endpoint"])
    if request_id is not None:
        decisions = [gateway.get(f"/decisions/{quote(request_id, safe='')}")]
    else:
        decisions = gateway.get(f"/decisions?last={last}")["decisions"]
    if how["as_json"]:
        click.echo(json.dumps(decisions if last else decisions[0], indent=1))
    else:
        click.echo("\n\n".join(render(decision) for decision in decisions) or "no request has been decided yet")
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


def _send(gateway: _Gateway, path: Path, endpoint: str | None) -> str:
    try:
        body = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        content = json.loads(body)
    except OSError as error:
        raise ExplainError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ExplainError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ExplainError(f"{path} is no request: it holds no JSON object")
    if endpoint is None:
        endpoint = next((where for name, where in _PATHS.items() if name in content), None)
    if endpoint is None:
        raise ExplainError(f"{path} has none of {', '.join(_PATHS)}: say with --endpoint where it is to be sent")
    status, headers, answer = gateway.ask("POST", endpoint, body)
    request_id = headers.get("x-request-id")
    if request_id is None:
        raise ExplainError(f"{gateway.url}{endpoint} answered {status} and named no request: {_shown(answer)}")
    if status >= 400:
        click.echo(f"{gateway.url}{endpoint} answered {status}: {_shown(answer)}", err=True)
    return request_id


@dataclass(frozen=True, slots=True)
class _Gateway:
    """A running gateway, over HTTP."""

    url: str
    address: tuple[str, int]
    tls: ssl.SSLContext | None
    credentials: Mapping[str, str]

    def get(self, path: str) -> Any:
        """What a page of its own says. Raises ExplainError."""
        status, _, answer = self.ask("GET", path)
        try:
            if status == 200:
                return json.loads(answer)
        except ValueError:
            raise ExplainError(f"what answers at {self.url} is no gateway of Warmroute's: {_shown(answer)}") from None
        hint = {401: "; give --key-file", 404: "; operators may have a port of their own: give its --url"}.get(
            status, ""
        )
        raise ExplainError(f"{self.url}{path} answered {status}: {_shown(answer)}{hint}")

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer. Raises ExplainError."""
        connection = (
            http.client.HTTPConnection(*self.address, timeout=_TIMEOUT_S)
            if self.tls is None
            else http.client.HTTPSConnection(*self.address, timeout=_TIMEOUT_S, context=self.tls)
        )
        try:
            connection.request(method, path, body, {**self.credentials, "content-type": "application/json"})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ExplainError(f"no gateway answers at {self.url}: {str(error) or type(error).__name__}") from error
        finally:
            connection.close()


def _gateway(url: str, key_file: str | None, ca: str | None) -> _Gateway:
    try:
        endpoint = parse_url(url)
    except ValueError as error:
        raise ExplainError(f"--url {url!r} {error}") from None
    try:
        tls = ssl.create_default_context(cafile=ca) if endpoint.tls else None
    except OSError as error:
        raise ExplainError(f"--ca {ca!r} cannot be used: {error}") from error
    try:
        key = None if key_file is None else Path(key_file).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ExplainError(f"--key-file {key_file!r} cannot be read: {error}") from error
    credentials = {} if key is None else {"authorization": f"Bearer {key}"}
    return _Gateway(endpoint.url, (endpoint.host, endpoint.port), tls, credentials)


def _shown(answer: bytes) -> str:
    return answer[:300].decode(errors="replace")
