PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
ARGS ?=

.PHONY: help venv demo stack test lint

help:  ## Show this help
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(BIN)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

venv: $(BIN)/.installed  ## Make a virtual environment with everything

demo: $(BIN)/.installed  ## Train on real solar cells, register, serve and score
	PATH="$(BIN):$$PATH" $(BIN)/python examples/demo.py

stack: $(BIN)/.installed  ## Run mlflow server on PostgreSQL and S3 until Ctrl-C
	@PATH="$(BIN):$$PATH" $(BIN)/python -m tests.stack $(ARGS)

test: $(BIN)/.installed  ## Run the test suite
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest $(ARGS)

lint: $(BIN)/.installed  ## Check the code's style
	$(BIN)/python -m ruff check dfm_mlflow tests benchmarks examples
