"""Copies of models: cloned, from configs, by `copy` and pickle, and by weights files into one that is built again."""

import copy
import json
import pickle

import numpy as np
import pytest
import tensorflow as tf
from mct_quantizers import QuantizationTarget, mark_quantizer
from models import IS_KERAS_3, KERAS, METHODS, activation_config, conv_net, images, layers, train

import qatfast
from qatfast.quantizers import STEActivationQuantizer

ROWS = np.random.default_rng(5).normal(size=(16, 6)).astype(np.float32)
# Names of weights files: Keras 2 has two other formats, TensorFlow's checkpoints and the older HDF5.
WEIGHTS_FILES = ["model.weights.h5", *([] if IS_KERAS_3 else ["weights", "weights.h5"])]
TRAINING = list(qatfast.TrainingMethod)


def unnamed_net():
    """A model whose layers Keras names, anew each time that it is built."""
    stack = [layers.Dense(5), layers.ReLU(), layers.Dense(3)]
    return tf.keras.Sequential([tf.keras.Input((6,)), *stack])


def quantize(training, scale=1.0, method=METHODS[0]):
    config = qatfast.QATConfig(
        weight_training_method=training,
        activation_training_method=training,
        weight_quantization_method=method,
        activation_quantization_method=method,
    )
    return qatfast.quantize_model(unnamed_net(), scale * ROWS, config)


def trained_models():
    for training in TRAINING:
        config = qatfast.QATConfig(weight_training_method=training, activation_training_method=training)
        yield train(qatfast.quantize_model(conv_net(), images(), config))


@pytest.fixture(scope="module")
def models():
    """QAT models that were trained, and what was exported of them."""
    found = list(trained_models())
    return found + [qatfast.finalize_model(model) for model in found]


def variables_of_quantizers(model):
    held = [
        layer.activation_holder_quantizer for layer in model.layers if hasattr(layer, "activation_holder_quantizer")
    ]
    wrapped = [q for layer in model.layers for q in getattr(layer, "weights_quantizers", {}).values()]
    return [value.numpy() for q in held + wrapped for value in getattr(q, "quantizer_parameters", {}).values()]


def configs(model):
    """The configs of a model's layers; in Keras 3 they have the shapes that layers were built with, tuples or lists."""
    found = [layer.get_config() for layer in model.layers]
    return json.loads(json.dumps(found)) if IS_KERAS_3 else found


COPIES = {
    "clone_model": tf.keras.models.clone_model,
    "from_config": lambda model: type(model).from_config(model.get_config()),
    "json": lambda model: tf.keras.models.model_from_json(model.to_json()),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_clone_has_the_model_s_layers_and_the_ranges_that_training_began_with(how, models):
    for model in models:
        clone = COPIES[how](model)
        assert [type(layer) for layer in clone.layers] == [type(layer) for layer in model.layers]
        assert configs(clone) == configs(model)
        for now, then in zip(variables_of_quantizers(COPIES[how](clone)), variables_of_quantizers(clone), strict=True):
            np.testing.assert_array_equal(now, then)
        assert not {id(variable) for variable in clone.variables} & {id(variable) for variable in model.variables}
        clone.set_weights(model.get_weights())
        np.testing.assert_array_equal(clone(images()), model(images()))
    qatfast.finalize_model(COPIES[how](models[0]))


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, through_pickle])
def test_a_copy_has_the_model_s_weights_and_trains_on(how, models):
    for model in models:
        twin = how(model)
        np.testing.assert_array_equal(twin(images()), model(images()))
        for now, then in zip(twin.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(now, then)
    twin = how(models[0])
    assert twin.optimizer.iterations.numpy() == 1
    before = models[0].get_weights()
    train(twin)
    for now, then in zip(models[0].get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_layer_is_copied_with_its_own_variables(models):
    holder = KERAS.holder(STEActivationQuantizer(activation_config()), name="holder")
    x = np.linspace(-3, 3, 12, dtype=np.float32)
    expected = holder(x)
    twin = copy.deepcopy(holder)
    np.testing.assert_array_equal(twin(x), expected)
    twin.weights[-1].assign(0.25)
    assert np.any(twin(x) != expected)
    np.testing.assert_array_equal(holder(x), expected)
    if not IS_KERAS_3:  # whose weights files know variables by their places
        assert twin._lookup_dependency("elsewhere/out_max") is twin._lookup_dependency("holder/out_max")


# Weights files, into a model that was built again: Keras gives its layers other names.


@pytest.mark.parametrize("name", WEIGHTS_FILES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("training", TRAINING)
def test_weights_are_restored_whatever_the_layers_are_called(training, method, name, tmp_path):
    source, target = quantize(training, method=method), quantize(training, 3.0, method)
    assert [layer.name for layer in source.layers] != [layer.name for layer in target.layers]
    source.save_weights(tmp_path / name)
    status = target.load_weights(tmp_path / name)
    for now, then in zip(target.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(now, then)
    np.testing.assert_array_equal(target(ROWS), source(ROWS))
    if status is not None:
        status.assert_consumed()
        status.assert_existing_objects_matched()


@pytest.mark.parametrize("training", TRAINING)
def test_a_callback_s_checkpoint_is_restored_into_a_model_built_again(training, tmp_path):
    source = quantize(training)
    source.compile("adam", "mse")
    suffix = ".weights.h5" if IS_KERAS_3 else ""
    callback = tf.keras.callbacks.ModelCheckpoint(str(tmp_path / f"{{epoch}}{suffix}"), save_weights_only=True)
    source.fit(ROWS, np.ones((16, 3)), epochs=2, verbose=0, callbacks=[callback])
    target = quantize(training, 3.0)
    status = target.load_weights(tmp_path / f"2{suffix}")
    if status is not None:
        status.assert_existing_objects_matched()
    np.testing.assert_array_equal(target(ROWS), source(ROWS))


@pytest.mark.parametrize("training", TRAINING)
def test_a_checkpoint_of_tensorflow_is_restored_into_a_model_built_again(training, tmp_path):
    source, target = quantize(training), quantize(training, 3.0)
    checkpoint = tf.train.Checkpoint(model=source)
    tf.train.Checkpoint(model=target).restore(
        checkpoint.save(str(tmp_path / "whole"))
    ).assert_existing_objects_matched()
    np.testing.assert_array_equal(target(ROWS), source(ROWS))


@pytest.mark.keras2_only(reason="Keras 3 writes no checkpoints of TensorFlow")
def test_what_is_written_is_named_as_before(tmp_path):
    model = quantize(qatfast.TrainingMethod.LSQ)
    model.save_weights(tmp_path / "weights")
    keys = [key for key, _ in tf.train.list_variables(str(tmp_path / "weights"))]
    name = model.layers[1].name
    assert f"layer_with_weights-0/{name}.Sout_ptq_threshold_tensor/.ATTRIBUTES/VARIABLE_VALUE" in keys


@pytest.mark.keras2_only(reason="Keras 3 loads weights into built layers alone")
def test_weights_that_are_loaded_before_the_layer_is_built_are_restored(tmp_path):
    def build(name, threshold):
        quantizer = STEActivationQuantizer(activation_config(threshold=threshold, is_signed=True))
        return tf.keras.Sequential([KERAS.holder(quantizer, name=name), layers.Dense(2)])

    source, target = build("before", 1.0), build("after", 7.0)
    expected = source(ROWS)
    source.save_weights(tmp_path / "weights")
    status = target.load_weights(tmp_path / "weights")
    np.testing.assert_array_equal(target(ROWS), expected)
    status.assert_existing_objects_matched()


def test_a_quantizer_of_one_s_own_is_restored_too(tmp_path):
    @mark_quantizer(quantization_target=QuantizationTarget.Activation, quantization_method=METHODS, identifier="clip")
    class Clip(qatfast.BaseKerasQATTrainableQuantizer):
        def initialize_quantization(self, tensor_shape, name, layer):
            start = self.quantization_config.activation_quantization_params["threshold"]
            self.quantizer_parameters = {
                "limit": layer.add_weight(name + "limit", initializer=tf.keras.initializers.Constant(start))
            }

        def __call__(self, inputs, training):
            return tf.minimum(inputs, self.quantizer_parameters["limit"])

        def convert2inferable(self):
            raise NotImplementedError

    def build(threshold):
        holder = KERAS.holder(Clip(activation_config(threshold=threshold)))
        return tf.keras.Sequential([tf.keras.Input((6,)), holder])

    source, target = build(0.5), build(2.0)
    source.save_weights(tmp_path / WEIGHTS_FILES[0])
    target.load_weights(tmp_path / WEIGHTS_FILES[0])
    np.testing.assert_array_equal(target(ROWS), np.minimum(ROWS, np.float32(0.5)))
    np.testing.assert_array_equal(tf.keras.models.clone_model(target)(ROWS), np.minimum(ROWS, np.float32(2.0)))
