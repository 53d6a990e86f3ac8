# make demo | test | test-fast | test-timing | test-slow | test-lowest | test-newest | messages | fuzz | check | docs: each makes .venv first, if it is missing
PYTHON ?= python3
MINUTES ?= 20
PYTHONS ?= $(PYTHON)
BIN := .venv/bin
# Two processes share two cores; one thread each, because at the size of a test a second thread only waits for the first.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

SETS := benchmarks/dependency_sets.py $(foreach python,$(PYTHONS),--python $(python))

.PHONY: demo test test-fast test-timing test-slow test-lowest test-newest messages fuzz check docs

demo: .venv/core  # three and a half minutes on two idle cores; the first page stands within a minute
	$(BIN)/silc-bench demo --out demo

test: .venv/dev  # everything but what is slow by nature
	$(PYTEST) -m "not slow"

test-fast: .venv/dev  # for the inner loop: one part at a time, no whole runs, no other processes
	$(PYTEST) -m "not slow and not timing and not broad"

test-timing: .venv/dev  # what uses signals, kills, threads or processes
	$(PYTEST) -m "timing and not slow"

test-slow: .venv/dev  # compilation, models of real size, other processes that load whole libraries
	$(PYTEST) -m slow

test-lowest test-newest: test-%:  # test-fast with the oldest, or newest, libraries that are allowed: PYTHONS="python3.11 python3.13"
	$(PYTHON) $(SETS) $* --page build/dependency_sets_$*.md

messages: .venv/dev  # rewrite tests/messages.txt, the sentences of all errors; read its diff
	SILC_BENCH_REWRITE_MESSAGES=1 $(PYTEST) -m "not slow"

fuzz: .venv/dev  # property tests with new examples, for MINUTES
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py $(MINUTES)

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/silc-bench leaderboard --results results --out results --format md,csv --check > /dev/null

docs: .venv/docs  # guides and reference as a site in build/docs; a broken link or a wrong docstring is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

.venv/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "silc-bench needs Python 3.11 or newer; this is " + sys.version'
	$(PYTHON) -m venv .venv

.venv/core: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

.venv/dev: .venv/core
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/docs: .venv/core
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@
