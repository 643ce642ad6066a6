"""What `python -m qatfast bench` does: the tables for a model, and for an op."""

import argparse
import itertools
import math
import os
import platform
import warnings
from pathlib import Path

import tensorflow as tf
from mct_quantizers import QuantizationMethod

from qatfast._library import build_info
from qatfast.benchmark.figures import markdown, op_rows, step_rows
from qatfast.benchmark.implementations import formulas_source
from qatfast.benchmark.inventory import inventory_rows, quantized_tensors
from qatfast.benchmark.memory import check_fits
from qatfast.benchmark.op_case import BOTH_WITH_RANGE, OpCase
from qatfast.benchmark.op_comparison import DEFAULT_COMPARATORS, checked_runs
from qatfast.benchmark.timing import time_in_turns, wait_for_quiet
from qatfast.benchmark.training import (
    FLOAT,
    SECONDS_PER_STEP,
    checked_steps,
    quantized_models,
    random_batch,
    variants,
)
from qatfast.config import TrainingMethod
from qatfast.flow.files import load_model
from qatfast.flow.graph import check_graph_model
from qatfast.flow.select import adapter_of
from qatfast.flow.stored_code import StoredCodeError

# Of one case, checked and timed: 42 to 63 were measured, over ops, types and directions, on a tensor of 64 MiB.
BYTES_PER_ELEMENT = 64


def bench_model(arguments: argparse.Namespace) -> str:
    """Returns the tables for a model: what is quantized, training steps, and what qatfast gains."""
    model = _load(arguments.model, safe_mode=not arguments.no_safe_mode)
    keras = adapter_of("quantize_model", model)
    check_graph_model("quantize_model", keras, model)
    tf.get_logger().setLevel("ERROR")  # it takes the steps of several models for one that is traced several times
    batch = random_batch(keras, model, arguments.batch, arguments.input_shape)
    methods = [TrainingMethod[name] for name in dict.fromkeys(arguments.training)]
    grid = QuantizationMethod[arguments.grid.upper()]
    quantized = quantized_models(
        model,
        methods,
        batch,
        weight_n_bits=arguments.weight_bits,
        activation_n_bits=arguments.activation_bits,
        weight_quantization_method=grid,
        activation_quantization_method=grid,
        weight_per_channel=not arguments.per_tensor,
    )
    wanted = variants(methods) + (variants(methods, xla=True) if arguments.xla else [])
    steps = checked_steps(keras, model, quantized, batch, wanted)
    _wait(arguments)
    seconds = time_in_turns(steps, arguments.rounds, SECONDS_PER_STEP)
    measurement = {"case": model.name, "shape": batch[0].shape, "seconds": seconds}
    inventory = inventory_rows(quantized_tensors(keras, quantized[methods[0]], batch))
    tables = [machine(), markdown(inventory), markdown(step_rows([measurement]))]
    return "\n\n".join([*tables, *(_gain(seconds, method) for method in methods)])


def bench_op(arguments: argparse.Namespace) -> str:
    """Returns the table for ops on tensors: ours, a memcpy, and what else computes the same."""
    tf.get_logger().setLevel("ERROR")
    cases = [
        OpCase(op, shape, axis, arguments.num_bits, "-")
        for op in dict.fromkeys(arguments.op)
        for shape in arguments.shape
        for axis in arguments.axis
    ]
    for case, direction in itertools.product(cases, arguments.direction):
        if direction == BOTH_WITH_RANGE and case.op != "fake_quant":
            raise ValueError(f"--direction {direction} is of fake_quant only: LSQ always computes those gradients")
    for shape in arguments.shape:
        check_fits("--shape", shape, math.prod(shape), BYTES_PER_ELEMENT)
    dtypes = list(dict.fromkeys(arguments.dtype))
    measurements = []
    for case in cases:
        for direction in arguments.direction:
            comparators = arguments.comparator or DEFAULT_COMPARATORS[case.op]
            runs = checked_runs(case, direction, dtypes, comparators)
            _wait(arguments)
            facts = {"op": case.op, "case": case.name, "shape": case.shape, "axis": case.axis, "dtype": dtypes[0]}
            seconds = time_in_turns(runs, arguments.rounds)
            measurements.append({**facts, "direction": direction, "seconds": seconds})
    return f"{machine()}; formulas of LSQ: {formulas_source()}\n\n{markdown(op_rows(measurements))}"


def machine() -> str:
    """Processor, cores, TensorFlow, and how qatfast runs on it."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    facts = build_info()
    return (
        f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores, TensorFlow "
        f"{facts['tensorflow']}; qatfast {facts['version']}, {facts['backend']}, {facts['instruction_set']}; medians, "
        "interleaved"
    )


def _load(path, safe_mode):
    if not path.exists():
        raise ValueError(f"--model must be a file or a folder, got {str(path)!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is not going to be trained on, nor saved
            return load_model(path, compile=False, safe_mode=safe_mode)
    except StoredCodeError as error:
        raise ValueError(f"--model: {error} (here: --no-safe-mode)") from None
    except Exception as error:  # whatever Keras raises on files of another Keras, or of another kind
        raise ValueError(f"--model must be a model that Keras loads, got {str(path)!r}: {error}") from None


def _wait(arguments):
    if arguments.quiet_ms is not None:
        wait_for_quiet(arguments.quiet_ms, arguments.quiet_timeout)


def _gain(seconds, method):
    """A sentence: what qatfast makes of a step that others quantize."""
    names = [name for name in seconds if name.endswith(method.name)]
    other, ours = sorted(names, key=lambda name: name.startswith("ours"))
    quicker = seconds[other] / seconds[ours]
    cost_before, cost = (100 * (seconds[name] / seconds[FLOAT] - 1) for name in (other, ours))
    return (
        f"{method.name}: a quantized training step takes {1e3 * seconds[ours]:.1f} ms with qatfast, "
        f"{1e3 * seconds[other]:.1f} ms with {other.split()[0]} ops: {quicker:.2f} times as fast. Quantizing adds "
        f"{cost:.0f}% to the float step, instead of {cost_before:.0f}%."
    )
