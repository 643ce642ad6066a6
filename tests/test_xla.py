"""Models and ops under XLA (`jit_compile=True`), where plain TensorFlow takes the place of the native ops."""

import numpy as np
import pytest
import tensorflow as tf
from models import conv_net, images, labels

import qatfast
from qatfast import QATConfig, TrainingMethod

# What values that a rounding moves to the other side of a tie may change of a loss, relatively, in 20 steps.
TIES = 1e-3


def quantize(method):
    config = QATConfig(weight_training_method=method, activation_training_method=method, supports_jit=True)
    return qatfast.quantize_model(conv_net(), images(32), config)


@pytest.mark.parametrize("method", TrainingMethod)
def test_a_compiled_training_step_is_the_graph_s(method):
    losses, weights = [], []
    for jit_compile in (False, True):
        model = quantize(method)
        optimizer = tf.keras.optimizers.SGD(0.01)
        model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=jit_compile)
        fitted = model.fit(images(32, seed=1), labels(32), batch_size=8, epochs=2, shuffle=False, verbose=0)
        losses.append(fitted.history["loss"])
        weights.append(model.get_weights())
    # XLA rounds sums of products otherwise, so that what lies on a tie goes to the other side.
    np.testing.assert_allclose(losses[1], losses[0], rtol=5e-3)
    for plain, compiled in zip(*weights, strict=True):
        np.testing.assert_allclose(compiled, plain, atol=5e-3)


def xla_from_graph(build):
    """How far the losses of compiled training steps are from the graph's, relatively, at each step."""
    losses = []
    for jit_compile in (False, True):
        model = build()
        model.compile(tf.keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy", jit_compile=jit_compile)
        data, targets = images(8, seed=1), labels(8)
        losses.append([model.train_on_batch(data, targets) for _ in range(20)])
    return np.abs(np.subtract(*losses)) / losses[0]


@pytest.mark.parametrize("method", TrainingMethod)
def test_compiled_training_steps_are_as_near_the_graph_s_as_the_float_model_s_but_for_ties(method):
    of_float, quantized = xla_from_graph(conv_net), xla_from_graph(lambda: quantize(method))
    print(
        f"{method.name}: losses of {len(quantized)} steps under XLA are within {quantized.max():.1e} of the graph's, "
        f"the float model's within {of_float.max():.1e}"
    )
    assert of_float.max() < 1e-5
    assert quantized.max() < of_float.max() + TIES


def test_what_is_called_in_a_compiled_function_is_compiled_with_it():
    inner = tf.function(lambda x: qatfast.ops.fake_quant(x, -1.0, 1.0))

    @tf.function(jit_compile=True)
    def outer(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.cond(x[0] > 0, lambda: inner(x), lambda: x)
            y += tf.map_fn(lambda row: qatfast.ops.lsq_symmetric(row, 1.0), x)
        return y, tape.gradient(y, x)

    x = tf.constant([0.3, -0.7, 2.0])
    y, grad_x = outer(x)
    np.testing.assert_allclose(y, qatfast.ops.fake_quant(x, -1.0, 1.0) + qatfast.ops.lsq_symmetric(x, 1.0), rtol=1e-6)
    np.testing.assert_array_equal(grad_x, [2.0, 2.0, 0.0])


@pytest.mark.parametrize(
    ("op", "good", "bad"),
    [
        ("fake_quant", (-1.0, 1.0), (1.0, -1.0)),
        ("fake_quant", (-1.0, 1.0), (-np.inf, 1.0)),
        ("lsq_symmetric", (1.0,), (-1.0,)),
        ("lsq_symmetric", (1.0,), (np.inf,)),
        ("lsq_uniform", (-1.0, 1.0), (1.0, -1.0)),
        ("lsq_uniform", (-1.0, 1.0), (-1.0, np.nan)),
    ],
)
def test_a_range_that_cannot_be_quantized_with_gives_nan_and_passes_no_gradient(op, good, bad):
    parameters = [tf.Variable(np.array(pair, np.float32)) for pair in zip(good, bad, strict=True)]

    @tf.function(jit_compile=True)
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = getattr(qatfast.ops, op)(x, *parameters, axis=1)
        return y, tape.gradient(y, [x, *parameters])

    y, (grad_x, *gradients) = run(tf.constant([[0.5, 0.5], [2.0, 2.0]]))
    assert np.isfinite(y[:, 0]).all() and np.isnan(y[:, 1]).all()
    np.testing.assert_array_equal(grad_x, [[1.0, 0.0], [0.0, 0.0]])
    for gradient in gradients:
        assert np.isfinite(gradient[0]) and gradient[1] == 0
