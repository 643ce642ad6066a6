"""Times the CUDA kernels on the first GPU, without TensorFlow, against a copy, PyTorch and an empty kernel.

    python tools/gpu_bench.py OUT_DIR [--quick] [--dry-run]

Needs the module `_core` on the path (see tools/gpu_check.sh) and PyTorch. Each of our functions, the copy and the empty
kernel are captured in CUDA graphs of many calls, so that only the device's time counts. PyTorch's functions read
parameters on the host, which a graph cannot: they are called one after another, and on small tensors the host's time
counts too. All are run in turns, and medians taken. Before a case is timed, its results are compared with the CPU
kernels' on a part of the tensor.

Bytes that must move per element of b bytes: forward 2b (read x, write y), and 1/8 with a mask; straight-through
backward 2b + 1/8; every other backward 3b (read grad_y and x, write grad_x). To these come the parameters that are read
(each once), their gradients that are written, and partial sums, written and read, where a channel has more than one
(`workspace_size` tells). A copy moves 2b. The share of the copy's bandwidth is (bytes / time) over the copy's, of the
same tensor in the same run.

Aims are those of the project: of a copy's bandwidth, by what is computed and in which layout; of an empty kernel's
time for small tensors, by how many launches there are.

--dry-run runs everything on the CPU with tiny tensors and the emulated kernels (`_emulated_cuda` on the path), and
times nothing.
"""

import argparse
import importlib
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Collection
from datetime import datetime, timezone
from pathlib import Path

import ml_dtypes
import torch
from gpu_cases import CASES, DTYPES, QUICK_CASES, SMALL_CASES, Case, Run, make_case, ours, theirs

AIM_PER_TENSOR, AIM_WITH_SUMS, AIM_PER_CHANNEL = 0.90, 0.85, 0.80
AIM_SMALL, AIM_SMALL_WITH_SUMS = 1.6, 2.6  # of an empty kernel's time; sums may take a second launch
ROUNDS, CALLS = 15, 20


def check(case: Case, runs: dict, core) -> None:
    """Compares forward results and gradients to x with the CPU kernels', on a part of the tensor.

    Raises:
        AssertionError: they differ.
    """
    keep = min(case.x.shape[0], max(1, 2**20 // max(1, case.x[0].numel())))
    first = slice(None) if case.axis == 0 else slice(keep)

    def numpy(tensor):
        tensor = tensor.contiguous().cpu()
        if tensor.dtype != torch.bfloat16:
            return tensor.numpy()
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)

    x, grad_y, low, high = (numpy(t) for t in (case.x[first], case.grad_y[first], case.min, case.max))
    for name, run in runs.items():
        op, direction = name.split(" ", 1)
        run.call()
        got = numpy(run.outputs[0][first])
        if op == "straight-through":
            expected = core.fake_quant_grad(grad_y, x, low, high, axis=case.axis)[0]
        elif direction.startswith("backward"):
            parameters = (high,) if op == "lsq_symmetric" else (low, high)
            expected = getattr(core, f"{op}_grad")(grad_y, x, *parameters, axis=case.axis)[0]
        else:
            parameters = (high,) if op == "lsq_symmetric" else (low, high)
            expected = getattr(core, op)(x, *parameters, axis=case.axis)
        assert got.tobytes() == expected.tobytes(), f"{case.name}, {case.dtype}: {name} differs from the CPU kernels"


class DeviceTimer:
    """Times functions between two events on the current stream."""

    def __init__(self, calls: int):
        self._calls = calls

    def _repeat(self, run: Callable) -> None:
        for _ in range(self._calls):
            run()

    def _capture(self, run: Callable) -> Callable:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._repeat(run)
        return graph.replay

    def prepare(self, run: Callable, captured: bool) -> Callable[[], float]:
        """Returns a function that runs `run` many times and returns the seconds of one."""
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.synchronize()
        play = self._capture(run) if captured else lambda: self._repeat(run)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

        def seconds() -> float:
            begin.record()
            play()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) * 1e-3 / self._calls

        return seconds

    def time(
        self, runs: dict[str, Callable], rounds: int, not_captured: Collection[str]
    ) -> dict[str, dict[str, float]]:
        """Median and quartiles of the seconds of each function, timed in turns."""
        prepared = {name: self.prepare(run, name not in not_captured) for name, run in runs.items()}
        samples = {name: [] for name in runs}
        for _ in range(rounds + 1):
            for name, seconds in prepared.items():
                samples[name].append(seconds())
        summary = {}
        for name, values in samples.items():
            low, median, high = statistics.quantiles(values[1:], n=4)
            summary[name] = {"median": median, "lower_quartile": low, "upper_quartile": high}
        return summary


class NoTimer:
    """Calls each function once, and claims nothing."""

    def time(
        self, runs: dict[str, Callable], rounds: int, not_captured: Collection[str]
    ) -> dict[str, dict[str, float]]:
        """A second for everything."""
        for run in runs.values():
            run()
        return {name: {"median": 1.0, "lower_quartile": 1.0, "upper_quartile": 1.0} for name in runs}


def aim(case: Case, run: Run) -> float | None:
    """The share of the copy's bandwidth that the project asks for, if it asks."""
    if case.dtype == "float64" or (case.x.numel() < 2**24 and case.x.is_cuda):
        return None
    if case.axis is not None:
        return AIM_PER_CHANNEL
    return AIM_WITH_SUMS if run.with_sums else AIM_PER_TENSOR


def measure(case: Case, timer, rounds: int, cuda, core, wrap, stream, empty: Callable | None) -> dict:
    """All rows of one case."""
    runs = ours(case, cuda, wrap, stream)
    check(case, runs, core)
    copy_to = torch.empty_like(case.x)
    calls = {"copy": lambda: copy_to.copy_(case.x)} | {name: run.call for name, run in runs.items()}
    if empty is not None:
        calls["empty kernel"] = empty
    others = theirs(case)
    calls |= {name: run for name, (run, _) in others.items()}
    times = timer.time(calls, rounds, not_captured=others)
    size, b = case.x.numel(), case.x.element_size()
    copy_bandwidth = 2 * b * size / times["copy"]["median"]
    rows = []
    for name, run in runs.items():
        seconds = times[name]["median"]
        row = {"name": name, "seconds": times[name], "bytes": run.bytes}
        row["share_of_copy"] = run.bytes / seconds / copy_bandwidth
        if empty is not None:
            row["of_empty_kernel"] = seconds / times["empty kernel"]["median"]
            row["aim"] = AIM_SMALL_WITH_SUMS if run.with_sums else AIM_SMALL
            row["met"] = row["of_empty_kernel"] <= row["aim"]
        elif (wanted := aim(case, run)) is not None:
            row["aim"], row["met"] = wanted, row["share_of_copy"] >= wanted
        rows.append(row)
    for name, (_, own) in others.items():
        rows.append({"name": name, "seconds": times[name], "times_ours": times[name]["median"] / times[own]["median"]})
    return {
        "case": case.name, "shape": list(case.x.shape), "axis": case.axis, "dtype": case.dtype,
        "copy_seconds": times["copy"], "copy_bytes_per_second": copy_bandwidth, "rows": rows,
    }  # fmt: skip


def markdown(results: dict) -> str:
    """A table per case."""
    lines = [f"# {results['device']}", "", ", ".join(f"{key} {value}" for key, value in results["versions"].items())]
    for case in results["cases"]:
        gigabytes = case["copy_bytes_per_second"] / 1e9
        lines += ["", f"## {case['case']}: {case['shape']}, axis {case['axis']}, {case['dtype']}"]
        lines += [
            "",
            f"Copy: {gigabytes:.0f} GB/s, read and written.",
            "",
            "| function | time, us | share of copy | aim |",
        ]
        lines.append("| --- | ---: | ---: | --- |")
        for row in case["rows"]:
            micro = 1e6 * row["seconds"]["median"]
            share = f"{row['times_ours']:.1f}x ours" if "times_ours" in row else f"{row['share_of_copy']:.2f}"
            if "of_empty_kernel" in row:
                share = f"{row['of_empty_kernel']:.2f} empty kernels"
            goal = f"{row['aim']} {'met' if row['met'] else 'MISSED'}" if "aim" in row else ""
            lines.append(f"| {row['name']} | {micro:.1f} | {share} | {goal} |")
    return "\n".join(lines) + "\n"


def empty_kernel(stream: Callable) -> Callable:
    """A function that launches a kernel which does nothing."""
    import cupy

    kernel = cupy.RawKernel('extern "C" __global__ void nothing() {}', "nothing")

    def run():
        with cupy.cuda.ExternalStream(stream()):
            kernel((1,), (32,), ())

    return run


def emulated_array(tensor: torch.Tensor):
    """A CPU tensor as the emulated kernels take it."""
    tests = Path(__file__).parent.parent / "tests"
    sys.path[:0] = [str(tests), str(tests / "cuda")]
    from device import DeviceArray

    raw = tensor.reshape(-1).view(torch.uint8).numpy()
    dtype = ml_dtypes.bfloat16 if tensor.dtype == torch.bfloat16 else str(tensor.dtype).split(".")[1]
    return DeviceArray(raw, 0, tuple(tensor.shape), dtype)


def main() -> None:
    """Measures, and writes JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--quick", action="store_true", help="no float64, fewer cases")
    parser.add_argument("--dry-run", action="store_true", help="tiny tensors on the emulator, nothing timed")
    options = parser.parse_args()
    core = importlib.import_module("_core")
    if options.dry_run:
        device, name, timer, wrap, stream = "cpu", "dry run", NoTimer(), emulated_array, lambda: 0
        cuda, empty = importlib.import_module("_emulated_cuda"), lambda: None
    else:
        device, name, timer = "cuda", torch.cuda.get_device_name(), DeviceTimer(CALLS)
        cuda, wrap = core.cuda, lambda tensor: tensor
        stream = lambda: torch.cuda.current_stream().cuda_stream  # noqa: E731
        empty = empty_kernel(stream)
    results = {
        "device": name,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"Python": platform.python_version(), "PyTorch": torch.__version__, "CUDA": torch.version.cuda},
        "driver": run_or_none("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "commit": run_or_none("git", "rev-parse", "HEAD"),
        "cases": [],
    }
    for dtype, names in (QUICK_CASES if options.quick else dict.fromkeys(DTYPES, CASES)).items():
        for case_name, (shape, axis) in {**{n: CASES[n] for n in names}, **SMALL_CASES}.items():
            small = case_name in SMALL_CASES
            if options.dry_run:
                shape = tuple(min(length, 5 + i) for i, length in enumerate(shape))
            case = make_case(case_name, shape, axis, dtype, device)
            found = measure(case, timer, ROUNDS, cuda, core, wrap, stream, empty if small else None)
            results["cases"].append(found)
            print(f"{case_name}, {dtype}: done", flush=True)
            if not options.dry_run:
                write(results, options.out_dir)
                print_missed(found)
            del case
    if options.dry_run:
        print("dry run: everything ran, nothing was timed")


def write(results: dict, out_dir: Path) -> None:
    """What there is so far, so that a run which is cut short leaves it."""
    out_dir.mkdir(parents=True, exist_ok=True)
    stem = "gpu-" + results["device"].lower().replace(" ", "-").replace("/", "-")
    (out_dir / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    (out_dir / f"{stem}.md").write_text(markdown(results))


def print_missed(case: dict) -> None:
    """A line for each aim that a case misses."""
    for row in case["rows"]:
        if "met" in row and not row["met"]:
            value = row.get("of_empty_kernel", row["share_of_copy"])
            print(f"missed: {case['case']}, {case['dtype']}, {row['name']}: {value:.2f}, aim {row['aim']}", flush=True)


def run_or_none(*command: str) -> str | None:
    """What a command prints, or None if it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    main()
