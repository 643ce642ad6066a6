"""Whether XLA compiles a quantized Keras 3 model: as Keras decides it, and as QATConfig(supports_jit) says."""

import collections

import numpy as np
import pytest
import tensorflow as tf
from models import dense_net, train

import qatfast

pytestmark = pytest.mark.keras3_only(reason="Keras 2 asks no layer whether XLA may compile it")

DATA = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
TARGETS = np.arange(32) % 3


def quantized(supports_jit=False, method=qatfast.TrainingMethod.LSQ):
    config = qatfast.QATConfig(
        weight_training_method=method, activation_training_method=method, supports_jit=supports_jit
    )
    return qatfast.quantize_model(dense_net(), DATA, config)


def compiled(model, **options):
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf.keras.optimizers.SGD(0.1), loss, **options)
    return model


def losses(model):
    return [model.train_on_batch(DATA, TARGETS) for _ in range(4)]


@pytest.fixture
def pretended_gpu(monkeypatch):
    """A GPU, as far as Keras looks before it decides."""
    device = collections.namedtuple("Device", "device_type name")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [device("GPU", "GPU:0")])


def test_on_a_gpu_keras_compiles_what_supports_it(pretended_gpu):
    assert compiled(dense_net()).jit_compile is True
    assert compiled(quantized()).jit_compile is False
    assert compiled(quantized(supports_jit=True)).jit_compile is True
    nested = tf.keras.Sequential([tf.keras.Input((6,)), quantized()])
    assert compiled(nested).jit_compile is False


def test_asked_for_keras_says_that_the_model_does_not_support_it_and_trains_in_graph_mode():
    with pytest.warns(UserWarning, match="Model doesn't support `jit_compile=True`"):
        model = compiled(quantized(), jit_compile=True)
    assert model.jit_compile is False
    assert losses(model) == losses(compiled(quantized(), jit_compile=False))


@pytest.mark.parametrize("method", qatfast.TrainingMethod)
def test_the_switch_lets_xla_compile_the_plain_formulas_of_the_same_grids(method):
    model = compiled(quantized(True, method), jit_compile=True)
    assert model.jit_compile is True
    np.testing.assert_allclose(losses(model), losses(compiled(quantized(False, method))), rtol=1e-4)


def test_the_switch_is_saved_with_the_model(tmp_path):
    qatfast.save_model(train(quantized(supports_jit=True), DATA, TARGETS % 3), tmp_path / "model.keras")
    loaded = qatfast.load_model(tmp_path / "model.keras")
    assert all(layer.supports_jit for layer in loaded.layers)
    qatfast.save_model(quantized(), tmp_path / "model.keras")
    assert not all(layer.supports_jit for layer in qatfast.load_model(tmp_path / "model.keras").layers)


def test_a_finalized_model_supports_xla():
    final = qatfast.finalize_model(quantized())
    assert all(layer.supports_jit for layer in final.layers)
