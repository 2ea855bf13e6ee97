# Everything runs in .venv, which the first target that needs it makes. Python 3.11 to 3.13, pip
# and make are enough. Another interpreter: make test PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
# Arguments for the program behind a target: make test ARGS="-k pattern -x"
ARGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types bench wheel clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(READY)  ## prune a sentence encoder, show what was kept and what it did to embeddings
	$(BIN)/python -m benchmarks.demo $(ARGS)

test: $(READY)  ## run the tests (ARGS go to pytest)
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY)  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Type checkers cannot see through the import hook of an editable install, and from the root they
# would take the folder gyroperm/ for the whole package: so a regular install, from inside tests/.
types: $(READY)  ## check types, against a regular install
	rm -rf $(VENV)/regular
	$(BIN)/python -m build --quiet --no-isolation --outdir $(VENV)/regular/dist .
	$(BIN)/python -m pip install --quiet --no-deps --no-index \
		--target $(VENV)/regular/lib $(VENV)/regular/dist/*.whl
	cd tests && MYPYPATH=../$(VENV)/regular/lib ../$(BIN)/mypy \
		--config-file ../pyproject.toml --cache-dir ../.mypy_cache -p gyroperm

bench: $(READY)  ## measure the quality of the searches (ARGS=--quick: under ten minutes)
	$(BIN)/python -m benchmarks.quality $(ARGS)

wheel: $(READY)  ## build the source distribution and the wheel into dist/
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

install: $(READY)  ## make .venv and install everything the other targets need

clean:  ## remove what was built and cached; .venv stays
	rm -rf build dist demo_output .pytest_cache .hypothesis .mypy_cache .ruff_cache *.egg-info
	find gyroperm solvers gpu benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A venv that was left half-made is completed; one that is there is kept.
$(READY): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
			echo 'gyroperm needs Python 3.11 to 3.13; try: make PYTHON=python3.12' >&2; exit 1; }; \
		echo 'making $(VENV)'; $(PYTHON) -m venv $(VENV); }
	@echo 'installing what pyproject.toml and constraints.txt name (minutes, the first time)'
	$(BIN)/python -m pip install -c constraints.txt -e '.[demo,dev]'
	@touch $@
