"""Which Keras runs: the model's, whatever else there is in the process; and what is said where it cannot run."""

import importlib.util
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from models import KERAS, images, labels

import qatfast
from qatfast.flow.select import adapter_of, adapter_of_version

HAS_BOTH = KERAS.name == "Keras 2" and KERAS.package == "tf_keras"
needs_both = pytest.mark.skipif(not HAS_BOTH, reason="needs Keras 2 and Keras 3: make test KERAS=2")
needs_keras_3_alone = pytest.mark.skipif(
    KERAS.name != "Keras 3" or importlib.util.find_spec("tf_keras") is not None, reason="needs Keras 3 without tf-keras"
)


def net(keras):
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, padding="same", name="conv")(image)
    x = keras.layers.ReLU(name="relu")(keras.layers.BatchNormalization(name="norm")(x))
    return keras.Model(image, keras.layers.Dense(4, name="head")(keras.layers.Flatten(name="flatten")(x)), name="net")


def ranges_of(model):
    """What the variables of every quantizer hold, in the order of layers."""
    quantizers = [found for layer in model.layers for found in adapter_of("test", model).quantizers(layer)]
    variables = [quantizer.quantizer_parameters.values() for quantizer in quantizers]
    return [np.concatenate([variable.numpy().ravel() for variable in group]) for group in variables]


def run(code, **environment):
    """What Python code prints in a process of its own, at the end of which it must succeed."""
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, env={**os.environ, **environment}, cwd=os.path.dirname(__file__), timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_the_import_changes_nothing_about_keras():
    before = run("import os, tensorflow as tf; print(dict(os.environ), tf.keras.Model)")
    after = run("import qatfast, os, tensorflow as tf; print(dict(os.environ), tf.keras.Model)")
    assert after == before


def test_the_layers_are_those_of_tf_keras():
    assert issubclass(qatfast.KerasTrainableQuantizationWrapper, tf.keras.layers.Wrapper)
    assert issubclass(qatfast.KerasActivationQuantizationHolder, tf.keras.layers.Layer)


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"quantize_model: model must be a Keras model, got <class 'int'>"):
        qatfast.quantize_model(3, images())
    with pytest.raises(TypeError, match="finalize_model: qat_model must be a Keras model"):
        qatfast.finalize_model(tf.keras.layers.Dense(3))
    with pytest.raises(TypeError, match="save_model: model must be a Keras model"):
        qatfast.save_model(None, "model.keras")


@needs_both
@pytest.mark.parametrize("method", qatfast.TrainingMethod)
def test_the_same_model_in_either_keras_has_the_same_ranges_outputs_and_training(tmp_path, method):
    import keras

    float_models = net(tf.keras), net(keras)
    float_models[1].set_weights(float_models[0].get_weights())
    config = qatfast.QATConfig(weight_training_method=method, activation_training_method=method)
    models = [qatfast.quantize_model(model, images(32), config) for model in float_models]
    assert [adapter_of("test", model).name for model in models] == ["Keras 2", "Keras 3"]
    ranges = [ranges_of(model) for model in models]
    histories, outputs = [], []
    for module, model in zip((tf.keras, keras), models, strict=True):
        outputs.append(model.predict(images(32), verbose=0))
        loss = module.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(module.optimizers.SGD(0.01), loss)
        history = model.fit(images(32), labels(32), epochs=2, verbose=0, shuffle=False)
        histories.append(history.history["loss"])
        qatfast.save_model(model, tmp_path / "model.keras")
        loaded = qatfast.load_model(tmp_path / "model.keras")
        assert type(loaded) is type(model)
        np.testing.assert_array_equal(loaded.predict(images(), verbose=0), model.predict(images(), verbose=0))
        final = qatfast.finalize_model(model)
        assert adapter_of("test", final) is adapter_of("test", model)
    # Convolutions may round otherwise from one trace to the next.
    assert len(ranges[0]) == 4
    for one, other in zip(*ranges, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(histories[0], histories[1], rtol=1e-4)


@needs_both
def test_a_quantizer_of_one_s_own_serves_both_in_one_process(tmp_path):
    import keras

    sys.path.insert(0, str(os.path.join(os.path.dirname(__file__), "..", "examples")))
    from stock_quantizers import MyTrainingMethod

    stock = MyTrainingMethod.STOCK
    config = qatfast.QATConfig(weight_training_method=stock, activation_training_method=stock)
    for module in (tf.keras, keras):
        model = qatfast.quantize_model(net(module), images(32), config)
        model.compile(module.optimizers.SGD(0.01), module.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(images(32), labels(32), verbose=0)
        qatfast.save_model(model, tmp_path / "model.keras")
        loaded = qatfast.load_model(tmp_path / "model.keras")
        expected = model.predict(images(), verbose=0)
        np.testing.assert_array_equal(loaded.predict(images(), verbose=0), expected)
        np.testing.assert_array_equal(qatfast.finalize_model(model).predict(images(), verbose=0), expected)


@needs_both
def test_a_keras_2_model_without_the_switch_says_how_to_set_it():
    code = """
import tf_keras, qatfast
try:
    qatfast.quantize_model(tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))]), None)
except ImportError as error:
    print(error)
"""
    message = run(code, TF_USE_LEGACY_KERAS="0")
    assert message.startswith("qatfast: a Keras 2 model needs tf.keras to be Keras 2")
    assert "TF_USE_LEGACY_KERAS=1" in message and "pip install" not in message


@needs_keras_3_alone
def test_a_keras_2_file_without_tf_keras_says_what_to_install(tmp_path):
    import json
    import zipfile

    with zipfile.ZipFile(tmp_path / "old.keras", "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "2.15.0"}))
        archive.writestr("config.json", json.dumps({"class_name": "Sequential", "config": {}}))
    with pytest.raises(ImportError, match=r"TF_USE_LEGACY_KERAS=1 is set .*pip install 'tf-keras==2\.\d+\.\*'"):
        qatfast.load_model(tmp_path / "old.keras")


@pytest.mark.skipif(KERAS.name == "Keras 3" or HAS_BOTH, reason="needs TensorFlow 2.15")
def test_keras_3_on_tensorflow_2_15_says_what_is_needed():
    with pytest.raises(ImportError, match="a Keras 3 model needs TensorFlow 2.16 or newer and Keras 3.10 or newer"):
        adapter_of_version(3)


@pytest.mark.skipif(KERAS.name != "Keras 3", reason="needs Keras 3")
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("keras.__version__ = '3.5.0'", "Keras 3.10 or newer, got TensorFlow .* and Keras 3.5.0"),
        ("keras.backend.backend = lambda: 'jax'", "must run on the TensorFlow backend, got 'jax'"),
    ],
)
def test_another_keras_3_is_refused(what, message):
    code = f"""
import keras, qatfast
{what}
print(float(qatfast.ops.fake_quant(0.3, -1.0, 1.0, num_bits=2)))
try:
    qatfast.quantize_model(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), None)
except ImportError as error:
    print(error)
"""
    quantized, error = run(code).splitlines()
    assert float(quantized) != 0.3 and re.search(message, error)
