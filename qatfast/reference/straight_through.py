"""`fake_quant` in plain TensorFlow: its output, its gradients, and these transposed."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from qatfast._tracing import as_runtime_value, custom_gradient
from qatfast._validation import (
    check_attributes,
    check_bool,
    convert_input,
    convert_parameter,
)
from qatfast.reference.channels import broadcast_to_channels, sum_per_channel
from qatfast.reference.ranges import (
    checked,
    gradient_of_range_with_zero,
    is_positive_and_normal,
    jvp_of_range_with_zero,
    range_with_zero,
)

__all__ = ["fake_quant", "fake_quant_gradient", "fake_quant_jvp"]


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
    zero = tf.zeros_like(grad_y)
    inside, below, above = place_in_range(tf.cast(x, min.dtype), nudged)
    grad_min = sum_per_channel(tf.where(below, grad_y, zero), axis)
    grad_max = sum_per_channel(tf.where(above, grad_y, zero), axis)
    if include_zero:
        steps = tf.constant(quant_max - quant_min, min.dtype)
        grad_min, grad_max = gradient_of_range_with_zero(grad_min, grad_max, min, max, steps)
    return tf.where(inside, grad_y, zero), tf.cast(grad_min, min.dtype), tf.cast(grad_max, max.dtype)


def fake_quant_jvp(to_x, to_min, to_max, x, min, max, num_bits, narrow_range, axis, include_zero):
    """The tangent of the output of `fake_quant`, for tangents of x, min and max: `fake_quant_gradient` transposed."""
    quant_min, quant_max = quantized_range(num_bits, narrow_range)
    nudged = nudge(x, min, max, quant_min, quant_max, axis, include_zero)
    if include_zero:
        steps = tf.constant(quant_max - quant_min, min.dtype)
        to_min, to_max = jvp_of_range_with_zero(to_min, to_max, min, max, steps)
    to_min, to_max = (broadcast_to_channels(tf.cast(tangent, to_x.dtype), x, axis) for tangent in (to_min, to_max))
    zero = tf.zeros_like(to_x)
    inside, below, above = place_in_range(tf.cast(x, min.dtype), nudged)
    return tf.where(inside, to_x, tf.where(below, to_min, tf.where(above, to_max, zero)))


def place_in_range(x, nudged: NudgedRange):
    """Whether x is in the range, ends included, below it, or above: none of these is NaN. All is in a zero range."""
    is_zero, has_width = nudged.is_zero, tf.logical_not(nudged.is_zero)
    inside = tf.logical_or(is_zero, tf.logical_and(x >= nudged.min, x <= nudged.max))
    return inside, tf.logical_and(has_width, x < nudged.min), tf.logical_and(has_width, x > nudged.max)


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
    valid = tf.logical_and(ordered, tf.logical_or(is_zero, is_positive_and_normal(scale)))
    requirement = "finite and min less than max (or both 0), with a step that is a normal number"
    scale = checked(valid, scale, [f"fake_quant: min and max must be {requirement}, got min", min, "and max", max])
    inv_scale = steps / (max - min)
    # std::round of a non-negative number: halves go up, and 0.49999997 does not.
    from_min = quant_min - min / scale
    whole = tf.floor(from_min)
    rounded = tf.where(from_min - whole >= 0.5, whole + 1.0, whole)
    zero_point = tf.clip_by_value(rounded, quant_min, quant_max)
    nudged = ((quant_min - zero_point) * scale, (quant_max - zero_point) * scale, scale, inv_scale, is_zero)
    return NudgedRange(*(broadcast_to_channels(value, x, axis) for value in nudged))
