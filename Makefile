# The two commands: `make demo` and `make test`. Each sets up what it needs in .venv first.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Bytecode is written, or each of dozens of processes would compile the package anew. The few tests that take two threads
# must not have one spin while it waits for the other, which another test keeps from its core.
PYTEST = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

.PHONY: demo frontier test check faults fuzz tamper lint golden docs coverage benchmark clean

demo: $(VENV)/installed
	$(BIN)/iet-agc demo --out runs/demo

# Ten methods as curves of copied share against quality, on digits, three seeds: about two hours on two cores.
frontier: $(VENV)/installed
	$(BIN)/iet-agc bench small --out runs/frontier --jobs 2

test: lint
	$(PYTEST)

# While one works: style, and the tests that are not slow. Types are with `make lint`.
check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST) -m 'not slow' --quiet

# A hundred kills of each verb that writes, and full disks: hours. `make test` has a few of each.
faults: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --kills 100

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

# The site, in site/: open site/index.html. Fails on a broken link.
docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# Writes again what tests compare with: the help of every verb, docs/api.md and docs/reference/settings.md.
golden: $(VENV)/installed-dev
	UPDATE_GOLDEN=1 $(BIN)/python -m pytest --quiet tests/test_golden.py

coverage: $(VENV)/installed-dev
	$(PYTEST) --cov --cov-report term --cov-report html

CASES ?= 1000
SEED ?= 0

fuzz: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --cases $(CASES) --seed $(SEED)

# A thousand changes of single bytes of a pack, each of which has to be named.
tamper: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.tamper $(CASES) $(SEED)

benchmark: $(VENV)/installed
	set -e; for each in benchmarks/*.py; do echo "== $$each" >&2; $(BIN)/python $$each; done

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

# One installation, not the package and then its extras: pip resolves all of it each time.
$(VENV)/installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $(VENV)/installed $@

clean:
	rm -rf $(VENV) build dist runs site htmlcov .coverage
