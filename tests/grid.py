"""One grid of inputs for all ops, and what results are held to."""

import ml_dtypes
import numpy as np

# Shapes with a channel axis (None: per tensor): each regime of the kernels, the borders between them (short rows share
# tiles 2048 wide, runs are 64 long at least, channels that come once go in chunks up to 8 long), lengths that no vector
# width divides, size-one axes, and nothing at all.
LAYOUTS = [
    ((), None),
    ((1,), None),
    ((7,), None),
    ((3, 5, 7), None),
    ((32769,), None),
    ((0,), None),
    ((0, 3), 1),
    ((3, 0), 0),
    ((2, 0, 3), 1),
    ((5,), 0),
    ((1, 1), 1),
    ((4, 1), 1),
    ((1, 13), 0),
    ((1, 13), -1),
    ((9, 31), 1),
    ((31, 9), 0),
    ((3, 3, 6, 1), 2),
    ((3, 3, 6, 2), -2),
    ((2, 3, 63), 1),
    ((2, 3, 64), 1),
    ((2, 3, 65), 1),
    ((3, 32800), 0),
    ((2, 2, 16400), 1),
    ((5, 2047), 1),
    ((5, 2048), 1),
    ((6, 2049), 1),
    ((9, 4097), -1),
    ((3, 700, 3), 1),
    ((300, 3, 5), 1),
    ((3000, 7), 0),
    ((5003,), 0),
    ((2003, 8), 0),
    ((2, 500, 8), 1),
    ((7, 50, 9), 1),
    ((8, 50, 9), 1),
    ((700, 401), 1),
]

# The types of x that the ops take, and the type that each is computed in: that of its parameters.
PARAMETER_DTYPE = {
    np.dtype(np.float32): np.dtype(np.float32),
    np.dtype(np.float16): np.dtype(np.float32),
    np.dtype(ml_dtypes.bfloat16): np.dtype(np.float32),
    np.dtype(np.float64): np.dtype(np.float64),
}

# Relative error of a sum of gradients, by dtype: one rounding of the exact sum, or the next number.
SUM_TOLERANCE = {np.dtype(np.float32): 2.0**-23, np.dtype(np.float64): 2.0**-52}
# Relative error of a product of two numbers, by dtype: one rounding.
PRODUCT_TOLERANCE = {np.dtype(np.float32): 2.0**-24, np.dtype(np.float64): 2.0**-53}


def number_of_channels(shape, axis):
    """Ranges that a tensor needs: () per tensor, (channels,) per channel."""
    return () if axis is None else (shape[axis],)


def along_axis(values, rank, axis):
    """Per-channel `values` shaped to broadcast against a tensor of `rank`; per-tensor ones as they are."""
    return values if axis is None else values.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def draw_ranges(rng, shape, dtype=np.float32, zeros=0.1):
    """Ranges across zero, on one side of it, and, per channel, a part `zeros` of them (0, 0)."""
    middle = rng.normal(size=shape) * 1.5
    width = np.exp(rng.normal(size=shape) * 2)
    low = np.asarray(middle - width, dtype)
    high = np.asarray(np.maximum(middle + width, low + dtype(1e-3)), dtype)
    is_zero = rng.random(shape) < (zeros if np.ndim(low) else 0.0)
    return np.where(is_zero, dtype(0), low), np.where(is_zero, dtype(0), high)


def draw_thresholds(rng, shape, dtype=np.float32):
    """Thresholds over some magnitudes: any number, a power of two, the next number above one, the next below."""
    any_number = np.asarray(np.exp(rng.normal(size=shape) * 2), dtype)
    power = np.exp2(np.round(np.log2(any_number))).astype(dtype)
    kinds = [any_number, power, np.nextafter(power, dtype(np.inf)), np.nextafter(power, dtype(0))]
    return np.choose(rng.integers(len(kinds), size=shape), kinds).astype(dtype)


def draw_inputs(rng, shape, min, max, num_bits, axis, dtype=np.float32):
    """Values that sit where rounding and clipping are decided: on the grid, between it, at the ends and beyond.

    Also zeros of both signs, denormals, infinities and NaN.
    """
    min, max = along_axis(min, len(shape), axis), along_axis(max, len(shape), axis)
    step = (max.astype(np.float64) - min) / (2**num_bits - 1)
    index = rng.integers(-3, 2**num_bits + 3, size=shape)
    offset = rng.choice([0.0, 0.5, 0.499, -0.25, 1e-7], size=shape)
    x = np.asarray(min + (index + offset) * step)
    ends = rng.random(shape)
    x = np.where(ends < 0.05, min, np.where(ends > 0.95, max, x))
    denormal, large = float(ml_dtypes.finfo(dtype).tiny) / 100, float(ml_dtypes.finfo(dtype).max) * 0.9
    special = np.asarray([0.0, -0.0, denormal, -denormal, np.inf, -np.inf, np.nan, large, -large])
    is_special = rng.random(shape) < 0.1
    with np.errstate(over="ignore"):
        return np.where(is_special, rng.choice(special, size=shape), x).astype(dtype)


def draw_gradients(rng, shape, dtype=np.float32):
    """Gradients of both signs, none of them near zero."""
    return np.asarray(rng.normal(size=shape) + 3 * rng.choice([-1, 1], size=shape), dtype)


def forward_and_gradients(function, x, *parameters, grad_y, **attributes):
    """y, grad_x and the gradients of the parameters as NumPy arrays."""
    import tensorflow as tf  # the rest of the grid serves where there is none

    inputs = [tf.constant(value) for value in (x, *parameters)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = function(*inputs, **attributes)
    return [value.numpy() for value in (y, *tape.gradient(y, inputs, tf.constant(grad_y)))]


def assert_same_bits(actual, expected):
    """Equal to the last bit and the sign of zero, whatever the type; NaN equals NaN."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), nan)
    bits = np.dtype(f"u{actual.dtype.itemsize}")
    different = np.asarray((actual.view(bits) != expected.view(bits)) & ~nan)
    if different.any():
        worst = tuple(np.argwhere(different)[0])
        raise AssertionError(
            f"{different.mean():.2%} of the elements differ, the first at {worst}: "
            f"got {actual[worst]!r}, expected {expected[worst]!r}"
        )


def assert_sums_close(actual, expected, magnitude, of_products=False):
    """`actual` sums of one dtype against exact float64 sums, of terms whose absolute values sum to `magnitude`.

    The sums are taken in float64. If they are sums `of_products`, each term was rounded to the dtype before. What is
    denormal counts as zero, in a term and in the result.
    """
    actual = np.asarray(actual)
    rounded_terms = PRODUCT_TOLERANCE[actual.dtype] if of_products else 0.0
    tolerance = SUM_TOLERANCE[actual.dtype] * np.abs(expected) + (rounded_terms + 1e-13) * magnitude
    tolerance = tolerance + 1e6 * np.finfo(actual.dtype).tiny
    assert actual.shape == np.shape(expected)
    wrong = ~(np.abs(actual - expected) <= tolerance)
    assert not wrong.any(), f"got {actual[wrong]}, expected {expected[wrong]} within {tolerance[wrong]}"
