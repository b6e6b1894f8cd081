PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
C_SOURCES := $(shell find bridge mqtt -name '*.[ch]')

.PHONY: demo cluster test lint bench docs clean

demo: $(STAMP)
	$(BIN)/tidegate up --sim 50

cluster: $(STAMP)
	$(BIN)/tidegate cluster demo

test: $(STAMP) lint
	$(BIN)/python -m pytest -n $(or $(JOBS),2)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP)
	$(BIN)/tidegate docs

bench: $(STAMP)
	$(BIN)/tidegate bench all

$(STAMP): pyproject.toml $(C_SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
