#!/usr/bin/env bash
# Install the peer that benchmarks/index measures itself against: install_index.sh [VENV]
#
# It lives in a cache outside the checkout, so that one install serves every clone; nothing of it is committed:
# ${WARMROUTE_CACHE:-~/.cache/warmroute}/peers-index. An environment that is complete is kept.
set -euo pipefail
version=1.6.1
cache=${WARMROUTE_CACHE:-$HOME/.cache/warmroute}
venv=${1:-$cache/peers-index}
python=${PYTHON:-python3}

if [ -f "$venv/.complete" ] && [ "$(cat "$venv/.complete")" = "$version" ]; then
  echo "ai-dynamo-runtime $version is installed in $venv"
  exit 0
fi

rm -rf "$venv"
mkdir -p "$(dirname "$venv")"
"$python" -m venv "$venv"
"$venv/bin/pip" --disable-pip-version-check -q install "ai-dynamo-runtime==$version"
"$venv/bin/python" -c 'from dynamo._core import RadixTree, compute_block_hash_for_seq'
echo "$version" > "$venv/.complete"
echo "ai-dynamo-runtime $version is installed in $venv"
