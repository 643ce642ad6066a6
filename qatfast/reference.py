"""The ops in plain TensorFlow: what `qatfast.ops` computes, written to be read.

These functions have the signatures, the results and the gradients of their namesakes in `qatfast.ops`. Tests
hold the native kernels against them, and `QATFAST_BACKEND=reference` runs a model on them.

Whatever the type of x, everything is computed in the type of the parameters: float64 for a float64 x, else float32.
Attributes count as float32, as those of TensorFlow's ops do. XLA contracts multiply and add: equal to rounding there.
"""

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

__all__ = ["fake_quant", "lsq_symmetric", "lsq_uniform"]


class NudgedRange(NamedTuple):
    """A range moved so that zero is on its grid, shaped to broadcast against x.

    Follows `Nudge` in tensorflow/core/kernels/fake_quant_ops_functor.h.
    """

    min: tf.Tensor
    max: tf.Tensor
    scale: tf.Tensor
    inv_scale: tf.Tensor
    is_zero: tf.Tensor  # min == max == 0: the output is zero, and the whole gradient passes


def fake_quant(
    x, min, max, *, num_bits=8, narrow_range=False, axis=None, include_zero=False, name=None
):  # fmt: skip
    """Quantizes and dequantizes `x`; see `qatfast.ops.fake_quant`, whose arguments and results these are."""
    check_attributes("fake_quant", num_bits=num_bits, axis=axis)
    check_bool("fake_quant", "narrow_range", narrow_range)
    check_bool("fake_quant", "include_zero", include_zero)
    with tf.name_scope(name or "fake_quant"):
        x = convert_input("fake_quant", x)
        min = convert_parameter("fake_quant", "min", min, x, axis)
        max = convert_parameter("fake_quant", "max", max, x, axis)
        quant_min, quant_max = quantized_range(num_bits, narrow_range)

        @custom_gradient
        def quantize(x, min, max):
            nudged = nudge(x, min, max, quant_min, quant_max, axis, include_zero)
            clamped = tf.maximum(tf.minimum(tf.cast(x, min.dtype), nudged.max), nudged.min)
            # TensorFlow's per-tensor op divides by the scale, its per-channel op multiplies by the inverse.
            shifted = clamped - nudged.min
            steps = shifted / nudged.scale if axis is None else shifted * nudged.inv_scale
            quant_zero = tf.floor(-nudged.min * nudged.inv_scale + 0.5)
            y = tf.floor(steps - quant_zero + 0.5) * nudged.scale
            y = tf.cast(tf.where(nudged.is_zero, tf.zeros_like(y), y), x.dtype)

            def gradient(grad_y):
                return fake_quant_gradient(grad_y, x, min, max, num_bits, narrow_range, axis, include_zero)

            return y, gradient

        return quantize(x, min, max)


def fake_quant_gradient(grad_y, x, min, max, num_bits, narrow_range, axis, include_zero):
    """The gradients of `fake_quant` to x, min and max, for the gradient `grad_y` to its output.

    Linear in `grad_y` and made of differentiable ops: TensorFlow derives the second gradient from it.
    """
    quant_min, quant_max = quantized_range(num_bits, narrow_range)
    nudged = nudge(x, min, max, quant_min, quant_max, axis, include_zero)
    x = tf.cast(x, min.dtype)
    zero = tf.zeros_like(grad_y)
    inside = tf.logical_or(nudged.is_zero, tf.logical_and(x >= nudged.min, x <= nudged.max))
    below = tf.logical_and(tf.logical_not(nudged.is_zero), x < nudged.min)
    above = tf.logical_and(tf.logical_not(nudged.is_zero), x > nudged.max)
    grad_min = _sum_per_channel(tf.where(below, grad_y, zero), axis)
    grad_max = _sum_per_channel(tf.where(above, grad_y, zero), axis)
    if include_zero:
        steps = tf.constant(quant_max - quant_min, min.dtype)
        grad_min, grad_max = _gradient_of_range_with_zero(grad_min, grad_max, min, max, steps)
    return tf.where(inside, grad_y, zero), tf.cast(grad_min, min.dtype), tf.cast(grad_max, max.dtype)


def fake_quant_jvp(to_x, to_min, to_max, x, min, max, num_bits, narrow_range, axis, include_zero):
    """The tangent of the output of `fake_quant`, for tangents of x, min and max: `fake_quant_gradient` transposed."""
    quant_min, quant_max = quantized_range(num_bits, narrow_range)
    nudged = nudge(x, min, max, quant_min, quant_max, axis, include_zero)
    if include_zero:
        steps = tf.constant(quant_max - quant_min, min.dtype)
        to_min, to_max = _jvp_of_range_with_zero(to_min, to_max, min, max, steps)
    to_min, to_max = (_broadcast_to_channels(tf.cast(tangent, to_x.dtype), x, axis) for tangent in (to_min, to_max))
    x = tf.cast(tf.stop_gradient(x), min.dtype)
    inside = tf.logical_or(nudged.is_zero, tf.logical_and(x >= nudged.min, x <= nudged.max))
    below = tf.logical_and(tf.logical_not(nudged.is_zero), x < nudged.min)
    above = tf.logical_and(tf.logical_not(nudged.is_zero), x > nudged.max)
    zero = tf.zeros_like(to_x)
    return tf.where(inside, to_x, tf.where(below, to_min, tf.where(above, to_max, zero)))


def quantized_range(num_bits: int, narrow_range: bool) -> tuple[int, int]:
    """The smallest and the largest integer of the grid: [0, 2^num_bits - 1], from 1 with `narrow_range`."""
    return int(narrow_range), 2**num_bits - 1


def nudge(x, min, max, quant_min, quant_max, axis, include_zero) -> NudgedRange:
    """Moves [min, max] so that zero is on the grid, and checks that the range can be divided by.

    Raises:
        InvalidArgumentError: when it runs, the range is not finite, is empty, or is too narrow for float32.
    """
    min, max = as_runtime_value(min), as_runtime_value(max)
    steps = as_runtime_value(tf.constant(quant_max - quant_min, min.dtype))
    ordered = tf.logical_and(tf.logical_and(min > -np.inf, max < np.inf), min <= max)  # NaN is not
    if include_zero:
        min, max = range_with_zero(min, max, steps)
    scale = (max - min) / steps
    is_zero = tf.logical_and(tf.equal(min, 0.0), tf.equal(max, 0.0))
    valid = tf.logical_and(ordered, tf.logical_or(is_zero, _is_positive_and_normal(scale)))
    message = "fake_quant: min and max must be finite and min less than max (or both 0), got min"
    scale = _checked(valid, scale, [message, min, "and max", max])
    inv_scale = steps / (max - min)
    # std::round of a non-negative number: halves go up, and 0.49999997 does not.
    from_min = quant_min - min / scale
    whole = tf.floor(from_min)
    rounded = tf.where(from_min - whole >= 0.5, whole + 1.0, whole)
    zero_point = tf.clip_by_value(rounded, quant_min, quant_max)
    nudged = ((quant_min - zero_point) * scale, (quant_max - zero_point) * scale, scale, inv_scale, is_zero)
    return NudgedRange(*(_broadcast_to_channels(value, x, axis) for value in nudged))


def range_with_zero(min, max, steps):
    """[min, max] moved by less than a step so that zero is on the grid, or stretched to zero.

    The float32 arithmetic of MCT's `adjust_range_to_include_zero`
    (model_compression_toolkit/qat/keras/quantizer/quant_utils.py).
    """
    scale = (max - min) / steps
    min_on_grid = scale * tf.round(min / scale)
    max_on_grid = max - min + min_on_grid
    zero = tf.zeros_like(min)
    min_with_zero = tf.where(min > 0, zero, tf.where(max < 0, min, min_on_grid))
    max_with_zero = tf.where(max < 0, zero, tf.where(min > 0, max, max_on_grid))
    is_zero = tf.logical_and(tf.equal(min, 0.0), tf.equal(max, 0.0))  # scale is 0 there: 0 / 0 above
    return tf.where(is_zero, zero, min_with_zero), tf.where(is_zero, zero, max_with_zero)


def range_stretched_to_zero(min, max):
    """[min, max], or the range from zero to the end that is farther from it where zero is outside."""
    return tf.minimum(min, tf.zeros_like(min)), tf.maximum(max, tf.zeros_like(max))


def _gradient_of_range_with_zero(grad_min, grad_max, min, max, steps):
    """The chain rule through `range_with_zero`, rounding taken as constant.

    With k = round(min / scale), a range across zero becomes [k, k + steps] * (max - min) / steps: both ends
    depend on max - min alone.
    """
    lower, no_width = _lowest_step(min, max, steps, grad_min.dtype)
    of_width = lower * grad_min + (1.0 + lower) * grad_max
    across_min = tf.where(no_width, grad_min, -of_width)
    across_max = tf.where(no_width, grad_max, of_width)
    zero = tf.zeros_like(grad_min)
    return (
        tf.where(min > 0, zero, tf.where(max < 0, grad_min, across_min)),
        tf.where(max < 0, zero, tf.where(min > 0, grad_max, across_max)),
    )


def _jvp_of_range_with_zero(to_min, to_max, min, max, steps):
    """The tangents of `range_with_zero`, for tangents of min and max: `_gradient_of_range_with_zero` transposed."""
    lower, no_width = _lowest_step(min, max, steps, to_min.dtype)
    to_width = to_max - to_min
    across_min = tf.where(no_width, to_min, lower * to_width)
    across_max = tf.where(no_width, to_max, (1.0 + lower) * to_width)
    zero = tf.zeros_like(to_min)
    return (
        tf.where(min > 0, zero, tf.where(max < 0, to_min, across_min)),
        tf.where(max < 0, zero, tf.where(min > 0, to_max, across_max)),
    )


def _lowest_step(min, max, steps, dtype):
    """Where a range across zero starts, as a part of its width, and whether it has none (or ends that are not finite).

    It is 0 in the latter case.
    """
    min, max, steps = (as_runtime_value(value) for value in (min, max, steps))
    lower = tf.cast(tf.round(min / ((max - min) / steps)), dtype) / tf.cast(steps, dtype)
    no_width = tf.logical_not(tf.math.is_finite(lower))
    return tf.where(no_width, tf.zeros_like(lower), lower), no_width


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
    step = _broadcast_to_channels(_checked(_is_positive_and_normal(step), step, [message, given]), x, axis)
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
    min, max = _at_least_as_wide(min, max, min_width)  # whose gradient passes straight through
    if exact_zero:  # an end that zero took the place of has no gradient
        grad_min = tf.where(min > 0, tf.zeros_like(grad_width), -grad_width)
        grad_max = tf.where(max < 0, tf.zeros_like(grad_width), grad_width)
    else:
        grad_min, grad_max = grad_offset - grad_width, grad_width
        grad_min, grad_max = _gradient_of_range_with_zero(grad_min, grad_max, min, max, steps)
    return grad_x, tf.cast(grad_min, min.dtype), tf.cast(grad_max, max.dtype)


def lsq_uniform_jvp(to_x, to_min, to_max, x, min, max, num_bits, grad_scale, axis, min_width, exact_zero):
    """The tangent of the output of `lsq_uniform`, for tangents of x, min and max: its gradient transposed."""
    x, min, max = tf.stop_gradient(x), tf.stop_gradient(min), tf.stop_gradient(max)
    grid = uniform_grid(x, min, max, num_bits, grad_scale, axis, min_width, exact_zero)
    steps = as_runtime_value(tf.constant(2**num_bits - 1, min.dtype))
    min, max = _at_least_as_wide(min, max, min_width)
    to_min, to_max = tf.cast(to_min, tf.float64), tf.cast(to_max, tf.float64)
    if exact_zero:
        to_min = tf.where(min > 0, tf.zeros_like(to_min), to_min)
        to_max = tf.where(max < 0, tf.zeros_like(to_max), to_max)
    else:
        to_min, to_max = _jvp_of_range_with_zero(to_min, to_max, min, max, steps)
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
    min, max = _at_least_as_wide(as_runtime_value(min), as_runtime_value(max), min_width)
    steps = as_runtime_value(tf.constant(largest, min.dtype))
    ordered = tf.logical_and(tf.logical_and(min > -np.inf, max < np.inf), min <= max)  # NaN is not
    min, max = range_stretched_to_zero(min, max) if exact_zero else range_with_zero(min, max, steps)
    unscaled = (max - min) / steps
    step = _pass_through_gradient_scale(unscaled, grad_scale)
    message = "lsq_uniform: min and max must be finite and min less than max, got min"
    valid = tf.logical_and(ordered, _is_positive_and_normal(step))
    step = _broadcast_to_channels(_checked(valid, step, [message, given[0], "and max", given[1]]), x, axis)
    if not exact_zero:
        return LsqGrid(step, _broadcast_to_channels(min, x, axis), 0, largest)
    # Clipped for ranges that end in zero, whose quotient is -largest but for its rounding.
    lowest = tf.clip_by_value(_round_half_even(min / unscaled), -float(largest), 0.0)
    lowest = _broadcast_to_channels(lowest, x, axis)
    return LsqGrid(step, tf.zeros_like(step), lowest, lowest + float(largest))


def _quantize_to_grid(x, grid: LsqGrid):
    """`x` rounded to the grid, halves to even, and clipped to its ends. NaN stays NaN."""
    _, _, clipped = _place_on_grid(x, grid)
    return tf.cast(grid.step * clipped + grid.offset, x.dtype)


def _gradients_of_grid(grad_y, x, grid: LsqGrid, axis):
    """The gradients of `_quantize_to_grid` to x, and to step and offset as sums in float64, per channel."""
    inside, of_step, of_offset = _derivatives_of_grid(x, grid)
    grad_x = tf.where(inside, grad_y, tf.zeros_like(grad_y))
    grad_y = tf.cast(grad_y, of_step.dtype)
    zero = tf.zeros_like(grad_y)
    # Not multiplied by 0: a gradient that does not count may be infinite.
    grad_step = tf.where(tf.equal(of_step, 0.0), zero, grad_y * of_step)
    return grad_x, _sum_per_channel(grad_step, axis), _sum_per_channel(tf.where(of_offset, grad_y, zero), axis)


def _jvp_of_grid(to_x, to_step, to_offset, x, grid: LsqGrid, axis):
    """The tangent of `_quantize_to_grid`, for a tangent of x and float64 ones of step and offset, per channel."""
    inside, of_step, of_offset = _derivatives_of_grid(x, grid)
    to_step, to_offset = (
        _broadcast_to_channels(tf.cast(tangent, of_step.dtype), x, axis) for tangent in (to_step, to_offset)
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


def _at_least_as_wide(min, max, min_width):
    """[min, max], or a range of `min_width` about its middle if it is narrower than that or inverted."""
    if min_width == 0:  # no guard: an empty or inverted range is refused
        return min, max
    width = tf.constant(np.float32(min_width), min.dtype)
    narrow = max - min < width
    middle = 0.5 * min + 0.5 * max
    return tf.where(narrow, middle - 0.5 * width, min), tf.where(narrow, middle + 0.5 * width, max)


def _is_positive_and_normal(step):
    return tf.logical_and(step >= np.finfo(step.dtype.as_numpy_dtype).tiny, step <= step.dtype.max)


def _checked(valid, value, message):
    """`value`, once an assertion has seen that all of it is valid; what is not is NaN where XLA drops the assertion."""
    assertion = tf.debugging.Assert(tf.reduce_all(valid), message)
    with tf.control_dependencies([] if assertion is None else [assertion]):  # an eager one has run
        return tf.where(valid, value, tf.constant(np.nan, value.dtype))


def _broadcast_to_channels(value, x, axis):
    """Reshapes a [channels] tensor to have x's rank, with its values along `axis`."""
    if axis is None:
        return value
    if x.shape.rank is not None:  # static, as XLA asks for
        return tf.reshape(value, [-1 if i == axis % x.shape.rank else 1 for i in range(x.shape.rank)])
    rank = tf.rank(x)
    return tf.reshape(value, tf.tensor_scatter_nd_update(tf.ones([rank], tf.int32), [[axis % rank]], [-1]))


def _sum_per_channel(values, axis):
    """Sums over all axes but `axis`, in float64."""
    values = tf.cast(values, tf.float64)
    if axis is None:
        return tf.reduce_sum(values)
    if values.shape.rank is not None:
        return tf.reduce_sum(values, [i for i in range(values.shape.rank) if i != axis % values.shape.rank])
    rank = tf.rank(values)
    return tf.reduce_sum(values, tf.boolean_mask(tf.range(rank), tf.not_equal(tf.range(rank), axis % rank)))
