#!/usr/bin/env python3
"""Make anew what is made from something else: the schema's part in the chart's values, and the manifests in deploy/.

    .venv/bin/python scripts/kubernetes/render.py            write them
    .venv/bin/python scripts/kubernetes/render.py --check    say which are stale; exit code 1 if any

`charts/warmroute/values.schema.json` carries the configuration tree under `definitions.config`. A manifest of deploy/
is what the charts make of deploy/values/NAME/RELEASE.CHART.yaml, one file per release, in their order; a file ONLY
beside them names the templates that it is about.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from warmroute.config.schema import json_schema

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "charts" / "warmroute" / "values.schema.json"
VALUES = ROOT / "deploy" / "values"
NAMESPACE = "warmroute"
HEAD = """\
# Made by `make manifests` from deploy/values/{name}; change that, or use the charts.
# {about}
apiVersion: v1
kind: Namespace
metadata:
  name: {namespace}
"""


def tools() -> Path:
    """Where install.sh puts its programs."""
    cache = Path(os.environ.get("WARMROUTE_CACHE") or Path.home() / ".cache" / "warmroute")
    return cache / "kubernetes-1" / "bin"


def helm_template(release: str, chart: str, *arguments: str, helm: str = "helm4") -> str:
    """What a chart makes, without the blank lines in which Helm's releases differ. Raises CalledProcessError."""
    command = [str(tools() / helm), "template", release, str(ROOT / "charts" / chart), "-n", NAMESPACE, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={"HOME": "/nonexistent"})
    return "".join(f"{line}\n" for line in done.stdout.splitlines() if line.strip())


def schema() -> str:
    """The values' schema with today's configuration tree in it."""
    whole = json.loads(SCHEMA.read_text())
    config = json_schema()
    del config["$schema"]
    whole["definitions"]["config"] = config
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def manifest(name: str) -> str:
    """The manifest of one folder of values."""
    parts = []
    listed = VALUES / name / "ONLY"
    only = [word for path in listed.read_text().split() for word in ("-s", path)] if listed.exists() else []
    for values in sorted((VALUES / name).glob("*.yaml")):
        release, chart = values.stem.split(".")
        parts.append(helm_template(release, chart, "-f", str(values), *only))
    about = (VALUES / name / "ABOUT").read_text().strip().replace("\n", "\n# ")
    return HEAD.format(name=name, about=about, namespace=NAMESPACE) + "".join(parts)


def made() -> Iterator[tuple[Path, str]]:
    """Every file that is made, with what should be in it."""
    yield SCHEMA, schema()
    for folder in sorted(VALUES.iterdir()):
        yield ROOT / "deploy" / f"{folder.name}.yaml", manifest(folder.name)


def main() -> int:
    """Write, or check."""
    check = sys.argv[1:] == ["--check"]
    stale = [(path, text) for path, text in made() if not path.exists() or path.read_text() != text]
    for path, text in stale:
        print(f"{'stale' if check else 'made'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(text)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
