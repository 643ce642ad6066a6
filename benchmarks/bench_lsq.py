"""lsq_symmetric and lsq_uniform against MCT's functions, or their formulas, and a parallel memcpy of the same tensor.

Backward computes the gradients to x and to the parameters.
"""

from cases import op_cases
from harness import measure_op


def cases(settings):
    """What to measure."""
    return op_cases(("lsq_symmetric", "lsq_uniform"), settings)


def test_lsq(benchmark, case, direction, settings):
    measure_op(benchmark, case, direction, settings)
