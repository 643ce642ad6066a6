"""The kernels without TensorFlow, and cases for them: every op on the grid's layouts, and on larger ones."""

from typing import NamedTuple

import ml_dtypes
import numpy as np
from grid import LAYOUTS, PARAMETER_DTYPE, draw_gradients, draw_inputs, draw_ranges, draw_thresholds, number_of_channels

try:
    from qatfast import _core  # noqa: F401  for tests to import from here
except ImportError:  # no TensorFlow here: the module by itself, built for a GPU or with a sanitizer
    import _core  # noqa: F401

# Large enough for several blocks of work in each regime of the kernels, which the grid of shapes is not.
LARGE_LAYOUTS = [
    ((300_001,), None),
    ((5, 70_001), 0),
    ((3, 2, 50_000), 1),
    ((700, 600), 1),
    ((400, 300, 3), 1),
    ((90, 3001), 1),
    ((24, 25_001), 1),
    ((70_001,), 0),
    ((20_003, 3), 0),
]
FEW_LAYOUTS = [
    ((32769,), None),
    ((3, 32800), 0),
    ((9, 4097), 1),
    ((300, 3, 5), 1),
    ((3, 2, 50_000), 1),
    ((150, 2081), 1),
    ((5003,), 0),
    ((2003, 8), 0),
]


class Op(NamedTuple):
    """A function, and attributes of it that choose a kernel."""

    function: str
    attributes: dict


LSQ = {"grad_scale": 0.37}
OPS = {
    "fake_quant": Op("fake_quant", {}),
    "lsq_symmetric": Op("lsq_symmetric", LSQ),
    "lsq_uniform": Op("lsq_uniform", LSQ),
    "lsq_uniform exact_zero": Op("lsq_uniform", {**LSQ, "exact_zero": True}),
}
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float64]

# Every op on the whole grid in float32, and on a part of it in the other types.
CASES = [(op, np.float32, shape, axis) for op in OPS for shape, axis in LAYOUTS + LARGE_LAYOUTS]
CASES += [(op, dtype, shape, axis) for op in OPS for dtype in DTYPES for shape, axis in FEW_LAYOUTS]


def forward(module, op, x, parameters, **run):
    """What the function of `op` in a module gives."""
    return getattr(module, OPS[op].function)(x, *parameters, **OPS[op].attributes, **run)


def backward(module, op, grad_y, x, parameters, **run):
    """What the gradient of the function of `op` in a module gives."""
    return getattr(module, f"{OPS[op].function}_grad")(grad_y, x, *parameters, **OPS[op].attributes, **run)


def draw_case(op, dtype, shape, axis, seed=0):
    """Gradient, x, and the parameters of the op."""
    rng = np.random.default_rng(seed)
    channels, parameter_dtype = number_of_channels(shape, axis), PARAMETER_DTYPE[np.dtype(dtype)].type
    if op == "lsq_symmetric":
        threshold = np.asarray(draw_thresholds(rng, channels, parameter_dtype))
        parameters, ends = (threshold,), (-threshold, threshold)
    else:
        zeros = 0.1 if op == "fake_quant" else 0.0
        parameters = ends = tuple(np.asarray(end) for end in draw_ranges(rng, channels, parameter_dtype, zeros))
    return draw_gradients(rng, shape, dtype), draw_inputs(rng, shape, *ends, 8, axis, dtype), parameters
