"""Holds what is about to be timed against the reference: a fast wrong answer has no time."""

import math

import numpy as np
import tensorflow as tf

from qatfast.benchmark.implementations import REFERENCE
from qatfast.benchmark.op_case import FORWARD, OpCase, make_run

# A sum in another order and type: how far off, relative to itself and to the absolute values that it adds up, and what
# part of the channels may be further off. A range whose end lies between two steps may go to the other in a formula.
OUR_SUMS = (2.0**-22, 1e-12, 0.0)
OTHER_SUMS = (1e-2, 1e-5, 5e-3)
# Another implementation may differ by rounding of values near 1, and by a step at ties and borders: a few elements.
ROUNDING = 1e-5
BORDERLINE = 1e-3


def expected(case: OpCase, direction: str, dtype: tf.DType) -> tuple:
    """What the reference computes."""
    return make_run(case, REFERENCE, direction, dtype)()


def check_ours(case: OpCase, direction: str, actual: tuple, reference: tuple) -> None:
    """Holds ours to every bit of the tensor, and to its sums as far as one rounding goes.

    Raises:
        ValueError: Ours is wrong.
    """
    tensor, right = actual[0].numpy(), reference[0].numpy()
    bits = f"u{tensor.dtype.itemsize}"
    different = tensor.view(bits) != right.view(bits)
    if different.any():
        worst = tuple(np.argwhere(different)[0])
        _fail(case, direction, "ours", f"{right[worst]!r} at {worst}", f"{tensor[worst]!r}", different.mean())
    _check_sums(case, direction, "ours", actual[1:], reference[1:], *OUR_SUMS)


def check_other(case: OpCase, direction: str, name: str, actual: tuple, reference: tuple) -> None:
    """Holds another implementation, of float32, to the same results, within a step of the grid at ties and borders.

    Raises:
        ValueError: It computes something else, so that its time means nothing.
    """
    off = tf.abs(actual[0] - reference[0])
    if direction == FORWARD:
        step, farthest = 5.0 / (2**case.num_bits - 1), float(tf.reduce_max(off))  # of the widest range of `OpCase`
        if not farthest <= 1.01 * step:
            _fail(case, direction, name, "within one step of the reference", f"off by {farthest}", 1.0)
    wrong = 1.0 - tf.math.count_nonzero(off <= ROUNDING).numpy() / math.prod(case.shape)
    if wrong > BORDERLINE:
        _fail(case, direction, name, f"the reference's values but for {BORDERLINE:.2%}", "others", wrong)
    _check_sums(case, direction, name, actual[1:], reference[1:], *OTHER_SUMS)


def _check_sums(case, direction, name, actual, reference, relative, of_magnitude, part_off):
    for value, right in zip(actual, reference, strict=True):
        value, right = np.asarray(value, np.float64), np.asarray(right, np.float64)
        off = np.abs(value - right)
        allowed = relative * np.abs(right) + of_magnitude * case.sum_magnitude
        part = np.mean(~(off <= allowed))
        if part > part_off:
            worst = np.unravel_index(np.argmax(off - allowed), off.shape)
            _fail(case, direction, name, f"a sum of {right[worst]!r} at {worst}", f"{value[worst]!r}", part)


def _fail(case, direction, name, wanted, got, part):
    raise ValueError(
        f"{name}: {case.op} {direction} of {list(case.shape)}, axis {case.axis}, must be {wanted}, got {got} "
        f"({part:.3%} of the elements are wrong)"
    )
