# Two commands do everything on a fresh machine: `make demo` and `make test`.
# VENV names the virtual environment; it is made if it does not exist.
VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
STAMP := $(VENV)/.qcse-installed
SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc qcse_ext python -type f -not -name '*.pyc' -not -name '*.so')

.PHONY: install demo test lint format clean
.DEFAULT_GOAL := help

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and by exact version: an unpinned torch can pull gigabytes of CUDA libraries.
$(VENV)/.qcse-tools: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "scikit-build-core>=0.10" "pybind11>=2.13" "cmake>=3.26" ninja
	touch $@

$(STAMP): $(VENV)/.qcse-tools $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation ".[train,dev]"
	touch $@

install: $(STAMP)  ## virtual environment, torch, the package and what its tests need

demo: install  ## offline-to-online on the embedded Hopper data, with and without the bonus, and a report
	$(BIN)/qcse demo

test: install  ## all tests
	$(BIN)/pytest tests

lint: install  ## ruff, clang-format, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*' 'tests/*' | grep -E '\.(h|cpp|cu|cuh)$$')
	$(BIN)/mypy

format: install  ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*' 'tests/*' | grep -E '\.(h|cpp|cu|cuh)$$')

clean:  ## remove what was built, not the virtual environment nor runs
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
