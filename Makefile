# `make` alone prints the targets. Every target sets up what it needs on a fresh machine.

PYTHON ?= python3
VENV ?= .venv
OUT ?= demo-out
PYTEST_ARGS ?=
CLUSTER_ARGS ?=
DOCKER_ARGS ?=
BENCH_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test faults cluster-test docker-check docs check format bench constraints clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  VENV=$(VENV)  PYTHON=$(PYTHON)  OUT=$(OUT)  PYTEST_ARGS=$(PYTEST_ARGS)"

install: $(STAMP) ## create the environment in VENV (about 7 GB, nearly all of it torch)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo,test]"
	@touch $@

demo: $(STAMP) ## run every stage on small pictures and write a page to OUT
	$(BIN)/ltrp-pipeline demo --out $(OUT)

test: $(STAMP) ## run the tests; PYTEST_ARGS="-m 'not slow and not faults'" leaves out the long ones
	$(BIN)/python -m pytest $(PYTEST_ARGS)

faults: $(STAMP) ## kill drivers and workers, fill disks, damage files: all of tests/faults
	$(BIN)/python -m pytest tests/faults tests/pipeline -m "faults or not faults" $(PYTEST_ARGS)

cluster-test: $(STAMP) ## a cluster of hosts in network namespaces that fail (root, Linux); CLUSTER_ARGS=--speed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[cluster]"
	$(BIN)/python tests/cluster/run.py $(CLUSTER_ARGS)

docker-check: $(STAMP) ## the Dockerfile's instructions in a clean Debian root, without Docker (root, Linux, debootstrap)
	$(BIN)/python docker/try_install.py $(DOCKER_ARGS)

docs: $(STAMP) ## write the documentation as a site to site/; a dead link ends it
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: $(STAMP) ## formatting, lint, types, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell

format: $(STAMP) ## format and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## run the benchmarks, results on top of benchmarks/RESULTS.md; BENCH_ARGS=--full
	$(BIN)/python benchmarks/collect.py $(BENCH_ARGS)

constraints: $(STAMP) ## write the versions installed in VENV to constraints.txt
	@head -n 2 constraints.txt > constraints.new
	@$(BIN)/python -m pip freeze --exclude-editable \
		| sed 's/+.*//' | grep -E '^[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!]*$$' >> constraints.new
	@mv constraints.new constraints.txt

clean: ## remove what the other targets made, the environment included
	rm -rf $(VENV) $(OUT) site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find ltrp_core stages pipeline tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
