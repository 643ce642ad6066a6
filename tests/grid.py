"""One grid of inputs for all ops, and what results are held to."""

import numpy as np

# Shapes with a channel axis (None: per tensor): each regime of the kernels, the borders between them (tiles are 2048
# wide, runs are 64 long at least), lengths that no vector width divides, size-one axes, and nothing at all.
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
    ((2, 500, 8), 1),
    ((7, 50, 9), 1),
    ((8, 50, 9), 1),
    ((700, 401), 1),
]

# Relative error of a sum of gradients, by dtype: one rounding of the exact sum, or the next number.
SUM_TOLERANCE = {np.dtype(np.float32): 2.0**-23}


def number_of_channels(shape, axis):
    """Ranges that a tensor needs: () per tensor, (channels,) per channel."""
    return () if axis is None else (shape[axis],)


def draw_ranges(rng, shape):
    """Ranges across zero, on one side of it, and some of (0, 0)."""
    middle = rng.normal(size=shape) * 1.5
    width = np.exp(rng.normal(size=shape) * 2)
    low = np.float32(middle - width)
    high = np.float32(np.maximum(middle + width, low + np.float32(1e-3)))
    is_zero = rng.random(shape) < (0.1 if np.ndim(low) else 0.0)
    return np.where(is_zero, np.float32(0), low), np.where(is_zero, np.float32(0), high)


def draw_inputs(rng, shape, min, max, num_bits, axis):
    """Values that sit where rounding and clipping are decided: on the grid, between it, at the ends and beyond.

    Also zeros of both signs, denormals, infinities and NaN.
    """
    if axis is not None:
        column = [1] * len(shape)
        column[axis] = -1
        min, max = min.reshape(column), max.reshape(column)
    step = (max.astype(np.float64) - min) / (2**num_bits - 1)
    index = rng.integers(-3, 2**num_bits + 3, size=shape)
    offset = rng.choice([0.0, 0.5, 0.499, -0.25, 1e-7], size=shape)
    x = np.asarray(min + (index + offset) * step, dtype=np.float32)
    ends = rng.random(shape)
    x = np.where(ends < 0.05, min, np.where(ends > 0.95, max, x))
    special = np.float32([0.0, -0.0, 1e-40, -1e-40, np.inf, -np.inf, np.nan, 3e38, -3e38])
    is_special = rng.random(shape) < 0.1
    return np.where(is_special, rng.choice(special, size=shape), x).astype(np.float32)


def assert_same_bits(actual, expected):
    """Equal to the last bit and the sign of zero; NaN equals NaN."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), nan)
    bits = np.dtype(f"u{actual.dtype.itemsize}")
    different = (
        (actual.view(bits) != expected.view(bits)) & ~nan
        if actual.ndim
        else np.asarray(not nan and actual.tobytes() != expected.tobytes())
    )
    if different.any():
        worst = np.argwhere(different)[0]
        raise AssertionError(
            f"{different.mean():.2%} of the elements differ, the first at {tuple(worst)}: "
            f"got {actual[tuple(worst)]!r}, expected {expected[tuple(worst)]!r}"
        )


def assert_sums_close(actual, expected, magnitude):
    """`actual` sums of one dtype against exact float64 sums, of terms whose absolute values sum to `magnitude`."""
    actual = np.asarray(actual)
    tolerance = SUM_TOLERANCE[actual.dtype] * np.abs(expected) + 1e-13 * magnitude
    assert actual.shape == expected.shape
    wrong = ~(np.abs(actual - expected) <= tolerance)
    assert not wrong.any(), f"got {actual[wrong]}, expected {expected[wrong]} within {tolerance[wrong]}"
