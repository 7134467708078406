PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
ARGS ?=
JOBS ?= 2
LOWEST ?= .venv-lowest
TORCH ?= torch==2.9.0 torchvision==0.24.0
CORE_TESTS := tests/config tests/core tests/images tests/network tests/artifact/test_save_load.py \
	tests/test_cli.py tests/detector/test_anomaly_detector.py tests/test_formats.py

.PHONY: help venv demo docs stack test test-lowest coverage bench readme lint dist

help:  ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */|/' | column -t -s '|'

$(BIN)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

venv: $(BIN)/.installed  ## Make a virtual environment with everything

demo: $(BIN)/.installed  ## Train on real solar cells, register, serve and score
	PATH="$(BIN):$$PATH" $(BIN)/python examples/demo.py

docs: $(BIN)/.installed  ## Build the site of docs/ into site/
	$(BIN)/python -m mkdocs build --strict

stack: $(BIN)/.installed  ## Run mlflow server on PostgreSQL and S3 until Ctrl-C
	@PATH="$(BIN):$$PATH" $(BIN)/python examples/stack.py $(ARGS)

# Test workers share the cores: more threads than those wait for each other.
test coverage: export OMP_NUM_THREADS ?= 1

test: $(BIN)/.installed  ## Run the quick tests; integration and slow ones by ARGS
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-lowest:  ## Test on the lowest versions of the ranges, with the pair that TORCH names
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv $(TORCH)
	$(LOWEST)/bin/python -m pip freeze | grep -E '^torch(vision)?==' > $(LOWEST)/pair.txt
	$(LOWEST)/bin/uv pip compile --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
		--constraint $(LOWEST)/pair.txt --extra onnx --extra sample --extra timm pyproject.toml \
		--output-file $(LOWEST)/lowest.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python \
		--requirement $(LOWEST)/lowest.txt hypothesis 'moto[server]' pytest pytest-timeout
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --no-deps --editable .
	PATH="$(abspath $(LOWEST))/bin:$$PATH" $(abspath $(LOWEST))/bin/python -m pytest \
		$(or $(ARGS),$(CORE_TESTS))

coverage: $(BIN)/.installed  ## Measure the branches that all but the slow tests take
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term -m 'not slow' $(ARGS)

bench: $(BIN)/.installed  ## Measure speed in its short form, ten minutes; writes bench.json
	PATH="$(BIN):$$PATH" $(BIN)/python benchmarks/bench.py $(ARGS)

readme: $(BIN)/.installed  ## Run every command of the README, about ten minutes
	PATH="$(BIN):$$PATH" $(BIN)/python -m tests.readme

lint: $(BIN)/.installed  ## Check style (ruff), types (mypy), layers (import-linter), docstrings and test files
	$(BIN)/python -m ruff check dfm_mlflow tests benchmarks examples docs
	$(BIN)/python -m ruff format --check dfm_mlflow tests benchmarks examples docs
	$(BIN)/python -m mypy
	$(BIN)/python -m mypy tests/users_script.py
	$(BIN)/lint-imports
	$(BIN)/python -m tests.house

dist: $(BIN)/.installed  ## Build wheel and sdist, and try each in an empty environment
	rm -rf dist
	$(BIN)/python -m build --quiet
	for file in dist/*; do \
		rm -rf dist/venv && $(PYTHON) -m venv dist/venv && \
		dist/venv/bin/python -m pip install --quiet torch torchvision && \
		dist/venv/bin/python -m pip install --quiet $$file && \
		(cd / && $(abspath dist)/venv/bin/dfm-mlflow --help >/dev/null) && echo "$$file works" || exit 1; \
	done
	rm -rf dist/venv
