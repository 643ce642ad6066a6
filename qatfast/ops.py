"""Fused fake-quantization ops with their gradients: the heart of the package.

How a gradient is computed is chosen when the op is called, by what tapes watch:

- x alone: forward saves a mask of one bit per element, backward reads it and the incoming gradient. Nothing refers to x
  any more. This is faster on every shape and type that was measured, also where x stays alive (benchmarks/NOTES.md).
  A `tf.function` that is called under a tape from outside is traced without knowing of it: see the last line.
- A parameter: backward reads x again, and computes all gradients in one pass.
- Nothing, in eager mode, no tape being open: nobody can ask for a gradient, so none is prepared.
- Nothing, in a graph: `tf.gradients` may still ask for any of them, and gets them from x.

In a function that XLA compiles (`jit_compile=True`) the plain TensorFlow formulas of `qatfast.reference` take the place
of the native ops, forward and backward: XLA fuses them. It drops assertions, so a range that cannot be quantized with
gives NaN there, as on a GPU, and no gradient passes. What is traced is looked at: a `tf.function` that was called
outside of such a function keeps the native ops when it is called inside with the same signature, and XLA refuses it.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.eager import record

from qatfast import _library, reference
from qatfast._validation import (
    check_attributes,
    check_bool,
    check_not_negative,
    check_positive,
    convert_input,
    convert_parameter,
)

__all__ = ["fake_quant", "lsq_symmetric", "lsq_uniform"]

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
        x: Tensor of float32, float16, bfloat16 or float64, of any shape. The arithmetic is that of the range.
        min: Lower end of the range: a scalar, or `[x.shape[axis]]` if `axis` is given; float32, but float64 for a
            float64 x. Must be finite and less than `max`, or both 0: the output is then 0 and the whole gradient
            passes.
        max: Upper end of the range, of the same shape and type as `min`.
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
        InvalidArgumentError: when it runs, a range cannot be quantized to, or a shape does not fit. On a GPU, where
            looking at a range would stop the stream, its channel gives NaN instead, and no gradient passes.
    """
    attributes = {"num_bits": num_bits, "narrow_range": narrow_range, "include_zero": include_zero}
    check_attributes("fake_quant", num_bits=num_bits, axis=axis)
    check_bool("fake_quant", "narrow_range", narrow_range)
    check_bool("fake_quant", "include_zero", include_zero)
    return _quantize(_FAKE_QUANT, x, {"min": min, "max": max}, axis, attributes, name)


def lsq_symmetric(
    x,
    threshold,
    *,
    num_bits=8,
    signed=True,
    grad_scale=1.0,
    axis=None,
    power_of_two=False,
    min_threshold=0.0,
    name=None,
):
    """Quantizes `x` to integers times a learned step, `threshold / 2^(num_bits - signed)`, and dequantizes it.

    Learned step size quantization (LSQ, Esser et al., https://arxiv.org/abs/1902.08153), bit for bit as MCT's
    `symmetric_lsq_quantizer`: round half to even, then clip. `qatfast.reference.lsq_symmetric` and the op
    QatfastLsqSymmetric's documentation have the formulas.

    Args:
        x: Tensor of float32, float16, bfloat16 or float64, of any shape. The arithmetic is that of the threshold.
        threshold: Positive end of the range, one step above the largest value: a scalar, or `[x.shape[axis]]` if
            `axis` is given; float32, but float64 for a float64 x.
        num_bits: From 2 to 16.
        signed: Whether the grid is about zero; else it starts there.
        grad_scale: What the gradient to the step, and so to `threshold`, is multiplied by. Counts as float32. Any
            other than 1 may also move the step, as MCT's `grad_scale` does: by one unit in the last place up to 2, by
            about as many as it is large beyond.
        axis: None for one threshold per tensor, or the axis of `x`, from the end if negative, with one per index.
        power_of_two: Whether to round the threshold up to a power of two, which the step then is exactly. The gradient
            passes straight through the rounding of its logarithm (TQT, Jain et al., https://arxiv.org/abs/1903.08066).
        min_threshold: A threshold below this positive number counts as this number, and still gets its gradient, so
            that training can raise it again. 0: a threshold that is not positive is an error.
        name: Name of the op in a graph.

    Returns:
        A tensor of the shape and dtype of `x`. NaN in x stays NaN, and has zero gradient; infinities go to the ends.

    Raises:
        ValueError: an attribute is out of range, or a static shape does not fit.
        TypeError: a tensor is of another dtype.
        InvalidArgumentError: when it runs, a threshold is not finite or too small to divide by, or a shape does not
            fit. On a GPU, such a threshold's channel gives NaN instead, and no gradient passes.
    """
    attributes = {
        "num_bits": num_bits,
        "signed": signed,
        "grad_scale": grad_scale,
        "power_of_two": power_of_two,
        "min_threshold": min_threshold,
    }
    check_attributes("lsq_symmetric", num_bits=num_bits, axis=axis)
    check_bool("lsq_symmetric", "signed", signed)
    check_bool("lsq_symmetric", "power_of_two", power_of_two)
    check_positive("lsq_symmetric", "grad_scale", grad_scale)
    check_not_negative("lsq_symmetric", "min_threshold", min_threshold)
    return _quantize(_LSQ_SYMMETRIC, x, {"threshold": threshold}, axis, attributes, name)


def lsq_uniform(
    x, min, max, *, num_bits=8, grad_scale=1.0, axis=None, min_width=0.0, exact_zero=False, name=None
):  # fmt: skip
    """Quantizes `x` to a grid of 2^num_bits values between learned ends, and dequantizes it.

    Learned step size quantization (LSQ, Esser et al., https://arxiv.org/abs/1902.08153), bit for bit as MCT's
    `uniform_lsq_quantizer`: the range is moved by less than a step so that zero is on the grid, or stretched to zero;
    round half to even, then clip. `qatfast.reference.lsq_uniform` and the op QatfastLsqUniform's documentation have the
    formulas.

    Args:
        x: Tensor of float32, float16, bfloat16 or float64, of any shape. The arithmetic is that of the range.
        min: Lower end of the range: a scalar, or `[x.shape[axis]]` if `axis` is given; float32, but float64 for a
            float64 x.
        max: Upper end of the range, of the same shape and type as `min`.
        num_bits: From 2 to 16.
        grad_scale: What the gradient to the step is multiplied by. Counts as float32. Any other than 1 may also move
            the step, as MCT's `grad_scale` does: by one unit in the last place up to 2, by about as many as it is large
            beyond.
        axis: None for one range per tensor, or the axis of `x`, from the end if negative, with a range per index.
        min_width: A range narrower than this positive number, or upside down, counts as one of this width about its
            middle, and its ends still get their gradients, so that training can widen it again. 0: such a range is an
            error.
        exact_zero: Whether the grid is integers times the step, with an integer zero point, so that 0 stays 0: MCT's
            grid is off by the rounding of its lower end, and zero of up to 0.003 steps (16 bits). The range is
            stretched to zero here too, and its ends get opposite gradients, where it does not end in zero.
        name: Name of the op in a graph.

    Returns:
        A tensor of the shape and dtype of `x`. NaN in x stays NaN, and has zero gradient; infinities go to the ends.

    Raises:
        ValueError: an attribute is out of range, or a static shape does not fit.
        TypeError: a tensor is of another dtype.
        InvalidArgumentError: when it runs, a range is not finite or cannot be quantized to, or a shape does not fit. On
            a GPU, such a range's channel gives NaN instead, and no gradient passes.
    """
    attributes = {"num_bits": num_bits, "grad_scale": grad_scale, "min_width": min_width, "exact_zero": exact_zero}
    check_attributes("lsq_uniform", num_bits=num_bits, axis=axis)
    check_positive("lsq_uniform", "grad_scale", grad_scale)
    check_not_negative("lsq_uniform", "min_width", min_width)
    check_bool("lsq_uniform", "exact_zero", exact_zero)
    return _quantize(_LSQ_UNIFORM, x, {"min": min, "max": max}, axis, attributes, name)


class _Family(NamedTuple):
    """The raw ops of one family, by name, and its gradients in plain TensorFlow."""

    name: str
    forward: str
    backward: str  # the gradients to x and to every parameter
    backward_to_x: str | None  # the gradient to x alone, where that is less work
    reference: Callable
    reference_gradient: Callable


_FAKE_QUANT = _Family(
    "fake_quant",
    "qatfast_fake_quant",
    "qatfast_fake_quant_grad_with_range",
    "qatfast_fake_quant_grad",
    reference.fake_quant,
    reference.fake_quant_gradient,
)
_LSQ_SYMMETRIC = _Family(
    "lsq_symmetric",
    "qatfast_lsq_symmetric",
    "qatfast_lsq_symmetric_grad",
    None,
    reference.lsq_symmetric,
    reference.lsq_symmetric_gradient,
)
_LSQ_UNIFORM = _Family(
    "lsq_uniform",
    "qatfast_lsq_uniform",
    "qatfast_lsq_uniform_grad",
    None,
    reference.lsq_uniform,
    reference.lsq_uniform_gradient,
)


class _Call(NamedTuple):
    """One call of a family's ops: what is the same in all of its gradients."""

    family: _Family
    axis: int | None
    attributes: dict

    def raw(self, op, *inputs, **more):
        """Runs a raw op with the call's attributes."""
        if self.axis is not None:
            return getattr(_native, op)(*inputs, per_channel=True, axis=self.axis, **self.attributes, **more)
        return getattr(_native, op)(*inputs, **self.attributes, **more)

    def raw_unrecorded(self, op, *inputs, **more):
        """Runs a raw op behind the tapes' backs: a custom gradient speaks for it.

        In eager mode a tape would record it too, keep all its inputs, and find no gradient for it.
        """
        with record.stop_recording():
            return self.raw(op, *inputs, **more)

    def reference_gradient(self, grad_y, x, parameters):
        """The gradients to x and the parameters in plain TensorFlow."""
        return self.family.reference_gradient(grad_y, x, *parameters, axis=self.axis, **self.attributes)


def _quantize(family, x, parameters, axis, attributes, name):
    if _native is None or reference.is_traced_for_xla():
        return family.reference(x, *parameters.values(), axis=axis, name=name, **attributes)
    if not tf.executing_eagerly():
        with tf.name_scope(name or family.name):
            return _quantize_recorded(_Call(family, axis, attributes), x, parameters)
    if record.could_possibly_record():
        return _quantize_recorded(_Call(family, axis, attributes), x, parameters)
    # No tape: what Python does per call counts here, as it takes longer than to quantize a small tensor.
    x = convert_input(family.name, x)
    tensors = []
    for key, value in parameters.items():
        tensors.append(convert_parameter(family.name, key, value, x, axis, read_variable=False))
    if axis is not None:
        attributes["per_channel"] = True
        attributes["axis"] = axis
    return getattr(_native, family.forward)(x, *tensors, **attributes)[0]


def _quantize_recorded(call, x, parameters):
    name = call.family.name
    x = convert_input(name, x)
    parameters = [convert_parameter(name, key, value, x, call.axis) for key, value in parameters.items()]
    parameters_are_watched = record.should_record_backprop(parameters)
    save_mask = not parameters_are_watched and record.should_record_backprop([x])

    @tf.custom_gradient
    def quantize(x, *parameters):
        y, mask = call.raw_unrecorded(call.family.forward, x, *parameters, save_mask=save_mask)
        if save_mask and tf.executing_eagerly():
            # The tape keeps this function, so it must not refer to x. No tape watches a parameter.
            return y, lambda grad_y: (_gradient_by_mask(grad_y, mask), *[None] * len(parameters))

        def gradient(grad_y):
            if parameters_are_watched:
                return _all_gradients(call, grad_y, x, parameters)
            # In a graph an op that nobody reads does not run, and what it alone refers to is not kept.
            _, *to_parameters = _all_gradients(call, grad_y, x, parameters)
            if save_mask:
                return _gradient_by_mask(grad_y, mask), *to_parameters
            return _gradient_to_x(call, grad_y, x, parameters), *to_parameters

        return y, gradient

    return quantize(x, *parameters)


def _gradient_by_mask(grad_y, mask):
    """The gradient to x, linear in `grad_y` with a diagonal matrix: its own transpose."""

    @tf.custom_gradient
    def pass_by_mask(grad_y):
        with record.stop_recording():
            grad_x = _native.qatfast_straight_through_grad(grad_y, mask)
        return grad_x, lambda to_grad_x: _gradient_by_mask(to_grad_x, mask)

    return pass_by_mask(grad_y)


def _gradient_to_x(call, grad_y, x, parameters):
    """The gradient to x; see `_gradient_by_mask`."""
    if call.family.backward_to_x is None:
        return _all_gradients(call, grad_y, x, parameters)[0]

    @tf.custom_gradient
    def pass_in_range(grad_y):
        return (
            call.raw_unrecorded(call.family.backward_to_x, grad_y, x, *parameters),
            lambda to_grad_x: _gradient_to_x(call, to_grad_x, x, parameters),
        )

    return pass_in_range(grad_y)


def _all_gradients(call, grad_y, x, parameters):
    """The gradients to x and to every parameter, differentiable in `grad_y`."""

    @tf.custom_gradient
    def differentiate(grad_y):
        def transpose(*upstream):
            # Rarely asked for, so left to TensorFlow: the reference is linear in its grad_y too.
            with tf.GradientTape() as tape:
                zero = tf.zeros_like(grad_y)
                tape.watch(zero)
                outputs = call.reference_gradient(zero, x, parameters)
            return tape.gradient(outputs, zero, output_gradients=list(upstream))

        return tuple(call.raw_unrecorded(call.family.backward, grad_y, x, *parameters)), transpose

    return differentiate(grad_y)
