#!/usr/bin/env bash
# tools/gpu_check.sh OUT_DIR
#
# All that only a GPU can show, in one command of at most 8 minutes: builds the module _core without TensorFlow, compares
# the CUDA kernels with the CPU's, runs compute-sanitizer over a small grid, and times the kernels. Needs an NVIDIA GPU,
# nvcc, and Python with NumPy, ml_dtypes, CuPy, PyTorch, pybind11, setuptools and pytest; no network, no TensorFlow.
#
# Writes logs, gpu-<device>.json and gpu-<device>.md to OUT_DIR. Fails if anything but a benchmark's aim is missed.
set -uo pipefail

out=${1:?usage: tools/gpu_check.sh OUT_DIR}
mkdir -p "$out"
out=$(cd "$out" && pwd)
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
cd "$root" || exit 2

if ! nvidia-smi --query-gpu=name --format=csv,noheader >/dev/null 2>&1; then
  echo "gpu_check: no NVIDIA GPU here: nothing was checked"
  exit 0
fi
if ! "$python" -c "import numpy, ml_dtypes, cupy, torch, pybind11, setuptools, pytest"; then
  echo "gpu_check: $python must have numpy, ml_dtypes, cupy, torch, pybind11, setuptools and pytest"
  exit 2
fi

capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
build=$root/build/gpu_check
total=470
failed=()

# stage NAME SECONDS COMMAND...: runs a command, its output in OUT_DIR/NAME.log, within what is left of all the time.
stage() {
  local name=$1 seconds=$2 start=$SECONDS status
  shift 2
  [ "$seconds" -le $((total - SECONDS)) ] || seconds=$((total > SECONDS ? total - SECONDS : 1))
  timeout --kill-after=10 "$seconds" "$@" >"$out/$name.log" 2>&1
  status=$?
  printf '== %-12s %4d s  exit %d\n' "$name" $((SECONDS - start)) "$status"
  tail -n 12 "$out/$name.log"
  [ "$status" -eq 0 ] || failed+=("$name")
  return "$status"
}

compile() {
  QATFAST_TENSORFLOW=0 QATFAST_CUDA=1 QATFAST_CUDA_ARCHS=$capability "$python" setup.py -q build_ext --build-lib "$build"
}

sanitize() {
  local status=0 tool
  for tool in memcheck racecheck initcheck; do
    echo "-- $tool"
    timeout 60 compute-sanitizer --tool "$tool" --error-exitcode 1 --kernel-name regex:'Map|Reduce|Finish|PassMasked' \
      "$python" tools/gpu_grid.py || status=1
  done
  return "$status"
}

export -f compile sanitize
export python capability build
nvidia-smi >"$out/machine.log"
export QATFAST_NO_EMULATION=1
if stage build 180 bash -c compile; then
  export PYTHONPATH=$build/qatfast${PYTHONPATH:+:$PYTHONPATH}
  stage tests 110 "$python" -m pytest -q -m gpu --confcutdir=tests/cuda -p no:cacheprovider \
    -o filterwarnings=default tests/cuda
  stage grid 80 "$python" tools/gpu_grid.py --elements 100000000
  stage sanitizer 150 bash -c sanitize
  stage benchmark 150 "$python" tools/gpu_bench.py "$out" --quick
  missed=$(grep --count '^missed: ' "$out/benchmark.log")
  if [ "$missed" -gt 0 ]; then
    echo "== aims of the benchmark that were missed: $missed"
    grep '^missed: ' "$out/benchmark.log"
  fi
fi

if [ ${#failed[@]} -gt 0 ]; then
  echo "gpu_check: failed: ${failed[*]}"
  exit 1
fi
echo "gpu_check: all stages passed, $missed aims missed"
