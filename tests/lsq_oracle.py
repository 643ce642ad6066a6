"""`lsq_symmetric` and `lsq_uniform` in NumPy: forward in the parameters' type, gradients in float64; cases for them.

Written from the formulas alone, so that it shares no code with what it judges.
"""

from typing import NamedTuple

import numpy as np
from grid import along_axis, draw_gradients, draw_inputs, draw_ranges, draw_thresholds, number_of_channels


class Sums(NamedTuple):
    """Sums in float64, per channel, and the sums of the absolute values of their terms."""

    value: np.ndarray
    magnitude: np.ndarray

    def times(self, factor):
        return Sums(self.value * factor, self.magnitude * np.abs(factor))

    def plus(self, other):
        return Sums(self.value + other.value, self.magnitude + other.magnitude)


def lsq_symmetric(
    x, threshold, grad_y, *, num_bits=8, signed=True, grad_scale=1.0, axis=None, power_of_two=False, min_threshold=0.0
):  # fmt: skip
    """y, grad_x, and grad_threshold as Sums."""
    at_least = effective_threshold(threshold, False, min_threshold)
    effective = effective_threshold(threshold, power_of_two, min_threshold)
    n = 2 ** (num_bits - signed)
    step = scaled_step(effective / effective.dtype.type(n), 1.0 if power_of_two else grad_scale)
    offset = np.zeros_like(step)
    y, grad_x, grad_step, _ = quantize(x, grad_y, step, offset, -n if signed else 0, n - 1, axis)
    grad_threshold = grad_step.times(np.float64(np.float32(grad_scale)) / n)
    if power_of_two:
        grad_threshold = grad_threshold.times(effective.astype(np.float64) / at_least)
    return y, grad_x, grad_threshold


def lsq_uniform(
    x, min, max, grad_y, *, num_bits=8, grad_scale=1.0, axis=None, min_width=0.0, exact_zero=False
):  # fmt: skip
    """y, grad_x, and grad_min and grad_max as Sums."""
    min, max = effective_range(min, max, min_width)
    if exact_zero:
        step, k = grid_with_zero(min, max, num_bits, grad_scale)
        n = 2**num_bits - 1
        y, grad_x, grad_step, _ = quantize(x, grad_y, step, np.zeros_like(step), k, k + step.dtype.type(n), axis)
        grad_width = grad_step.times(np.float64(np.float32(grad_scale)) / n)
        return y, grad_x, grad_width.times(-1.0 * ~(min > 0)), grad_width.times(1.0 * ~(max < 0))
    low, high = range_with_zero(min, max, num_bits)
    n = 2**num_bits - 1
    step = scaled_step((high - low) / low.dtype.type(n), grad_scale)
    y, grad_x, grad_step, grad_blocked = quantize(x, grad_y, step, low, 0, n, axis)
    grad_high = grad_step.times(np.float64(np.float32(grad_scale)) / n)
    grad_low = grad_blocked.plus(grad_high.times(-1.0))
    # A range across zero becomes [k, k + n] * (max - min) / n; one on a side of zero has its end there replaced by it.
    k = np.rint(min / ((max - min) / min.dtype.type(n) + (max == min))).astype(np.float64)
    positive, negative = min > 0, max < 0
    across = ~positive & ~negative
    of_width = grad_low.times(across * k / n).plus(grad_high.times(across * (k + n) / n))
    grad_min = grad_low.times(1.0 * negative).plus(of_width.times(-1.0))
    grad_max = grad_high.times(1.0 * positive).plus(of_width)
    return y, grad_x, grad_min, grad_max


def effective_threshold(threshold, power_of_two, min_threshold):
    """The threshold that the op quantizes with, in the type of `threshold`."""
    threshold = np.maximum(threshold, threshold.dtype.type(min_threshold))
    if not power_of_two:
        return threshold
    fraction, exponent = np.frexp(threshold)  # threshold = fraction * 2^exponent, 0.5 <= fraction < 1
    return np.ldexp(threshold.dtype.type(1), exponent - (fraction == 0.5))


def effective_range(min, max, min_width):
    """The range that the op starts from, in the type of `min`: of `min_width` about the middle if narrower."""
    a = min.dtype.type
    narrow = (max - min < a(min_width)) & (min_width > 0)
    middle = a(0.5) * min + a(0.5) * max
    return np.where(narrow, middle - a(0.5 * min_width), min), np.where(narrow, middle + a(0.5 * min_width), max)


def range_with_zero(min, max, num_bits):
    """MCT's `adjust_range_to_include_zero`, in the type of `min`."""
    a = min.dtype.type
    scale = np.maximum((max - min) / a(2**num_bits - 1), np.finfo(a).tiny)
    low = scale * np.rint(min / scale)
    high = max - min + low
    return (
        np.where(min > 0, a(0), np.where(max < 0, min, low)),
        np.where(max < 0, a(0), np.where(min > 0, max, high)),
    )


def grid_with_zero(min, max, num_bits, grad_scale=1.0):
    """The step, and the integer k at which the grid k .. k + 2^num_bits - 1 begins, with `exact_zero`."""
    a = min.dtype.type
    n = a(2**num_bits - 1)
    low, high = np.minimum(min, a(0)), np.maximum(max, a(0))
    width = (high - low) / n
    return scaled_step(width, grad_scale), np.clip(np.rint(low / width), -n, a(0)) + a(0)


def scaled_step(step, grad_scale):
    """MCT's `grad_scale`, forward."""
    scaled = step.dtype.type(np.float32(grad_scale)) * step
    return (step - scaled) + scaled


def quantize(x, grad_y, step, offset, smallest, largest, axis):
    """y, grad_x, and as Sums: the gradient to the step, and the gradient that did not pass."""
    a = step.dtype.type
    step, offset, smallest, largest = (
        along_axis(np.asarray(value, a), x.ndim, axis if np.ndim(value) else None)
        for value in (step, offset, smallest, largest)
    )
    wide = x.astype(a)
    wide = np.where(np.abs(wide) < np.finfo(a).tiny, a(0), wide)  # TensorFlow's kernels take a denormal number for zero
    with np.errstate(over="ignore", invalid="ignore"):
        place = (wide - offset) / step
        rounded = np.rint(place) + a(0)
        clipped = np.minimum(np.maximum(rounded, smallest), largest)
        y = (step * clipped + offset).astype(x.dtype)
        inside = (rounded >= smallest) & (rounded <= largest)
        factor = np.where(inside, rounded - place, clipped)
    grad_x = np.where(inside, grad_y, grad_y.dtype.type(0))
    grad_y = np.where(np.isnan(x), 0.0, grad_y.astype(np.float64))
    others = None if axis is None else tuple(i for i in range(x.ndim) if i != axis % x.ndim)

    def sums(terms):
        return Sums(np.sum(terms, axis=others), np.sum(np.abs(terms), axis=others))

    return y, grad_x, sums(grad_y * np.where(np.isnan(x), 0.0, factor)), sums(np.where(inside, 0.0, grad_y))


def draw_symmetric_case(seed, shape, *, num_bits=8, signed=True, axis=None, power_of_two=False, min_threshold=0.0, **_):
    """x, threshold and grad_y, with x about the grid that the op makes of the threshold."""
    rng = np.random.default_rng(seed)
    threshold = draw_thresholds(rng, number_of_channels(shape, axis))
    effective = effective_threshold(threshold, power_of_two, min_threshold).astype(np.float64)
    low = -effective if signed else 0 * effective
    high = low + effective / 2 ** (num_bits - signed) * (2**num_bits - 1)
    return draw_inputs(rng, shape, low, high, num_bits, axis), threshold, draw_gradients(rng, shape)


def draw_uniform_case(seed, shape, *, num_bits=8, axis=None, min_width=0.0, **_):
    """x, min, max and grad_y, with x about the grid that the op makes of the range."""
    rng = np.random.default_rng(seed)
    min, max = draw_ranges(rng, number_of_channels(shape, axis), zeros=0.0)
    effective = effective_range(min, max, min_width)
    low, high = range_with_zero(*effective, num_bits)
    return draw_inputs(rng, shape, low, high, num_bits, axis), min, max, draw_gradients(rng, shape)
