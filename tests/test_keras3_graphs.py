"""Kinds of graph that Keras 3 models have: each quantized, trained, saved, loaded and finalized."""

import numpy as np
import pytest
import tensorflow as tf
from models import conv_net, dense_net, images, layers, wrapped

import qatfast

pytestmark = [
    pytest.mark.keras3_only(reason="Keras 2 has no keras.ops; test_model.py has the kinds that both have"),
    pytest.mark.filterwarnings("ignore:quantize_model. the weights of:UserWarning"),
    pytest.mark.filterwarnings("ignore:quantize_model. inputs of quantized kernels:UserWarning"),
]
RNG = np.random.default_rng(8)
ROWS = RNG.normal(size=(8, 6)).astype(np.float32)
STEPS = RNG.normal(size=(8, 5, 6)).astype(np.float32)
TOKENS = RNG.integers(0, 9, (8, 5)).astype(np.int32)


@tf.keras.utils.register_keras_serializable("test_keras3_graphs")
class Scaled(layers.Layer):
    """A custom layer with a weight and an argument besides its input."""

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones", name="scale")

    def call(self, x, offset=0.0):
        return x * self.scale + offset


def hidden(x, **kwargs):
    return layers.Dense(6, activation="relu", **kwargs)(x)


def shared_and_nested():
    row = tf.keras.Input((6,))
    shared = layers.Dense(6, activation="relu")
    inner = tf.keras.Model(row, layers.BatchNormalization()(shared(row)), name="inner")
    stack = tf.keras.Sequential([inner, layers.Dense(6)])
    other = tf.keras.Input((6,))
    return tf.keras.Model(other, layers.Dense(2)(inner(stack(other)) + shared(other))), ROWS


def lists():
    a, b = tf.keras.Input((6,)), tf.keras.Input((6,))
    x = layers.concatenate([hidden(a), b])
    return tf.keras.Model([a, b], [layers.Dense(2)(x), layers.Dense(3)(x)]), [ROWS, 2 * ROWS]


def dicts():
    a, b = tf.keras.Input((6,), name="a"), tf.keras.Input((6,), name="b")
    x = hidden(a) * hidden(b)
    return tf.keras.Model({"a": a, "b": b}, {"y": layers.Dense(2)(x), "z": layers.Dense(3)(x)}), {"a": ROWS, "b": -ROWS}


def nested_structures():
    a, b = tf.keras.Input((6,), name="a"), tf.keras.Input((6,), name="b")
    x = hidden(a) - hidden(b)
    return tf.keras.Model({"p": [a, b]}, {"q": layers.Dense(2)(x), "r": layers.Dense(3)(x)}), {"p": [ROWS, -ROWS]}


def operations():
    ops = tf.keras.ops
    row = tf.keras.Input((6,))
    x = ops.relu(layers.Dense(6)(row)) + 1.0
    x = ops.concatenate([x, 2.0 - x], axis=1)
    x = ops.where(x > 0.5, x, ops.zeros_like(x)) / (1.0 + ops.mean(ops.abs(x), axis=-1, keepdims=True))
    return tf.keras.Model(row, layers.Dense(2)(ops.reshape(x, (-1, 12)))), ROWS


def slices():
    steps = tf.keras.Input((5, 6))
    x = hidden(steps)
    return tf.keras.Model(steps, layers.Dense(2)(x[:, 0] + x[:, -1, ::1])), STEPS


def attention():
    tokens = tf.keras.Input((5,), dtype="int32")
    x = layers.Embedding(9, 6, mask_zero=True)(tokens)
    mask = tf.keras.ops.expand_dims(tokens < 7, 1)
    heads = layers.MultiHeadAttention(2, 3, dropout=0.1, seed=1)
    x = layers.LayerNormalization()(x + heads(x, value=x, attention_mask=mask, use_causal_mask=True))
    return tf.keras.Model(tokens, layers.Dense(2)(hidden(x)[:, -1])), TOKENS


def custom_layer():
    row = tf.keras.Input((6,))
    x = hidden(row)
    return tf.keras.Model(row, layers.Dense(2)(Scaled()(x, offset=hidden(x)))), ROWS


def training_false():
    row = tf.keras.Input((6,))
    inner = tf.keras.Sequential([row, layers.Dense(6), layers.BatchNormalization(), layers.Dropout(0.5, seed=1)])
    other = tf.keras.Input((6,))
    x = layers.BatchNormalization()(inner(other, training=False), training=False)
    return tf.keras.Model(other, layers.Dense(2)(layers.ReLU()(x))), ROWS


def mixed_policies():
    row = tf.keras.Input((6,))
    x = hidden(hidden(row, dtype="mixed_bfloat16"), dtype="float32")
    return tf.keras.Model(row, layers.Dense(2, dtype="float32")(x)), ROWS


def variable_length():
    steps = tf.keras.Input((None, 6))
    x = layers.LSTM(4)(layers.Conv1D(6, 2, padding="same")(hidden(steps)))
    return tf.keras.Model(steps, layers.Dense(2)(x)), STEPS


def one_in_a_list():
    row = tf.keras.Input((6,))
    return tf.keras.Model([row], [layers.Dense(2)(hidden(row))]), [ROWS]


def nested_model_of_dicts():
    a, b = tf.keras.Input((6,), name="a"), tf.keras.Input((6,), name="b")
    inner = tf.keras.Model({"a": a, "b": b}, {"sum": hidden(a) + hidden(b)}, name="inner")
    row = tf.keras.Input((6,))
    return tf.keras.Model(row, layers.Dense(2)(inner({"b": row * 2.0, "a": row})["sum"])), ROWS


def several_outputs_of_an_operation():
    row = tf.keras.Input((6,))
    left, right = tf.keras.ops.split(hidden(row), 2, axis=1)
    return tf.keras.Model(row, layers.Dense(2)(left) * layers.Dense(2)(right)), ROWS


def masked_recurrence():
    tokens = tf.keras.Input((None,), dtype="int32")
    x = layers.Embedding(9, 6, mask_zero=True)(tokens)
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(x)
    return tf.keras.Model(tokens, layers.Dense(2)(hidden(layers.GRU(3)(x)))), TOKENS


def outputs_that_layers_read():
    row = tf.keras.Input((6,))
    x = hidden(row)
    return tf.keras.Model(row, [x, layers.Dense(2)(x), row]), ROWS


GRAPHS = {
    function.__name__: function
    for function in (
        shared_and_nested, lists, dicts, nested_structures, operations, slices, attention, custom_layer,
        training_false, mixed_policies, variable_length, one_in_a_list, nested_model_of_dicts,
        several_outputs_of_an_operation, masked_recurrence, outputs_that_layers_read,
    )
} | {"sequential": lambda: (dense_net(), ROWS), "convolutions": lambda: (conv_net(), images())}  # fmt: skip


@pytest.mark.parametrize("method", qatfast.TrainingMethod)
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_goes_through_the_whole_flow(graph, method, tmp_path):
    tf.keras.utils.set_random_seed(9)
    model, data = GRAPHS[graph]()
    before = [weight.numpy() for weight in model.weights]
    config = qatfast.QATConfig(weight_training_method=method, activation_training_method=method)
    qat_model = qatfast.quantize_model(model, data if isinstance(data, list) else lambda: [data], config)
    assert wrapped(qat_model)
    expected = model(data)
    tf.nest.assert_same_structure(qat_model(data), expected)
    tf.nest.map_structure(lambda x, y: np.testing.assert_array_equal(x.shape, y.shape), qat_model(data), expected)

    step(qat_model, data), step(qat_model, data)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)  # of the float model, which stays as it is
    outputs = qat_model(data)
    qatfast.save_model(qat_model, tmp_path / "model.keras")
    loaded = qatfast.load_model(tmp_path / "model.keras")
    assert_equal(loaded(data), outputs)
    finalized = qatfast.finalize_model(loaded)
    finalized.save(tmp_path / "finalized.keras")
    found = tf.keras.models.load_model(tmp_path / "finalized.keras")(data)
    assert_equal(found, finalized(data))
    if graph != "mixed_policies":  # whose finalized model computes in float32
        assert_equal(found, outputs)


def assert_equal(found, expected):
    tf.nest.map_structure(np.testing.assert_array_equal, found, expected)


def step(model, data):
    """Moves all weights by a step of gradient descent, as Keras' own training does."""
    if not model.compiled:
        model.compile(tf.keras.optimizers.SGD(0.05), tf.nest.map_structure(lambda _: "mse", model.output))
    targets = tf.nest.map_structure(lambda x: np.ones(x.shape, np.float32), model(data))
    before = [weight.numpy() for weight in model.trainable_weights]
    assert np.all(np.isfinite(model.train_on_batch(data, targets)))
    assert any(np.any(old != new.numpy()) for old, new in zip(before, model.trainable_weights, strict=True))


def softplus_of_the_double(x):
    return tf.math.softplus(2.0 * x)


def test_functions_that_keras_would_not_find_need_no_registration():
    row = tf.keras.Input((6,))
    x = layers.TimeDistributed(layers.Lambda(tf.abs))(layers.Reshape((2, 3))(row))
    x = layers.Dense(6, tf.nn.silu)(layers.Flatten()(x))
    x = layers.Activation(softplus_of_the_double)(x)
    model = tf.keras.Model(row, layers.Dense(2)(x))
    quantized = qatfast.quantize_model(model, ROWS, qatfast.QATConfig(weight_n_bits=16, activation_n_bits=16))
    np.testing.assert_allclose(quantized(ROWS), model(ROWS), atol=1e-3)
    assert_equal(qatfast.finalize_model(quantized)(ROWS), quantized(ROWS))
