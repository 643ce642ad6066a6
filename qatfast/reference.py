"""The ops in plain TensorFlow: what `qatfast.ops` computes, written to be read.

These functions have the signatures, the results and the gradients of their namesakes in `qatfast.ops`. Tests
hold the native kernels against them, and `QATFAST_BACKEND=reference` runs a model on them.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from qatfast._validation import check_attributes, convert_input, convert_parameter

__all__ = ["fake_quant"]


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
    with tf.name_scope(name or "fake_quant"):
        x = convert_input("fake_quant", x)
        min = convert_parameter("fake_quant", "min", min, x, axis)
        max = convert_parameter("fake_quant", "max", max, x, axis)
        quant_min, quant_max = quantized_range(num_bits, narrow_range)

        @tf.custom_gradient
        def quantize(x, min, max):
            nudged = nudge(x, min, max, quant_min, quant_max, axis, include_zero)
            clamped = tf.maximum(tf.minimum(x, nudged.max), nudged.min)
            # TensorFlow's per-tensor op divides by the scale, its per-channel op multiplies by the inverse.
            shifted = clamped - nudged.min
            steps = shifted / nudged.scale if axis is None else shifted * nudged.inv_scale
            quant_zero = tf.floor(-nudged.min * nudged.inv_scale + 0.5)
            y = tf.floor(steps - quant_zero + 0.5) * nudged.scale
            y = tf.where(nudged.is_zero, tf.zeros_like(x), y)

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
    inside = tf.logical_or(nudged.is_zero, tf.logical_and(x >= nudged.min, x <= nudged.max))
    below = tf.logical_and(tf.logical_not(nudged.is_zero), x < nudged.min)
    above = tf.logical_and(tf.logical_not(nudged.is_zero), x > nudged.max)
    grad_min = _sum_per_channel(tf.where(below, grad_y, zero), axis)
    grad_max = _sum_per_channel(tf.where(above, grad_y, zero), axis)
    if include_zero:
        steps = tf.constant(quant_max - quant_min, min.dtype)
        grad_min, grad_max = _gradient_of_range_with_zero(grad_min, grad_max, min, max, steps)
    return tf.where(inside, grad_y, zero), tf.cast(grad_min, min.dtype), tf.cast(grad_max, max.dtype)


def quantized_range(num_bits: int, narrow_range: bool) -> tuple[int, int]:
    """The smallest and the largest integer of the grid: [0, 2^num_bits - 1], from 1 with `narrow_range`."""
    return int(narrow_range), 2**num_bits - 1


def nudge(x, min, max, quant_min, quant_max, axis, include_zero) -> NudgedRange:
    """Moves [min, max] so that zero is on the grid, and checks that the range can be divided by.

    Raises:
        InvalidArgumentError: when it runs, the range is not finite, is empty, or is too narrow for float32.
    """
    min, max = _as_runtime_value(min), _as_runtime_value(max)
    steps = _as_runtime_value(tf.constant(quant_max - quant_min, min.dtype))
    ordered = tf.logical_and(tf.logical_and(min > -np.inf, max < np.inf), min <= max)  # NaN is not
    if include_zero:
        min, max = range_with_zero(min, max, steps)
    scale = (max - min) / steps
    is_zero = tf.logical_and(tf.equal(min, 0.0), tf.equal(max, 0.0))
    smallest_normal = np.finfo(scale.dtype.as_numpy_dtype).tiny
    divisible = tf.logical_and(scale >= smallest_normal, scale <= scale.dtype.max)
    check = tf.debugging.Assert(
        tf.reduce_all(tf.logical_and(ordered, tf.logical_or(is_zero, divisible))),
        ["fake_quant: min and max must be finite and min less than max (or both 0), got min", min, "and max", max],
    )
    with tf.control_dependencies([check] if check is not None else []):
        scale = tf.identity(scale)
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


def _gradient_of_range_with_zero(grad_min, grad_max, min, max, steps):
    """The chain rule through `range_with_zero`, rounding taken as constant.

    With k = round(min / scale), a range across zero becomes [k, k + steps] * (max - min) / steps: both ends
    depend on max - min alone.
    """
    min, max, steps = (_as_runtime_value(value) for value in (min, max, steps))
    lower = tf.cast(tf.round(min / ((max - min) / steps)), grad_min.dtype) / tf.cast(steps, grad_min.dtype)
    of_width = lower * grad_min + (1.0 + lower) * grad_max
    no_width = tf.equal(max - min, 0.0)
    across_min = tf.where(no_width, grad_min, -of_width)
    across_max = tf.where(no_width, grad_max, of_width)
    zero = tf.zeros_like(grad_min)
    return (
        tf.where(min > 0, zero, tf.where(max < 0, grad_min, across_min)),
        tf.where(max < 0, zero, tf.where(min > 0, grad_max, across_max)),
    )


def _as_runtime_value(value):
    """Hides `value` from the graph optimizer, which would divide by a constant by multiplying with its inverse.

    A placeholder with a default is what the optimizer may not fold; XLA takes it as the identity.
    """
    return tf.raw_ops.PlaceholderWithDefault(input=tf.stop_gradient(value), shape=value.shape)


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
