"""Ranges that training and the exported quantizer share, bit for bit.

A trained quantizer keeps its range in float32 variables. An inferable quantizer of mct-quantizers gets Python floats,
moves the range so that zero is on the grid, in float64, and hands it to TensorFlow's op, which rounds it to float32.
It keeps the moved range in its config, so loading it moves the range again. The ranges made here come out of all this
as they went in.
"""

import numpy as np
from mct_quantizers.common.quant_utils import adjust_range_to_include_zero

__all__ = ["exportable_threshold", "exportable_uniform_range", "power_of_two_threshold", "symmetric_range"]

_ROUNDS_TO_SETTLE = 3
_MAX_ROUNDS = 16
_RELOADS = 4
_EIGHTHS_OF_ULP = sorted(range(-4, 5), key=abs)


def symmetric_range(threshold: np.ndarray, num_bits: int, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ends of the grid of step `threshold / 2^(num_bits - signed)` below `threshold`.

    For a threshold of at most 27 bits, as a float32 number is, and at most 16 bits of grid, every number that the
    inferable quantizer computes is a multiple of the threshold by an integer of at most 17 bits, over a power of two.
    That is exact in float64, so zero is on the grid already and only the final rounding to float32 remains, which is
    this function's own.

    Args:
        threshold: float32 array, or float64 of at most 27 bits.
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

    That quantizer divides the float32 width of its range, which is rounded to make the step of it. The threshold that
    is the step's multiple gives the step back for 75 % of thresholds (signed, 8 bits), one within half a float32
    number of it for 97 %, and for a power of two always. Where none does, the exported step is the next float32 number.

    Args:
        step: Steps, any shape, positive normal float32 numbers.
        num_bits: Number of bits, 2 to 16.
        signed: Whether the grid reaches down to -threshold.

    Returns:
        float64, of the same shape, of at most 27 bits: `symmetric_range` is what the inferable quantizer makes of it.
    """
    threshold = np.asarray(step, np.float64) * 2.0 ** (num_bits - signed)
    eighth_of_ulp = np.spacing(threshold.astype(np.float32)).astype(np.float64) / 8
    chosen, found = threshold, np.zeros(threshold.shape, bool)
    for eighths in _EIGHTHS_OF_ULP:
        candidate = threshold + eighths * eighth_of_ulp
        lower, upper = symmetric_range(candidate, num_bits, signed)
        fits = (upper - lower) / np.float32(2**num_bits - 1) == step
        chosen = np.where(fits & ~found, candidate, chosen)
        found |= fits
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
