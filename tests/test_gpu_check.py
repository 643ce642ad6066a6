"""tools/gpu_check.sh without a GPU: its stages are stubs."""

import os
import subprocess
import time
from pathlib import Path

import pytest

CHECK = Path(__file__).parent.parent / "tools" / "gpu_check.sh"
SANITIZER = """
case "$*" in *synccheck*) timeout 500 sleep {seconds};; esac
shift 4
exec "$@"
"""
PYTHON = """
case "$*" in
  *gpu_bench*) echo "missed: a row"; echo benchmark >>{order} ;;
  *--elements*) echo "gpu_grid: more than 2^31 elements: skipped, 3 GiB of memory are free"; echo grid >>{order} ;;
  *gpu_grid*) echo small >>{order} ;;
  *"-m pytest"*) bash -c 'set -m; sleep {seconds} & disown'; echo tests >>{order} ;;
esac
"""
NVIDIA_SMI = 'case "$*" in *compute_cap*) echo 9.0 ;; *) echo "a GPU" ;; esac'


@pytest.fixture
def check(tmp_path):
    """Runs the script on stubs; a stage that hangs sleeps for a number of seconds that no other process does."""
    seconds, order = 5000 + os.getpid(), tmp_path / "order"

    def run(sanitizer=True, limit=30):
        stubs = tmp_path / "bin"
        stubs.mkdir()
        bodies = {"nvidia-smi": NVIDIA_SMI, "python": PYTHON, "compute-sanitizer": SANITIZER}
        for name, body in bodies.items():
            if name != "compute-sanitizer" or sanitizer:
                body = body.replace("{seconds}", str(seconds)).replace("{order}", str(order))
                (stubs / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
                (stubs / name).chmod(0o755)
        environment = os.environ | {"PATH": f"{stubs}:/usr/bin:/bin", "PYTHON": str(stubs / "python")}
        environment |= {"GPU_CHECK_SECONDS": str(limit), "CUDA_HOME": str(tmp_path)}
        # To a file: what is left running would hold a pipe open.
        with (tmp_path / "printed").open("w") as printed:
            command = [str(CHECK), str(tmp_path / "out")]
            status = subprocess.run(command, env=environment, stdout=printed, stderr=printed).returncode
        return status, (tmp_path / "printed").read_text(), order.read_text().split()

    run.sleeper = str(seconds)
    return run


def is_running(seconds):
    for arguments in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if arguments.read_bytes().split(b"\0")[:2] == [b"sleep", seconds.encode()]:
                return True
        except OSError:
            continue  # it has just ended
    return False


def test_what_hangs_is_ended_and_the_benchmark_comes_before_the_sanitizers(check):
    begin = time.monotonic()
    status, printed, order = check(limit=3)
    assert time.monotonic() - begin < 20
    assert status == 1
    assert "failed: synccheck" in printed
    assert "== racecheck" in printed
    assert order[:3] == ["tests", "benchmark", "grid"]
    assert not is_running(check.sleeper)


def test_what_was_not_checked_is_said_and_is_no_failure(check):
    status, printed, order = check(sanitizer=False)
    assert status == 0, printed
    assert "not checked: compute-sanitizer" in printed
    assert "not checked: 2^31 elements" in printed
    assert "all stages passed, 1 aims missed" in printed
    assert "small" not in order
