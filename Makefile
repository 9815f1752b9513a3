# make chaos  tries bad versions and faults while a stream predicts
# make kills  kill -9 at 20 moments while a stream learns, on the DirectRunner, Spark and Flink each
# make run    sets up and runs the demonstration      make test   sets up and runs the tests
# make setup  only sets up                            make bench  measures, beside the rivals
# make conformance  one pipeline on every runner: the same bytes everywhere?
# make engines  fetches Flink, Spark and Kafka, and builds Prism (Java 17, Maven and Go are needed)
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.requirements

.PHONY: run engines conformance setup setup-dev test bench chaos kills lint clean

run: setup
	$(BIN)/midstream run electricity --fresh

setup: $(STAMP)

setup-dev: $(STAMP)-dev

$(STAMP): requirements.lock setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Midstream wants Python 3.11; set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up $(VENV): TensorFlow and Beam are 3 GB, this takes some minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

$(STAMP)-dev: $(STAMP) requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	touch $@

engines: setup
	$(BIN)/python -m runners.engines

# What processes that are killed leave lies in one folder, which stays where something failed.
test: lint engines
	folder=$$(mktemp -d) && export TMPDIR=$$folder && \
	$(BIN)/python -m pytest -n 2 --dist loadfile && $(BIN)/python -m tests.conformance && rm -rf $$folder

conformance: setup-dev engines
	$(BIN)/python -m tests.conformance

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup-dev engines
	$(BIN)/python -m bench.run
	$(BIN)/python -m bench.clusters --short
	$(BIN)/python -m bench.select_features --short
	$(BIN)/python -m bench.classify --short
	$(BIN)/python -m bench.regress --short
	$(BIN)/python -m bench.drift --short
	$(BIN)/python -m bench.cold_start --records 20000
	$(BIN)/python -m bench.swap --quick
	$(BIN)/python -m bench.anomalies
	$(BIN)/python -m bench.anomalies_altered
	$(BIN)/python -m bench.anomalies_generated --seeds 1
	$(BIN)/python -m bench.kafka --short
	$(BIN)/python -m bench.continuous
	$(BIN)/python -m bench.continuous --rate 4000 --seconds 300 --swap-every 2 --speed 12 --plot out/bench/hour.html
	$(BIN)/python -m bench.engines --rows 20000

chaos: setup-dev engines
	$(BIN)/python -m bench.chaos

kills: setup-dev engines
	$(BIN)/python -m tests.chaos.kills

clean:
	rm -rf $(VENV) out build *.egg-info .mypy_cache .ruff_cache .hypothesis
