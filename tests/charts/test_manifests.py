"""deploy/: what is committed is what the charts make, and both judges that need no server take it."""

from __future__ import annotations

import json
import subprocess

import pytest
from charts_rig import RELEASES, ROOT, documents, inconsistent, invalid, render, the

from warmroute.core.pods import AIBRIX, EVENTS

pytestmark = pytest.mark.usefixtures("tools")
NAMES = sorted(folder.name for folder in render.VALUES.iterdir())


def test_manifests_are_current() -> None:
    assert {path for path, text in render.made() if path.read_text() != text} == set(), "run `make manifests`"
    assert sorted(path.stem for path in (ROOT / "deploy").glob("*.yaml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_can_be_applied_as_it_is(name: str) -> None:
    found = documents((ROOT / "deploy" / f"{name}.yaml").read_text())
    assert {each["metadata"].get("namespace", "warmroute") for each in found} == {"warmroute"}
    identities = [(each["kind"], each["metadata"]["name"]) for each in found]
    assert len(set(identities)) == len(identities)
    of_release: dict[str, list[dict[str, object]]] = {}
    for each in found:
        release = each["metadata"].get("labels", {}).get("app.kubernetes.io/instance")
        of_release.setdefault(release, []).append(each)
    assert [problem for release, own in of_release.items() if release for problem in inconsistent(own)] == []


def test_policies_alone_are_about_engines_of_others() -> None:
    found = documents((ROOT / "deploy" / "network-policies.yaml").read_text())
    assert {each["kind"] for each in found} == {"Namespace", "NetworkPolicy"}
    (engines,) = [each["spec"] for each in found if each["metadata"]["name"] == "engines"]
    assert engines["podSelector"] == {"matchLabels": {AIBRIX + EVENTS: "true"}}
    assert engines["policyTypes"] == ["Ingress"]
    assert all(rule["from"] for rule in engines["ingress"]), "nobody else"


def kubectl(*arguments: str, given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(render.tools() / "kubectl"), *arguments, "--local", "-f", "-"],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": "/nonexistent"},
    )


def test_every_release_of_kubernetes_takes_it() -> None:
    assert invalid([each for name in NAMES for each in documents((ROOT / "deploy" / f"{name}.yaml").read_text())]) == []


def test_kubectl_reads_it() -> None:
    for name in NAMES:
        text = (ROOT / "deploy" / f"{name}.yaml").read_text()
        known = [each for each in documents(text) if each["kind"] not in ("ServiceMonitor", "PodAutoscaler")]
        done = kubectl("label", "seen=true", "-o", "name", given="\n---\n".join(map(json.dumps, known)))
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == len(known)


def broken(old: str, new: str) -> str:
    text = (ROOT / "deploy" / "quickstart.yaml").read_text()
    assert old in text
    return text.replace(old, new)


BROKEN = {
    "readynessProbe": ("readinessProbe:", "readynessProbe:"),
    "containerPort": ("containerPort: 8080", 'containerPort: "8080"'),
    "terminationGracePeriodSeconds": ("terminationGracePeriodSeconds: 140", "terminationGracePeriodSeconds: soon"),
    "no NetworkPolice": ("kind: NetworkPolicy", "kind: NetworkPolice"),
    "no PodDisruptionBudget of policy/v1beta1": ("apiVersion: policy/v1", "apiVersion: policy/v1beta1"),
    "verbs": ("verbs: [list, watch]", "verbs: list"),
}
"""What the judge should say -> the slip."""


def test_the_judge_finds_what_is_wrong() -> None:
    found = invalid([document for slip in BROKEN.values() for document in documents(broken(*slip))])
    for said in BROKEN:
        assert {problem.split()[0] for problem in found if said in problem} == set(RELEASES), said
    assert all(any(said in problem for said in BROKEN) for problem in found)


def test_the_judge_knows_the_kinds_of_others() -> None:
    names = ("production", "autoscaling-podautoscaler")
    found = [each for name in names for each in documents((ROOT / "deploy" / f"{name}.yaml").read_text())]
    foreign = [the(found, "ServiceMonitor"), the(found, "PodAutoscaler")]
    slips = [{**each, "spec": {**each["spec"], "targetRef": {"kind": "Deployment"}}} for each in foreign]
    problems = invalid([*foreign, *slips], ["1.37"])
    assert len(problems) == 2
    assert all("targetRef" in problem for problem in problems)


def test_kubectl_finds_a_wrong_type() -> None:
    text = (ROOT / "deploy" / "quickstart.yaml").read_text()
    deployment = next(part for part in text.split("---\n") if "kind: Deployment" in part)
    wrong = deployment.replace("containerPort: 8000", "containerPort: eight")
    assert wrong != deployment
    assert kubectl("set", "image", "engine=x", given=deployment).returncode == 0
    assert "containerPort" in kubectl("set", "image", "engine=x", given=wrong).stderr
