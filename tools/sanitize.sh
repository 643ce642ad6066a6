#!/usr/bin/env bash
# tools/sanitize.sh PYTHON FOLDER
#
# Runs the tests of the module _core and the fuzzer with the modules that `make sanitize` builds: FOLDER/address/_core.so
# (AddressSanitizer and UBSan) and FOLDER/thread/_core.so (ThreadSanitizer). PYTHON must not have the package qatfast,
# which would be tested instead. The first report of a sanitizer ends the process, and fails this.
set -uo pipefail

python=${1:?usage: tools/sanitize.sh PYTHON FOLDER}
folder=${2:?usage: tools/sanitize.sh PYTHON FOLDER}
seconds=${FUZZ_SECONDS:-20}
failed=()

# A module needs its runtime before all else in the process, and that of C++ exceptions, which the runtime wraps.
preload() { printf '%s:%s' "$("${CXX:-g++}" -print-file-name="$1")" "$("${CXX:-g++}" -print-file-name=libstdc++.so)"; }

# stage NAME LIBRARY COMMAND...: a command with the module FOLDER/NAME and its runtime.
stage() {
  local name=$1 library=$2 start=$SECONDS status
  shift 2
  printf '== %s: %s\n' "$name" "$*"
  LD_PRELOAD=$(preload "$library") PYTHONPATH=$folder/$name OPENBLAS_NUM_THREADS=1 "$@"
  status=$?
  printf '== %s: exit %d, %d s\n' "$name" "$status" $((SECONDS - start))
  [ "$status" -eq 0 ] || failed+=("$name")
}

# Python itself leaks what it interns. GCC 12 crashes on its own aligned stores to a stack that it keeps after return.
# Reports are printed as they are made: -s, since what pytest captures is lost with the process.
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0:strict_string_checks=1
export UBSAN_OPTIONS=print_stacktrace=1
# Calls from libraries that were built without the sanitizer (Python, NumPy) are not watched for races; all accesses of
# the kernels are, on whichever thread.
export TSAN_OPTIONS=halt_on_error=1:exitcode=66
for sanitizer in address:libasan.so thread:libtsan.so; do
  name=${sanitizer%%:*} library=${sanitizer#*:}
  stage "$name" "$library" "$python" -m pytest -q -s --noconftest -p no:cacheprovider tests/test_core.py
  stage "$name" "$library" "$python" tools/fuzz.py --seconds "$seconds"
done

if [ ${#failed[@]} -gt 0 ]; then
  echo "sanitize: failed: ${failed[*]}"
  exit 1
fi
echo "sanitize: no report"
