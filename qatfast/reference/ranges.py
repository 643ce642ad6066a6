"""Ranges before they become a grid: zero brought on it, least widths, and what cannot be quantized with."""

import numpy as np
import tensorflow as tf

from qatfast._tracing import as_runtime_value, is_traced_for_xla

__all__ = [
    "at_least_as_wide",
    "checked",
    "gradient_of_range_with_zero",
    "is_positive_and_normal",
    "jvp_of_range_with_zero",
    "range_stretched_to_zero",
    "range_with_zero",
]


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


def gradient_of_range_with_zero(grad_min, grad_max, min, max, steps):
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


def jvp_of_range_with_zero(to_min, to_max, min, max, steps):
    """The tangents of `range_with_zero`, for tangents of min and max: `gradient_of_range_with_zero` transposed."""
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


def at_least_as_wide(min, max, min_width):
    """[min, max], or a range of `min_width` about its middle if it is narrower than that or inverted."""
    if min_width == 0:  # no guard: an empty or inverted range is refused
        return min, max
    width = tf.constant(np.float32(min_width), min.dtype)
    narrow = max - min < width
    middle = 0.5 * min + 0.5 * max
    return tf.where(narrow, middle - 0.5 * width, min), tf.where(narrow, middle + 0.5 * width, max)


def is_positive_and_normal(step):
    """Whether a step can be divided by: a bool per step."""
    return tf.logical_and(step >= np.finfo(step.dtype.as_numpy_dtype).tiny, step <= step.dtype.max)


def checked(valid, value, message):
    """`value`, once an assertion has seen that all of it is valid; under XLA, which knows none, NaN where it is not."""
    assertions = []
    if not is_traced_for_xla():
        # The op itself: tf.debugging.Assert would trace two functions about it.
        data = [tf.convert_to_tensor(part) for part in message]
        assertions = [tf.raw_ops.Assert(condition=tf.reduce_all(valid), data=data, summarize=3)]
    with tf.control_dependencies(filter(None, assertions)):  # an eager one has run, and is None
        return tf.where(valid, value, tf.constant(np.nan, value.dtype))
