"""Checks of the arguments of the ops, shared by the native ops and the reference.

Everything that is known when the op is called (or traced) is checked here and raises `ValueError` or
`TypeError`; what is known only when it runs is checked by the op itself.
"""

import numbers

import tensorflow as tf

INPUT_DTYPES = (tf.float32,)


def check_attributes(op: str, *, num_bits: int, axis) -> None:
    """Raises ValueError unless `num_bits` is an integer from 2 to 16 and `axis` is None or an integer."""
    if not isinstance(num_bits, numbers.Integral) or isinstance(num_bits, bool) or not 2 <= num_bits <= 16:
        raise ValueError(f"{op}: num_bits must be an integer from 2 to 16, got {num_bits!r}")
    if axis is not None and (not isinstance(axis, numbers.Integral) or isinstance(axis, bool)):
        raise ValueError(f"{op}: axis must be None (per tensor) or an integer, got {axis!r}")


def convert_input(op: str, x) -> tf.Tensor:
    """Returns `x` as a tensor; raises TypeError unless it is of a floating-point type that the op takes."""
    x = tf.convert_to_tensor(x)
    if x.dtype not in INPUT_DTYPES:
        allowed = ", ".join(dtype.name for dtype in INPUT_DTYPES)
        raise TypeError(f"{op}: x must be {allowed}, got {x.dtype.name}")
    return x


def convert_parameter(op: str, argument: str, value, x: tf.Tensor, axis) -> tf.Tensor:
    """Returns a quantization parameter as a float32 tensor, its static shape checked against `x` and `axis`.

    Raises:
        TypeError: a tensor of another type than float32.
        ValueError: `axis` is not one of x's, or the parameter's shape is neither `[]` (axis None) nor
            `[x.shape[axis]]`.
    """
    dtype = getattr(value, "dtype", None)
    if tf.is_tensor(value) and dtype != tf.float32:
        raise TypeError(f"{op}: {argument} must be float32, got {dtype.name}")
    value = tf.convert_to_tensor(value, tf.float32)
    if axis is None:
        if value.shape.rank not in (None, 0):
            raise ValueError(f"{op}: {argument} must be a scalar when axis is None, got shape {value.shape}")
        return value
    rank = x.shape.rank
    if rank is not None and not -rank <= axis < rank:
        raise ValueError(f"{op}: axis must be in [{-rank}, {rank}) for x of shape {x.shape}, got {axis}")
    channels = None if rank is None else x.shape[axis]
    if not value.shape.is_compatible_with([channels]):
        wanted = "of rank 1" if channels is None else f"of shape ({channels},)"
        raise ValueError(
            f"{op}: {argument} must be {wanted} for axis {axis} of x of shape {x.shape}, got shape {value.shape}"
        )
    return value
