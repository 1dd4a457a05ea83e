# From a fresh clone to a result, with Python 3.10+, a C++ compiler and make:
#
#   make demo      train on real pictures, show predictions, compare the speed with stock PyTorch
#   make test      run the tests
#
#   make lint | format | bench | sanitize | sanitize-cuda | clean | distclean
#
# Each builds what has changed first. Variables: PYTHON (python3), VENV (.venv), CXX (c++),
# TORCH=torch==2.13.0 (the torch to install), PYTEST_ARGS (-n 0: the tests in one process),
# IMGFAST_CUDA=0|1, MAX_JOBS, CMAKE_ARGS (of sanitize).

PYTHON ?= python3
VENV ?= .venv
TORCH ?=
PYTEST_ARGS ?=
ifeq ($(origin CXX), default)
CXX := c++
endif
export CXX
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# That share the tests: one a core, each of about 1 GB.
PROCESSES = -n auto --maxprocesses 8
BIN := $(abspath $(VENV))/bin
CPP_FILES = $(shell find csrc tests/cpp tests/simt -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
LOG := build/build.log

.PHONY: help demo test lint format bench sanitize sanitize-cuda install build clean distclean FORCE
.DELETE_ON_ERROR:

help:
	@sed -n '/^#/s/^# \{0,1\}//p; /^$$/q' $(MAKEFILE_LIST)

demo: install
	$(BIN)/imgfast demo

test: install
	$(BIN)/pytest $(PROCESSES) $(PYTEST_ARGS)

bench: install
	$(BIN)/pytest benchmarks --benchmark-only $(PYTEST_ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

# The operator tests on a build with AddressSanitizer and UndefinedBehaviorSanitizer, in a package
# of its own under build/asan. Python and torch are not instrumented: their leaks are not ours. Nor
# does AddressSanitizer know the emulator's stacks, or the GPU's memory.
# --capture=sys: what a sanitizer writes as it ends the process must not end with it.
SANITIZE := build/asan
SANITIZED_ENV = LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$(abspath $(SANITIZE))/package
sanitize: install
	IMGFAST_CUDA=0 $(BIN)/cmake -S . -B $(SANITIZE) -G Ninja -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja \
	  -DPython3_EXECUTABLE=$(BIN)/python -DIMGFAST_SANITIZE=address,undefined $(CMAKE_ARGS)
	$(BIN)/cmake --build $(SANITIZE) --parallel $$($(BIN)/python build_backend/toolchain.py jobs)
	ASAN_OPTIONS=detect_leaks=0 $(BIN)/ctest --test-dir $(SANITIZE) --output-on-failure
	$(SANITIZED_ENV) $(BIN)/pytest tests/test_build.py tests/ops -m "not simt and not cuda" -p no:cacheprovider --capture=sys $(PROCESSES) $(PYTEST_ARGS)

sanitize-cuda: install
	PYTHON=$(BIN)/python bash .ci/compute_sanitizer $(PYTEST_ARGS)

# --- environment: requirements of the build, then the build, then the package in place ------------

install: build $(VENV)/.installed

$(VENV)/.installed: pyproject.toml $(VENV)/.torch | build
	$(BIN)/pip install --no-build-isolation -e ".[test,dev]"
	@touch $@

# Always run: ninja knows what a changed header, flag or environment variable makes out of date.
build: $(VENV)/.torch
	@mkdir -p build
	@echo "imgfast: compiling csrc/ (log in $(LOG))"
	@$(BIN)/python setup.py build_ext --inplace > $(LOG) 2>&1 || { cat $(LOG); exit 1; }
	@grep '^imgfast:' $(LOG)

# Holds the TORCH that was asked for, so that asking for another one installs it.
$(VENV)/.torch: pyproject.toml $(if $(filter-out $(shell cat $(VENV)/.torch 2>/dev/null),$(TORCH)),FORCE) | $(VENV)/bin/python
	$(BIN)/pip install $(TORCH) $$($(BIN)/python build_backend/toolchain.py build-requirements)
	@echo "$(TORCH)" > $@

$(VENV)/bin/python:
	@command -v $(PYTHON) > /dev/null || \
	  { echo "imgfast: there is no '$(PYTHON)': install Python 3.10 or newer, or give PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "imgfast: $(PYTHON) is $$($(PYTHON) -V 2>&1): 3.10 or newer is needed, give PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
	  { echo "imgfast: $(PYTHON) has no venv module: install it (Debian, Ubuntu: python3-venv)"; exit 1; }
	@test -f "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" || \
	  { echo "imgfast: Python.h is missing: install Python's headers (Debian, Ubuntu: python3-dev)"; exit 1; }
	@echo '#include <concepts>' | $(CXX) -std=c++20 -fsyntax-only -x c++ - || \
	  { echo "imgfast: '$(CXX)' does not compile C++20: install g++ 10 or newer, or give CXX=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

FORCE:

clean:
	rm -rf build imgfast/_C.*.so

distclean: clean
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
