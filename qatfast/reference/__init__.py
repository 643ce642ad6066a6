"""The ops in plain TensorFlow: what `qatfast.ops` computes, written to be read.

These functions have the signatures, the results and the gradients of their namesakes in `qatfast.ops`. Tests
hold the native kernels against them, and `QATFAST_BACKEND=reference` runs a model on them.

Whatever the type of x, everything is computed in the type of the parameters: float64 for a float64 x, else float32.
Attributes count as float32, as those of TensorFlow's ops do. XLA contracts multiply and add: equal to rounding there.
"""

from qatfast.reference.learned_step import lsq_symmetric, lsq_uniform
from qatfast.reference.straight_through import fake_quant

__all__ = ["fake_quant", "lsq_symmetric", "lsq_uniform"]
