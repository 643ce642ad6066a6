"""Ops on 4,096 elements, where launching them is most of the cost: in graph mode, per op of a chain, and eagerly.

The time of one op in a graph is the difference between a chain of many and one of a single op, by the number of ops
that are more: the call of the `tf.function` cancels out.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf
from harness import run_in_turns

from qatfast.benchmark.figures import SINGLE
from qatfast.benchmark.implementations import FORMULAS, OURS, STOCK
from qatfast.benchmark.op_case import BOTH, FORWARD, OPS, OpCase, normal

CHAIN = 129
GRAPH_CALLS, EAGER_CALLS = 10, 50
SHAPES = {"per tensor": ((4096,), None), "per channel": ((64, 64), 1)}
EAGER = "eager forward"


def quantizers(case, with_formulas):
    """(function, parameters) by name. LSQ has no stock op: that of fake_quant stands for what launching one costs."""
    parameters = case.parameters(tf.float32)
    stock_case = OpCase("fake_quant", case.shape, case.axis, case.num_bits)
    functions = {
        "ours": (functools.partial(getattr(OURS, case.op), **case.attributes), parameters),
        "stock": (
            functools.partial(STOCK.fake_quant, **stock_case.attributes),
            stock_case.parameters(tf.float32),
        ),
    }
    if with_formulas:
        functions["formulas"] = (functools.partial(getattr(FORMULAS, case.op), **case.attributes), parameters)
    return functions


def chain(quantize, count, direction):
    """A graph of `count` ops, each on the output of the one before, or of them and their gradients to x."""

    def forward(x, *parameters):
        for _ in range(count):
            x = quantize(x, *parameters)
        return x

    @tf.function
    def forward_and_backward(x, *parameters):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = forward(x, *parameters)
        return tape.gradient(y, x, y)

    return tf.function(forward) if direction == FORWARD else forward_and_backward


def graph_runs(functions, case, direction):
    """Runs of two lengths for every implementation, checked against each other: the grid is idempotent."""
    runs = {}
    for name, (quantize, parameters) in functions.items():
        for label, count in ((name, CHAIN), (SINGLE + name, 1)):
            function = chain(quantize, count, direction)
            runs[label] = functools.partial(function, normal(case.shape, tf.float32, 0), *parameters)
        np.testing.assert_allclose(runs[name](), runs[SINGLE + name](), rtol=1e-5, atol=1e-5)
    return runs


def eager_runs(functions, case):
    """One eager call for every implementation."""
    x = normal(case.shape, tf.float32, 0)
    return {name: functools.partial(quantize, x, *parameters) for name, (quantize, parameters) in functions.items()}


@pytest.mark.parametrize("mode", [FORWARD, BOTH, EAGER])
@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("op", OPS)
def test_small(benchmark, op, layout, mode, settings):
    shape, axis = SHAPES[layout]
    case = OpCase(op, shape, axis, settings.num_bits, layout)
    functions = quantizers(case, with_formulas=settings.full)
    runs = eager_runs(functions, case) if mode == EAGER else graph_runs(functions, case, mode)
    benchmark.group = f"small {mode}"
    run_in_turns(
        benchmark,
        runs,
        settings,
        repeats=EAGER_CALLS if mode == EAGER else GRAPH_CALLS,
        suite="small",
        op=op,
        case=layout,
        shape=shape,
        axis=axis,
        num_bits=settings.num_bits,
        direction=mode,
        chain=1 if mode == EAGER else CHAIN,
    )
