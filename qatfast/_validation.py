"""Checks of the arguments of the ops, shared by the native ops and the reference.

Everything that is known when the op is called (or traced) is checked here and raises `ValueError` or
`TypeError`; what is known only when it runs is checked by the op itself.
"""

import numbers

import numpy as np
import tensorflow as tf

_FLOAT32_MAX = float(np.finfo(np.float32).max)

# The types of x, and of its parameters: what the ops compute in.
PARAMETER_DTYPES = {
    tf.float32: tf.float32,
    tf.float16: tf.float32,
    tf.bfloat16: tf.float32,
    tf.float64: tf.float64,
}
_INPUT_DTYPES = ", ".join(dtype.name for dtype in PARAMETER_DTYPES)


def check_attributes(op: str, *, num_bits: int, axis) -> None:
    """Raises ValueError unless `num_bits` is an integer from 2 to 16 and `axis` is None or an integer."""
    if not _is_integer(num_bits) or not 2 <= num_bits <= 16:
        raise ValueError(f"{op}: num_bits must be an integer from 2 to 16, got {num_bits!r}")
    if axis is not None and not _is_integer(axis):
        raise ValueError(f"{op}: axis must be None (per tensor) or an integer, got {axis!r}")


def _is_integer(value) -> bool:
    return type(value) is int or (isinstance(value, numbers.Integral) and not isinstance(value, bool))


def check_bool(op: str, argument: str, value) -> None:
    """Raises ValueError unless `value` is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{op}: {argument} must be True or False, got {value!r}")


def check_positive(op: str, argument: str, value) -> None:
    """Raises ValueError unless `value` is a positive finite number of float32, as which the op gets it."""
    if not _is_finite_number(value) or not np.float32(value) > 0:
        raise ValueError(f"{op}: {argument} must be a positive finite number, got {value!r}")


def check_not_negative(op: str, argument: str, value) -> None:
    """Raises ValueError unless `value` is a finite number of float32 of at least 0, and 0 only if it is 0."""
    if not _is_finite_number(value) or value < 0 or (value > 0 and np.float32(value) == 0):
        raise ValueError(f"{op}: {argument} must be a finite number >= 0, got {value!r}")


def _is_finite_number(value) -> bool:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    return abs(value) <= _FLOAT32_MAX  # NaN is not


def convert_input(op: str, x) -> tf.Tensor:
    """Returns `x` as a tensor; raises TypeError unless it is a dense one of a floating-point type that the op takes."""
    if not isinstance(x, tf.Tensor):
        x = _to_tensor(op, "x", x)
    if x.dtype not in PARAMETER_DTYPES:
        raise TypeError(f"{op}: x must be {_INPUT_DTYPES}, got {x.dtype.name}")
    return x


def _to_tensor(op, argument, value, dtype=None):
    """Returns a value that is no tensor as one, of `dtype` if that is given; what makes no tensor is a TypeError.

    So is a symbolic tensor of Keras. TensorFlow then has Keras 2 make a layer of the call; in Keras 3 the user does.
    """
    is_symbolic = any(cls.__name__ == "KerasTensor" for cls in type(value).__mro__)
    advice = "; call the op in the call() of a layer of your own" if is_symbolic else ""
    requirement = f"a dense tensor of {_INPUT_DTYPES}" if dtype is None else f"numbers, or a tensor of {dtype.name}"
    error = TypeError(f"{op}: {argument} must be {requirement}, got {_describe(value)}{advice}")
    is_composite = isinstance(value, tf.__internal__.CompositeTensor) and not isinstance(value, tf.Variable)
    # TensorFlow would take these for numbers: objects and dates without looking, complex ones without their imaginary
    # part.
    is_other = isinstance(value, (numbers.Number, np.ndarray, np.generic)) and not _is_of_numbers(np.asarray(value))
    if is_symbolic or is_composite or (is_other and dtype is not None):
        raise error
    try:
        return tf.convert_to_tensor(value, dtype)
    except (TypeError, ValueError):
        raise error from None


def _is_of_numbers(array):
    try:
        dtype = tf.as_dtype(array.dtype)
    except TypeError:
        return False
    return dtype.is_floating or dtype.is_integer


def _describe(value):
    if value is None or isinstance(value, (bool, numbers.Number, str, bytes)):
        return repr(value)
    dtype = getattr(value, "dtype", None)
    return type(value).__name__ + ("" if dtype is None else f" of {getattr(dtype, 'name', dtype)}")


def convert_parameter(op: str, argument: str, value, x: tf.Tensor, axis, *, read_variable: bool = True):
    """Returns a quantization parameter as a tensor of the type that goes with x, its static shape checked.

    Numbers and NumPy arrays are converted; a tensor or variable must have the type already, since a gradient flows
    back to it. Runs for every parameter of every op in eager mode, so it asks cheap questions first.

    Args:
        op: Name of the op.
        argument: Name of the parameter.
        value: The parameter.
        x: What it quantizes.
        axis: The channel axis of x, or None.
        read_variable: Whether to read a variable, which is then recorded by tapes; else it is returned as it is, since
            an op reads it faster than Python does.

    Raises:
        TypeError: a tensor or variable of another type, or something that holds no numbers.
        ValueError: `axis` is not one of x's, or the parameter's shape is neither `[]` (axis None) nor
            `[x.shape[axis]]`.
    """
    wanted = PARAMETER_DTYPES[x.dtype]
    is_variable = isinstance(value, tf.Variable)
    if is_variable or isinstance(value, tf.Tensor):
        dtype = value.dtype
        if dtype is not wanted and dtype != wanted:
            why = " for a float64 x" if wanted == tf.float64 else ""
            raise TypeError(f"{op}: {argument} must be {wanted.name}{why}, got {dtype.name}")
    if is_variable:
        value = tf.convert_to_tensor(value) if read_variable else value
    elif not isinstance(value, tf.Tensor):
        value = tf.convert_to_tensor(value, wanted) if type(value) is float else _to_tensor(op, argument, value, wanted)
    shape = value.shape
    rank = shape.rank
    if axis is None:
        if rank:
            raise ValueError(f"{op}: {argument} must be a scalar when axis is None, got shape {shape}")
        return value
    x_rank = x.shape.rank
    if x_rank is not None and not -x_rank <= axis < x_rank:
        raise ValueError(f"{op}: axis must be in [{-x_rank}, {x_rank}) for x of shape {x.shape}, got {axis}")
    channels = None if x_rank is None else x.shape[axis]
    if rank is not None and (rank != 1 or (channels is not None and shape[0] not in (None, channels))):
        wanted_shape = "of rank 1" if channels is None else f"of shape ({channels},)"
        raise ValueError(
            f"{op}: {argument} must be {wanted_shape} for axis {axis} of x of shape {x.shape}, got shape {shape}"
        )
    return value
