#!/usr/bin/env bash
# tools/sanitize.sh PYTHON FOLDER
#
# Runs the tests of the module _core and the fuzzer with the modules that `make sanitize` builds: FOLDER/address/_core.so
# (AddressSanitizer and UBSan) and FOLDER/thread/_core.so (ThreadSanitizer), both at once. PYTHON must not have the
# package qatfast, which would be tested instead. The first report of a sanitizer ends its process, and fails this.
# FUZZ_SECONDS: how long each fuzzes (20).
set -uo pipefail

python=${1:?usage: tools/sanitize.sh PYTHON FOLDER}
folder=${2:?usage: tools/sanitize.sh PYTHON FOLDER}
compiler=${CXX:-g++}

# Python itself leaks what it interns. GCC 12 crashes on its own aligned stores to a stack that it keeps after return.
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0:strict_string_checks=1
export UBSAN_OPTIONS=print_stacktrace=1
# No suppressions are needed: Python and NumPy were built without the sanitizer and their accesses are not watched, those
# of the kernels and the module are, on whichever thread.
export TSAN_OPTIONS=halt_on_error=1:exitcode=66
export OPENBLAS_NUM_THREADS=1  # of NumPy, which would start threads of its own

# sanitized NAME LIBRARY: the tests and the fuzzer with FOLDER/NAME/_core.so. A module needs its sanitizer's LIBRARY
# before all else in the process, and then that of C++ exceptions, which the sanitizer wraps.
sanitized() {
  export PYTHONPATH=$folder/$1
  local preload
  preload=$("$compiler" -print-file-name="$2"):$("$compiler" -print-file-name=libstdc++.so)
  # -s, since what pytest captures of a report is lost with the process.
  LD_PRELOAD=$preload "$python" -m pytest -q -s --noconftest -p no:cacheprovider tests/test_core.py \
    tests/test_core_arguments.py || return
  LD_PRELOAD=$preload "$python" tools/fuzz.py --seconds "${FUZZ_SECONDS:-20}"
}

declare -A running
sanitized address libasan.so >"$folder/address.log" 2>&1 &
running[address]=$!
sanitized thread libtsan.so >"$folder/thread.log" 2>&1 &
running[thread]=$!
failed=0
for name in address thread; do
  wait "${running[$name]}"
  status=$?
  [ "$status" -eq 0 ] || failed=1
  printf '== sanitizer: %s: exit %d, after %d s\n' "$name" "$status" "$SECONDS"
  grep -E ' passed|"seed"' "$folder/$name.log" || true
  [ "$status" -eq 0 ] || tail -n 60 "$folder/$name.log"
done
exit "$failed"
