"""Models whose graph cannot be seen: the refusal says what to do instead, and doing that works."""

import re

import numpy as np
import pytest
import tensorflow as tf
from models import KERAS, dense_net, layers

import qatfast

ROWS = np.random.default_rng(5).normal(size=(16, 6)).astype(np.float32)
SIXTEEN_BITS = qatfast.QATConfig(weight_n_bits=16, activation_n_bits=16)


class Calling(tf.keras.Model):
    """Layers of its own in its call, which has a training argument."""

    def __init__(self):
        super().__init__(name="mine")
        self.first = layers.Dense(5, activation="relu", name="first")
        self.norm = layers.BatchNormalization()
        self.second = layers.Dense(3, name="second")

    def call(self, inputs, training=None):
        return self.second(self.norm(self.first(inputs), training=training)) + 1.0


class Holding(tf.keras.Model):
    """A Functional model inside."""

    def __init__(self, body):
        super().__init__(name="mine")
        self.body = body

    def call(self, inputs):
        return 2.0 * self.body(inputs)


def advice(function, *arguments):
    """The two lines of code that the refusal gives."""
    with pytest.raises(ValueError, match="got the subclassed model 'mine' of class") as refused:
        function(*arguments)
    pattern = r"as in (model\.body = .*?), or make one of its call: (inputs = .*?), then (.*)$"
    inside, inputs, outside = re.search(pattern, str(refused.value)).groups()
    return inside, f"{inputs}; result = {outside}"


def test_the_functional_model_inside_is_quantized_and_finalized_as_the_refusals_say():
    model = Holding(dense_net())
    expected = 2.0 * model.body(ROWS)
    inside, _ = advice(qatfast.quantize_model, model, ROWS, SIXTEEN_BITS)
    assert inside == "model.body = qatfast.quantize_model(model.body, data)"
    model.body = qatfast.quantize_model(model.body, ROWS, SIXTEEN_BITS)
    trained = 2.0 * model.body(ROWS)
    np.testing.assert_allclose(trained, expected, atol=1e-3)
    inside, _ = advice(qatfast.finalize_model, model)
    exec(inside, {"qatfast": qatfast, "model": model})
    np.testing.assert_array_equal(model(ROWS), trained)
    assert "qatfast" not in model.body.to_json()


def test_the_call_of_a_subclassed_model_is_quantized_as_the_refusal_says():
    model = Calling()
    expected = model(ROWS)
    _, outside = advice(qatfast.quantize_model, model, ROWS)
    names = {"qatfast": qatfast, "keras": KERAS.api, "model": model, "data": ROWS, "shape": (6,)}
    exec(outside, names)
    assert [layer.name for layer in names["result"].layers if "kernel" in str(layer.weights)] == ["first", "second"]
    np.testing.assert_allclose(names["result"](ROWS), expected, atol=0.1)


def test_the_call_of_a_subclassed_model_is_finalized_as_the_refusal_says():
    model = Holding(qatfast.quantize_model(dense_net(), ROWS))
    expected = model(ROWS)
    _, outside = advice(qatfast.finalize_model, model)
    names = {"qatfast": qatfast, "keras": KERAS.api, "model": model, "shape": (6,)}
    exec(outside, names)
    np.testing.assert_array_equal(names["result"](ROWS), expected)


class TrainingItself(tf.keras.Model):
    """A train_step of its own on a Functional graph."""

    def train_step(self, data):
        return super().train_step(data)


def test_a_model_with_a_train_step_of_its_own_is_quantized_as_the_refusal_says():
    inputs = tf.keras.Input((6,))
    model = TrainingItself(inputs, dense_net()(inputs), name="mine")
    with pytest.raises(ValueError, match="must not override train_step") as refused:
        qatfast.quantize_model(model, ROWS)
    code = str(refused.value).split("; pass ")[1]
    quantized = qatfast.quantize_model(eval(code, {"keras": KERAS.api, "model": model}), ROWS, SIXTEEN_BITS)
    np.testing.assert_allclose(quantized(ROWS), model(ROWS), atol=1e-3)
