PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test install lint bench docs

run: install  ## train both arms of the width ablation, compare, report
	$(BIN)/python -m orchestrator +experiment=width_ablation

test: install
	$(BIN)/python -m pytest -n 3  # on two cores: jobs of a cluster mostly wait

install: .venv/.installed

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install  ## docs/keys.md from the schema
	$(BIN)/python docs/generate_keys.py

bench: install  ## ratios against named rivals; asserts nothing about time
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	for file in tests/benchmarks/bench_*.py; do $(BIN)/python $$file; done

.venv/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
