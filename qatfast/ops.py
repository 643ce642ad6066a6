"""Fused fake-quantization ops with their gradients: the heart of the package.

In a graph each call is one raw op, whose gradient is registered (`_raw_ops`). Eagerly, under a tape or an accumulator
of forward mode, it is a `tf.custom_gradient` function, since a tape would keep all inputs of a raw op. How the gradient
is computed is chosen when the op is called, by what is watched then:

- x alone: forward saves a mask of one bit per element, backward reads it and the incoming gradient. Nothing refers to x
  any more. This is faster on every shape and type that was measured, also where x stays alive (benchmarks/NOTES.md).
  A `tf.function` that is called under a tape from outside is traced without knowing of it: see the last line.
- A parameter: backward reads x again, and computes all gradients in one pass.
- Nothing, in eager mode: nobody can ask for a gradient, so none is prepared.
- Nothing, in a graph: `tf.gradients` may still ask for any of them, and gets them from x.

Derivatives of every order and mode exist. They count x and the parameters as constants in a gradient, which is linear
in the incoming one.

In a function that XLA compiles (`jit_compile=True`) the plain TensorFlow formulas of `qatfast.reference` take the place
of the native ops, forward and backward: XLA fuses them. It drops assertions, so a range that cannot be quantized with
gives NaN there, as on a GPU, and no gradient passes. What is traced is looked at: a `tf.function` that was called
outside of such a function keeps the native ops when it is called inside with the same signature, and XLA refuses it.
`tf.vectorized_map` drops every `tf.custom_gradient` of what it is given: around the plain formulas (under XLA, or with
QATFAST_BACKEND=reference) gradients are those of rounding, 0. Around the native ops they are right.
"""

import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.ops.gradients_util import PossibleTapeGradientTypes
from tensorflow.python.util import dispatch
from tensorflow.python.util.tf_export import tf_export

from qatfast import _raw_ops
from qatfast._raw_ops import FAKE_QUANT, LSQ_SYMMETRIC, LSQ_UNIFORM
from qatfast._tracing import is_traced_for_xla
from qatfast._validation import (
    check_attributes,
    check_bool,
    check_not_negative,
    check_positive,
    convert_input,
    convert_parameter,
)

__all__ = ["fake_quant", "lsq_symmetric", "lsq_uniform"]

_native = _raw_ops.native


def _becomes_a_keras_layer(function):
    """Has Keras 2 make a layer of a call on its symbolic tensors, which it saves by the function's name.

    As `tf.__internal__.dispatch.add_dispatch_support` does, but at no cost to a call on tensors.
    """

    def call(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except (TypeError, ValueError):
            result = dispatch.dispatch(decorated, args, kwargs)
            if result is dispatch.OpDispatcher.NOT_SUPPORTED:
                raise
            return result

    dispatch.add_fallback_dispatch_list(call)
    decorated = tf.__internal__.decorator.make_decorator(function, call)
    return tf_export(f"qatfast.ops.{function.__name__}")(decorated)


@_becomes_a_keras_layer
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
    return _quantize(FAKE_QUANT, x, {"min": min, "max": max}, axis, attributes, name)


@_becomes_a_keras_layer
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
    return _quantize(LSQ_SYMMETRIC, x, {"threshold": threshold}, axis, attributes, name)


@_becomes_a_keras_layer
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
    return _quantize(LSQ_UNIFORM, x, {"min": min, "max": max}, axis, attributes, name)


def _quantize(family, x, parameters, axis, attributes, name):
    if _native is None or is_traced_for_xla():
        return family.reference(x, *parameters.values(), axis=axis, name=name, **attributes)
    if tf.executing_eagerly():
        return _quantize_eagerly(family, x, parameters, axis, attributes)
    with tf.name_scope(name or family.name):
        x = convert_input(family.name, x)
        tensors = [convert_parameter(family.name, key, value, x, axis) for key, value in parameters.items()]
        save_mask = _is_watched([x]) and not _is_watched(tensors)
        return _forward(family)(x, *tensors, save_mask=save_mask, **_raw_attributes(axis, attributes))[0]


def _quantize_eagerly(family, x, parameters, axis, attributes):
    # Without a tape, what Python does per call counts: it takes longer than to quantize a small tensor.
    is_recorded = record.could_possibly_record()
    x = convert_input(family.name, x)
    tensors = []
    for key, value in parameters.items():
        tensors.append(convert_parameter(family.name, key, value, x, axis, read_variable=is_recorded))
    attributes = _raw_attributes(axis, attributes)
    parameters_wanted = is_recorded and _is_watched(tensors)
    if not parameters_wanted and not (is_recorded and _is_watched([x])):
        return _forward(family)(x, *tensors, **attributes)[0]

    @tf.custom_gradient
    def quantize(x, *tensors):
        with record.stop_recording():  # else the tape would record the op too, and keep all its inputs
            y, mask = _forward(family)(x, *tensors, save_mask=not parameters_wanted, **attributes)
        if parameters_wanted:
            return y, lambda grad_y: _raw_ops.gradients(family, True, grad_y, x, tensors, None, attributes)
        # The tape keeps this function, so it must not refer to x.
        return y, lambda grad_y: [_native.qatfast_straight_through_grad(grad_y, mask), *[None] * len(parameters)]

    return quantize(x, *tensors)


def _forward(family):
    return getattr(_native, family.forward)


def _raw_attributes(axis, attributes):
    return attributes if axis is None else {**attributes, "per_channel": True, "axis": axis}


def _is_watched(tensors):
    """Whether a tape, or an accumulator of forward mode, may ask for a derivative with respect to one of `tensors`."""
    return bool(PossibleTapeGradientTypes(tensors))
