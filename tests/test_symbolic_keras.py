"""The ops on Keras' symbolic tensors: a layer of their own in a Functional model, which trains, saves and loads."""

import numpy as np
import pytest
import tensorflow as tf
from models import SAVE_FORMATS

import qatfast

calls_on_symbols = pytest.mark.keras2_only(reason="Keras 3 makes operations of its own functions alone")
layers = tf.keras.layers
OPS = {"fake_quant": (-1.0, 1.0), "lsq_symmetric": (1.0,), "lsq_uniform": (-1.0, 1.0)}


def functional_model(op, **attributes):
    image = tf.keras.Input((4,))
    y = getattr(qatfast.ops, op)(layers.Dense(3, name="dense")(image), *OPS[op], num_bits=4, **attributes)
    return tf.keras.Model(image, y)


def inputs():
    return np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


@calls_on_symbols
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_a_functional_model_with_the_op_trains(op, jit):
    model = functional_model(op)
    before = model.get_weights()
    expected = getattr(qatfast.ops, op)(model.get_layer("dense")(inputs()), *OPS[op], num_bits=4)
    np.testing.assert_allclose(model(inputs()), expected, rtol=1e-6)
    model.compile("sgd", "mse", jit_compile=jit)
    model.fit(inputs(), np.ones((8, 3), np.float32), verbose=0)
    assert all(np.any(old != new) for old, new in zip(before, model.get_weights(), strict=True))


@calls_on_symbols
@pytest.mark.parametrize("op", OPS)
def test_it_is_one_layer_named_after_the_function(op):
    assert [layer.name.rstrip("_0123456789") for layer in functional_model(op).layers[2:]] == [f"tf.qatfast.ops.{op}"]


@calls_on_symbols
@pytest.mark.parametrize("suffix", SAVE_FORMATS)
@pytest.mark.parametrize("op", OPS)
def test_it_saves_and_loads(op, suffix, tmp_path):
    model = functional_model(op)
    model.save(f"{tmp_path}/model{suffix}")
    loaded = qatfast.load_model(f"{tmp_path}/model{suffix}")
    np.testing.assert_array_equal(loaded(inputs()), model(inputs()))
    loaded.compile("sgd", "mse")
    loaded.fit(inputs(), np.ones((8, 3), np.float32), verbose=0)


@calls_on_symbols
def test_ranges_may_be_symbolic_too():
    x, low, high = tf.keras.Input((4,)), tf.keras.Input((), batch_size=4), tf.keras.Input((), batch_size=4)
    model = tf.keras.Model([x, low, high], qatfast.ops.fake_quant(x, low, high, axis=1))
    y = model([inputs(), -np.ones(4, np.float32), np.ones(4, np.float32)])
    np.testing.assert_array_equal(y, qatfast.ops.fake_quant(inputs(), -np.ones(4), np.ones(4), axis=1))


@calls_on_symbols
@pytest.mark.parametrize("op", OPS)
def test_a_model_may_be_built_under_an_open_tape(op):
    with tf.GradientTape() as tape:
        model = functional_model(op)
        loss = tf.reduce_sum(model(inputs()))
    assert all(np.any(gradient != 0) for gradient in tape.gradient(loss, model.trainable_weights))


@calls_on_symbols
@pytest.mark.parametrize("op", ["fake_quant"])
def test_a_file_of_raw_ops_trains(op, tmp_path):
    """Files of earlier versions hold the raw op in place of the function."""
    image = tf.keras.Input((4,))
    y, _ = getattr(qatfast.ops._native, f"qatfast_{op}")(layers.Dense(3)(image), *OPS[op])
    model = tf.keras.Model(image, y)
    model.save(tmp_path / "model.keras")
    loaded = qatfast.load_model(tmp_path / "model.keras")
    loaded.compile("sgd", "mse")
    loaded.fit(inputs(), np.ones((8, 3), np.float32), verbose=0)


@calls_on_symbols
def test_errors_on_symbolic_tensors_name_the_argument():
    with pytest.raises(ValueError, match="fake_quant: num_bits must be an integer from 2 to 16, got 1"):
        qatfast.ops.fake_quant(tf.keras.Input((4,)), -1.0, 1.0, num_bits=1)


@pytest.mark.keras3_only(reason="Keras 2 makes a layer of the op")
@pytest.mark.parametrize("op", OPS)
def test_an_op_on_a_symbol_of_keras_3_is_an_error_and_a_layer_may_call_it(op):
    class Quantize(layers.Layer):
        def call(self, x):
            return getattr(qatfast.ops, op)(x, *OPS[op], num_bits=4)

    x = tf.keras.Input((4,))
    with pytest.raises(
        TypeError,
        match=f"^{op}: x must be a dense tensor of float32, .*, got KerasTensor of float32; call the op in the",
    ):
        getattr(qatfast.ops, op)(x, *OPS[op], num_bits=4)
    expected = getattr(qatfast.ops, op)(inputs(), *OPS[op], num_bits=4)
    np.testing.assert_array_equal(tf.keras.Model(x, Quantize()(x))(inputs()), expected)
