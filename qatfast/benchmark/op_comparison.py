"""Ours against everything that computes the same on one tensor, each checked before it may be timed."""

from collections.abc import Callable, Iterable, Sequence

import tensorflow as tf

from qatfast.benchmark import pytorch
from qatfast.benchmark.correctness import check_other, check_ours, expected
from qatfast.benchmark.implementations import FORMULAS, KERAS, OURS, STOCK
from qatfast.benchmark.op_case import BACKWARD, BOTH_WITH_RANGE, FORWARD, FUSED, GRAPH, XLA, OpCase, make_run, normal
from qatfast.benchmark.timing import parallel_memcpy

OURS_NAME, MEMCPY_NAME, EMPTY_NAME, TORCH_NAME = "ours", "memcpy", "empty call", "torch"
_COMPILED = {
    "stock": (STOCK, GRAPH),
    "keras": (KERAS, GRAPH),
    "stock XLA": (STOCK, XLA),
    "formulas": (FORMULAS, GRAPH),
    "formulas XLA": (FORMULAS, XLA),
    "formulas XLA fused": (FORMULAS, FUSED),
}
COMPARATORS = (*_COMPILED, TORCH_NAME)
# What a user of each op would run otherwise: the stock op is what MCT calls, XLA makes the same of it and its formulas.
DEFAULT_COMPARATORS = {
    "fake_quant": ("stock", "formulas XLA", TORCH_NAME),
    "lsq_symmetric": ("formulas", "formulas XLA"),
    "lsq_uniform": ("formulas", "formulas XLA"),
}
DTYPES = {dtype.name: dtype for dtype in (tf.float32, tf.float16, tf.bfloat16, tf.float64)}


def checked_runs(
    case: OpCase, direction: str, dtypes: Sequence[str], comparators: Iterable[str]
) -> dict[str, Callable]:  # fmt: skip
    """Returns what is to be timed for one case, by name: ours, 'ours float16' and the like, and the others.

    Args:
        case: The op and its tensor.
        direction: A name in `op_case.DIRECTIONS`.
        dtypes: Names in `DTYPES`. Everything is done on the first; of the others, ours only.
        comparators: Names in `COMPARATORS`; those that do not know the case are left out. They take float32 only.

    Raises:
        ValueError: One of them computes something else than the reference.
    """
    runs, references = {}, []
    for name in dtypes:
        run = make_run(case, OURS, direction, DTYPES[name])
        references.append(expected(case, direction, DTYPES[name]))
        check_ours(case, direction, run(), references[-1])
        runs[OURS_NAME if len(runs) == 0 else f"{OURS_NAME} {name}"] = run
    runs[EMPTY_NAME] = runs[OURS_NAME].empty()
    dtype = DTYPES[dtypes[0]]
    # NumPy has no bfloat16 of its own, and a copy does not care.
    runs[MEMCPY_NAME] = parallel_memcpy(normal(case.shape, dtype, 0).numpy().view("u1"))
    for name in comparators if dtype == tf.float32 else ():
        run = _comparator(case, direction, name)
        if run is not None:
            check_other(case, direction, name, run(), references[0])
            runs[name] = run
    return runs


def _comparator(case, direction, name):
    if name == TORCH_NAME:
        return pytorch.torch_run(case, direction) if pytorch.is_available(case, direction) else None
    implementation, mode = _COMPILED[name]
    if getattr(implementation, case.op) is None or (mode == FUSED and direction in (FORWARD, BACKWARD)):
        return None
    if implementation is FORMULAS and case.op == "fake_quant" and direction == BOTH_WITH_RANGE:
        return None  # autodiff of the formulas learns the range as LSQ does: other gradients than the op's
    return make_run(case, implementation, direction, mode=mode)
