# make demo | test | bench | lint | cuda-check | sanitize | fuzz | matrix. Each makes the virtual environment that it
# needs, and installs what is missing.
#
# TF is the TensorFlow to build against and run on: make test TF=2.15.1. Each has an environment of its own.
# KERAS chooses the Keras, for the tests of models: the one that TensorFlow brings, an older Keras 3 (KERAS=3.10), or
# KERAS=2: Keras 2, and Keras 3 beside it in the same process.

TF ?= 2.21.0
KERAS ?=
PYTHON ?= python3
BENCH ?=
COMPARE ?=
SECONDS ?= 60
JOBS ?= $(shell nproc)
VENV := .venv/tf-$(TF)
LINT := .venv/lint
DISASSEMBLER := .venv/disassembler
BIN := $(VENV)/bin
# Another Keras is a folder in front of the environment.
OTHER_KERAS := $(if $(KERAS),$(abspath $(VENV))/keras-$(KERAS))
KERAS_PACKAGE := $(if $(filter 2,$(KERAS)),tf-keras==$(basename $(TF)).*,keras==$(KERAS).*)
KERAS_TESTS := $(shell grep -lE 'from models|keras|training_runs' tests/test_*.py)
# Sony's Model Compression Toolkit, which tests compare with, stops at TensorFlow 2.15.
comma := ,
EXTRAS := test,bench,demo$(if $(filter 2.15.%,$(TF)),$(comma)mct)
SOURCES := pyproject.toml setup.py cuda_build.py README.md \
	$(shell find csrc qatfast -name '*.cc' -o -name '*.h' -o -name '*.cu' -o -name '*.py')
FORMATTED := $(shell find csrc tests -name '*.cc' -o -name '*.h' -o -name '*.cu')
TEST_FLAGS := -O1 -std=c++17 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra \
	-Werror -I csrc
# The CUDA kernels compiled for a CPU, for tests: see tests/cuda_emulation/cuda_runtime.h.
CUDA_SOURCES := $(wildcard csrc/core/*_cuda.cu)
EMULATION := $(VENV)/emulation
EMULATED_SOURCES := $(CUDA_SOURCES) csrc/core/cpu_execution.cc csrc/py/cuda_functions.cc tests/cuda_emulation/module.cc
# The module _core with a sanitizer, in an environment without TensorFlow, whose threads and memory are its own affair.
SANITIZED := build/sanitized
CORE := .venv/core
CORE_SOURCES := $(wildcard csrc/core/*.cc) csrc/py/module.cc
address_FLAGS := -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=undefined,float-cast-overflow
thread_FLAGS := -fsanitize=thread

# $(call module,PYTHON,SOURCES,FLAGS): compiles and links an extension, its objects beside it.
define module
	mkdir -p $(@D)
	printf '%s\n' $(2) | xargs -P $(JOBS) -I{} sh -c \
		'$(CXX) -x c++ $(TEST_FLAGS) $(3) $$($(1) -m pybind11 --includes) -c {} -o $(@D)/$$(basename {}).o'
	$(CXX) -shared $(3) $(addsuffix .o,$(addprefix $(@D)/,$(notdir $(2)))) -o $@
endef

ifneq ($(KERAS),)
export PYTHONPATH := $(OTHER_KERAS)
endif
ifeq ($(KERAS),2)
export TF_USE_LEGACY_KERAS := 1
endif
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: install demo test sanitize fuzz matrix bench lint format cuda-check cuda-report clean

install: $(VENV)/.installed $(if $(KERAS),$(OTHER_KERAS)/.installed)

# A build without isolation compiles against the TensorFlow of the environment, so that comes first.
$(VENV)/.tensorflow:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "tensorflow==$(TF)" "setuptools>=64" wheel "pybind11>=2.11"
	touch $@

$(VENV)/.installed: $(VENV)/.tensorflow $(SOURCES)
	QATFAST_JOBS=$(JOBS) $(BIN)/pip install --quiet --no-build-isolation ".[$(EXTRAS)]"
	touch $@

$(OTHER_KERAS)/.installed: $(VENV)/.installed
	$(BIN)/pip install --quiet --no-deps --target $(@D) "$(KERAS_PACKAGE)"
	touch $@

demo: install
	$(BIN)/python examples/mnist_qat.py --output demo_output

$(EMULATION)/_emulated_cuda.so: $(VENV)/.tensorflow $(EMULATED_SOURCES) $(shell find csrc tests/cuda_emulation -name '*.h')
	$(call module,$(BIN)/python,$(EMULATED_SOURCES),-Wno-unknown-pragmas -DQATFAST_EMULATED_GPU -I tests/cuda_emulation)

test: install $(if $(CUDA_SOURCES),$(EMULATION)/_emulated_cuda.so)
	HYPOTHESIS_PROFILE=ci PYTHONPATH=$(EMULATION)$${PYTHONPATH:+:$$PYTHONPATH} $(BIN)/pytest -n $(JOBS) --dist worksteal \
		$(if $(KERAS),$(KERAS_TESTS),tests)

$(CORE)/.installed:
	$(PYTHON) -m venv $(CORE)
	$(CORE)/bin/pip install --quiet numpy ml_dtypes pytest "pybind11>=2.11"
	touch $@

# GCC 12 takes its own AVX-512 intrinsics for reads of uninitialized vectors, as in setup.py.
$(SANITIZED)/%/_core.so: $(CORE)/.installed $(CORE_SOURCES) $(shell find csrc -name '*.h')
	$(call module,$(CORE)/bin/python,$(CORE_SOURCES),-g1 -fno-omit-frame-pointer -Wno-maybe-uninitialized $($*_FLAGS) \
		-DQATFAST_VERSION=\"$*\" -DQATFAST_TENSORFLOW_VERSION=\"none\")

# The tests of the module and the fuzzer under AddressSanitizer and UBSan, and again under ThreadSanitizer.
sanitize: $(SANITIZED)/address/_core.so $(SANITIZED)/thread/_core.so
	tools/sanitize.sh $(CORE)/bin/python $(SANITIZED)

# Random calls of the kernels against oracles, the stock op and each other: make fuzz SECONDS=3600.
fuzz: install
	$(BIN)/python tools/fuzz.py --seconds $(SECONDS)

# The disassembler. There is none of CUDA 13.0 on PyPI; later ones read its machine code.
$(DISASSEMBLER)/.installed:
	$(PYTHON) -m venv $(DISASSEMBLER)
	$(DISASSEMBLER)/bin/pip install --quiet "nvidia-cuda-cuobjdump>=13.2,<14" "nvidia-cuda-nvdisasm>=13.2,<14"
	touch $@

# Compiles the CUDA kernels for every architecture: no warning, no spill, every aim for their machine code met, the tables
# in docs/ up to date. `make cuda-report` writes those, and prints which aims are missed.
cuda-check cuda-report: $(DISASSEMBLER)/.installed
	QATFAST_JOBS=$(JOBS) $(DISASSEMBLER)/bin/python tools/cuda_report.py $(if $(filter cuda-check,$@),--check)

# Builds for every supported TensorFlow minor, and runs the op and model tests on each: half an hour, 2 GB at a time.
matrix:
	$(PYTHON) tools/tf_matrix.py --jobs $(JOBS) --output build/matrix

# BENCH: options for pytest, such as --quick or --shape 1024,1024. COMPARE: an earlier JSON.
bench: install
	mkdir -p .benchmarks
	$(BIN)/pytest benchmarks -q --benchmark-quiet --benchmark-json=.benchmarks/latest.json $(BENCH)
	$(BIN)/python benchmarks/report.py .benchmarks/latest.json --markdown .benchmarks/latest.md --picture .benchmarks/latest.png
	$(if $(COMPARE),$(BIN)/python benchmarks/report.py .benchmarks/latest.json --compare $(COMPARE))

$(LINT)/.installed: pyproject.toml
	$(PYTHON) -m venv $(LINT)
	$(LINT)/bin/pip install --quiet "ruff==0.17.*" "clang-format==23.*"
	touch $@

lint: $(LINT)/.installed
	$(LINT)/bin/ruff check .
	$(LINT)/bin/ruff format --check .
	$(LINT)/bin/clang-format --dry-run --Werror $(FORMATTED)

format: $(LINT)/.installed
	$(LINT)/bin/ruff check --fix .
	$(LINT)/bin/ruff format .
	$(LINT)/bin/clang-format -i $(FORMATTED)

clean:
	rm -rf .venv build *.egg-info .benchmarks demo_output
