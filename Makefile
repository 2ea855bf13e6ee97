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
.PHONY: help install demo test kernels emulation test-plugins lint types bench wheel clean

# Pruning toolkits do not all fit into one environment. Each of these has its own, .venv-NAME, from
# constraints-NAME.txt: the extras it installs, and the folders of tests/plugins that it runs.
ENVIRONMENTS := plugins llmcompressor
EXTRAS_plugins := torchao,torch-pruning,modelopt
TOOLKITS_plugins := torchao torch_pruning modelopt apex
EXTRAS_llmcompressor := llmcompressor
TOOLKITS_llmcompressor := llmcompressor
TESTS_IN := $(ENVIRONMENTS:%=test-in-%)
.PHONY: $(TESTS_IN)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(READY)  ## prune a sentence encoder, show what was kept and what it did to embeddings
	$(BIN)/python -m benchmarks.demo $(ARGS)

PROCESSES := -n auto --maxprocesses 4
# A file's tests share what is set up for them, so that one process runs them.
PARALLEL := $(PROCESSES) --dist loadfile --no-loadscope-reorder

test: $(READY)  ## run the tests on up to four cores (ARGS go to pytest)
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

kernels: $(READY)  ## compile every kernel for every architecture, and check what it takes
	$(BIN)/python -m pytest -m compiled $(ARGS)

emulation: $(READY)  ## run every kernel on the host, at every number of columns
	$(BIN)/python -m pytest -m emulated $(PROCESSES) --dist worksteal $(ARGS)

test-plugins: $(TESTS_IN)  ## test the plug-ins for toolkits that need environments of their own

# Only what is named is collected there, and there a toolkit that cannot be imported is an error.
$(TESTS_IN): test-in-%: .venv-%/.installed
	GYROPERM_TOOLKITS="$(TOOLKITS_$*)" .venv-$*/bin/python -m pytest \
		$(TOOLKITS_$*:%=tests/plugins/%) $(ARGS)

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

install: $(READY)  ## make .venv and install everything the other targets but test-plugins need

clean:  ## remove what was built and cached; .venv and its like stay
	rm -rf build dist demo_output .pytest_cache .hypothesis .mypy_cache .ruff_cache *.egg-info
	find gyroperm solvers gpu benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A venv that was left half-made is completed; one that is there is kept.
define make_venv
@$(1)/bin/python -m pip --version >/dev/null 2>&1 || { \
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
		echo 'gyroperm needs Python 3.11 to 3.13; try: make PYTHON=python3.12' >&2; exit 1; }; \
	echo 'making $(1)'; $(PYTHON) -m venv $(1); }
@echo 'installing what pyproject.toml and $(2) name (minutes, the first time)'
endef

$(READY): pyproject.toml constraints.txt
	$(call make_venv,$(VENV),constraints.txt)
	$(BIN)/python -m pip install -c constraints.txt -e '.[demo,dev]'
	@touch $@

$(ENVIRONMENTS:%=.venv-%/.installed): .venv-%/.installed: pyproject.toml constraints-%.txt
	$(call make_venv,.venv-$*,constraints-$*.txt)
	.venv-$*/bin/python -m pip install -c constraints-$*.txt -e '.[$(EXTRAS_$*)]' \
		pytest hypothesis transformers
	@touch $@
