"""Derivatives of every order and mode, to x and to every parameter, equal those of the formulas written out."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from grid import along_axis, draw_ranges, draw_thresholds, number_of_channels

AXES = [None, 1]
SHAPE = (5, 3)
# Attributes beside the default ones; the second of a pair brings another chain rule into the gradient to parameters.
CASES = {
    "fake_quant": [{"num_bits": 4}, {"num_bits": 4, "include_zero": True}],
    "lsq_symmetric": [{"num_bits": 4, "grad_scale": 0.37}, {"num_bits": 3, "power_of_two": True, "signed": False}],
    "lsq_uniform": [
        {"num_bits": 4, "grad_scale": 0.37},
        {"num_bits": 4, "min_width": 0.5},
        {"num_bits": 4, "grad_scale": 0.37, "exact_zero": True},
    ],
}
OPS = [(op, attributes) for op, variants in CASES.items() for attributes in variants]


def draw(op, axis, seed=0):
    """x, and the op's parameters: constants."""
    rng = np.random.default_rng(seed)
    channels = number_of_channels(SHAPE, axis)
    if op == "lsq_symmetric":
        parameters = [draw_thresholds(rng, channels)]
        width = parameters[0]
    else:
        parameters = list(draw_ranges(rng, channels, zeros=0.0))
        width = parameters[1] - parameters[0]
    x = rng.normal(size=SHAPE).astype(np.float32) * along_axis(np.asarray(width), len(SHAPE), axis)
    return [tf.constant(value, tf.float32) for value in (x, *parameters)]


def tangents_like(inputs, seed=1):
    rng = np.random.default_rng(seed)
    return [tf.constant(rng.normal(size=value.shape), tf.float32) for value in inputs]


def gradients(function, inputs, grad_y):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = function(*inputs)
    return tape.gradient(y, inputs, grad_y)


def forward_over_reverse(loss, tangents, *inputs):
    """The second derivatives of `loss`, a scalar function, times tangents of all inputs."""
    with tf.autodiff.ForwardAccumulator(list(inputs), tangents) as accumulator:
        found = gradients(loss, list(inputs), None)
    return [accumulator.jvp(value) for value in found]


def reverse_over_reverse(loss, tangents, *inputs):
    """The same, by the gradient of a gradient."""
    inputs = list(inputs)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        found = gradients(loss, inputs, None)
        total = tf.add_n([tf.reduce_sum(g * t) for g, t in zip(found, tangents, strict=True)])
    return tape.gradient(total, inputs)


def jacobians(function, inputs):
    """The derivatives of the output by each input, [size of y, size of the input]: one gradient per element of y."""
    size = int(np.prod(SHAPE))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(inputs)
        y = function(*inputs)
    one_hot = tf.reshape(tf.eye(size, dtype=y.dtype), [size, *SHAPE])
    rows = [tape.gradient(y, inputs, one) for one in one_hot]
    return [np.stack([np.ravel(row[i]) for row in rows]) for i in range(len(inputs))]


def times(matrices, tangents):
    """The tangent of the output for tangents of the inputs."""
    return sum(m @ np.ravel(t) for m, t in zip(matrices, tangents, strict=True)).reshape(SHAPE)


def run(function, in_graph, *arguments):
    return tf.function(function)(*arguments) if in_graph else function(*arguments)


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("op", "attributes"), OPS)
def test_forward_mode_gives_what_the_gradients_say(backend, op, attributes, axis, in_graph):
    function = functools.partial(backend(op), axis=axis, **attributes)
    inputs = draw(op, axis)
    all_tangents = tangents_like(inputs)
    matrices = jacobians(function, inputs)
    # Each input alone, and all together.
    chosen = [[i] for i in range(len(inputs))] + [list(range(len(inputs)))]
    for indices in chosen:
        tangents = [t if i in indices else tf.zeros_like(t) for i, t in enumerate(all_tangents)]

        def forward(*values, indices=indices):
            watched, given = [values[i] for i in indices], [all_tangents[i] for i in indices]
            with tf.autodiff.ForwardAccumulator(watched, given) as accumulator:
                y = function(*values)
            return accumulator.jvp(y)

        expected = times(matrices, tangents)
        np.testing.assert_allclose(run(forward, in_graph, *inputs), expected, rtol=1e-4, atol=1e-5)


def test_forward_mode_over_a_function_traced_before(backend):
    for op, attributes in OPS:
        function = tf.function(functools.partial(backend(op), **attributes))
        inputs = draw(op, None)
        function(*inputs)
        tangents = tangents_like(inputs)
        with tf.autodiff.ForwardAccumulator(inputs, tangents) as accumulator:
            y = function(*inputs)
        expected = times(jacobians(function, inputs), tangents)
        np.testing.assert_allclose(accumulator.jvp(y), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", CASES)
def test_derivatives_pass_through_functions_of_xla(native, op):
    """Tape and accumulator may be outside of the compiled function, or inside of it."""
    inputs = draw(op, 1)
    function = functools.partial(native(op), axis=1, **CASES[op][-1])
    compiled = tf.function(lambda *values: tf.reduce_sum(tf.sin(function(*values))), jit_compile=True)
    tangents = tangents_like(inputs)
    matrices = jacobians(function, inputs)
    tangent = np.sum(times(matrices, tangents) * np.cos(function(*inputs)))
    with tf.autodiff.ForwardAccumulator(inputs, tangents) as accumulator:
        loss = compiled(*inputs)
    np.testing.assert_allclose(accumulator.jvp(loss), tangent, rtol=1e-4, atol=1e-5)

    in_graph = lambda *values: tf.reduce_sum(tf.sin(function(*values)))  # noqa: E731
    expected = reverse_over_reverse(in_graph, tangents, *inputs)
    inside = tf.function(functools.partial(reverse_over_reverse, in_graph, tangents), jit_compile=True)
    for found in (reverse_over_reverse(compiled, tangents, *inputs), inside(*inputs)):
        for actual, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("op", CASES)
def test_a_vectorized_map_has_the_native_gradients(native, op):
    x, *parameters = draw(op, None)
    with tf.GradientTape() as tape:
        tape.watch([x, *parameters])
        y = tf.vectorized_map(lambda row: native(op)(row, *parameters), x)
    expected = gradients(native(op), [x, *parameters], tf.ones(SHAPE))
    for actual, wanted in zip(tape.gradient(y, [x, *parameters]), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", CASES)
def test_recomputed_gradients_are_the_same(backend, op):
    inputs = draw(op, 1)
    function = functools.partial(backend(op), axis=1)
    expected = gradients(function, inputs, tf.ones(SHAPE))
    for actual, wanted in zip(gradients(tf.recompute_grad(function), inputs, tf.ones(SHAPE)), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("op", "attributes"), OPS)
def test_hessian_vector_products_are_the_same_in_both_modes(backend, op, attributes, axis, in_graph):
    """The op's gradient counts x and parameters as constants, so d2(sum(y^2)/2) = J^T J."""
    function = functools.partial(backend(op), axis=axis, **attributes)
    inputs = draw(op, axis)
    tangents = tangents_like(inputs)

    def loss(*values):
        return 0.5 * tf.reduce_sum(function(*values) ** 2)

    expected = gradients(function, inputs, tf.constant(times(jacobians(function, inputs), tangents)))
    for mode in (forward_over_reverse, reverse_over_reverse):
        product = functools.partial(mode, loss, tangents)
        for actual, wanted in zip(run(product, in_graph, *inputs), expected, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-3, atol=1e-3)


def test_forward_mode_of_the_reported_example(backend):
    x = tf.constant([5.0, 0.3, -7.0])
    p = tf.constant(1.0)
    with tf.autodiff.ForwardAccumulator(p, tf.constant(1.0)) as accumulator:
        fixed = backend("fake_quant")(x, -p, p)
        learned = backend("lsq_symmetric")(x, p)
    np.testing.assert_array_equal(accumulator.jvp(fixed), [1, 0, -1])
    np.testing.assert_allclose(accumulator.jvp(learned), [0.9921875, -0.00312501, -1], rtol=1e-5)


def test_forward_mode_of_half_types(backend):
    for op, attributes in OPS:
        x, *parameters = draw(op, 1)
        function = functools.partial(backend(op), axis=1, **attributes)
        for dtype in (tf.float16, tf.bfloat16):
            half = tf.cast(x, dtype)
            inputs = [half, *parameters]
            with tf.autodiff.ForwardAccumulator(inputs, [tf.ones_like(value) for value in inputs]) as accumulator:
                y = function(*inputs)
            inputs[0] = tf.cast(half, tf.float32)
            wanted = times(jacobians(function, inputs), [tf.ones_like(value) for value in inputs])
            assert accumulator.jvp(y).dtype == dtype
            np.testing.assert_allclose(tf.cast(accumulator.jvp(y), tf.float32), wanted, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("op", CASES)
def test_a_gradient_of_slices_is_a_gradient(backend, op, in_graph):
    """`tf.gather`, which every Embedding reads its table with, has IndexedSlices for a gradient."""
    table, *parameters = draw(op, None)
    rows = tf.constant([3, 0, 3])

    def differentiate(table, *parameters):
        with tf.GradientTape() as tape:
            tape.watch([table, *parameters])
            y = tf.gather(backend(op)(table, *parameters), rows)
        return tape.gradient(y, [table, *parameters])

    dense = tf.tensor_scatter_nd_add(tf.zeros(SHAPE), rows[:, tf.newaxis], tf.ones([3, SHAPE[1]]))
    expected = gradients(backend(op), [table, *parameters], dense)
    for actual, wanted in zip(run(differentiate, in_graph, table, *parameters), expected, strict=True):
        np.testing.assert_allclose(tf.convert_to_tensor(actual), wanted, rtol=1e-6)
