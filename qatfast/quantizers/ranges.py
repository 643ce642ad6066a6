"""Ranges that training and the exported quantizer share, bit for bit.

A trained quantizer keeps its range in float32 variables. An inferable quantizer of mct-quantizers gets Python floats,
moves the range so that zero is on the grid, in float64, and hands it to TensorFlow's op, which rounds it to float32.
It keeps the moved range in its config, so loading it moves the range again. The ranges made here come out of all this
as they went in.
"""

import numpy as np
from mct_quantizers.common.quant_utils import adjust_range_to_include_zero

__all__ = [
    "exportable_grid",
    "exportable_step",
    "exportable_threshold",
    "exportable_uniform_range",
    "power_of_two_threshold",
    "symmetric_range",
]

_ROUNDS_TO_SETTLE = 3
_MAX_ROUNDS = 16
_RELOADS = 4
# In 64ths of a float32 number, up to half of one: coarse ones first, each from the middle.
_STEP_OFFSETS = sorted(range(-32, 33), key=lambda offset: (offset % 8 != 0, abs(offset)))


def symmetric_range(threshold: np.ndarray, num_bits: int, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ends of the grid of step `threshold / 2^(num_bits - signed)` below `threshold`.

    For a threshold of at most 30 bits, as a float32 number is, and at most 16 bits of grid, every number that the
    inferable quantizer computes is a multiple of the threshold by an integer of at most 17 bits, over a power of two.
    That is exact in float64, so zero is on the grid already and only the final rounding to float32 remains, which is
    this function's own.

    Args:
        threshold: float32 array, or float64 of at most 30 bits.
        num_bits: Number of bits, 2 to 16.
        signed: Whether the grid reaches down to -threshold; otherwise it starts at 0.

    Returns:
        min and max, float32, of the threshold's shape.
    """
    exact = np.asarray(threshold, np.float64)
    top = exact - exact / 2.0 ** (num_bits - signed)
    bottom = -exact if signed else np.zeros_like(exact)
    return bottom.astype(np.float32), top.astype(np.float32)


def power_of_two_threshold(threshold: np.ndarray, min_threshold: float) -> np.ndarray:
    """Returns the smallest power of two that is at least `threshold` and `min_threshold`, as float32."""
    mantissa, exponent = np.frexp(np.maximum(np.asarray(threshold, np.float64), min_threshold))
    return np.ldexp(1.0, np.where(mantissa == 0.5, exponent - 1, exponent)).astype(np.float32)


def exportable_threshold(step: np.ndarray, num_bits: int, signed: bool) -> np.ndarray:
    """Returns the threshold with which the inferable quantizer's step is `step`.

    See `exportable_step`: the step comes back for 97 % of thresholds (signed, 8 bits), and for powers of two always.

    Args:
        step: Steps, any shape, positive normal float32 numbers.
        num_bits: Number of bits, 2 to 16.
        signed: Whether the grid reaches down to -threshold.

    Returns:
        float64, of the same shape, of at most 30 bits: `symmetric_range` is what the inferable quantizer makes of it.
    """
    levels = 2 ** (num_bits - signed)
    return exportable_step(step, -levels if signed else 0, num_bits) * levels


def exportable_grid(step: np.ndarray, lowest: np.ndarray, num_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ends of a range from which the inferable quantizer makes the grid `step * (lowest .. lowest + n)`.

    The integers, n = 2^num_bits - 1 above the lowest, are always the same. The step is as `exportable_step` says.

    Args:
        step: Steps, any shape, positive normal float32 numbers.
        lowest: Minus the zero point: integers from -n to 0, of the same shape.
        num_bits: Number of bits, 2 to 16.

    Returns:
        min and max, float64, of the same shape: multiples of a number of at most 30 bits, which the inferable
        quantizer's arithmetic keeps exactly, however often it is saved and loaded.

    Raises:
        ValueError: An end is no number of float32.
    """
    lowest = np.asarray(lowest, np.float64)
    highest = lowest + (2**num_bits - 1)
    if np.any(np.maximum(-lowest, highest) * step > np.finfo(np.float32).max * (1 - 2.0**-22)):
        raise ValueError(
            f"the grid must be representable in float32 with {num_bits} bits, got {lowest} to {highest} times {step}"
        )
    exact = exportable_step(step, lowest, num_bits)
    return exact * lowest + 0.0, exact * highest + 0.0  # + 0: no negative zero


def exportable_step(step: np.ndarray, lowest: np.ndarray, num_bits: int) -> np.ndarray:
    """Returns the step, in more bits than float32 has, of which the inferable quantizer makes `step`.

    That quantizer rounds the ends of its range, which are `lowest` and `lowest + n` such steps, to float32, subtracts
    them, and divides by n, rounding each time. From the step itself the step comes back for 79 % of trained ranges (8
    bits), from some number within half a float32 number of it for 97 % (2 bits: 99.8 %). Where it does from none, its
    float32 neighbour comes.

    Args:
        step: Steps, any shape, positive normal float32 numbers.
        lowest: The integer that the grid starts from, from -n to 0, where n = 2^num_bits - 1.
        num_bits: Number of bits, 2 to 16.

    Returns:
        float64, of the same shape, of at most 30 bits.
    """
    n = 2**num_bits - 1
    exact = np.asarray(step, np.float64)
    unit = np.spacing(exact.astype(np.float32)).astype(np.float64) / 64
    chosen, found = exact, np.zeros(exact.shape, bool)
    for offset in _STEP_OFFSETS:
        candidate = exact + offset * unit
        lower, upper = ((candidate * end).astype(np.float32) for end in (lowest, lowest + n))
        fits = (upper - lower) / np.float32(n) == step
        chosen = np.where(fits & ~found, candidate, chosen)
        found |= fits
        if found.all():
            break
    return chosen


def exportable_uniform_range(min: np.ndarray, max: np.ndarray, num_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the float32 range next to [min, max] that export and reloading leave as it is.

    A range that does not hold zero is stretched to it. The others move by less than one step of their grid. A range
    that this function returned is returned unchanged.

    Args:
        min: Lower ends, any shape, finite.
        max: Upper ends, of the same shape, finite and greater than `min`.
        num_bits: Number of bits, 2 to 16.

    Returns:
        min and max, float32, of the same shape.

    Raises:
        ValueError: A range is too narrow or too wide for float32.
    """
    lower = np.minimum(np.asarray(min, np.float32), np.float32(0))
    upper = np.maximum(np.asarray(max, np.float32), np.float32(0))
    for round_number in range(_MAX_ROUNDS):
        moves = ~_survives_export(lower, upper, num_bits)
        if not moves.any():
            return lower, upper
        snapped_lower, snapped_upper = _adjust(lower, upper, num_bits)
        if round_number >= _ROUNDS_TO_SETTLE:
            ulps = 2 ** (round_number - _ROUNDS_TO_SETTLE)
            snapped_lower, snapped_upper = _widen(snapped_lower, snapped_upper, num_bits, ulps)
        lower, upper = np.where(moves, snapped_lower, lower), np.where(moves, snapped_upper, upper)
    raise ValueError(f"the uniform range must be representable in float32 with {num_bits} bits, got {min} to {max}")


def _survives_export(lower, upper, num_bits):
    """Whether the range stays the same in float32 however often the inferable quantizer is saved and loaded."""
    adjusted_lower, adjusted_upper = lower.astype(np.float64), upper.astype(np.float64)
    survives = np.ones(lower.shape, bool)
    for _ in range(1 + _RELOADS):
        adjusted_lower, adjusted_upper = adjust_range_to_include_zero(adjusted_lower, adjusted_upper, num_bits)
        survives &= (adjusted_lower.astype(np.float32) == lower) & (adjusted_upper.astype(np.float32) == upper)
    return survives


def _adjust(lower, upper, num_bits):
    adjusted = adjust_range_to_include_zero(lower.astype(np.float64), upper.astype(np.float64), num_bits)
    return tuple(end.astype(np.float32) + np.float32(0) for end in adjusted)  # + 0: no negative zero


def _widen(lower, upper, num_bits, ulps):
    """Moves the farther end out by some float32 numbers, for the few ranges that do not settle by themselves.

    One end of those is zero but for the rounding of float64 (`max - min + scale * round(min / scale)` is then a unit
    in the last place of min), or lies on the boundary of two float32 numbers. Neighbours share the fault, so `ulps`
    grows from round to round.
    """
    half_step = (upper - lower) / np.float32(2 * (2**num_bits - 1))
    lower = np.where(-lower < half_step, np.float32(0), lower)
    upper = np.where(upper < half_step, np.float32(0), upper)
    down = -lower > upper
    wider_lower = lower - np.spacing(np.abs(lower)) * np.float32(ulps)
    wider_upper = upper + np.spacing(upper) * np.float32(ulps)
    return np.where(down, wider_lower, lower), np.where(down, upper, wider_upper)
