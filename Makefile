# RAE Mesh. `make` lists the targets. Everything runs from .venv, which is built once, from pinned
# versions, and again when those or a pyproject.toml change.
PYTHON ?= python3
VENV ?= .venv
ROUNDS ?= 200
SEED ?=
FAULTS ?=
MINUTES ?= 5
HOST ?= node1
PYTHONS ?= 3.10 3.11 3.12 3.13
INVENTORY ?= inventory/mesh
PART ?=
ROWS ?=
BENCH_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2
BIN := $(VENV)/bin
CODE := services/protocol/src services/control/src services/node/src tools tests/lab tests/vm tests/e2e tests/integration/lab

.DEFAULT_GOAL := help
.PHONY: help venv wheels vault demo test test-all lab-tests e2e site lab-parts vm-parts test-vm test-gpu test-escape escape-here lint lint-python lint-ansible unit node-tests integration chaos chaos-short fuzz bench soak lab lab-shell lab-down docs fmt clean

# Check a target's requirements before any work, with the current Python: there may be no .venv yet.
# Any Python 3 parses the second line; tools/preflight.py, which does the rest, needs 3.10.
define preflight
@command -v "$(PYTHON)" >/dev/null || [ "$(PYTHON)" != python3 ] || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || \
  { echo "$(PYTHON) is missing. Installing python3-venv, as root" >&2; apt-get update -q >/dev/null; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv >/dev/null; }
@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
  { echo "$(PYTHON) is missing or older than 3.10. Debian 12, Ubuntu 22.04 and newer have one:" >&2; \
    echo "  sudo apt-get install -y --no-install-recommends python3-venv" >&2; \
    echo "Elsewhere say make PYTHON=/path/to/python3.10" >&2; exit 1; }
@"$(PYTHON)" -m tools.preflight $(1)
endef

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'
	@echo
	@echo "PYTHON=$(PYTHON) (3.10 or newer)  ROUNDS=$(ROUNDS)  SEED=$(SEED)  MINUTES=$(MINUTES)  WORKERS=$(WORKERS)  PYTEST_ARGS=$(PYTEST_ARGS)"

venv: $(VENV)/.built  ## build the environment in .venv

$(VENV)/.built: constraints.txt requirements-dev.txt $(wildcard services/*/pyproject.toml)
	$(call preflight,venv)
	rm -rf "$(VENV)"
	"$(PYTHON)" -m venv "$(VENV)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -r requirements-dev.txt
	# The queue's tests run against the next RQ too, from a folder of its own.
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/rq3 rq==3.0.0
	touch $@

wheels: venv  ## build the archives that hosts install from, into dist/wheelhouse; PYTHONS="3.11" for Debian 12 only
	@$(BIN)/python -m tools.wheelhouse $(PYTHONS)

vault: venv  ## create the encrypted secrets of an inventory; INVENTORY=inventory/mesh
	@$(BIN)/python -m tools.new_vault $(INVENTORY)

demo:  ## run control, two nodes and real tasks, with an owner who returns and an agent that is killed
	$(call preflight,demo)
	@$(MAKE) --no-print-directory venv
	@$(BIN)/python -m tools.scenarios demo

test:  ## everything without booted hosts: lint, chaos, escape suite, unit and integration tests (12 minutes)
	$(call preflight,test)
	@$(MAKE) --no-print-directory lint chaos-short escape-here
	@$(MAKE) --no-print-directory unit node-tests integration
	@echo "make test: all passed; what needs booted hosts is in make test-all, for root"

# In this order, and in separate processes: the memory of one lab is freed before the next starts.
test-all: export RAE_TEST_LONG = 1
test-all:  ## make test, then booted hosts, Molecule, the whole site, Debian 13 and the long variants (root; hours)
	$(call preflight,test-all)
	@$(MAKE) --no-print-directory test
	@$(MAKE) --no-print-directory lab-tests
	@$(MAKE) --no-print-directory e2e
	@$(MAKE) --no-print-directory test-vm
	@$(MAKE) --no-print-directory lab-tests RAE_LAB_SUITE=trixie

lab-tests: lab-parts
	$(BIN)/python -m pytest tests/integration/lab $(PYTEST_ARGS)

e2e: venv lab-parts  ## Molecule's scenarios and the whole site on booted hosts (root)
	$(BIN)/python -m pytest tests/e2e $(PYTEST_ARGS)

# The part of e2e that CI runs: the scenarios `default` and `enable_node`, each with a second run that changes
# nothing, then a batch of work and verify.yml.
site: venv lab-parts  ## one site on booted hosts: provision, lend, run a batch, verify, second runs (root)
	$(BIN)/python -m pytest tests/e2e/test_work.py $(PYTEST_ARGS)

# Build the lab's images and packages before the tests, so that no test waits; minutes the first time.
lab-parts: venv
	@$(BIN)/python -m tests.lab build

test-vm:  ## input, cgroup limits and suspend on a real kernel, in virtual machines (root)
	$(call preflight,test-vm)
	@$(MAKE) --no-print-directory vm-parts
	$(BIN)/python -m pytest tests/vm $(PYTEST_ARGS)

# Build the booted virtual machine, with the agent installed, from which tests start; minutes the first time.
vm-parts: venv
	@$(BIN)/python -m tests.lab build-vm

lint: venv  ## ruff, mypy (strict, Python 3.10), import-linter, ansible-lint (production)
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint-python lint-ansible

lint-python: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CODE)
	$(BIN)/lint-imports

lint-ansible: venv
	if [ -x $(BIN)/ansible-lint ]; then LC_ALL=C.UTF-8 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/ansible-lint --offline; fi

# All mostly wait. Not in one process: an agent adopts and kills what its process has started, and
# integration tests keep a Redis there.
unit: venv  ## unit tests, WORKERS=2 at a time
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile tests/unit $(PYTEST_ARGS)

node-tests: venv  ## integration tests of a node's parts: an agent in the test's process, real supervisors and programs
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile tests/integration/node $(PYTEST_ARGS)

integration: venv  ## all other tests with real Redis, gunicorn and agents, WORKERS=2 at a time; 0 for --pdb
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile tests/integration --ignore=tests/integration/lab --ignore=tests/integration/node $(PYTEST_ARGS)

CHAOS := $(BIN)/python -m tools.scenarios chaos $(if $(SEED),--seed $(SEED)) $(if $(FAULTS),--faults $(FAULTS))

chaos: venv  ## all kinds of faults under load, then 5 minutes without control; ROUNDS=n SEED=n FAULTS=kill,stop,disk,clock,aof,intermediary,copy
	$(CHAOS) --rounds $(ROUNDS)
	$(BIN)/python -m tools.scenarios outage

test-gpu: venv  ## the guard's GPU source with a real CUDA and a real graphics program; without an NVIDIA GPU it runs nothing
	@$(BIN)/python -m tests.gpu

test-escape: escape-here lab-parts  ## attacks from inside a task, each with the layer that stops it: here, and on a booted host (root)
	$(BIN)/python -m pytest -s tests/e2e/test_unit_level.py $(PYTEST_ARGS)

# As a user without rights: nothing of a node's tasks ever runs as root.
escape-here: venv
	$(BIN)/python -m tools.guest $(BIN)/python -m pytest -p no:cacheprovider tests/escape $(PYTEST_ARGS)

chaos-short: venv
	$(CHAOS) --rounds 20

bench:  ## measure latency, throughput, idle cost and growth, compared with rq, Celery and Ray; writes docs/benchmarks.md (45 minutes); PART=grows ROWS=10000,100000 for one part
	$(call preflight,bench)
	@$(MAKE) --no-print-directory venv $(if $(PART),,.venv-bench/.built)
	$(BIN)/python -m tools.bench $(if $(PART),--only $(PART),--peers .venv-bench/bin/python --write docs/benchmarks.md) $(if $(ROWS),--rows $(ROWS)) $(BENCH_ARGS)

.venv-bench/.built: requirements-bench.txt
	rm -rf .venv-bench
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	touch $@

soak: venv  ## four nodes, steady work, cancels, yields, restarts; MINUTES=60 for a long run
	$(BIN)/python -m tools.scenarios soak --minutes $(MINUTES)

lab: venv  ## boot four Debian hosts with a tailnet, and write an inventory for Ansible (root; docs/testing.md)
	@$(BIN)/python -m tests.lab up

lab-shell: venv  ## open a shell on one of them; HOST=node1
	@$(BIN)/python -m tests.lab shell $(HOST)

lab-down: venv  ## stop them
	@$(BIN)/python -m tests.lab down

fuzz: venv  ## 100,000 random requests, then thousands that follow /openapi.json; SEED=n
	$(BIN)/python -m tools.scenarios fuzz $(if $(SEED),--seed $(SEED))
	RAE_FUZZ_EXAMPLES=200 $(BIN)/python -m pytest -q tests/integration/control/test_openapi_fuzz.py

docs: venv  ## generate the roles' README.md from their argument_specs
	@$(BIN)/python -m tools.role_readme

fmt: venv  ## format the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:  ## remove environments and caches
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -prune -exec rm -rf {} + -o -name '*.egg-info' -prune -exec rm -rf {} +
