"""Learned step size quantization in plain TensorFlow: its outputs, its gradients, and these transposed."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from qatfast._tracing import as_runtime_value, custom_gradient
from qatfast._validation import (
    check_attributes,
    check_bool,
    check_not_negative,
    check_positive,
    convert_input,
    convert_parameter,
)
from qatfast.reference.channels import broadcast_to_channels, sum_per_channel
from qatfast.reference.ranges import (
    at_least_as_wide,
    checked,
    gradient_of_range_with_zero,
    is_positive_and_normal,
    jvp_of_range_with_zero,
    range_stretched_to_zero,
    range_with_zero,
)

__all__ = [
    "lsq_symmetric",
    "lsq_symmetric_jvp",
    "lsq_uniform",
    "lsq_uniform_jvp",
    "symmetric_grid",
    "uniform_grid",
]


class LsqGrid(NamedTuple):
    """The numbers offset + step * k for the integers k from smallest to largest, shaped to broadcast against x."""

    step: tf.Tensor
    offset: tf.Tensor
    smallest: int | tf.Tensor  # a tensor of integers in the step's type where channels differ
    largest: int | tf.Tensor


def lsq_symmetric(
    x, threshold, *, num_bits=8, signed=True, grad_scale=1.0, axis=None,
    power_of_two=False, min_threshold=0.0, name=None,
):  # fmt: skip
    """Quantizes `x` up to a learned threshold; see `qatfast.ops.lsq_symmetric`, which has the same arguments."""
    check_attributes("lsq_symmetric", num_bits=num_bits, axis=axis)
    check_bool("lsq_symmetric", "signed", signed)
    check_positive("lsq_symmetric", "grad_scale", grad_scale)
    check_bool("lsq_symmetric", "power_of_two", power_of_two)
    check_not_negative("lsq_symmetric", "min_threshold", min_threshold)
    attributes = (num_bits, signed, grad_scale, axis, power_of_two, min_threshold)
    with tf.name_scope(name or "lsq_symmetric"):
        x = convert_input("lsq_symmetric", x)
        threshold = convert_parameter("lsq_symmetric", "threshold", threshold, x, axis)

        @custom_gradient
        def quantize(x, threshold):
            y = _quantize_to_grid(x, symmetric_grid(x, threshold, *attributes))
            return y, lambda grad_y: lsq_symmetric_gradient(grad_y, x, threshold, *attributes)

        return quantize(x, threshold)


def lsq_symmetric_gradient(
    grad_y, x, threshold, num_bits, signed, grad_scale, axis, power_of_two, min_threshold
):  # fmt: skip
    """The gradients of `lsq_symmetric` to x and threshold, for the gradient `grad_y` to its output.

    Linear in `grad_y` and differentiable in it, `x` and `threshold` taken as constants.
    """
    x, threshold = tf.stop_gradient(x), tf.stop_gradient(threshold)
    grid = symmetric_grid(x, threshold, num_bits, signed, grad_scale, axis, power_of_two, min_threshold)
    grad_x, grad_step, _ = _gradients_of_grid(grad_y, x, grid, axis)
    derivative = _step_by_threshold(threshold, num_bits, signed, grad_scale, power_of_two, min_threshold)
    return grad_x, tf.cast(grad_step * derivative, threshold.dtype)


def lsq_symmetric_jvp(
    to_x, to_threshold, x, threshold, num_bits, signed, grad_scale, axis, power_of_two, min_threshold
):  # fmt: skip
    """The tangent of the output of `lsq_symmetric`, for tangents of x and threshold: its gradient transposed."""
    x, threshold = tf.stop_gradient(x), tf.stop_gradient(threshold)
    grid = symmetric_grid(x, threshold, num_bits, signed, grad_scale, axis, power_of_two, min_threshold)
    derivative = _step_by_threshold(threshold, num_bits, signed, grad_scale, power_of_two, min_threshold)
    to_step = tf.cast(to_threshold, tf.float64) * derivative
    return _jvp_of_grid(to_x, to_step, tf.zeros_like(to_step), x, grid, axis)


def _step_by_threshold(threshold, num_bits, signed, grad_scale, power_of_two, min_threshold):
    """The derivative of the step by the threshold, times the gradient scale: float64."""
    derivative = _gradient_scale(grad_scale, tf.float64) / 2 ** (num_bits - signed)
    if not power_of_two:
        return derivative
    # 2^ceil(log2(t)) with the rounding up taken as constant: the derivative is the power of two over t.
    guarded = _at_least(threshold, min_threshold)
    return derivative * tf.cast(power_of_two_above(guarded), tf.float64) / tf.cast(guarded, tf.float64)


def symmetric_grid(x, threshold, num_bits, signed, grad_scale, axis, power_of_two, min_threshold) -> LsqGrid:
    """The grid of `lsq_symmetric`: the step is threshold / 2^(num_bits - signed).

    Raises:
        InvalidArgumentError: when it runs, the step is not a positive normal number.
    """
    levels = 2 ** (num_bits - signed)
    given = threshold
    threshold = _at_least(as_runtime_value(threshold), min_threshold)
    if power_of_two:
        threshold = power_of_two_above(threshold)
    step = threshold / levels
    if not power_of_two:
        step = _pass_through_gradient_scale(step, grad_scale)
    message = "lsq_symmetric: threshold must be positive, finite and such that the step is a normal number, got"
    step = broadcast_to_channels(checked(is_positive_and_normal(step), step, [message, given]), x, axis)
    return LsqGrid(step, tf.zeros_like(step), -levels if signed else 0, levels - 1)


def power_of_two_above(value):
    """The smallest power of two that is not less than `value`, exact: a logarithm would round.

    A fraction field that is not zero carries into the exponent. Zero, negative numbers, infinities and NaN give
    nothing that is a positive number.
    """
    integer, fraction_bits = {tf.float32: (tf.int32, 23), tf.float64: (tf.int64, 52)}[value.dtype]
    fraction = tf.constant(2**fraction_bits - 1, integer)
    carried = tf.bitcast(value, integer) + fraction
    return tf.bitcast(tf.bitwise.bitwise_and(carried, tf.bitwise.invert(fraction)), value.dtype)


def lsq_uniform(
    x, min, max, *, num_bits=8, grad_scale=1.0, axis=None, min_width=0.0, exact_zero=False, name=None
):  # fmt: skip
    """Quantizes `x` in a learned range; see `qatfast.ops.lsq_uniform`, which has the same arguments."""
    check_attributes("lsq_uniform", num_bits=num_bits, axis=axis)
    check_positive("lsq_uniform", "grad_scale", grad_scale)
    check_not_negative("lsq_uniform", "min_width", min_width)
    check_bool("lsq_uniform", "exact_zero", exact_zero)
    attributes = (num_bits, grad_scale, axis, min_width, exact_zero)
    with tf.name_scope(name or "lsq_uniform"):
        x = convert_input("lsq_uniform", x)
        min = convert_parameter("lsq_uniform", "min", min, x, axis)
        max = convert_parameter("lsq_uniform", "max", max, x, axis)

        @custom_gradient
        def quantize(x, min, max):
            y = _quantize_to_grid(x, uniform_grid(x, min, max, *attributes))
            return y, lambda grad_y: lsq_uniform_gradient(grad_y, x, min, max, *attributes)

        return quantize(x, min, max)


def lsq_uniform_gradient(grad_y, x, min, max, num_bits, grad_scale, axis, min_width, exact_zero):
    """The gradients of `lsq_uniform` to x, min and max, for the gradient `grad_y` to its output.

    Linear in `grad_y` and differentiable in it, `x`, `min` and `max` taken as constants.
    """
    x, min, max = tf.stop_gradient(x), tf.stop_gradient(min), tf.stop_gradient(max)
    grid = uniform_grid(x, min, max, num_bits, grad_scale, axis, min_width, exact_zero)
    grad_x, grad_step, grad_offset = _gradients_of_grid(grad_y, x, grid, axis)
    steps = as_runtime_value(tf.constant(2**num_bits - 1, min.dtype))
    grad_width = _gradient_scale(grad_scale, tf.float64) * grad_step / tf.cast(steps, tf.float64)
    min, max = at_least_as_wide(min, max, min_width)  # whose gradient passes straight through
    if exact_zero:  # an end that zero took the place of has no gradient
        grad_min = tf.where(min > 0, tf.zeros_like(grad_width), -grad_width)
        grad_max = tf.where(max < 0, tf.zeros_like(grad_width), grad_width)
    else:
        grad_min, grad_max = grad_offset - grad_width, grad_width
        grad_min, grad_max = gradient_of_range_with_zero(grad_min, grad_max, min, max, steps)
    return grad_x, tf.cast(grad_min, min.dtype), tf.cast(grad_max, max.dtype)


def lsq_uniform_jvp(to_x, to_min, to_max, x, min, max, num_bits, grad_scale, axis, min_width, exact_zero):
    """The tangent of the output of `lsq_uniform`, for tangents of x, min and max: its gradient transposed."""
    x, min, max = tf.stop_gradient(x), tf.stop_gradient(min), tf.stop_gradient(max)
    grid = uniform_grid(x, min, max, num_bits, grad_scale, axis, min_width, exact_zero)
    steps = as_runtime_value(tf.constant(2**num_bits - 1, min.dtype))
    min, max = at_least_as_wide(min, max, min_width)
    to_min, to_max = tf.cast(to_min, tf.float64), tf.cast(to_max, tf.float64)
    if exact_zero:
        to_min = tf.where(min > 0, tf.zeros_like(to_min), to_min)
        to_max = tf.where(max < 0, tf.zeros_like(to_max), to_max)
    else:
        to_min, to_max = jvp_of_range_with_zero(to_min, to_max, min, max, steps)
    to_step = _gradient_scale(grad_scale, tf.float64) * (to_max - to_min) / tf.cast(steps, tf.float64)
    to_offset = tf.zeros_like(to_min) if exact_zero else to_min
    return _jvp_of_grid(to_x, to_step, to_offset, x, grid, axis)


def uniform_grid(x, min, max, num_bits, grad_scale, axis, min_width, exact_zero) -> LsqGrid:
    """The grid of `lsq_uniform`: 2^num_bits numbers, zero among them, from about min to about max.

    With `exact_zero` they are integers times the step. Else they count from min, which is such a number but for its
    rounding, as MCT does: zero is on that grid to rounding only.

    Raises:
        InvalidArgumentError: when it runs, the range is not finite, is empty or inverted (unless `min_width` widened
            it), or its step is not a normal number.
    """
    largest = 2**num_bits - 1
    given = min, max
    min, max = at_least_as_wide(as_runtime_value(min), as_runtime_value(max), min_width)
    steps = as_runtime_value(tf.constant(largest, min.dtype))
    ordered = tf.logical_and(tf.logical_and(min > -np.inf, max < np.inf), min <= max)  # NaN is not
    min, max = range_stretched_to_zero(min, max) if exact_zero else range_with_zero(min, max, steps)
    unscaled = (max - min) / steps
    step = _pass_through_gradient_scale(unscaled, grad_scale)
    requirement = "finite and min less than max, with a step that is a normal number"
    message = f"lsq_uniform: min and max must be {requirement}, got min"
    valid = tf.logical_and(ordered, is_positive_and_normal(step))
    step = broadcast_to_channels(checked(valid, step, [message, given[0], "and max", given[1]]), x, axis)
    if not exact_zero:
        return LsqGrid(step, broadcast_to_channels(min, x, axis), 0, largest)
    # Clipped for ranges that end in zero, whose quotient is -largest but for its rounding.
    lowest = tf.clip_by_value(_round_half_even(min / unscaled), -float(largest), 0.0)
    lowest = broadcast_to_channels(lowest, x, axis)
    return LsqGrid(step, tf.zeros_like(step), lowest, lowest + float(largest))


def _quantize_to_grid(x, grid: LsqGrid):
    """`x` rounded to the grid, halves to even, and clipped to its ends. NaN stays NaN."""
    _, _, clipped = _place_on_grid(x, grid)
    return tf.cast(grid.step * clipped + grid.offset, x.dtype)


def _gradients_of_grid(grad_y, x, grid: LsqGrid, axis):
    """The gradients of `_quantize_to_grid` to x, and to step and offset as sums in float64, per channel."""
    inside, of_step, of_offset = _derivatives_of_grid(x, grid)
    grad_x = tf.where(inside, grad_y, tf.zeros_like(grad_y))
    zero = tf.zeros_like(of_step)
    is_number = tf.logical_or(inside, of_offset)
    grad_y = tf.where(is_number, tf.cast(grad_y, zero.dtype), zero)  # not times 0: it may be infinite
    return grad_x, sum_per_channel(grad_y * of_step, axis), sum_per_channel(tf.where(of_offset, grad_y, zero), axis)


def _jvp_of_grid(to_x, to_step, to_offset, x, grid: LsqGrid, axis):
    """The tangent of `_quantize_to_grid`, for a tangent of x and float64 ones of step and offset, per channel."""
    inside, of_step, of_offset = _derivatives_of_grid(x, grid)
    to_step, to_offset = (
        broadcast_to_channels(tf.cast(tangent, of_step.dtype), x, axis) for tangent in (to_step, to_offset)
    )
    zero = tf.zeros_like(to_x)
    by_offset = tf.where(of_offset, to_offset, tf.zeros_like(of_step))
    return tf.where(inside, to_x, zero) + tf.cast(to_step * of_step + by_offset, to_x.dtype)


def _derivatives_of_grid(x, grid: LsqGrid):
    """The derivatives of `_quantize_to_grid` by x (0 or 1, as a bool), by the step, and by the offset (a bool).

    Rounding is straight-through. Whether x is inside is asked of the rounded value, as in MCT: half a step beyond an
    end still is. A NaN in x has no gradient.
    """
    place, rounded, clipped = _place_on_grid(x, grid)
    inside = tf.logical_and(rounded >= grid.smallest, rounded <= grid.largest)
    is_nan = tf.math.is_nan(place)
    of_step = tf.where(is_nan, tf.zeros_like(place), tf.where(inside, rounded - place, clipped))
    return inside, of_step, tf.logical_not(tf.logical_or(inside, is_nan))


def _place_on_grid(x, grid: LsqGrid):
    """Where x lies on the grid, in steps from its offset: as it is, rounded, and rounded then clipped."""
    place = (tf.cast(x, grid.step.dtype) - grid.offset) / grid.step
    rounded = _round_half_even(place)
    smallest, largest = (tf.cast(end, rounded.dtype) for end in (grid.smallest, grid.largest))
    return place, rounded, tf.maximum(tf.minimum(rounded, largest), smallest)


def _round_half_even(value):
    rounded = tf.round(value)
    return tf.where(tf.equal(rounded, 0.0), tf.zeros_like(rounded), rounded)  # -0 becomes 0, as in MCT


def _pass_through_gradient_scale(step, grad_scale):
    """What `grad_scale` of MCT does to a step in forward: it moves the last bit of some.

    MCT computes (step - scale * step) + scale * step, so that only the gradient is scaled
    (model_compression_toolkit/qat/keras/quantizer/quant_utils.py).
    """
    scaled = _gradient_scale(grad_scale, step.dtype) * step
    return (step - scaled) + scaled


def _gradient_scale(grad_scale, dtype):
    return as_runtime_value(tf.constant(np.float32(grad_scale), dtype))


def _at_least(threshold, min_threshold):
    """`threshold`, or `min_threshold` if that is greater; NaN stays NaN."""
    if min_threshold == 0:  # no guard: a threshold of zero or less is refused
        return threshold
    least = tf.constant(np.float32(min_threshold), threshold.dtype)
    return tf.where(threshold < least, least, threshold)
