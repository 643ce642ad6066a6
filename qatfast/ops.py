"""Fused fake-quantization ops with their gradients: the heart of the package."""

import functools

import tensorflow as tf
from tensorflow.python.eager import record

from qatfast import _library, reference
from qatfast._validation import check_attributes, convert_input, convert_parameter

__all__ = ["fake_quant"]

_native = _library.load_ops() if _library.backend() == "native" else None


def fake_quant(x, min, max, *, num_bits=8, narrow_range=False, axis=None, include_zero=False, name=None):
    """Quantizes `x` to a grid of 2^num_bits values between `min` and `max`, and dequantizes it.

    Forward, bit for bit `tf.quantization.fake_quant_with_min_max_vars` (axis None) or
    `tf.quantization.fake_quant_with_min_max_vars_per_channel` with its channels on any axis, the range nudged so that
    zero is on the grid. `qatfast.reference.fake_quant` and the op QatfastFakeQuant's documentation have the formula.

    Backward, the straight-through estimator: the gradient to `x` is that to the output where x was in the nudged range,
    else 0; the gradients to `min` and `max` are its sums, per channel, where x was below and above. The sums are
    computed only when asked for, in double, with the same bits on any number of threads. Gradients of gradients exist.

    Args:
        x: Tensor of float32, of any shape.
        min: Lower end of the range: a float32 scalar, or `[x.shape[axis]]` if `axis` is given. Must be finite and less
            than `max`, or both 0: the output is then 0 and the whole gradient passes.
        max: Upper end of the range, of the same shape as `min`.
        num_bits: From 2 to 16.
        narrow_range: Whether to leave out the lowest value of the grid.
        axis: None for one range per tensor, or the axis of `x`, from the end if negative, with a range per index.
        include_zero: Whether to first move the range by less than a step so that zero is on the grid, or stretch it to
            zero, as MCT's `adjust_range_to_include_zero` does; the gradients to `min` and `max` follow.
        name: Name of the op in a graph.

    Returns:
        A tensor of the shape and dtype of `x`. NaN in x stays NaN, and has zero gradient.

    Raises:
        ValueError: an attribute is out of range, or a static shape does not fit.
        TypeError: a tensor is of another dtype.
        InvalidArgumentError: when it runs, a range cannot be quantized to, or a shape does not fit.
    """
    if _native is None:
        return reference.fake_quant(
            x, min, max, num_bits=num_bits, narrow_range=narrow_range, axis=axis, include_zero=include_zero, name=name
        )
    check_attributes("fake_quant", num_bits=num_bits, axis=axis)
    with tf.name_scope(name or "fake_quant"):
        x = convert_input("fake_quant", x)
        min = convert_parameter("fake_quant", "min", min, x, axis)
        max = convert_parameter("fake_quant", "max", max, x, axis)
        attributes = {
            "num_bits": num_bits,
            "narrow_range": narrow_range,
            "per_channel": axis is not None,
            "axis": -1 if axis is None else axis,
            "include_zero": include_zero,
        }
        range_is_watched = record.should_record_backprop([min, max])

        @tf.custom_gradient
        def quantize(x, min, max):
            def gradient(grad_y):
                return _fake_quant_gradient(grad_y, x, min, max, attributes, range_is_watched)

            return _native.qatfast_fake_quant(x, min, max, **attributes), gradient

        return quantize(x, min, max)


def _fake_quant_gradient(grad_y, x, min, max, attributes, range_is_watched):
    """The gradients to x, min and max, differentiable in `grad_y`.

    The sums for min and max cost little in the pass that computes grad_x, but not nothing. If a tape watches the range,
    they are wanted. If none does, then in eager mode nobody can ask for them; in a graph somebody still may, and gets
    them from an op of its own, which the graph does not run unless they are used.
    """
    if range_is_watched:
        return _gradient_with_range(grad_y, x, min, max, attributes)
    grad_x = _gradient_to_x(grad_y, x, min, max, attributes)
    if tf.executing_eagerly():
        return grad_x, None, None
    _, grad_min, grad_max = _gradient_with_range(grad_y, x, min, max, attributes)
    return grad_x, grad_min, grad_max


def _gradient_to_x(grad_y, x, min, max, attributes):
    @tf.custom_gradient
    def pass_in_range(grad_y):
        # Linear in grad_y with a diagonal matrix: its own transpose.
        return (
            _native.qatfast_fake_quant_grad(grad_y, x, min, max, **attributes),
            functools.partial(_gradient_to_x, x=x, min=min, max=max, attributes=attributes),
        )

    return pass_in_range(grad_y)


def _gradient_with_range(grad_y, x, min, max, attributes):
    @tf.custom_gradient
    def pass_in_range_and_sum(grad_y):
        def transpose(to_grad_x, to_grad_min, to_grad_max):
            # Rarely asked for, so left to TensorFlow: the reference is linear in its grad_y too.
            with tf.GradientTape() as tape:
                zero = tf.zeros_like(grad_y)
                tape.watch(zero)
                axis = attributes["axis"] if attributes["per_channel"] else None
                outputs = reference.fake_quant_gradient(
                    zero,
                    x,
                    min,
                    max,
                    attributes["num_bits"],
                    attributes["narrow_range"],
                    axis,
                    attributes["include_zero"],
                )
            return tape.gradient(outputs, zero, output_gradients=[to_grad_x, to_grad_min, to_grad_max])

        return tuple(_native.qatfast_fake_quant_grad_with_range(grad_y, x, min, max, **attributes)), transpose

    return pass_in_range_and_sum(grad_y)
