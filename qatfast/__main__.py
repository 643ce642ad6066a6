"""`python -m qatfast info` says what is installed; `python -m qatfast bench` measures a model, or one op, on it."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

import qatfast
from qatfast.benchmark.arguments import (
    parse_axis,
    parse_bits,
    parse_output_file,
    parse_positive,
    parse_positive_number,
    parse_shape,
)
from qatfast.benchmark.op_case import DIRECTIONS, OPS
from qatfast.benchmark.op_comparison import COMPARATORS, DTYPES
from qatfast.benchmark.timing import ROUNDS
from qatfast.config import CALIBRATED_METHODS, TrainingMethod

_METHODS = {method.name.lower(): method for method in CALIBRATED_METHODS}
_MODEL_DEFAULTS = {
    "input_shape": None,
    "batch": 16,
    "weight_bits": 8,
    "activation_bits": 8,
    "grid": "symmetric",
    "per_tensor": False,
    "training": ["STE", "LSQ"],
    "xla": False,
    "no_safe_mode": False,
}
_OP_DEFAULTS = {
    "op": ["fake_quant"],
    "axis": [None],
    "dtype": ["float32"],
    "num_bits": 8,
    "direction": [direction for direction in DIRECTIONS if not direction.endswith("range")],
    "comparator": None,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what the command line asks for; exits with status 2 and a sentence where it cannot."""
    parser = argparse.ArgumentParser(prog="python -m qatfast", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="what this installation is made of", description="qatfast.build_info()")
    info.add_argument("--json", action="store_true", help="as JSON")
    bench = commands.add_parser("bench", help="measure a model or an op", description=_bench.__doc__)
    _add_bench_options(bench)
    arguments = parser.parse_args(argv)
    if arguments.command == "info":
        _info(arguments.json)
        return
    try:
        text = _bench(bench, arguments)
        print(text)
        if arguments.output:
            arguments.output.write_text(text + "\n")
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        bench.error(f"out of memory: {error}")
    except (OSError, ValueError) as error:
        bench.error(str(error))


def _info(as_json):
    facts = qatfast.build_info()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = (", ".join(value) or "none") if isinstance(value, list) else value
        print(f"{name:{width}}  {shown}")


def _add_bench_options(parser):
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=Path, help="a float Keras model: .keras, .h5 or a SavedModel folder")
    what.add_argument("--shape", action="append", type=parse_shape, help="measure an op on x of this shape: 4096,4096")

    model = parser.add_argument_group("with --model").add_argument
    model("--input-shape", action="append", type=parse_shape, help="of each input, without the batch [the model's]")
    model("--batch", type=parse_positive, help="batch size, where the model leaves it open [16]")
    model("--weight-bits", type=parse_bits, help="bits of the kernels [8]")
    model("--activation-bits", type=parse_bits, help="bits of the activations [8]")
    model("--grid", choices=_METHODS, help="quantization method [symmetric]")
    model("--per-tensor", action="store_true", default=None, help="one range per kernel instead of one per channel")
    methods = [method.name for method in TrainingMethod]
    model("--training", action="append", choices=methods, help="training method [STE and LSQ]")
    model("--xla", action="store_true", default=None, help="steps that XLA compiles, too: compiling takes a while")

    model(
        "--no-safe-mode",
        action="store_true",
        default=None,
        help="run Python code that the file holds, as Keras does with safe_mode=False: if you trust whoever made it",
    )

    op = parser.add_argument_group("with --shape").add_argument
    op("--op", action="append", choices=OPS, help="which op [fake_quant]")
    op("--axis", action="append", type=parse_axis, help="channel axis, or none: per tensor [none]")
    op("--dtype", action="append", choices=DTYPES, help="of x; the others are compared with the first [float32]")
    op("--num-bits", type=parse_positive, help="bits of the grid [8]")
    op("--direction", action="append", choices=DIRECTIONS, help="what to measure [all but the last]")
    op("--comparator", action="append", choices=COMPARATORS, help="besides a memcpy [what users run]")

    both = parser.add_argument_group("with either").add_argument
    both("--rounds", type=parse_positive, default=ROUNDS, help=f"how often each function is timed [{ROUNDS}]")
    both(
        "--quiet-ms",
        type=parse_positive_number,
        help="wait first until a copy of 64 MiB takes at most this long: nobody else runs",
    )
    both(
        "--quiet-timeout",
        type=parse_positive_number,
        default=60.0,
        help="seconds until --quiet-ms gives up waiting [60]",
    )
    both("--output", type=parse_output_file, help="file to write the tables to, in Markdown")


def _bench(parser, arguments) -> str:
    """Measures training steps of a model, float and quantized, or one op, and prints tables in Markdown.

    Everything is timed in turns, in one process; its results are checked against the reference before.
    """
    ours, others = (_MODEL_DEFAULTS, _OP_DEFAULTS) if arguments.model else (_OP_DEFAULTS, _MODEL_DEFAULTS)
    for name in others:
        if getattr(arguments, name) is not None:
            wanted = "--shape" if arguments.model else "--model"
            parser.error(f"--{name.replace('_', '-')} goes with {wanted} only")
    for name, default in ours.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    from qatfast.benchmark import command

    return command.bench_model(arguments) if arguments.model else command.bench_op(arguments)


if __name__ == "__main__":
    sys.exit(main())
