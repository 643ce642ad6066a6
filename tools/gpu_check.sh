#!/usr/bin/env bash
# tools/gpu_check.sh OUT_DIR
#
# All that only a GPU can show, in one command of at most 8 minutes: builds the module _core without TensorFlow, compares
# the CUDA kernels with the CPU's, times the kernels, and runs compute-sanitizer over a small grid. Needs an NVIDIA GPU,
# nvcc, and Python with NumPy, ml_dtypes, CuPy, PyTorch, pybind11, setuptools and pytest; no network, no TensorFlow. Where
# compute-sanitizer is missing, it says so and leaves that out.
#
# Writes logs, gpu-<device>.json and gpu-<device>.md to OUT_DIR. Fails if anything but a benchmark's aim is missed.
# GPU_CHECK_SECONDS: all the time it may take, 470 if it is not set.
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
total=${GPU_CHECK_SECONDS:-470}
failed=()
skipped=()
session=

# Ends what a stage has left running, whichever process groups it made: all of a stage is one session.
end_session() {
  [ -n "$session" ] || return 0
  local status fields
  for status in /proc/[0-9]*/stat; do
    read -r fields 2>/dev/null <"$status" || continue
    read -ra fields <<<"${fields##*) }" # state, parent, group, session
    [ "${fields[3]}" != "$session" ] || kill -KILL "$(basename "$(dirname "$status")")" 2>/dev/null
  done
  session=
}
trap end_session EXIT
trap 'exit 130' INT TERM

# stage NAME SECONDS COMMAND...: runs a command, its output in OUT_DIR/NAME.log, within what is left of all the time.
stage() {
  local name=$1 seconds=$2 start=$SECONDS status
  shift 2
  [ "$seconds" -le $((total - SECONDS)) ] || seconds=$((total > SECONDS ? total - SECONDS : 1))
  setsid timeout --kill-after=10 "$seconds" "$@" >"$out/$name.log" 2>&1 &
  session=$!
  wait "$session"
  status=$?
  end_session
  printf '== %-12s %4d s  exit %d\n' "$name" $((SECONDS - start)) "$status"
  tail -n 12 "$out/$name.log"
  [ "$status" -eq 0 ] || failed+=("$name")
  return "$status"
}

compile() {
  QATFAST_TENSORFLOW=0 QATFAST_CUDA=1 QATFAST_CUDA_ARCHS=$capability "$python" setup.py -q build_ext --build-lib "$build"
}

# No filter of kernels: gpu_grid.py runs none but ours on its small tensors.
sanitize() {
  local sanitizer tool
  sanitizer=$(PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin command -v compute-sanitizer)
  if [ -z "$sanitizer" ]; then
    skipped+=("compute-sanitizer, which is not on the PATH nor in CUDA_HOME")
    return
  fi
  for tool in memcheck initcheck synccheck racecheck; do
    stage "$tool" 75 "$sanitizer" --tool "$tool" --error-exitcode 1 "$python" tools/gpu_grid.py
  done
}

export -f compile
export python capability build
nvidia-smi >"$out/machine.log"
export QATFAST_NO_EMULATION=1
missed=0
if stage build 180 bash -c compile; then
  export PYTHONPATH=$build/qatfast${PYTHONPATH:+:$PYTHONPATH}
  stage tests 110 "$python" -m pytest -q -m gpu --confcutdir=tests/cuda -p no:cacheprovider \
    -o filterwarnings=default tests/cuda
  stage benchmark 180 "$python" tools/gpu_bench.py "$out" --quick
  missed=$(grep --count '^missed: ' "$out/benchmark.log")
  stage grid 80 "$python" tools/gpu_grid.py --elements 100000000
  sanitize
  if [ "$missed" -gt 0 ]; then
    echo "== aims of the benchmark that were missed: $missed"
    grep '^missed: ' "$out/benchmark.log"
  fi
  if grep -h ': skipped, ' "$out/grid.log"; then skipped+=("2^31 elements, for which memory is too small"); fi
fi

for what in "${skipped[@]}"; do
  echo "gpu_check: not checked: $what"
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "gpu_check: failed: ${failed[*]}"
  exit 1
fi
echo "gpu_check: all stages passed, $missed aims missed"
