"""`fake_quant` in NumPy: the formula of TensorFlow's op in the parameters' type, gradients in float64.

Written from the formulas alone, so that it shares no code with what it judges.
"""

from typing import NamedTuple

import numpy as np
from grid import along_axis
from lsq_oracle import Sums


class Nudged(NamedTuple):
    """A range moved so that zero is on its grid, per channel: its ends, step, inverse step, and zero's index."""

    low: np.ndarray
    high: np.ndarray
    scale: np.ndarray
    inverse: np.ndarray
    quant_zero: np.ndarray


def range_with_zero(min, max, steps):
    """MCT's `adjust_range_to_include_zero`, in the type of `min`, for ranges that are not (0, 0)."""
    a = min.dtype.type
    scale = (max - min) / a(steps)
    low = scale * np.rint(min / scale)
    high = max - min + low
    return (
        np.where(min > 0, a(0), np.where(max < 0, min, low)),
        np.where(max < 0, a(0), np.where(min > 0, max, high)),
    )


def nudge(min, max, num_bits, narrow_range=False, include_zero=False):
    """The range that the op quantizes to; what (0, 0) becomes means nothing."""
    a = min.dtype.type
    is_zero = (min == 0) & (max == 0)
    min, max = np.where(is_zero, a(0), min), np.where(is_zero, a(1), max)
    n = 2**num_bits - 1 - narrow_range
    if include_zero:
        min, max = range_with_zero(min, max, n)
    scale, inverse = (max - min) / a(n), a(n) / (max - min)
    quant_min, quant_max = a(narrow_range), a(2**num_bits - 1)
    zero_point = quant_min - min / scale
    zero_point = np.floor(zero_point) + (zero_point - np.floor(zero_point) >= 0.5)
    zero_point = np.clip(zero_point.astype(a), quant_min, quant_max)
    low, high = (quant_min - zero_point) * scale, (quant_max - zero_point) * scale
    return Nudged(low, high, scale, inverse, np.floor(-low * inverse + a(0.5)))


def fake_quant(x, min, max, grad_y, *, num_bits=8, narrow_range=False, axis=None, include_zero=False):
    """y, grad_x, and grad_min and grad_max as Sums."""
    a = min.dtype.type
    is_zero = along_axis((min == 0) & (max == 0), x.ndim, axis)
    nudged = nudge(min, max, num_bits, narrow_range, include_zero)
    low, high, scale, inverse, quant_zero = (along_axis(value, x.ndim, axis) for value in nudged)
    dtype, x = x.dtype, x.astype(a)
    x = np.where(np.abs(x) < np.finfo(a).tiny, a(0), x)  # TensorFlow's kernels take a denormal number for zero
    with np.errstate(invalid="ignore", over="ignore"):
        shifted = np.maximum(np.minimum(x, high), low) - low
        steps = shifted / scale if axis is None else shifted * inverse
        y = np.where(is_zero, a(0), np.floor(steps - quant_zero + a(0.5)) * scale).astype(dtype)
        inside, below, above = (x >= low) & (x <= high) | is_zero, (x < low) & ~is_zero, (x > high) & ~is_zero
    others = None if axis is None else tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    blocked = [np.where(where, grad_y.astype(np.float64), 0.0) for where in (below, above)]
    sums = [Sums(np.sum(terms, axis=others), np.sum(np.abs(terms), axis=others)) for terms in blocked]
    if include_zero:
        sums = through_range_with_zero(*sums, min, max, 2**num_bits - 1 - narrow_range)
    return y, np.where(inside, grad_y, grad_y.dtype.type(0)), *sums


def through_range_with_zero(grad_low, grad_high, min, max, steps):
    """The chain rule through `range_with_zero`, its rounding taken as constant: grad_min and grad_max as Sums."""
    is_zero, positive, negative = (min == 0) & (max == 0), min > 0, max < 0
    across = ~is_zero & ~positive & ~negative
    # A range across zero becomes [k, k + steps] * (max - min) / steps.
    k = np.rint(min / np.where(across, (max - min) / min.dtype.type(steps), 1)).astype(np.float64)
    of_width = grad_low.times(across * k / steps).plus(grad_high.times(across * (k + steps) / steps))
    return [
        grad_low.times(1.0 * (is_zero | negative)).plus(of_width.times(-1.0)),
        grad_high.times(1.0 * (is_zero | positive)).plus(of_width),
    ]
