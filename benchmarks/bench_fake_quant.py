"""fake_quant against TensorFlow's op, its formulas, PyTorch's op and a parallel memcpy of the same tensor."""

from cases import op_cases
from harness import measure_op


def cases(settings):
    """What to measure."""
    return op_cases(("fake_quant",), settings)


def test_fake_quant(benchmark, case, direction, settings):
    measure_op(benchmark, case, direction, settings)
