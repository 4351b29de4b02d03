# Two commands do everything on a fresh machine: `make demo` and `make test`.
# VENV names the virtual environment; it is made if it does not exist.
VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch==2.13.0
JOBS ?= 2
SECONDS ?= 600
PROBLEMS ?= 500
KILLS ?= 100
# ON builds the CUDA kernels or fails, AUTO builds them where nvcc is found; WERROR=ON makes warnings errors.
CUDA ?= AUTO
WERROR ?= OFF
BIN := $(VENV)/bin
STAMP := $(VENV)/.qcse-installed
SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc qcse_ext python -type f -not -name '*.pyc' -not -name '*.so')

.PHONY: help install demo demo-maze test lint format learn bench bench-train emulate faults kernels crash same-bits fuzz sanitize sanitize-core floor lab gpu-kit gpu-run clean
.DEFAULT_GOAL := help

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 16

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and by exact version: an unpinned torch can pull gigabytes of CUDA libraries.
$(VENV)/.qcse-tools: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "scikit-build-core>=0.10" "pybind11>=2.13" "cmake>=3.26" ninja
	touch $@

$(STAMP): $(VENV)/.qcse-tools $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation \
	  -C cmake.define.QCSE_CUDA=$(CUDA) -C cmake.define.QCSE_WERROR=$(WERROR) ".[train,dev]"
	touch $@

install: $(STAMP)  ## virtual environment, torch, the package and what its tests need

demo: install  ## offline-to-online on the embedded Hopper data, with and without the bonus, and a report
	$(BIN)/qcse demo

demo-maze: install  ## the same with Cal-QL on the embedded maze, whose only reward is at its far end
	$(BIN)/qcse sweep --tasks pointmaze-umaze --algos cal_ql --bonuses none qcse --seeds 2 --workers 2 \
	  --offline-steps 300 --online-steps 2000 --out runs/demo-maze

test: install  ## all tests, spread over JOBS processes
	$(BIN)/pytest tests --numprocesses $(JOBS) --dist worksteal

learn: install  ## does every algorithm learn? all eight on the embedded Hopper data (half an hour)
	$(BIN)/python -P benchmarks/learn.py

bench: install  ## the operator against what a user would run instead (python -m qcse_ext.bench --help)
	$(BIN)/python -P -m qcse_ext.bench --device cpu

bench-train: install  ## the training step; CORL=PATH of a checkout for CORL's own beside it
	$(BIN)/qcse bench $(if $(CORL),--corl $(CORL))

emulate: install  ## the CUDA kernels executed on the CPU, on PROBLEMS random problems
	$(BIN)/python tests/emulator/run.py --problems $(PROBLEMS)

faults: install  ## plant faults in copies of the CUDA kernels: how many does the emulator catch? (SAMPLE=6: of six)
	$(BIN)/python tests/emulator/faults.py --jobs $(JOBS) $(if $(SAMPLE),--sample $(SAMPLE))

crash: install  ## kill runs at KILLS=100 random moments, a third amid writes: is anything lost? (needs cc, Linux)
	$(BIN)/python -P tests/crash/run.py --kills $(KILLS) --jobs $(JOBS)

same-bits: install  ## do runs have the same bits as those of the revision REV? (ALL=1: of every algorithm)
	$(BIN)/python -P tests/same_bits.py $(REV) $(if $(ALL),--all)

fuzz: install  ## hostile files and arguments, SECONDS=600 for each target, or for TARGET="config sweep_file"
	$(BIN)/python -P tests/fuzz/run.py --seconds $(SECONDS) $(if $(TARGET),--target $(TARGET)) $(if $(SEED),--seed $(SEED))

kernels: install  ## compile every CUDA kernel for every architecture; a new register spill fails (needs nvcc, no GPU)
	$(BIN)/python benchmarks/kernel_resources.py

# The oldest torch that is supported. FLOOR_PYTHON: 3.11 to 3.13; the wheel, with CUDA's libraries, is several gigabytes.
FLOOR := $(VENV)-floor
FLOOR_PYTHON ?= $(firstword $(shell command -v python3.12 python3))
FLOOR_TORCH ?= torch==2.11.0
$(FLOOR)/.qcse-installed: $(SOURCES)
	test -x $(FLOOR)/bin/python || $(FLOOR_PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --quiet --disable-pip-version-check $(FLOOR_TORCH)
	$(FLOOR)/bin/python -m pip install --quiet --disable-pip-version-check "scikit-build-core>=0.10" "pybind11>=2.13" "cmake>=3.26" ninja
	$(FLOOR)/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation \
	  -C build-dir=build/floor -C cmake.define.QCSE_CUDA=ON -C cmake.define.QCSE_CUDA_ARCHITECTURES=$(GPU_ARCHITECTURE) ".[train,dev]"
	touch $@

floor: $(FLOOR)/.qcse-installed  ## build against the oldest torch that is supported and run the CPU tests there (a large download)
	$(FLOOR)/bin/pytest tests --numprocesses $(JOBS) --dist worksteal

# What a machine with a GPU of this compute capability is given: OUT is the folder for what is found, KIT what was packed
# beforehand. The script needs no make: python benchmarks/gpu/run.py
GPU_ARCHITECTURE ?= 90
export OUT KIT CORL DRY_RUN REST STAGES
lab: install  ## build the laboratory: the CUDA kernels without torch (needs nvcc, no GPU)
	$(BIN)/python benchmarks/gpu/kit.py --lab-only --architecture $(GPU_ARCHITECTURE)

gpu-kit: install $(FLOOR)/.qcse-installed  ## pack what a machine with a GPU needs into build/gpu-kit (needs nvcc, no GPU)
	$(BIN)/python benchmarks/gpu/kit.py --python $(FLOOR)/bin/python --architecture $(GPU_ARCHITECTURE) $(if $(CORL),--corl $(CORL))

gpu-run:  ## on a machine with an NVIDIA GPU: verify, measure, profile, tune, in 570 s; then REST=1 for 200 s more
	$(PYTHON) benchmarks/gpu/run.py

# The CPU code, instrumented, in a virtual environment of its own beside the other; sanitizers' libraries come first.
SANITIZED := $(VENV)-sanitized
sanitize: install  ## the operator's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(BIN)/python -m venv --clear $(SANITIZED)
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > $(SANITIZED)/lib/$$(ls $(SANITIZED)/lib)/site-packages/base.pth
	$(SANITIZED)/bin/python -m pip install --quiet --no-build-isolation --no-deps --force-reinstall -C build-dir=build/sanitized \
	  -C cmake.define.QCSE_CUDA=OFF -C cmake.define.QCSE_SANITIZE=address,undefined .
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so) $$(g++ -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 QCSE_TEST_PROBLEMS=200 \
	  $(SANITIZED)/bin/python -P -m pytest tests/ops --deselect tests/ops/test_build.py -k "not compile"

# The CPU core alone, with a driver of its own: callers on several threads while the instruction set and the search path
# change. Needs a C++ compiler, neither torch nor an installation of the package.
CORE := build/core
sanitize-core: $(VENV)/.qcse-tools  ## the CPU core without torch under ThreadSanitizer, then AddressSanitizer with leak detection
	mkdir -p build
	for sanitizer in thread address; do \
	  $(BIN)/cmake -S tests/sanitize -B $(CORE)-$$sanitizer -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	    -DQCSE_SANITIZE=$$sanitizer > $(CORE)-$$sanitizer.log || { cat $(CORE)-$$sanitizer.log; exit 1; }; \
	  $(BIN)/cmake --build $(CORE)-$$sanitizer --parallel $(JOBS) --target driver && \
	  TSAN_OPTIONS=halt_on_error=1 ASAN_OPTIONS=detect_leaks=1 $(CORE)-$$sanitizer/driver || exit 1; \
	done

lint: install  ## ruff, clang-format, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*' 'tests/*' 'benchmarks/*' | grep -E '\.(h|cpp|cu|cuh)$$')
	$(BIN)/mypy

format: install  ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*' 'tests/*' 'benchmarks/*' | grep -E '\.(h|cpp|cu|cuh)$$')

clean:  ## remove what was built, not the virtual environment nor runs
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
