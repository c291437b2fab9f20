# Everything a fresh machine needs is Python 3.11 or later, a C++ compiler, make and the package registries.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

# A change of what the package is built from or depends on makes a new build; Python sources are used in place.
NATIVE := CMakeLists.txt $(wildcard native/*)

SEEDS ?= 10000

.PHONY: demo test test-fast sim lint format bench bench-http bench-exact bench-streams bench-index bench-scale bench-vllm bench-routing fuzz differential vllm helm manifests try-image clean help

help:
	@echo "make demo     three simulated engines, the gateway, traffic, and why each request went where it went"
	@echo "make test     everything that CI checks: lint, types, layers, tests (with real vLLM)"
	@echo "make test-fast  the tests that need no real vLLM"
	@echo "make sim      10,000 seeds of the event plane's simulation; SEED=17 runs one and tells what happened if it fails"
	@echo "make lint     ruff, mypy --strict, import contracts"
	@echo "make bench    benchmarks beside their peers; make bench-http, make bench-index TRACE=FILE for one of them"
	@echo "make bench-exact  exact routing of multi-turn chats, beside vllm-router's kv_aware, and memory after 200,000 requests"
	@echo "make bench-streams  10,000 silent streams and 1,000 readers that do not read: memory, CPU, and what others notice"
	@echo "make bench-routing TRACE=FILE  policies against each other on simulated clusters"
	@echo "make bench-vllm  policies against each other on real vLLM"
	@echo "make fuzz     100 million almost right bytes for the decoders of events, then the native core, SECONDS=60 each way"
	@echo "make differential  OPERATIONS=1000000 to the native index and its reference: every answer must be equal"
	@echo "make helm     install helm, kubectl and Kubernetes' schemas for the tests of the charts (about 400 MB)"
	@echo "make manifests  what is made of the charts and of the configuration tree: deploy/, the schema of the values"
	@echo "make try-image  the Dockerfile's steps without Docker, and then what the image would run"
	@echo "make vllm     install real vLLM for CPU into its own environment (about 3 GB)"

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Warmroute needs Python 3.11 or later; this is %s. Say which one: make PYTHON=python3.11" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.venv pyproject.toml constraints.txt $(NATIVE)
	$(BIN)/pip install -q -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install -q -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/warmroute demo

vllm:
	PIP_CONSTRAINT= PYTHON=$(PYTHON) scripts/vllm/install.sh

helm:
	PIP_CONSTRAINT= PYTHON=$(PYTHON) scripts/kubernetes/install.sh

manifests: $(VENV)/.installed helm
	$(BIN)/python scripts/kubernetes/render.py

try-image:
	PIP_CONSTRAINT= $(PYTHON) scripts/kubernetes/try_image.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint vllm helm
	$(BIN)/python -m pytest

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'not vllm'

sim: $(VENV)/.installed
	$(BIN)/python scripts/sim/run.py $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

bench: bench-http bench-index

bench-routing: $(VENV)/.dev
	$(BIN)/python benchmarks/routing/run.py $(if $(TRACE),--trace $(TRACE))

bench-scale: $(VENV)/.installed
	$(BIN)/python benchmarks/scale.py

bench-vllm: $(VENV)/.dev vllm
	$(BIN)/python benchmarks/vllm/run.py

bench-http: $(VENV)/.dev
	PYTHON=$(PYTHON) PIP_CONSTRAINT= scripts/peers/install_http.sh
	$(BIN)/python benchmarks/http/run.py

bench-exact: $(VENV)/.dev
	PYTHON=$(PYTHON) PIP_CONSTRAINT= scripts/peers/install_http.sh
	$(BIN)/python benchmarks/http/exact.py --requests 200000 --out benchmarks/results/exact.json

bench-streams: $(VENV)/.installed
	$(BIN)/python benchmarks/http/streams.py --out benchmarks/results/streams.json

# TRACE: the Mooncake conversation trace, if it is here: its replay is measured too.
bench-index: $(VENV)/.dev
	PYTHON=$(PYTHON) PIP_CONSTRAINT= scripts/peers/install_index.sh
	$(BIN)/python benchmarks/index/run.py $(if $(TRACE),--trace $(TRACE))

# The Python decoders; then for SECONDS each, under sanitizers: the native decoder, the index (twice: see CMakeLists.txt),
# and the index beside its reference.
SECONDS ?= 60
fuzz: $(VENV)/.dev
	$(BIN)/python scripts/fuzz_wire.py
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python native/fuzz/run.py --seconds $(SECONDS)

OPERATIONS ?= 1000000
differential: $(VENV)/.dev
	$(BIN)/python native/fuzz/differential.py --operations $(OPERATIONS)

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
