# make run    installs everything and trains a small model with a swarm of four on this machine
# make test   what the gate runs: style, types, tests
# The others are heavier proofs, each one command.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
RUN_ROUNDS ?= 150

.PHONY: run test lint proofs fuzz simulate bench clean

run: $(VENV)/.installed
	$(BIN)/peer up configs/stdlib-gpt.toml --peers 4 --rounds $(RUN_ROUNDS) --churn

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest -q

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

proofs: fuzz simulate bench

fuzz: $(VENV)/.installed-dev
	$(BIN)/python tests/machine/fuzz.py --cases 1000000

simulate: $(VENV)/.installed-dev
	$(BIN)/python tests/scenarios/long.py --seeds 0:1000

bench: $(VENV)/.installed-dev
	@for bench in perturb merge probe probe_memory traffic newcomer simulator; do \
		$(BIN)/python tests/bench/$$bench.py || exit 1; done

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
