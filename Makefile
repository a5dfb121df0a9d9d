# Everything that a clone needs. A machine with Python, a C++ compiler and make is enough: the rest is put into .venv.
#
#   make test      all tests, C++ and Python            make lint      ruff, clang-format and mypy
#   make test-compose   the tests beside other packages (Lightning, torchrl, ONNX, ...), in an environment of their own
#   make bench     the quick benchmark, with a table    make format    rewrites sources in the project's format
#   make sanitize  tests under ASan and UBSan           make clean     removes what was built (make distclean: .venv too)
#   make grid      hours of measurements, over several sittings   make report   HTML of the committed results
#   make figures   README's figures, RESULTS.md, GOALS.md, plots   make test-report   the HTML report in chromium
#   make kernels   with nvcc: checks the compiled CUDA kernels, writes csrc/core/cuda/KERNELS.tsv
#   make gpu       on a CUDA machine, with the Python that is there: build, the tests that use it, benchmark results
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
PYTEST_ARGS ?= -n 2
BENCH_ARGS ?=

# The tests that run under the sanitizers: every kernel through the operators, and every error.
SANITIZE_TESTS ?= tests/test_layer.py tests/test_errors.py tests/test_quantized.py
CXX_SOURCES = $(shell find csrc tests/cpp -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

BIN := $(abspath $(VENV))/bin
BUILD := $(abspath $(VENV))/build
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# One build folder holds the extension and the C++ tests, so that both link the same core.
BUILD_ENV := RNNKERN_BUILD_DIR=$(BUILD) CMAKE_ARGS="-DRNNKERN_TESTS=ON $(CMAKE_ARGS)"
TORCH_STAMP := $(VENV)/.stamp-$(subst =,-,$(TORCH))

.PHONY: build test test-compose bench grid report figures test-report sanitize kernels gpu lint format clean distclean

build: $(VENV)/.stamp-test
	$(BUILD_ENV) $(BIN)/python setup.py -q build_ext --inplace

test: build
	$(BIN)/ctest --test-dir $(BUILD) --output-on-failure -j 2
	@echo "The CUDA kernels on the emulator (every case: $(BUILD)/Testing/Temporary/LastTest.log):"
	@grep -hE "cases, which cover|^stationary kernels" $(BUILD)/Testing/Temporary/LastTest.log
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: build $(VENV)/.stamp-bench
	$(BIN)/python benchmarks/run.py --suite quick --out build/bench $(BENCH_ARGS)

# --- What README and GOALS.md rest on. Ctrl-C or GRID_SECONDS (of each run) end a sitting, the next call goes on. Each
# problem gets 0.7 s a side in each of three processes, and never fewer than ten samples there. GRID_MACHINE, in the
# files' names, tells results of several machines apart. ---
GRID_SUITES ?= quick packed goals composed shapes grid
GRID_THREADS ?= 1 2
GRID_ARGS ?= --repeats 3 --least 10 --budget 0.7
GRID_MACHINE ?= cpu
GRID_SECONDS ?=

grid: build $(VENV)/.stamp-bench
	set -e; for suite in $(GRID_SUITES); do for threads in $(GRID_THREADS); do \
		set --; [ $$suite != composed ] || set -- --peers torch.nn "rnnkern compiled"; \
		$(BIN)/python benchmarks/run.py --suite $$suite --threads $$threads $(GRID_ARGS) "$$@" \
			$(if $(GRID_SECONDS),--seconds $(GRID_SECONDS)) --resume --out benchmarks/results/$$suite-$(GRID_MACHINE)-$$threads.json; \
	done; done
	$(MAKE) report

report: $(VENV)/.stamp-bench
	$(BIN)/python benchmarks/page.py benchmarks/results/*.json --out build/report.html

figures: $(VENV)/.stamp-bench
	$(BIN)/python benchmarks/readme.py

test-report: build $(VENV)/.stamp-bench
	@command -v chromium chromium-browser google-chrome | grep -q . || \
		{ echo "make test-report needs a browser: apt-get install chromium"; exit 1; }
	$(BIN)/python -m pytest -n 0 tests/test_benchmarks_page.py

# --- The environment. A stamp is older than pyproject.toml or setup.py when something must be installed again. ---
$(TORCH_STAMP):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check "$(TORCH)" "setuptools>=77" cmake ninja numpy
	touch $@

$(VENV)/.stamp-test: pyproject.toml setup.py $(TORCH_STAMP)
	$(BUILD_ENV) $(BIN)/python setup.py -q build_ext --inplace  # pip would build it too, but show nothing of it
	$(BUILD_ENV) $(PIP) --no-build-isolation -e '.[test,examples]'
	touch $@

$(VENV)/.stamp-bench: pyproject.toml $(VENV)/.stamp-test
	$(BUILD_ENV) $(PIP) --no-build-isolation -e '.[bench]'
	touch $@

$(VENV)/.stamp-lint: pyproject.toml $(VENV)/.stamp-test
	$(BUILD_ENV) $(PIP) --no-build-isolation -e '.[lint]'
	touch $@

$(VENV)/.stamp-kernels: pyproject.toml $(VENV)/.stamp-test
	$(BUILD_ENV) $(PIP) --no-build-isolation -e '.[kernels]'
	touch $@

# --- Other packages bring many more, so they have an environment of their own, with the torch that the extension was built
# for. The package is used where it was built. ---
COMPOSE := $(VENV)-compose
COMPOSE_STAMP := $(COMPOSE)/.stamp-$(subst =,-,$(TORCH))

$(COMPOSE_STAMP): tests/compose/requirements.txt | $(TORCH_STAMP)
	$(BIN)/python -m venv --clear $(COMPOSE)
	$(COMPOSE)/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" -r $<
	touch $@

test-compose: build $(COMPOSE_STAMP)
	PYTHONPATH=$(CURDIR) $(COMPOSE)/bin/python -m pytest --disable-warnings tests/compose

# --- Sanitizers: a copy of the package with its own extension, found before the other through PYTHONPATH. libstdc++
# stands beside libasan because Python itself does not link it, and ASan looks for __cxa_throw as soon as it is loaded. ---
SANITIZED := $(CURDIR)/build/sanitize
SANITIZE_ENV = LD_PRELOAD="$(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$(SANITIZED)/package

sanitize: $(VENV)/.stamp-test
	RNNKERN_BUILD_DIR=$(SANITIZED)/objects RNNKERN_CUDA=0 CMAKE_ARGS="-DRNNKERN_SANITIZE=ON -DRNNKERN_TESTS=ON" \
		$(BIN)/python setup.py -q build --build-base $(SANITIZED) --build-lib $(SANITIZED)/package
	$(BIN)/ctest --test-dir $(SANITIZED)/objects --output-on-failure -j 2
	cd $(SANITIZED) && $(SANITIZE_ENV) $(BIN)/python -c \
		"import rnnkern._C as module; assert module.__file__.startswith('$(SANITIZED)'), module.__file__"
	$(SANITIZE_ENV) $(BIN)/pytest $(PYTEST_ARGS) $(SANITIZE_TESTS)

# --- The CUDA kernels as nvcc compiles them: no GPU is needed. The table is of the architectures that CI builds. ---
NVCC ?= $(firstword $(wildcard $(CUDA_HOME)/bin/nvcc /usr/local/cuda/bin/nvcc) nvcc)
KERNEL_ARCHS ?= 8.0+PTX;9.0a

kernels: $(VENV)/.stamp-kernels
	$(BIN)/cmake -S . -B build/kernels -G Ninja -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja -DRNNKERN_TESTS=OFF \
		-DRNNKERN_CUDA=ON -DCMAKE_CUDA_COMPILER=$(NVCC) "-DRNNKERN_CUDA_ARCHS=$(KERNEL_ARCHS)"
	$(BIN)/cmake --build build/kernels
	$(BIN)/python .ci/kernels.py build/kernels --write

# --- A CUDA machine: no environment of ours and nothing downloaded, in less than ten minutes on 16 cores (.ci/gpu).
# OUT: where the results go. ---
GPU_ARCH = import torch; major, minor = torch.cuda.get_device_capability(); print(f'{major}.{minor}' + 'a' * (major >= 9))

gpu: export GPU_START := $(shell date +%s)
gpu:
	RNNKERN_CUDA=1 TORCH_CUDA_ARCH_LIST="$$($(PYTHON) -c "$(GPU_ARCH)")" RNNKERN_BUILD_DIR=$(CURDIR)/build/gpu \
		$(PYTHON) -m pip install --no-build-isolation --no-deps -e .
	$(NVCC) -arch=native -std=c++20 --expt-relaxed-constexpr --extended-lambda -Icsrc/core -Itests/cpp \
		tests/cpp/test_primitives.cu -o build/gpu/test_primitives
	PYTHON=$(PYTHON) .ci/gpu

# --- Style ---
lint: $(VENV)/.stamp-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)
	$(BIN)/mypy

format: $(VENV)/.stamp-lint
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_SOURCES)

clean:
	rm -rf build dist *.egg-info rnnkern/*.so $(BUILD)

distclean: clean
	rm -rf $(VENV) $(COMPOSE) .venv-cuda
