PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
C_SOURCES := $(shell find bridge mqtt -name '*.[ch]')
# a worker whose test starts processes waits a third of its time: three workers for two processors; two workers
# where nobody says how many there are
JOBS ?= $(shell n=$$(($$(nproc) * 3 / 2)); echo $$((n < 8 ? n : 8)))
# hundreds of processes are started: none is to compile again what it imports
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo cluster test suite proof lint bench docs clean

demo: $(STAMP)
	$(BIN)/tidegate up --sim 50

cluster: $(STAMP)
	$(BIN)/tidegate cluster demo

# both at once; either's failure is this one's, and neither cuts the other short
test: $(STAMP)
	$(MAKE) --no-print-directory --keep-going -j 2 lint suite

suite: $(STAMP)
	$(BIN)/python -m pytest -n $(or $(JOBS),2) --dist worksteal

# the link at its worst at full length: 1,000 cuts, half in each mode, and a day of outage; an hour or more
proof: $(STAMP)
	TIDEGATE_CUTS=1000 TIDEGATE_OUTAGE_READINGS=86400 \
		$(BIN)/python -m pytest -n 0 -s tests/e2e/test_link_faults.py tests/e2e/test_outage_day.py

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
