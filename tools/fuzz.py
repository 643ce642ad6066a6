"""Random calls of the kernels against float64 oracles, the stock TensorFlow op, and the portable kernels.

    python tools/fuzz.py [--seconds 60] [--seed N] [--case I] [--json FILE]

Each case is an op, a type, a shape, an axis, attributes and parameters, with x about the grid that they make. Held:

- y, grad_x and the mask to the oracles in NumPy, bit for bit, and the sums of gradients within their rounding;
- y and grad_x of fake_quant in float32 to TensorFlow's op, bit for bit, where TensorFlow is installed;
- each instruction set to portable kernels on one thread, bit for bit, on any number of threads, into unaligned memory,
  in place, and around the caches; nothing but the output is written.

Case I of a seed is the same on every machine. The first failure ends the run with status 1 and the command that
repeats it. Runs with the installed package, or with a module _core alone on the path, which may have a sanitizer.
"""

import argparse
import collections
import itertools
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import fake_quant_oracle  # noqa: E402
import lsq_oracle  # noqa: E402
from grid import (  # noqa: E402
    LAYOUTS,
    PARAMETER_DTYPE,
    assert_same_bits,
    assert_sums_close,
    draw_gradients,
    draw_inputs,
    draw_ranges,
    draw_thresholds,
    number_of_channels,
)
from kernel_cases import LARGE_LAYOUTS, _core  # noqa: E402

try:
    import tensorflow as tf
except ImportError:
    tf = None

ORACLES = {
    "fake_quant": fake_quant_oracle.fake_quant,
    "lsq_symmetric": lsq_oracle.lsq_symmetric,
    "lsq_uniform": lsq_oracle.lsq_uniform,
}
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]
# Powers of two that parameters, and x with them, are multiplied by: steps stay normal numbers, and x finite.
EXPONENTS = {np.float32: 60, np.float16: 4, ml_dtypes.bfloat16: 60, np.float64: 400}
# Lengths about the borders between regimes: vectors, runs, tiles.
BORDERS = [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 511, 512, 513, 2047, 2048, 2049, 4096, 4097]
MOST_ELEMENTS = 20_000  # of the shapes that are drawn: many cases rather than large ones
FILLER = 7  # what lies about an output


class Case(NamedTuple):
    """Arguments of an op and of its gradient."""

    op: str
    grad_y: np.ndarray
    x: np.ndarray
    parameters: tuple
    attributes: dict
    sums_are_finite: bool

    def __str__(self):
        parameters = ", ".join(f"{value.dtype}{list(value.shape)}" for value in self.parameters)
        return f"{self.op}(x={self.x.dtype}{list(self.x.shape)}, {parameters}, {self.attributes})"


def draw_layout(rng):
    """A shape and an axis or None: of the grid, small ones of any rank, and some with several blocks of work."""
    kind = rng.random()
    if kind < 0.2:
        return LAYOUTS[rng.integers(len(LAYOUTS))]
    if kind < 0.21:
        return LARGE_LAYOUTS[rng.integers(len(LARGE_LAYOUTS))]
    shape = [MOST_ELEMENTS, 2]
    while np.prod(shape) > MOST_ELEMENTS:
        shape = [int(length) for length in rng.integers(0 if kind < 0.26 else 1, 10, size=rng.integers(0, 5))]
        if shape and rng.random() < 0.6:
            shape[rng.integers(len(shape))] = int(rng.choice(BORDERS))
    axis = None if not shape or rng.random() < 0.3 else int(rng.integers(-len(shape), len(shape)))
    return tuple(shape), axis


def draw_guard(rng, scale):
    """No guard half of the time, else one that some parameters need: a float32 whatever the type."""
    is_float32 = 2.0**-100 < scale < 2.0**100
    return float(np.float32(rng.uniform(0.001, 4.0) * scale)) if is_float32 and rng.random() < 0.5 else 0.0


def spoil(rng, parameters, guard):
    """Parameters as they may be where a guard mends them: some of the wrong sign, inverted, or zero."""
    if not guard:
        return parameters
    kind = rng.choice(4, size=np.shape(parameters[0]), p=[0.7, 0.1, 0.1, 0.1])
    if len(parameters) == 1:
        values = [parameters[0], -parameters[0], 0 * parameters[0], parameters[0]]
        return (np.choose(kind, values),)
    low, high = parameters
    return np.choose(kind, [low, high, 0 * low, low]), np.choose(kind, [high, low, 0 * low, low])


def draw_symmetric(rng, attributes, channels, dtype, scale):
    """Threshold, and the ends of its grid."""
    attributes |= {"signed": bool(rng.integers(2)), "power_of_two": bool(rng.integers(2))}
    attributes["min_threshold"] = draw_guard(rng, scale)
    threshold = draw_thresholds(rng, channels, dtype) * dtype(scale)
    (threshold,) = spoil(rng, (threshold,), attributes["min_threshold"])
    guarded = lsq_oracle.effective_threshold(threshold, attributes["power_of_two"], attributes["min_threshold"])
    step = guarded.astype(np.float64) / 2 ** (attributes["num_bits"] - attributes["signed"])
    low = -guarded.astype(np.float64) * attributes["signed"]
    return (threshold,), (low, low + step * (2 ** attributes["num_bits"] - 1))


def draw_uniform(rng, attributes, channels, dtype, scale):
    """Range, and the ends of its grid."""
    attributes |= {"min_width": draw_guard(rng, scale), "exact_zero": bool(rng.integers(2))}
    ends = tuple(end * dtype(scale) for end in draw_ranges(rng, channels, dtype, zeros=0.0))
    ends = spoil(rng, ends, attributes["min_width"])
    guarded = lsq_oracle.effective_range(*ends, attributes["min_width"])
    if not attributes["exact_zero"]:
        return ends, lsq_oracle.range_with_zero(*guarded, attributes["num_bits"])
    step, lowest = lsq_oracle.grid_with_zero(*guarded, attributes["num_bits"], attributes["grad_scale"])
    return ends, (step * lowest, step * (lowest + 2 ** attributes["num_bits"] - 1))


def draw_fake_quant(rng, attributes, channels, dtype, scale):
    """Range, and the ends of its grid."""
    attributes |= {"narrow_range": bool(rng.integers(2)), "include_zero": bool(rng.integers(2))}
    ends = tuple(end * dtype(scale) for end in draw_ranges(rng, channels, dtype))
    flags = attributes["narrow_range"], attributes["include_zero"]
    return ends, fake_quant_oracle.nudge(*ends, attributes["num_bits"], *flags)[:2]


DRAW = {"fake_quant": draw_fake_quant, "lsq_symmetric": draw_symmetric, "lsq_uniform": draw_uniform}


def draw_case(rng):
    """Any call."""
    op, dtype = str(rng.choice(list(DRAW))), DTYPES[rng.choice(len(DTYPES), p=[0.4, 0.2, 0.2, 0.2])]
    shape, axis = draw_layout(rng)
    attributes = {"num_bits": int(rng.integers(2, 17)), "axis": axis}
    if op != "fake_quant":
        attributes["grad_scale"] = float(np.float32(rng.choice([1.0, 0.37, rng.uniform(1e-3, 2.0)])))
    of_parameters = PARAMETER_DTYPE[np.dtype(dtype)].type
    scale = 2.0 ** rng.integers(-EXPONENTS[dtype], EXPONENTS[dtype] + 1)
    parameters, ends = DRAW[op](rng, attributes, number_of_channels(shape, axis), of_parameters, scale)
    parameters = tuple(np.asarray(value, of_parameters) for value in parameters)
    ends = [np.asarray(end, np.float64) for end in ends]
    x = draw_inputs(rng, shape, *ends, attributes["num_bits"], axis, dtype)
    grad_y = draw_gradients(rng, shape, dtype)
    with_specials = rng.random() < 0.2
    if with_specials:
        tiny = float(ml_dtypes.finfo(dtype).tiny) / 4
        specials = np.asarray([0.0, -0.0, tiny, -tiny, np.inf, -np.inf, np.nan]).astype(dtype)
        grad_y = np.where(rng.random(shape) < 0.1, rng.choice(specials, size=shape), grad_y).astype(dtype)
    return Case(op, np.asarray(grad_y), np.asarray(x), parameters, attributes, not with_specials)


def results(case, num_threads=1, **run):
    """y, mask, grad_x and gradients of the parameters, by the kernels."""
    y, mask = getattr(_core, case.op)(
        case.x, *case.parameters, **case.attributes, save_mask=True, num_threads=num_threads, **run
    )
    gradients = getattr(_core, f"{case.op}_grad")(
        case.grad_y, case.x, *case.parameters, **case.attributes, num_threads=num_threads, **run
    )
    return y, mask, *gradients


def check_oracle(case, expected):
    """The portable results to the formulas in NumPy."""
    with np.errstate(invalid="ignore", over="ignore"):
        y, grad_x, *sums = ORACLES[case.op](case.x, *case.parameters, case.grad_y, **case.attributes)
        passes = ORACLES[case.op](case.x, *case.parameters, np.ones_like(case.grad_y), **case.attributes)[1] != 0
    assert_same_bits(expected[0], y)
    np.testing.assert_array_equal(expected[1], np.packbits(passes.ravel(), bitorder="little"))
    if not case.sums_are_finite:  # what NaN does to x's own gradient differs from op to op, and is tested by itself
        return
    assert_same_bits(expected[2], grad_x)
    for gradient, wanted in zip(expected[3:], sums, strict=True):
        assert_sums_close(gradient, wanted.value, wanted.magnitude, of_products=case.op != "fake_quant")


def check_stock(case, expected):
    """TensorFlow's op to y and grad_x. Whether it takes this case."""
    is_comparable = case.op == "fake_quant" and case.x.dtype == np.float32 and case.x.size and case.sums_are_finite
    if tf is None or not is_comparable:
        return False
    num_bits, narrow_range, axis = (case.attributes[name] for name in ("num_bits", "narrow_range", "axis"))
    low, high = case.parameters
    if case.attributes["include_zero"]:
        is_zero = (low == 0) & (high == 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            ends = fake_quant_oracle.range_with_zero(low, high, 2**num_bits - 1 - narrow_range)
        low, high = (np.where(is_zero, np.float32(0), end) for end in ends)
    flags = {"num_bits": num_bits, "narrow_range": narrow_range}
    x, grad_y, quantization = case.x, case.grad_y, tf.quantization
    if axis is None:
        y = quantization.fake_quant_with_min_max_vars(x, low, high, **flags)
        grad_x = quantization.fake_quant_with_min_max_vars_gradient(grad_y, x, low, high, **flags)[0]
    else:  # TensorFlow has channels on the last axis alone, of up to four
        x, grad_y = (np.moveaxis(value, axis, -1).reshape(-1, len(low)) for value in (x, grad_y))
        y = quantization.fake_quant_with_min_max_vars_per_channel(x, low, high, **flags)
        grad_x = quantization.fake_quant_with_min_max_vars_per_channel_gradient(grad_y, x, low, high, **flags)[0]
        moved = np.moveaxis(case.x, axis, -1).shape
        y, grad_x = (np.moveaxis(np.reshape(value, moved), -1, axis) for value in (y, grad_x))
    assert_same_bits(expected[0], np.asarray(y))
    np.testing.assert_array_equal(expected[2], np.asarray(grad_x))  # a blocked gradient is -0 there
    return True


def placed(rng, array):
    """A copy at any element of larger memory, and that memory."""
    memory = np.full(array.size + 40, FILLER, array.dtype)
    offset = rng.integers(0, 20)
    view = memory[offset : offset + array.size].reshape(array.shape)
    view[...] = array
    return view, memory


def check_placed(rng, case, expected, isa):
    """One instruction set to the portable results: in place or not, anywhere in memory, on several threads."""
    run = {"isa": isa, "num_threads": int(rng.choice([1, 2, 4])), "stream": [None, False, True][rng.integers(3)]}
    for in_place in (False, True):
        x, x_memory = placed(rng, case.x)
        grad_y, grad_memory = placed(rng, case.grad_y)
        mask, _ = placed(rng, expected[1])
        y, y_memory = (x, x_memory) if in_place else placed(rng, np.zeros_like(case.x))
        grad_x, grad_x_memory = (grad_y, grad_memory) if in_place else placed(rng, np.zeros_like(case.x))
        gradients = getattr(_core, f"{case.op}_grad")(grad_y, x, *case.parameters, **case.attributes, out=grad_x, **run)
        got = getattr(_core, case.op)(x, *case.parameters, **case.attributes, save_mask=True, out=y, **run)
        for actual, wanted in zip((*got, *gradients), expected, strict=True):
            assert_same_bits(actual, wanted)
        if in_place:
            grad_y[...] = case.grad_y
        by_mask = _core.straight_through_grad(grad_y, mask, out=grad_x, **run)
        assert_same_bits(by_mask, np.where(unpacked(expected[1], case.x.shape), case.grad_y, case.x.dtype.type(0)))
        for memory, view in ((y_memory, y), (grad_x_memory, grad_x), (x_memory, x), (grad_memory, grad_y)):
            begin = (view.__array_interface__["data"][0] - memory.__array_interface__["data"][0]) // memory.itemsize
            around = np.delete(memory, slice(begin, begin + view.size)) if view.size else memory
            assert (around == FILLER).all(), "memory about an array was written"
        if not in_place:
            assert_same_bits(x, case.x)
            assert_same_bits(grad_y, case.grad_y)


def unpacked(mask, shape):
    """The bits of a mask as booleans."""
    return np.unpackbits(mask, count=int(np.prod(shape)), bitorder="little").astype(bool).reshape(shape)


def check(seed, index, counts):
    """Case `index` of `seed`."""
    rng = np.random.default_rng([seed, index])
    case = draw_case(rng)
    try:
        expected = results(case, isa="portable")
        check_oracle(case, expected)
        counts["against the stock op"] += check_stock(case, expected)
        for isa in _core.cpu_features():
            check_placed(rng, case, expected, isa)
    except Exception as error:
        error.add_note(str(case)) if hasattr(error, "add_note") else print(case)
        raise
    counts[case.op] += 1
    counts["elements"] += case.x.size


def main():
    """Checks cases until the time is over. The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to run (60)")
    parser.add_argument("--seed", type=int, help="of the cases (the time of day)")
    parser.add_argument("--case", type=int, help="run this case of the seed alone")
    parser.add_argument("--json", type=Path, help="file to add the counts to, as a line of JSON")
    arguments = parser.parse_args()
    seed = int(time.time()) if arguments.seed is None else arguments.seed
    start, counts = time.monotonic(), collections.Counter()
    for index in itertools.count() if arguments.case is None else [arguments.case]:
        if time.monotonic() - start > arguments.seconds:
            break
        try:
            check(seed, index, counts)
        except Exception:
            print(f"fuzz: failed after {sum(counts[op] for op in DRAW)} cases; this one again:", flush=True)
            print(f"    python tools/fuzz.py --seed {seed} --case {index}", flush=True)
            raise
    facts = {"seed": seed, "seconds": round(time.monotonic() - start), "cases": sum(counts[op] for op in DRAW)}
    facts |= {**counts, "instruction_sets": _core.cpu_features(), "failures": 0}
    print(json.dumps(facts))
    if arguments.json:
        with arguments.json.open("a") as file:
            file.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
