# Everything runs in a virtual environment of its own, made at first use.

PYTHON ?= python3
# Tests start some hundred processes: without its bytecode each compiles the library anew.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
BIN := $(VENV)/bin
BENCH := .venv-bench
LOWEST := .venv-lowest

.PHONY: help demo test quick check cheap mypy pyright store peers browser docs draw soak steady \
	mutants matrix others pythons lowest bench bench-quick bench-gate bench-wire bench-journal \
	bench-rows bench-shared bench-guard format changelog clean

help:
	@echo "make demo    the main job on a stand-in service, from nothing"
	@echo "make test    all checks and all tests"
	@echo "make quick   checks, and the tests that need no process of their own; a minute"
	@echo "make check   format, lint, layers, types"
	@echo "make browser  chromium, for the tests that look at pages"
	@echo "make docs    the site of the docs, in build/docs"
	@echo "make draw    what the docs draw from the code: pictures and tables"
	@echo "make soak    the long searches; some minutes"
	@echo "make steady  all tests on a machine that has no time for them; an hour or two"
	@echo "make mutants  the library with faults: which does no test find? half an hour"
	@echo "make matrix  all tests on each Python that is there, and in other loops"
	@echo "make pythons  the newest Pythons, in a Debian sid of their own, and matrix there"
	@echo "make lowest  tests with the oldest packages that it works with; some minutes"
	@echo "make bench   speed beside other clients; some minutes (bench-quick: one)"
	@echo "make bench-gate  the gate on the loads it is made for; some minutes"
	@echo "make bench-wire  answers to records"
	@echo "make bench-journal  what writing payments down costs"
	@echo "make bench-rows  memory of a plan of a million rows; some minutes"
	@echo "make bench-shared  one budget over 1, 2 and 4 processes; some minutes"
	@echo "make bench-guard  instructions of a call, against those on record"

# What the library and its command line need.
$(VENV)/.run: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=..."; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1 || { \
		echo "Installing the system package python3-venv"; \
		apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null \
		&& $(PYTHON) -m venv --clear $(VENV); } \
		|| { echo "python3-venv is needed: install it as root"; exit 1; }
	@$(BIN)/pip install -q --disable-pip-version-check --upgrade pip
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[cli]'
	@touch $@

# What its tests and checks need as well.
$(VENV)/.dev: $(VENV)/.run
	@$(BIN)/pip install -q --disable-pip-version-check --group dev --group docs
	@touch $@

demo: $(VENV)/.run
	@$(BIN)/agentapi demo

# The two readers of types take a processor each.
check: cheap
	@$(MAKE) --no-print-directory -j 2 mypy pyright

cheap: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo

mypy: $(VENV)/.dev
	$(BIN)/mypy

pyright: $(VENV)/.dev
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	@# It finds the package by the first python of the path.
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/basedpyright --verifytypes aio_agentapi --ignoreexternal

# Tests of the shared gate start servers of their own.
store:
	@command -v redis-server valkey-server >/dev/null || { \
		echo "Installing the system package redis-server"; \
		apt-get update -qq && apt-get install -y -qq redis-server >/dev/null; } \
		|| echo "redis-server is missing, and tests will say so: install it as root"

# What tests put before the service, or do to its clock and its network.
peers:
	@for each in nginx haproxy faketime ip; do \
		command -v $$each >/dev/null || missing=1; done; \
	test -z "$$missing" || { \
		echo "Installing the system packages nginx, haproxy, faketime, iproute2"; \
		apt-get update -qq && apt-get install -y -qq nginx haproxy faketime iproute2 >/dev/null; } \
		|| echo "nginx, haproxy, faketime or ip is missing, and tests will say so: install them as root"

# Without one, the tests of the back office's pages are left out.
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null || { \
		echo "Installing the system package chromium"; \
		apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
		|| echo "chromium is missing, and tests will say so: install it as root"

# Several at a time, for many wait; tests/scheduling.py says which stay together.
PARALLEL := -n 5
# They run the same lines thousands of times, and others run those as well: measuring
# them would take twice as long.
SEARCHES := tests/property tests/contract/test_document.py

test: check store peers
	$(BIN)/coverage erase
	@$(MAKE) --no-print-directory -j 2 searches measured
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --fail-under=95

.PHONY: searches measured
searches: $(VENV)/.dev
	$(BIN)/python -m pytest -q $(SEARCHES)

measured: $(VENV)/.dev store peers
	$(BIN)/coverage run -m pytest -p no:schemathesis $(PARALLEL) $(SEARCHES:%=--ignore %)

# What takes no processes, no time and no search; the second reader of types is in test.
quick: cheap mypy
	$(BIN)/python -m pytest -q -p no:schemathesis $(PARALLEL) $(SEARCHES:%=--ignore %) \
		-m "not (soak or process or realtime)"

docs: $(VENV)/.dev
	$(BIN)/sphinx-build -W --keep-going -n -q docs build/docs
	@echo "build/docs/index.html"

draw: $(VENV)/.dev
	$(BIN)/python docs/diagrams.py
	$(BIN)/python docs/tables.py

soak: $(VENV)/.dev store peers
	$(BIN)/python -m pytest -m soak
	AGENTAPI_TEST_EXAMPLES=20 $(BIN)/python -m pytest -o timeout=1200 tests/property/test_wire.py \
		tests/contract/test_document.py

steady: $(VENV)/.dev store peers browser
	$(BIN)/python -m tests.steady

mutants: $(VENV)/.dev store peers
	$(BIN)/python -m tests.mutants --count 221 --seed 1 --file build/mutants/survivors.toml

matrix: $(VENV)/.dev store peers browser
	$(BIN)/nox -s interpreters tests modes

# On each other Python: what has to hold wherever the library runs.
others: $(VENV)/.dev store
	$(BIN)/nox -s interpreters others

# Needs root, and some minutes the first time. What is made there stays in build/sid.
SID := build/sid
pythons:
	@test -x $(SID)/usr/bin/apt-get || { \
		command -v debootstrap >/dev/null || apt-get install -y -qq debootstrap >/dev/null; \
		mkdir -p build && debootstrap --variant=minbase --include=ca-certificates sid \
		$(SID) http://deb.debian.org/debian >build/debootstrap.log; }
	@cp -L /etc/resolv.conf /etc/pip.conf $(SID)/etc/ 2>/dev/null || true
	@mkdir -p $(SID)/project
	@# Mounts of its own, which end with it.
	unshare --mount --pid --fork sh -ec ' \
		mount -t proc proc $(SID)/proc && mount --rbind /dev $(SID)/dev && \
		mount --bind . $(SID)/project && \
		exec chroot $(SID) sh -ec "cd /project && exec sh tests/pythons.sh"'

# The bounds in pyproject.toml are true: each package as old as it may be. The tools that
# test it stay new, so those that would not go with that are left out.
$(LOWEST)/.done: pyproject.toml $(VENV)/.run
	@test -x $(LOWEST)/bin/pip || $(PYTHON) -m venv --clear $(LOWEST)
	@$(LOWEST)/bin/pip install -q --disable-pip-version-check --upgrade pip
	@$(LOWEST)/bin/pip install -q --disable-pip-version-check -e '.[cli,redis]' --group dev
	@$(LOWEST)/bin/python -c 'import tomllib; \
		project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		extras = project["optional-dependencies"]; \
		bounds = project["dependencies"] + extras["cli"] + extras["redis"]; \
		print(*(b.split(",")[0].replace(">=", "==") for b in bounds), sep="\n")' \
		> $(LOWEST)/bounds.txt
	@echo "Tools that want newer ones will be named: they are left out"
	@$(LOWEST)/bin/pip install -q --disable-pip-version-check -r $(LOWEST)/bounds.txt
	@touch $@

OLD := roads calls payments gate shared life games doctor cli_more cli_payments cli_shell
lowest: $(LOWEST)/.done store
	$(LOWEST)/bin/python -m pytest -n 2 --dist loadfile -p no:schemathesis --tb=native \
		tests/unit tests/property $(OLD:%=tests/integration/test_%.py)

# Benchmarks compare with clients that do not go together with the tests.
$(BENCH)/.done: pyproject.toml $(VENV)/.run
	@test -x $(BENCH)/bin/pip || $(PYTHON) -m venv --clear $(BENCH)
	@$(BENCH)/bin/pip install -q --disable-pip-version-check --upgrade pip
	@$(BENCH)/bin/pip install -q --disable-pip-version-check -e . --group bench
	@touch $@

bench: $(BENCH)/.done
	$(BENCH)/bin/python -m benchmarks

bench-quick: $(BENCH)/.done
	$(BENCH)/bin/python -m benchmarks quick

bench-gate: $(BENCH)/.done
	$(BENCH)/bin/python -m benchmarks.gate

bench-wire: $(BENCH)/.done
	$(BENCH)/bin/python -m benchmarks.wire

bench-journal: $(BENCH)/.done
	$(BENCH)/bin/python -m benchmarks.journal

bench-rows: $(BENCH)/.done
	$(BENCH)/bin/python -m benchmarks.rows

bench-shared: $(BENCH)/.done store
	$(BENCH)/bin/python -m benchmarks.shared

bench-guard: $(BENCH)/.done
	@command -v valgrind >/dev/null || { \
		echo "Installing the system package valgrind"; \
		apt-get update -qq && apt-get install -y -qq valgrind >/dev/null; } \
		|| { echo "valgrind is needed: install it as root"; exit 1; }
	$(BENCH)/bin/python -m benchmarks.guard

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

changelog: $(VENV)/.dev
	$(BIN)/towncrier build --draft

clean:
	rm -rf $(VENV) $(BENCH) $(LOWEST) build .mypy_cache .pytest_cache .ruff_cache .hypothesis \
		.coverage*
