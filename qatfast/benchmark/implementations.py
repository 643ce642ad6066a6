"""Other ways to compute the ops of `qatfast.ops`, under the same names and signatures.

- `STOCK`: TensorFlow's own op, called as MCT calls it. There is one for `fake_quant` only.
- `KERAS`: Keras 3's own function, `keras.quantizers.fake_quant_with_min_max_vars`, where Keras 3 is installed.
- `FORMULAS`: the formulas as one writes them in plain TensorFlow, with autodiff through a straight-through round. Where
  MCT is installed (TensorFlow 2.15), `lsq_symmetric` and `lsq_uniform` call MCT's own functions.
- `REFERENCE`: `qatfast.reference`, which `qatfast.ops` calls where XLA compiles.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import tensorflow as tf

from qatfast import ops, reference
from qatfast.reference.ranges import range_with_zero


@functools.cache
def _import_mct():
    """(MCT's module of LSQ functions or None, why there is none); importing it takes seconds."""
    if importlib.util.find_spec("model_compression_toolkit") is None:
        return None, "MCT is not installed"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the packages that MCT imports
            from model_compression_toolkit.trainable_infrastructure.keras import quantizer_utils
    except Exception as error:  # it raises errors of its own kinds, on TensorFlow 2.16 or on torch without torchvision
        return None, f"importing MCT raises {type(error).__name__}"
    return quantizer_utils, None


def formulas_source() -> str:
    """Whose the LSQ functions of `FORMULAS` are."""
    module, reason = _import_mct()
    return f"plain TensorFlow ({reason})" if module is None else "MCT's functions"


class Implementation(NamedTuple):
    """One way to compute the ops: functions of the signatures of `qatfast.ops`; None where there is none."""

    name: str
    fake_quant: Callable | None
    lsq_symmetric: Callable | None
    lsq_uniform: Callable | None


def stock_fake_quant(x, min, max, *, num_bits=8, narrow_range=False, axis=None, include_zero=False, name=None):
    """TensorFlow's op; the per-channel one takes channels on the last axis only, so MCT transposes x."""
    if include_zero:
        min, max = range_with_zero(min, max, tf.constant(2.0**num_bits - 1 - narrow_range))
    attributes = {"num_bits": num_bits, "narrow_range": narrow_range}
    if axis is None:
        return tf.quantization.fake_quant_with_min_max_vars(x, min, max, **attributes)
    order = list(range(len(x.shape)))
    order[axis], order[-1] = order[-1], order[axis]
    is_last = order == sorted(order)
    y = x if is_last else tf.transpose(x, order)
    y = tf.quantization.fake_quant_with_min_max_vars_per_channel(y, min, max, **attributes)
    return y if is_last else tf.transpose(y, order)


def keras_fake_quant(x, min, max, *, num_bits=8, narrow_range=False, axis=None, include_zero=False, name=None):
    """Keras 3's function, which has its channels on any axis."""
    import keras

    if include_zero:
        min, max = range_with_zero(min, max, tf.constant(2.0**num_bits - 1 - narrow_range))
    attributes = {"num_bits": num_bits, "narrow_range": narrow_range, "axis": axis}
    return keras.quantizers.fake_quant_with_min_max_vars(x, min, max, **attributes)


def _has_keras_3():
    try:
        return int(importlib.metadata.version("keras").split(".")[0]) >= 3
    except importlib.metadata.PackageNotFoundError:
        return False


def fake_quant_formulas(x, min, max, *, num_bits=8, narrow_range=False, axis=None, include_zero=False, name=None):
    """Straight-through fake quantization, composed; the zero point is nudged as TensorFlow's op does it."""
    if include_zero:
        min, max = range_with_zero(min, max, tf.constant(2.0**num_bits - 1 - narrow_range))
    min, max = _along_axis(min, x, axis), _along_axis(max, x, axis)
    quant_min, quant_max = float(narrow_range), 2.0**num_bits - 1
    scale = (max - min) / (quant_max - quant_min)
    zero_point = tf.clip_by_value(tf.round(quant_min - min / scale), quant_min, quant_max)
    nudged_min, nudged_max = (quant_min - zero_point) * scale, (quant_max - zero_point) * scale
    clipped = tf.minimum(tf.maximum(x, nudged_min), nudged_max)
    return _straight_through_round((clipped - nudged_min) / scale) * scale + nudged_min


def lsq_symmetric_formulas(
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
    """MCT's `symmetric_lsq_quantizer`, or its formula; MCT knows no guard and no power of two, which come before it."""
    threshold = tf.convert_to_tensor(threshold)
    if min_threshold > 0:
        threshold += tf.stop_gradient(tf.maximum(threshold, min_threshold) - threshold)
    if power_of_two:
        exponent = tf.math.log(threshold) / tf.math.log(2.0)
        threshold = 2.0 ** (exponent + tf.stop_gradient(tf.math.ceil(exponent) - exponent))
    threshold = _along_axis(threshold, x, axis)
    steps = 2 ** (num_bits - int(signed))
    min_int, max_int = -steps if signed else 0, steps - 1
    if (mct := _import_mct()[0]) is not None:
        return mct.symmetric_lsq_quantizer(x, threshold, num_bits, signed, min_int, max_int, grad_scale)
    step = _scale_gradient(threshold / steps, grad_scale)
    return step * tf.minimum(tf.maximum(_straight_through_round(x / step), min_int), max_int)


def lsq_uniform_formulas(x, min, max, *, num_bits=8, grad_scale=1.0, axis=None, min_width=0.0, name=None):
    """MCT's `uniform_lsq_quantizer`, or its formula; MCT knows no guard, which comes before it."""
    min, max = tf.convert_to_tensor(min), tf.convert_to_tensor(max)
    if min_width > 0:
        middle, is_narrow = 0.5 * min + 0.5 * max, max - min < min_width
        min += tf.stop_gradient(tf.where(is_narrow, middle - 0.5 * min_width - min, tf.zeros_like(min)))
        max += tf.stop_gradient(tf.where(is_narrow, middle + 0.5 * min_width - max, tf.zeros_like(max)))
    min, max = _along_axis(min, x, axis), _along_axis(max, x, axis)
    max_int = 2**num_bits - 1
    if (mct := _import_mct()[0]) is not None:
        return mct.uniform_lsq_quantizer(x, min, max, num_bits, 0, max_int, grad_scale)
    min, max = range_with_zero(min, max, tf.constant(float(max_int)))
    step = _scale_gradient((max - min) / max_int, grad_scale)
    return step * tf.minimum(tf.maximum(_straight_through_round((x - min) / step), 0), max_int) + min


def _along_axis(parameter, x, axis):
    """Reshapes a [channels] parameter to broadcast along `axis` of x; a scalar stays."""
    if axis is None:
        return parameter
    return tf.reshape(parameter, [-1 if i == axis % len(x.shape) else 1 for i in range(len(x.shape))])


def _straight_through_round(value):
    return value + tf.stop_gradient(tf.round(value) - value)


def _scale_gradient(value, scale):
    """`value` forward, `scale` times its gradient backward."""
    return scale * value + tf.stop_gradient(value - scale * value)


def _of(module, name):
    functions = (getattr(module, op, None) for op in ("fake_quant", "lsq_symmetric", "lsq_uniform"))
    return Implementation(name, *functions)


OURS = _of(ops, "ours")
REFERENCE = _of(reference, "reference")
STOCK = Implementation("stock", stock_fake_quant, None, None)
KERAS = Implementation("keras", keras_fake_quant if _has_keras_3() else None, None, None)
FORMULAS = Implementation("formulas", fake_quant_formulas, lsq_symmetric_formulas, lsq_uniform_formulas)


@contextlib.contextmanager
def computed_by(implementation: Implementation) -> Iterator[None]:
    """Within it, qatfast's quantizers call another implementation: the same model, of which only the op differs.

    It is the tracing of a `tf.function` that has to happen within.

    Raises:
        RuntimeError: No quantizer called an op, so that another implementation would have been timed than the one
            named.
    """
    calls = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            return function(*args, **kwargs)

        return call

    originals = {op: getattr(ops, op) for op in Implementation._fields[1:] if getattr(implementation, op) is not None}
    try:
        for op in originals:
            setattr(ops, op, counted(getattr(implementation, op)))
        yield
    finally:
        for op, original in originals.items():
            setattr(ops, op, original)
    if not calls:
        raise RuntimeError(f"no quantizer called an op of {implementation.name} while a model was traced")
