#!/usr/bin/env bash
# Install the HTTP routers that the gateway is measured beside into an environment of their own: install_http.sh [VENV]
set -euo pipefail
venv=${1:-${WARMROUTE_CACHE:-$HOME/.cache/warmroute}/peers-http}
if [ -f "$venv/.complete" ]; then
  echo "the HTTP peers are installed in $venv"
  exit 0
fi
rm -rf "$venv"
mkdir -p "$(dirname "$venv")"
"${PYTHON:-python3}" -m venv "$venv"
# Without their dependencies, which are whole engines; only what their launchers import.
"$venv/bin/pip" --disable-pip-version-check install -q --no-deps smg==1.13.0 vllm-router==0.1.17
"$venv/bin/pip" --disable-pip-version-check install -q setproctitle aiohttp fastapi orjson uvicorn requests
touch "$venv/.complete"
echo "the HTTP peers are installed in $venv"
