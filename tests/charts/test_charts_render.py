"""Whatever values somebody may reasonably give, what comes out is valid, consistent and a configuration that starts."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from charts_rig import GATEWAY, MODEL, ROOT, Document, documents, inconsistent, invalid, pod_of, render, rendered, the
from charts_values import GATEWAY_AXES, MODEL_AXES, Values, combined

from warmroute.cli.main import main
from warmroute.config import Config, load
from warmroute.config.document import parse_document

pytestmark = pytest.mark.usefixtures("tools")
Rendered = dict[tuple[str, str], list[Document]]


def all_values() -> Iterator[tuple[str, str, Values]]:
    for chart, axes in ((GATEWAY, GATEWAY_AXES), (MODEL, MODEL_AXES)):
        yield from ((chart, name, values) for name, values in combined(axes))


@pytest.fixture(scope="module")
def everything(tools: None) -> Rendered:
    """(chart, name of the values) -> documents."""
    listed = list(all_values())
    with ThreadPoolExecutor(4) as pool:
        made = pool.map(lambda each: rendered(each[0], each[2]), listed)
        return {(chart, name): found for (chart, name, _), found in zip(listed, made, strict=True)}


def test_every_release_of_kubernetes_takes_all_of_it(everything: Rendered) -> None:
    found = [document for made in everything.values() for document in made]
    assert {document["kind"] for document in found} == {
        *("Deployment", "Service", "ConfigMap", "ServiceAccount", "NetworkPolicy", "PodDisruptionBudget"),
        *("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"),
        *("HorizontalPodAutoscaler", "PodAutoscaler", "ServiceMonitor"),
    }
    assert invalid(found) == []


def test_everything_fits_together(everything: Rendered) -> None:
    problems = {name: list(inconsistent(made)) for name, made in everything.items()}
    assert {name: found for name, found in problems.items() if found} == {}


@pytest.mark.parametrize("chart", [GATEWAY, MODEL])
def test_both_helms_make_the_same(chart: str, everything: Rendered) -> None:
    for name, values in combined(GATEWAY_AXES if chart == GATEWAY else MODEL_AXES):
        if ", " not in name:
            assert rendered(chart, values, helm="helm3") == everything[chart, name], name


@pytest.mark.parametrize("helm", ["helm3", "helm4"])
@pytest.mark.parametrize("chart", [GATEWAY, MODEL])
def test_lint(chart: str, helm: str, tmp_path: Path) -> None:
    command = [str(render.tools() / helm), "lint", "--strict", str(ROOT / "charts" / chart)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "0 chart(s) failed" in done.stdout
    notes = [str(render.tools() / helm), "install", "a", str(ROOT / "charts" / chart), "--dry-run=client"]
    told = subprocess.run([*notes, "--kubeconfig", str(tmp_path / "none")], capture_output=True, text=True, check=False)
    assert "NOTES:" in told.stdout or "unreachable" in told.stderr, told.stderr


def config_of(found: list[Document], folder: Path) -> Config:
    """The configuration that a gateway reads, with the files that it names where its pod would have them."""
    text = the(found, "ConfigMap")["data"]["warmroute.yaml"]
    (container,) = pod_of(found)["spec"]["containers"]
    for volume in pod_of(found)["spec"]["volumes"]:
        for item in volume.get("secret", {}).get("items", ()):
            (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == volume["name"]]
            path = folder / mount["mountPath"].lstrip("/") / item["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("content\n")
    document = parse_document(text.replace("/etc/warmroute/", f"{folder}/etc/warmroute/"), "warmroute.yaml")
    return load(flags={}, environ={}, document=document, file_name="warmroute.yaml").config


def test_every_configuration_would_start(everything: Rendered, tmp_path: Path) -> None:
    for number, ((chart, name), found) in enumerate(everything.items()):
        if chart != GATEWAY:
            continue
        config = config_of(found, tmp_path / str(number))
        assert config.engines or config.discovery.kubernetes.enabled or config.discovery.service.name, name
        ports = {port["name"]: port["containerPort"] for port in pod_of(found)["spec"]["containers"][0]["ports"]}
        assert ports == {"http": config.gateway.port, "admin": config.admin.port}, name
        files = (config.gateway.keys_file, config.admin.keys_file, config.tls.certificate, config.tls.engine_ca)
        for path in (*files, config.membership.api_key_file, config.admission.redis_password_file):
            assert path is None or path.startswith("/tokenizer") or Path(path).exists(), (name, path)


def test_check_config_accepts_what_is_documented(tmp_path: Path) -> None:
    for manifest in sorted((ROOT / "deploy").glob("*.yaml")):
        found = documents(manifest.read_text())
        if manifest.stem == "network-policies":
            continue  # it has no gateway
        gateway = [
            each for each in found if each["metadata"].get("labels", {}).get("app.kubernetes.io/name") == GATEWAY
        ]
        config_of(gateway, tmp_path)  # which makes the files
        path = tmp_path / manifest.name
        text: str = the(found, "ConfigMap")["data"]["warmroute.yaml"]
        path.write_text(text.replace("/etc/warmroute/", f"{tmp_path}/etc/warmroute/"))
        assert main(["check-config", "--config", str(path)]) == 0, manifest
