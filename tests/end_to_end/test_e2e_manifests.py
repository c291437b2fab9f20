"""A manifest's own command lines and configuration, run: what its probes ask is answered, and its pods can end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e_client import Client
from e2e_process import Command
from test_e2e_process import ready

from warmroute.cli.main import COMMANDS

MANIFEST = Path(__file__).parents[2] / "deploy" / "quickstart-simulated.yaml"
Container = Mapping[str, Any]


def found(kind: str, **labels: str) -> Mapping[str, Any]:
    """The one document of a kind with such labels."""
    wanted = {f"app.kubernetes.io/{name}": value for name, value in labels.items()}
    documents = [document for document in yaml.safe_load_all(MANIFEST.read_text()) if document]
    (one,) = [
        each
        for each in documents
        if each["kind"] == kind and wanted.items() <= each["metadata"].get("labels", {}).items()
    ]
    return one


def container(component: str) -> Container:
    (one,) = found("Deployment", component=component)["spec"]["template"]["spec"]["containers"]
    assert one["args"][0] in COMMANDS
    return one


def on_loopback(arguments: list[str], **ports: str) -> list[str]:
    """An engine's arguments with the addresses that a test may use."""
    given = {"--host": "127.0.0.1", **{f"--{name.replace('_', '-')}": port for name, port in ports.items()}}
    changed = list(arguments)
    for flag, value in given.items():
        changed[changed.index(flag) + 1] = value
    return changed


async def answers(container: Container, urls: Mapping[str, str]) -> dict[str, int]:
    """Probe -> status, each asked at its own port."""
    statuses = {}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        async with Client(urls[asked["port"]]) as client:
            statuses[probe] = (await client.get(asked["path"])).status
    return statuses


@pytest.mark.parametrize("processes", [1, 2])
async def test_the_simulated_quickstart_runs(processes: int, tmp_path: Path) -> None:
    free = {"port": "0", "events_port": "0", "replay_port": "0"}
    async with Command(*on_loopback(container("engine")["args"], **free)) as engine:
        url = await engine.says(r"serving demo at (http://\S+)")
        assert set((await answers(container("engine"), {"api": url})).values()) == {200}

        config = yaml.safe_load(found("ConfigMap", component="gateway")["data"]["warmroute.yaml"])
        assert config["discovery"]["kubernetes"] == {"enabled": True}
        config |= {"discovery": None, "engines": [url]}  # no API server here
        for section in ("gateway", "admin"):
            assert config[section]["host"] == "0.0.0.0"
            config[section] |= {"host": "127.0.0.1", "port": 0}
        config["gateway"]["processes"] = processes
        path = tmp_path / "warmroute.yaml"
        path.write_text(yaml.safe_dump(config))
        (environment,) = container("gateway")["env"]
        async with Command(*container("gateway")["args"], **{environment["name"]: str(path)}) as gateway:
            clients = await gateway.says(r"listening on (http://\S+),")
            said = await gateway.says(r"operators are served on (?:port )?(\S+)")
            operators = f"http://127.0.0.1:{said}" if said.isdecimal() else said
            async with Client(operators) as client:
                await ready(client, 1)
            probes = await answers(container("gateway"), {"http": clients, "admin": operators})
            assert probes == {"startupProbe": 200, "readinessProbe": 200, "livenessProbe": 200}
            async with Client(clients) as client:
                assert (await client.get("/workers")).status == 404, "operators are served elsewhere"
                assert (await client.get("/v1/models")).status == 200
            for each in (gateway, engine):
                each.terminate()
            assert [await each.exit_code() for each in (gateway, engine)] == [0, 0]
