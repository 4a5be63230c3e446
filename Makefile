# make run    installs everything and trains a small model with a swarm of four on this machine
# make test   what the gate runs: style, types, tests
# The others are heavier proofs, each one command.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
RUN_ROUNDS ?= 150
SPSA_ROUNDS ?= 150
CHAOS_SEED ?= 1
CHAOS_LOGS ?= runs/chaos

.PHONY: run run-spsa test lint proofs promises fuzz simulate bench gossip chaos newcomer overlap chaos-long clean

run: $(VENV)/.installed
	$(BIN)/peer up configs/stdlib-gpt-sparseloco.toml --peers 4 --rounds $(RUN_ROUNDS) --churn \
		--sample "def "

# The same with one byte for each gradient estimate, and nothing else on the wire.
run-spsa: $(VENV)/.installed
	$(BIN)/peer up configs/stdlib-gpt.toml --peers 4 --rounds $(SPSA_ROUNDS) --churn

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

proofs: promises fuzz simulate bench gossip

# Breaks each promise on purpose, in a copy, and looks whether a test notices.
promises: $(VENV)/.installed-dev
	$(BIN)/python tests/promises.py

fuzz: $(VENV)/.installed-dev
	$(BIN)/python tests/machine/fuzz.py --cases 1000000

simulate: $(VENV)/.installed-dev
	$(BIN)/python tests/scenarios/long.py --seeds 0:1000 --jobs $$(nproc)

bench: $(VENV)/.installed-dev
	@for bench in perturb merge sparse dense coefficients churn scatter probe probe_memory traffic newcomer simulator control gossip; do \
		$(BIN)/python tests/bench/$$bench.py || exit 1; done

# Six real processes that gossip while two are killed and two join, and what their mean is worth.
gossip: $(VENV)/.installed-dev
	$(BIN)/python tests/chaos/gossip.py --minutes 5 --seed $(CHAOS_SEED)

# Real processes under faults. Partitions and slow links need root, /dev/net/tun and gcc.
chaos: $(VENV)/.installed-dev
	$(BIN)/python tests/chaos/chaos.py --peers 8 --minutes 3.5 --seed $(CHAOS_SEED)
	$(BIN)/python tests/chaos/chaos.py --peers 12 --mass-kill --seed $(CHAOS_SEED)
	$(BIN)/python tests/chaos/partition.py --quorum any --out $(CHAOS_LOGS)
	$(BIN)/python tests/chaos/partition.py --quorum majority --out $(CHAOS_LOGS)

# A newcomer to a run of 500 MB over slow lines, and one whose donor dies half-way; needs the same.
newcomer: $(VENV)/.installed-dev
	$(BIN)/python tests/chaos/newcomer.py --mb 500
	$(BIN)/python tests/chaos/newcomer.py --mb 100 --kill

# What peers on slow lines lose to waiting for each other; needs the same.
overlap: $(VENV)/.installed-dev
	$(BIN)/python tests/chaos/overlap.py

# 40 minutes and 16 GB of memory; leave the machine alone meanwhile.
chaos-long: $(VENV)/.installed-dev
	$(BIN)/python tests/chaos/chaos.py --peers 32 --faults 62 --minutes 30 --seed $(CHAOS_SEED)

# torch first, by itself: its exact version has a CPU build, any other can pull gigabytes.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[hf,data,gpu,upnp,dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
