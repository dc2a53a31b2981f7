# The commands of RouterShift; `make help` lists them. `make demo` and `make test` need Python 3.11, git and a C compiler.
PYTHON ?= python3
ENGINE ?= vllm
SEED ?= 0
# Files of tests that run at a time: each holds up to 4 GB.
WORKERS ?= 2
# Asked only where pip finds no CPU build of torch by itself.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

TORCH := torch==2.13.0+cpu
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LOCKS := deploy/locks
FLAGS ?=
PROMETHEUS ?= http://127.0.0.1:9090
RUN ?=
PICTURES ?=
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs

# What a test starts finds the bytecode of our modules, whatever the shell says: there are hundreds of such processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test tests test-deploy test-ecosystem lint format install docs docs-serve screenshots generated proto dashboards boards rules manifests reference baseline locks image-locks tracker-locks sbom licences audit clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help:  ## What can be made, with a line each.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: install  ## Trains the Countdown MoE through every service and prints what it reached.
	$(BIN)/routershift run deploy/recipes/countdown.toml --set generation.engine=$(ENGINE) --set run.seed=$(SEED) $(FLAGS)

test: lint tests  ## Lint, types and all tests; with --jobs=2, lint beside the tests.

# Tests that run make do not get our flags.
tests: $(VENV)/.vllm $(VENV)/.dev $(VENV)/.docs  ## All tests.
	MAKEFLAGS= $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-deploy: $(VENV)/.vllm $(VENV)/.dev  ## Builds the images and trains the demo in containers.
	DEPLOY=1 $(BIN)/python -m pytest --log-cli-level=INFO tests/deploy/test_stack.py

test-ecosystem: $(VENV)/.torch $(VENV)/.dev  ## Plays and trains environments of verifiers and openenv, each in its own Python.
	ECOSYSTEM=1 $(BIN)/python -m pytest tests/contract/environments/gateway/test_ecosystem.py tests/e2e/test_ecosystem.py

lint: $(VENV)/.vllm $(VENV)/.dev $(VENV)/.docs  ## Style, types and the schema, without changing a file.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/buf lint proto

format: $(VENV)/.dev  ## Formats Python and mends what ruff can mend by itself.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

install: $(VENV)/.$(ENGINE)  ## The virtual environment for one engine; nothing to do the second time.

$(VENV)/.torch: $(LOCKS)/base.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --no-deps '$(TORCH)' 2>/dev/null || \
		$(PIP) install --quiet --no-deps --index-url $(TORCH_INDEX) '$(TORCH)'
	$(PIP) install --quiet --no-deps setuptools==78.1.1 -r $(LOCKS)/base.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.vllm: $(VENV)/.torch $(LOCKS)/vllm.txt
	$(PIP) install --quiet --no-deps -r $(LOCKS)/vllm.txt
	touch $@

$(VENV)/.dev: $(VENV)/.torch $(LOCKS)/dev.txt
	$(PIP) install --quiet --no-deps -r $(LOCKS)/dev.txt
	touch $@

$(VENV)/.docs: $(VENV)/.torch $(LOCKS)/docs.txt
	$(PIP) install --quiet --no-deps -r $(LOCKS)/docs.txt
	touch $@

docs: $(VENV)/.dev $(VENV)/.docs  ## Builds the documentation as a site in build/site; a warning is an error.
	$(MKDOCS) build --quiet
	@echo $(abspath build/site/index.html)

docs-serve: $(VENV)/.dev $(VENV)/.docs  ## Shows the documentation at http://127.0.0.1:8000/ while it is written.
	$(MKDOCS) serve --dev-addr 127.0.0.1:8000

screenshots: $(VENV)/.dev $(VENV)/.docs  ## Takes the pictures of docs/images of a run: RUN=folder, PICTURES=names.
	$(BIN)/python -m tests.support.screenshots $(RUN) $(PICTURES)

generated: proto dashboards rules reference locks  ## Every committed file that is made from another; a test holds them current.

proto: $(VENV)/.dev  ## Generates the Python of the schema.
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/python -m grpc_tools.protoc -I proto \
		--python_out=proto --mypy_out=quiet:proto proto/routershift/v1/*.proto
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/python -m grpc_tools.protoc -I proto \
		--grpc_python_out=proto --mypy_grpc_out=quiet:proto \
		proto/routershift/v1/environment.proto proto/routershift/v1/generation.proto \
		proto/routershift/v1/learner.proto proto/routershift/v1/reward.proto
	$(BIN)/python -m grpc_tools.protoc -I proto --include_source_info \
		--descriptor_set_out=proto/routershift/v1/schema.binpb proto/routershift/v1/*.proto

dashboards: $(VENV)/.dev  ## Generates the dashboards of Grafana.
	$(BIN)/python -m deploy.grafana.write

boards: $(VENV)/.dev  ## Draws the dashboards without Grafana, from the last hour of PROMETHEUS; fails where a query has no data.
	$(BIN)/python -m deploy.grafana.draw --prometheus $(PROMETHEUS) --out build/boards

rules: $(VENV)/.dev  ## Generates the rules of the Prometheus operator from those of Prometheus.
	$(BIN)/python -m deploy.k8s.rules

manifests: $(VENV)/.dev  ## Generates the base of kustomize from the chart; asks npm for helm where there is none.
	$(BIN)/python -m deploy.k8s.manifests

reference: $(VENV)/.dev  ## Generates the pages of docs/reference that follow from the code.
	$(BIN)/python -m deploy.site.write

baseline: $(VENV)/.dev  ## Makes today's schema the one that later changes must not break.
	$(BIN)/buf build proto -o proto/baseline.binpb

locks: $(VENV)/.vllm $(VENV)/.dev $(VENV)/.docs  ## Pins what is installed now.
	$(BIN)/python -m deploy.locks.lock

image-locks: $(VENV)/.vllm $(VENV)/.dev  ## Pins by hash what the images install; asks the package index.
	$(BIN)/python -m deploy.locks.images

tracker-locks: $(VENV)/.vllm $(VENV)/.dev  ## Pins what the tests of experiment trackers install; asks the package index.
	$(BIN)/python -m deploy.locks.trackers

sbom: $(VENV)/.vllm $(VENV)/.dev  ## Writes what each image installs to build/sbom, as CycloneDX.
	$(BIN)/python -m deploy.locks.supply sbom

licences: $(VENV)/.vllm $(VENV)/.dev  ## Lists the licence of each package of the images.
	$(BIN)/python -m deploy.locks.supply licences

audit: $(VENV)/.dev  ## Asks osv.dev for known vulnerabilities of the images' packages.
	$(BIN)/python -m deploy.locks.supply audit

clean:  ## Removes the virtual environment and what building left.
	rm -rf $(VENV) build *.egg-info
