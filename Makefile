# edgekiln from a checkout. `make help` lists the targets.
# Every target sets up .venv and the system packages first; where they are ready that takes no time.

BOARD ?= mps2-an386
MODEL ?= digits_cnn
CASES ?= 200000

EDGEKILN := .venv/bin/edgekiln
# These count on make's command line alone: many environments have a DATA, PORT or HOST of their own.
WITH_PORT = $(if $(filter command,$(origin PORT)),--port "$$EDGEKILN_PORT")
WITH_RUNNER = $(if $(filter command,$(origin RUNNER)),--runner "$$EDGEKILN_RUNNER")
WITH_DATA = $(if $(filter command,$(origin DATA)),--data "$$EDGEKILN_NPZ")
LOCK_FLAGS := --universal --fork-strategy fewest --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --custom-compile-command 'make lock' --quiet

# What the user typed reaches the commands through the environment, unexpanded: nothing in it is
# read by make or the shell.
export EDGEKILN_BOARD = $(value BOARD)
export EDGEKILN_MODEL = $(value MODEL)
export EDGEKILN_CASES = $(value CASES)
export EDGEKILN_MODELS = $(value MODELS)
export EDGEKILN_NPZ = $(value DATA)
export EDGEKILN_PORT = $(value PORT)
export EDGEKILN_RUNNER = $(value RUNNER)
export EDGEKILN_HOST = $(if $(filter command,$(origin HOST)),$(value HOST),$(value RPI_HOST))
unexport BOARD MODEL MODELS CASES DATA PORT RUNNER HOST RPI_HOST

.DEFAULT_GOAL := help
.PHONY: help setup deploy flash bench report figures pi-figures zoo zoo-report boards doctor test fuzz faults lint format lock clean

help: ## Show this help
	@echo 'make <target> [BOARD=<board>] [MODEL=<recipe or file>] [DATA=<.npz for a Keras model>]'
	@echo '              [PORT=<serial port of a real board, or auto>] [RUNNER=<what writes to it>]'
	@echo '              [HOST=<user@host of a board with Linux, several, or virtual>]'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@printf 'BOARD is %s and MODEL is %s unless you say otherwise.\n' "$$EDGEKILN_BOARD" "$$EDGEKILN_MODEL"
	@echo 'PYTHON=python3.12 picks a Python; SKIP_SYSTEM=1 leaves system packages alone.'

setup: ## Make .venv and, with root or sudo, install the system packages
	@scripts/setup

deploy: setup ## Train, prune, quantize, compile, flash and measure MODEL on BOARD, then report
	@RPI_HOST="$$EDGEKILN_HOST" $(EDGEKILN) deploy --board "$$EDGEKILN_BOARD" $(WITH_DATA) $(WITH_PORT) $(WITH_RUNNER) -- "$$EDGEKILN_MODEL"

flash: setup ## Build the image of MODEL and write it to BOARD
	@$(EDGEKILN) flash --board "$$EDGEKILN_BOARD" $(WITH_DATA) $(WITH_PORT) $(WITH_RUNNER) -- "$$EDGEKILN_MODEL"

bench: setup ## Measure MODEL on BOARD: instructions, flash, RAM
	@$(EDGEKILN) bench --board "$$EDGEKILN_BOARD" $(WITH_DATA) $(WITH_PORT) $(WITH_RUNNER) -- "$$EDGEKILN_MODEL"

report: setup ## Write and name the HTML report of MODEL's last deploy to BOARD
	@$(EDGEKILN) report --board "$$EDGEKILN_BOARD" -- "$$EDGEKILN_MODEL"

figures: setup ## Measure the MLPerf Tiny models below MODELS=<mlperf_tiny> and write docs/figures.md
	@.venv/bin/python -m edgekiln.bench.figures "$$EDGEKILN_MODELS" docs

pi-figures: setup ## Count their instructions against LiteRT's on emulated Pis, write docs/aarch64.md
	@.venv/bin/python -m edgekiln.bench.pi_figures "$$EDGEKILN_MODELS" docs

zoo: setup ## Train the project's own models and their variants anew (MODELS='a b' for some)
	@set -f; $(EDGEKILN) zoo --train -- $$EDGEKILN_MODELS

zoo-report: setup ## Measure them as they are kept, print the table, write build/zoo.json
	@set -f; $(EDGEKILN) zoo -- $$EDGEKILN_MODELS

boards: setup ## Take MODEL to every microcontroller's emulator and print one table
	@$(EDGEKILN) boards --try="$$EDGEKILN_MODEL" --try=digits_mlp

doctor: setup ## Show what is installed, what is missing and how to get it
	@$(EDGEKILN) doctor

test: setup ## Run all tests, the linters among them (PYTEST_ARGS='-k name' for some)
	@.venv/bin/pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

fuzz: setup ## Compile damaged models, 200,000 of them (CASES=n for another number)
	@.venv/bin/python tests/support/fuzz_reader.py --cases "$$EDGEKILN_CASES"

faults: setup ## Inject 10,000 faults into the line to a board, and some to BOARD's emulator
	@.venv/bin/python tests/support/fault_injection.py --faults 10000
	@.venv/bin/python tests/support/fault_injection.py --faults 500 --workers 4 --board "$$EDGEKILN_BOARD"

lint: setup ## Run ruff, mypy and import-linter
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

format: setup ## Format the Python sources
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

lock: setup ## Make the requirements*.lock files anew from pyproject.toml
	@.venv/bin/python -m venv .venv-lock
	@.venv-lock/bin/python -m pip install --quiet 'uv>=0.7'
	@.venv-lock/bin/uv pip compile $(LOCK_FLAGS) --upgrade --extra dev pyproject.toml -o requirements.lock
	@.venv-lock/bin/uv pip compile $(LOCK_FLAGS) --constraint requirements.lock pyproject.toml -o requirements-core.lock

clean: ## Remove what the targets made, .venv excepted
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
