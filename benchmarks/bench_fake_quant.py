"""fake_quant against TensorFlow's op and a parallel memcpy of the same tensor, in graph mode."""

import os

import numpy as np
import pytest
import tensorflow as tf
from harness import run_interleaved

import qatfast
from qatfast import _core

CASES = {
    "dense per tensor": ((4096, 4096), None),
    "dense, last axis": ((4096, 4096), 1),
    "dense, first axis": ((4096, 4096), 0),
    "conv HWIO": ((3, 3, 512, 512), 3),
    "depthwise": ((3, 3, 1024, 1), 2),
    "embedding": ((30522, 768), 0),
}


def stock_fake_quant(x, min, max, axis):
    """As MCT calls TensorFlow's op: the per-channel one takes channels on the last axis only, so x is transposed."""
    if axis is None:
        return tf.quantization.fake_quant_with_min_max_vars(x, min, max)
    order = list(range(len(x.shape)))
    order[axis], order[-1] = order[-1], order[axis]
    y = tf.quantization.fake_quant_with_min_max_vars_per_channel(tf.transpose(x, order), min, max)
    return tf.transpose(y, order)


def forward(quantize):
    """A graph that runs the op and returns nothing large."""
    return tf.function(quantize)


def forward_and_backward(quantize):
    """A graph that runs the op and its gradients to x, min and max."""

    @tf.function
    def run(x, min, max):
        with tf.GradientTape() as tape:
            tape.watch([x, min, max])
            y = quantize(x, min, max)
        # y stands in for the gradient that comes from above, so that backward waits for forward as in training.
        return tape.gradient(y, [x, min, max], y)

    return run


def check_same_results(ours, stock):
    """Exactly in y or grad_x; the sums for min and max as far as the stock op's float32 sums go."""
    (tensor, *sums), (stock_tensor, *stock_sums) = tf.nest.flatten(ours), tf.nest.flatten(stock)
    np.testing.assert_array_equal(tensor, stock_tensor)
    for actual, expected in zip(sums, stock_sums, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-2)


@pytest.mark.parametrize("direction", [forward, forward_and_backward])
@pytest.mark.parametrize("name", CASES)
def test_fake_quant(benchmark, name, direction):
    shape, axis = CASES[name]
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=shape).astype(np.float32))
    min = tf.fill([] if axis is None else [shape[axis]], -2.0)
    max = tf.fill([] if axis is None else [shape[axis]], 2.0)
    ours = direction(lambda x, min, max: qatfast.ops.fake_quant(x, min, max, axis=axis))
    stock = direction(lambda x, min, max: stock_fake_quant(x, min, max, axis))
    check_same_results(ours(x, min, max), stock(x, min, max))

    source, destination, threads = x.numpy(), np.empty(shape, np.float32), os.cpu_count()
    comparators = {
        "stock": lambda: stock(x, min, max),
        "memcpy": lambda: _core.memcpy(destination, source, num_threads=threads),
    }
    benchmark.group = direction.__name__
    benchmark.extra_info.update(case=name, direction=direction.__name__, shape=shape, axis=axis)
    run_interleaved(benchmark, lambda: ours(x, min, max), comparators)
