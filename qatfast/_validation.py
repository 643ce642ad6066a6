"""Checks of the arguments of the ops, shared by the native ops and the reference.

Everything that is known when the op is called (or traced) is checked here and raises `ValueError` or
`TypeError`; what is known only when it runs is checked by the op itself.
"""

import math
import numbers

import numpy as np
import tensorflow as tf

INPUT_DTYPES = (tf.float32, tf.float16, tf.bfloat16, tf.float64)


def check_attributes(op: str, *, num_bits: int, axis) -> None:
    """Raises ValueError unless `num_bits` is an integer from 2 to 16 and `axis` is None or an integer."""
    if not isinstance(num_bits, numbers.Integral) or isinstance(num_bits, bool) or not 2 <= num_bits <= 16:
        raise ValueError(f"{op}: num_bits must be an integer from 2 to 16, got {num_bits!r}")
    if axis is not None and (not isinstance(axis, numbers.Integral) or isinstance(axis, bool)):
        raise ValueError(f"{op}: axis must be None (per tensor) or an integer, got {axis!r}")


def check_bool(op: str, argument: str, value) -> None:
    """Raises ValueError unless `value` is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{op}: {argument} must be True or False, got {value!r}")


def check_positive(op: str, argument: str, value) -> None:
    """Raises ValueError unless `value` is a positive finite number."""
    if not _is_finite_number(value) or value <= 0:
        raise ValueError(f"{op}: {argument} must be a positive finite number, got {value!r}")


def check_not_negative(op: str, argument: str, value) -> None:
    """Raises ValueError unless `value` is a finite number of at least 0."""
    if not _is_finite_number(value) or value < 0:
        raise ValueError(f"{op}: {argument} must be a finite number >= 0, got {value!r}")


def _is_finite_number(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def parameter_dtype(x: tf.Tensor) -> tf.DType:
    """The type of the quantization parameters of `x`, in which the ops compute: float64 for float64, else float32."""
    return tf.float64 if x.dtype == tf.float64 else tf.float32


def convert_input(op: str, x) -> tf.Tensor:
    """Returns `x` as a tensor; raises TypeError unless it is of a floating-point type that the op takes."""
    x = tf.convert_to_tensor(x)
    if x.dtype not in INPUT_DTYPES:
        allowed = ", ".join(dtype.name for dtype in INPUT_DTYPES)
        raise TypeError(f"{op}: x must be {allowed}, got {x.dtype.name}")
    return x


def convert_parameter(op: str, argument: str, value, x: tf.Tensor, axis) -> tf.Tensor:
    """Returns a quantization parameter as a tensor of `parameter_dtype(x)`, its static shape checked.

    Numbers and NumPy arrays are converted; a tensor or variable must have the type already, since a gradient flows
    back to it.

    Raises:
        TypeError: a tensor or variable of another type.
        ValueError: `axis` is not one of x's, or the parameter's shape is neither `[]` (axis None) nor
            `[x.shape[axis]]`.
    """
    wanted = parameter_dtype(x)
    if tf.is_tensor(value) and value.dtype != wanted:
        why = " for a float64 x" if wanted == tf.float64 else ""
        raise TypeError(f"{op}: {argument} must be {wanted.name}{why}, got {value.dtype.name}")
    value = tf.convert_to_tensor(value, wanted)
    if axis is None:
        if value.shape.rank not in (None, 0):
            raise ValueError(f"{op}: {argument} must be a scalar when axis is None, got shape {value.shape}")
        return value
    rank = x.shape.rank
    if rank is not None and not -rank <= axis < rank:
        raise ValueError(f"{op}: axis must be in [{-rank}, {rank}) for x of shape {x.shape}, got {axis}")
    channels = None if rank is None else x.shape[axis]
    if not value.shape.is_compatible_with([channels]):
        wanted_shape = "of rank 1" if channels is None else f"of shape ({channels},)"
        raise ValueError(
            f"{op}: {argument} must be {wanted_shape} for axis {axis} of x of shape {x.shape}, got shape {value.shape}"
        )
    return value
