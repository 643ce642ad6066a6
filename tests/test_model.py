"""Whole models: quantized, trained, saved, loaded, exported."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from mct_quantizers import QuantizationMethod
from models import (
    IS_KERAS_3,
    KERAS,
    METHODS,
    OPERATION_FORMATS,
    SAVE_FORMATS,
    SUM,
    conv_net,
    dense_net,
    holders,
    images,
    kernel_of,
    labels,
    layers,
    load_exported,
    train,
    weights_config,
    wrapped,
)

import qatfast
from qatfast.quantizers import STEWeightsQuantizer

FOUR_BITS = {"weight_n_bits": 4, "activation_n_bits": 4}
ROWS = np.random.default_rng(5).normal(size=(16, 6)).astype(np.float32)


def predict(model, data=None):
    """The model's outputs as arrays, computed eagerly: that traces nothing."""
    outputs = model(images() if data is None else data, training=False)
    return tf.nest.map_structure(lambda tensor: tensor.numpy(), outputs)


def held(model):
    """Names of the operations that are read through a holder."""
    return [holder.name.split("_activation_holder_quantizer")[0] for holder in holders(model)]


HELD_SUM = SUM.replace(".", "_")


@pytest.fixture(scope="module")
def float_model():
    return conv_net()


@pytest.fixture(scope="module")
def qat_model(float_model):
    return train(qatfast.quantize_model(float_model, images(), qatfast.QATConfig(**FOUR_BITS)))


def test_kernels_are_wrapped_and_activations_held_where_layers_read_them(qat_model):
    assert wrapped(qat_model) == ["conv", "depthwise", "transpose", "head"]
    # Not conv (linear, before BatchNormalization), norm, flatten; not head: its softmax is the model's output.
    assert held(qat_model) == ["image", "relu", "depthwise", HELD_SUM]


def test_every_reader_of_a_quantized_tensor_reads_its_holder(qat_model):
    holder = qat_model.get_layer("relu_activation_holder_quantizer")
    readers = {
        call.operation.name
        for call in KERAS.calls(qat_model)
        if any(value is holder.output for value in tf.nest.flatten(call.arguments))
    }
    assert readers == {"depthwise", SUM}


def test_the_float_model_is_not_changed(float_model):
    config, weights = float_model.to_json(), float_model.get_weights()
    expected = predict(float_model)
    quantized = qatfast.quantize_model(float_model, images())
    for variable in quantized.weights:
        variable.assign(tf.zeros_like(variable))
    assert float_model.to_json() == config
    for now, before in zip(float_model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, before)
    np.testing.assert_array_equal(predict(float_model), expected)


def test_sixteen_bits_compute_nearly_what_float_does(float_model):
    config = qatfast.QATConfig(weight_n_bits=16, activation_n_bits=16)
    quantized = qatfast.quantize_model(float_model, images(), config)
    np.testing.assert_allclose(predict(quantized), predict(float_model), atol=1e-3)


def test_the_exported_model_equals_the_trained_one_in_graph_mode_too(qat_model):
    exported = qatfast.finalize_model(qat_model)
    np.testing.assert_array_equal(exported.predict(images(), verbose=0), qat_model.predict(images(), verbose=0))


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_the_exported_model_equals_the_trained_one_bit_for_bit(float_model, tmp_path, method, per_channel):
    config = qatfast.QATConfig(
        **FOUR_BITS,
        weight_quantization_method=method,
        activation_quantization_method=method,
        weight_per_channel=per_channel,
        weight_calibration_method=qatfast.CalibrationMethod.MSE,
        activation_calibration_method=qatfast.CalibrationMethod.MSE,
    )
    trained = qatfast.quantize_model(float_model, images(), config)
    for kernel in trained.trainable_weights:  # as training does: away from where the ranges were calibrated
        kernel.assign_add(tf.random.stateless_normal(kernel.shape, [1, 2], stddev=0.1))
    exported = qatfast.finalize_model(trained)
    np.testing.assert_array_equal(predict(exported), predict(trained))
    exported.save(tmp_path / "exported.keras")
    loaded = load_exported(tmp_path / "exported.keras")
    np.testing.assert_array_equal(predict(loaded), predict(trained))


@pytest.mark.parametrize("suffix", OPERATION_FORMATS)
def test_a_qat_model_loads_with_its_optimizer_trains_on_and_exports(qat_model, tmp_path, suffix):
    path = tmp_path / f"qat{suffix}"
    qat_model.save(path)
    loaded = qatfast.load_model(path)
    np.testing.assert_array_equal(predict(loaded), predict(qat_model))
    assert loaded.optimizer.iterations.numpy() == 1
    for now, before in zip(loaded.optimizer.variables, qat_model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(now, before)
    np.testing.assert_array_equal(predict(qatfast.finalize_model(loaded)), predict(qat_model))
    loaded.fit(images(), labels(), verbose=0)
    assert np.any(predict(loaded) != predict(qat_model))
    with pytest.raises((RuntimeError, ValueError), match="compile"):
        qatfast.load_model(path, compile=False).fit(images(), labels(), verbose=0)


@pytest.mark.parametrize("suffix", OPERATION_FORMATS)
def test_a_finalized_model_needs_no_qatfast(qat_model, tmp_path, suffix):
    finalized = qatfast.finalize_model(qat_model)
    finalized.save(tmp_path / f"finalized{suffix}")
    for load in (load_exported, qatfast.load_model):
        loaded = load(str(tmp_path / f"finalized{suffix}"))
        assert "qatfast" not in loaded.to_json()
        np.testing.assert_array_equal(predict(loaded), predict(qat_model))


LOADER = """
import sys
import numpy as np

for name in ("qatfast", "mct_quantizers"):
    sys.modules[name] = None  # importing it raises
import keras

model = keras.models.load_model(sys.argv[1])
np.save(sys.argv[2], model(np.load(sys.argv[3])))
"""


@pytest.mark.keras3_only(reason="finalized models of Keras 2 have layers of mct-quantizers")
def test_a_finalized_model_loads_where_neither_qatfast_nor_mct_quantizers_can_be_imported(qat_model, tmp_path):
    finalized = qatfast.finalize_model(qat_model)
    assert {type(operation).__module__.split(".")[0] for operation in finalized.operations} == {"keras"}
    finalized.save(tmp_path / "finalized.keras")
    np.save(tmp_path / "images.npy", images())
    arguments = [tmp_path / name for name in ("finalized.keras", "outputs.npy", "images.npy")]
    subprocess.run([sys.executable, "-c", LOADER, *map(str, arguments)], check=True, cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "outputs.npy"), qat_model(images()))


@pytest.mark.keras3_only(reason="SavedModels of Keras 2 are models that load again")
def test_qat_models_and_finalized_ones_are_exported_as_saved_models(qat_model, tmp_path):
    for name, model in (("qat", qat_model), ("finalized", qatfast.finalize_model(qat_model))):
        model.export(tmp_path / name, verbose=False)
        loaded = tf.saved_model.load(str(tmp_path / name))
        np.testing.assert_array_equal(loaded.serve(images()), qat_model.predict(images(), verbose=0))


def test_finalizing_leaves_the_qat_model_as_it_was(qat_model):
    before, weights = predict(qat_model), qat_model.get_weights()
    finalized = qatfast.finalize_model(qat_model)
    for variable in finalized.weights:
        variable.assign(tf.zeros_like(variable))
    for now, then in zip(qat_model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, then)
    np.testing.assert_array_equal(predict(qat_model), before)
    assert len(qat_model.trainable_weights) > 0 and finalized.trainable_weights == []


def test_load_model_takes_further_custom_objects(tmp_path):
    class Doubling(layers.Layer):
        def call(self, inputs):
            return 2.0 * inputs

    model = tf.keras.Sequential([tf.keras.Input((6,)), Doubling(), layers.Dense(3)])
    quantized = qatfast.quantize_model(model, ROWS)
    quantized.save(tmp_path / "model.h5")
    loaded = qatfast.load_model(tmp_path / "model.h5", custom_objects={"Doubling": Doubling})
    np.testing.assert_array_equal(predict(loaded, ROWS), predict(quantized, ROWS))


def test_signedness_follows_the_observed_data(qat_model):
    signed = {
        name: qat_model.get_layer(f"{name}_activation_holder_quantizer")
        .activation_holder_quantizer.convert2inferable()
        .signed
        for name in held(qat_model)
    }
    assert signed == {"image": True, "relu": False, "depthwise": False, HELD_SUM: False}


def test_a_sequential_model_is_quantized():
    quantized = qatfast.quantize_model(dense_net(), ROWS)
    assert wrapped(quantized) == ["hidden", "head"] and held(quantized)[1:] == ["hidden"]
    assert quantized.name == "dense_net"


def test_layers_named_stay_in_float_and_so_does_the_input(float_model):
    config = qatfast.QATConfig(float_layers=["conv", "relu"], quantize_input=False)
    quantized = qatfast.quantize_model(float_model, images(), config)
    assert wrapped(quantized) == ["depthwise", "transpose", "head"]
    assert held(quantized) == ["depthwise", HELD_SUM]


def test_trainable_flags_are_kept():
    model = conv_net()
    model.get_layer("conv").trainable = False
    model.get_layer("norm").trainable = False
    quantized = qatfast.quantize_model(model, images())
    assert [quantized.get_layer(name).trainable for name in ("conv", "norm", "head")] == [False, False, True]
    kernel = kernel_of(quantized.get_layer("conv"))[0]
    assert all(kernel is not weight for weight in quantized.trainable_weights)
    assert len(quantized.trainable_weights) == len(model.trainable_weights)


def test_a_model_of_several_inputs_and_outputs_keeps_their_names():
    a, b = tf.keras.Input((6,), name="a"), tf.keras.Input((6,), name="b")
    shared = layers.Dense(5, activation="relu", name="shared")
    joined = layers.Concatenate(name="joined")([shared(a), shared(b)])
    outputs = {"first": layers.Dense(2, name="first")(joined), "second": layers.Softmax(name="second")(joined)}
    model = tf.keras.Model({"a": a, "b": b}, outputs)
    data = {"a": ROWS, "b": -ROWS}
    quantized = qatfast.quantize_model(model, data, qatfast.QATConfig(weight_n_bits=16, activation_n_bits=16))
    assert wrapped(quantized) == ["shared", "first"]
    assert held(quantized) == ["a", "b", "shared", "shared", "joined"]
    result, expected = predict(quantized, data), predict(model, data)
    assert list(result) == ["first", "second"]
    for name in expected:
        np.testing.assert_allclose(result[name], expected[name], atol=1e-3)
    finalized = qatfast.finalize_model(quantized)
    for name, value in predict(finalized, data).items():
        np.testing.assert_array_equal(value, result[name])


def test_an_output_that_a_layer_reads_too_stays_float_and_is_read_quantized():
    x = tf.keras.Input((6,))
    features = layers.ReLU(name="features")(x)
    model = tf.keras.Model(x, [features, layers.Dense(2, name="head")(features)])
    quantized = qatfast.quantize_model(model, ROWS, qatfast.QATConfig(activation_n_bits=2, quantize_input=False))
    assert held(quantized) == ["features"]
    np.testing.assert_array_equal(predict(quantized, ROWS)[0], np.maximum(ROWS, 0))


def test_nested_models_are_flattened_shared_ones_share_and_names_stay_apart():
    block = tf.keras.Sequential([tf.keras.Input((6,)), layers.Dense(6, activation="relu", name="dense")], name="block")
    x = tf.keras.Input((6,))
    y = layers.Dense(6, activation="tanh", name="dense")(x)
    model = tf.keras.Model(x, layers.Dense(2, name="head")(block(block(y))))
    quantized = qatfast.quantize_model(model, ROWS, qatfast.QATConfig(weight_n_bits=16, activation_n_bits=16))
    assert wrapped(quantized) == ["dense", "block_dense", "head"]
    assert held(quantized)[1:] == ["dense", "block_dense", "block_dense"]
    np.testing.assert_allclose(predict(quantized, ROWS), predict(model, ROWS), atol=1e-3)


def test_a_nested_model_called_in_inference_mode_stays_in_it():
    block = tf.keras.Sequential([tf.keras.Input((6,)), layers.Dense(6), layers.BatchNormalization(name="norm")])
    x = tf.keras.Input((6,))
    model = tf.keras.Model(x, layers.Dense(4, activation="softmax")(block(x, training=False)))
    quantized = train(qatfast.quantize_model(model, ROWS), ROWS)
    train(model, ROWS)
    moved = [np.any(norm.moving_mean.numpy() != 0) for norm in (quantized.get_layer("norm"), block.get_layer("norm"))]
    assert moved == [IS_KERAS_3] * 2  # whose `fit` overrules what calls inside a model say
    (call,) = [call for call in KERAS.calls(quantized) if call.operation.name == "norm"]
    assert call.arguments[1]["training"] is False


def test_dead_activations_and_channels_are_quantized_with_the_smallest_threshold():
    model = dense_net()
    model.get_layer("hidden").set_weights([np.zeros((6, 5)), np.full(5, -1.0)])
    quantized = qatfast.quantize_model(model, ROWS)
    np.testing.assert_array_equal(predict(quantized, ROWS), predict(model, ROWS))
    np.testing.assert_array_equal(predict(qatfast.finalize_model(quantized), ROWS), predict(model, ROWS))


def test_a_hand_built_nested_model_is_finalized():
    def wrap(units):
        quantizers = {"kernel": STEWeightsQuantizer(weights_config(n_bits=3, axis=-1, threshold=np.ones(units)))}
        return qatfast.KerasTrainableQuantizationWrapper(layers.Dense(units, name="inner"), quantizers, name="outer")

    block = tf.keras.Sequential([tf.keras.Input((6,)), wrap(5)], name="block")
    model = tf.keras.Sequential([tf.keras.Input((6,)), block, wrap(3)])
    finalized = qatfast.finalize_model(model)
    assert "qatfast" not in finalized.to_json()
    np.testing.assert_array_equal(predict(finalized, ROWS), predict(model, ROWS))


def test_arguments_for_the_quantizers_are_passed_on():
    config = qatfast.QATConfig(
        activation_training_method=qatfast.TrainingMethod.LSQ,
        weight_quantizer_params_override={"freeze_quant_params": True},
        activation_quantizer_params_override={"gradient_scale": qatfast.GradientScale.ELEMENTS},
    )
    quantized = qatfast.quantize_model(dense_net(), ROWS, config)
    assert quantized.get_layer("hidden").weights_quantizers["kernel"].freeze_quant_params is True
    holder = quantized.get_layer("hidden_activation_holder_quantizer")
    assert holder.activation_holder_quantizer.gradient_scale is qatfast.GradientScale.ELEMENTS


class Subclassed(tf.keras.Model):
    def __init__(self):
        super().__init__(name="mine")
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


@pytest.mark.parametrize("function", [lambda m: qatfast.quantize_model(m, ROWS), qatfast.finalize_model])
def test_models_whose_graph_cannot_be_seen_are_refused(function):
    with pytest.raises(
        ValueError, match="must be Sequential or Functional, got the subclassed model 'mine' of class Sub"
    ):
        function(Subclassed())
    with pytest.raises(ValueError, match="must be built .*, got 'later' unbuilt"):
        function(tf.keras.Sequential([layers.Dense(2)], name="later"))
    with pytest.raises(TypeError, match="model must be a Keras model, got <class 'str'>"):
        function("model.h5")
    x = tf.keras.Input((6,))
    with pytest.raises(ValueError, match="must be Sequential or Functional, got the subclassed model 'mine'"):
        function(tf.keras.Model(x, Subclassed()(x)))


@pytest.mark.keras2_only(reason="Keras 3 has no losses of symbolic tensors")
def test_losses_on_the_graph_are_refused():
    x = tf.keras.Input((6,))
    model = tf.keras.Model(x, layers.Dense(2)(x), name="lossy")
    model.add_loss(tf.reduce_sum(model.output))
    with pytest.raises(ValueError, match="model 'lossy' must have no losses or metrics of add_loss"):
        qatfast.quantize_model(model, ROWS)


def test_a_model_in_which_nothing_gets_quantized_is_an_error():
    model = tf.keras.Sequential([tf.keras.Input((6,)), layers.ReLU(name="relu")], name="plain")
    with pytest.raises(
        ValueError, match="nothing gets quantized: model must have .*, got 'plain' with layers .*'relu'"
    ):
        qatfast.quantize_model(model, ROWS)
    with pytest.raises(ValueError, match="nothing gets quantized"):
        qatfast.quantize_model(dense_net(), ROWS, qatfast.QATConfig(float_layers=["hidden", "head"]))


def test_a_model_without_a_trainable_quantized_kernel_is_an_error():
    model = dense_net()
    model.get_layer("hidden").trainable = False
    config = qatfast.QATConfig(float_layers=["head"])
    with pytest.raises(ValueError, match=r"must be trainable, got trainable=False on all of \['hidden'\]"):
        qatfast.quantize_model(model, ROWS, config)


@pytest.mark.parametrize("data", [ROWS[:0], [], lambda: iter([])], ids=["array", "list", "function"])
def test_empty_representative_data_is_an_error(data):
    with pytest.raises(ValueError, match="representative_data must hold at least one batch, got none"):
        qatfast.quantize_model(dense_net(), data)


def test_a_quantized_model_is_not_quantized_again(qat_model):
    for model in (qat_model, qatfast.finalize_model(qat_model)):
        with pytest.raises(ValueError, match="must be a float model, got 'conv_net' with quantized layers .*'image_"):
            qatfast.quantize_model(model, images())


def test_a_model_without_trainable_quantizers_is_not_finalized(float_model, qat_model):
    for model in (float_model, qatfast.finalize_model(qat_model)):
        with pytest.raises(ValueError, match="must have trainable quantizers, got 'conv_net' without any"):
            qatfast.finalize_model(model)


def test_data_that_is_not_finite_is_an_error_that_names_the_layer():
    with pytest.raises(ValueError, match="output of layer 'input.*' must be finite .* in batch 1"):
        qatfast.quantize_model(dense_net(), [ROWS, ROWS * np.float32(np.nan)])


def test_a_kernel_that_is_not_finite_is_an_error_that_names_the_layer():
    model = dense_net()
    model.get_layer("head").kernel.assign(np.full((5, 3), np.inf))
    with pytest.raises(ValueError, match="the kernel of layer 'head' must be finite"):
        qatfast.quantize_model(model, ROWS)


def test_a_float_layer_that_there_is_not_is_an_error():
    with pytest.raises(ValueError, match=r"float_layers must name layers of the model, .*'hidden'.*, got \['haed'\]"):
        qatfast.quantize_model(dense_net(), ROWS, qatfast.QATConfig(float_layers=["head", "haed"]))


def test_a_method_without_a_quantizer_is_an_error():
    config = qatfast.QATConfig(weight_training_method=QuantizationMethod.SYMMETRIC)
    with pytest.raises(ValueError, match="no quantizer is marked with target Weights"):
        qatfast.quantize_model(dense_net(), ROWS, config)


def test_a_config_of_another_kind_is_an_error():
    with pytest.raises(TypeError, match="quantize_model: config must be a QATConfig, got dict"):
        qatfast.quantize_model(dense_net(), ROWS, {})


@pytest.mark.parametrize("suffix", SAVE_FORMATS)
def test_an_adapted_normalization_keeps_its_statistics(tmp_path, suffix):
    data = (np.random.default_rng(0).normal(size=(64, 6)) * 7 + 40).astype(np.float32)
    normalization = layers.Normalization()
    normalization.adapt(data)
    float_model = tf.keras.Sequential([tf.keras.Input((6,)), normalization, layers.Dense(3)])
    config = qatfast.QATConfig(weight_n_bits=16, activation_n_bits=16, float_layers=[normalization.name])
    qat_model = qatfast.quantize_model(float_model, data, config)
    expected = qat_model(data).numpy()
    np.testing.assert_allclose(expected, float_model(data), atol=0.01)
    exported = qatfast.finalize_model(qat_model)
    np.testing.assert_array_equal(exported(data), expected)
    saved = {"qat": qat_model} | ({"exported": exported} if suffix in OPERATION_FORMATS else {})
    for name, model in saved.items():
        model.save(tmp_path / f"{name}{suffix}")
        np.testing.assert_array_equal(qatfast.load_model(tmp_path / f"{name}{suffix}")(data), expected)


def test_weights_that_stay_in_float_are_named_in_a_warning():
    model = tf.keras.Sequential([tf.keras.Input((8, 3)), layers.Conv1D(4, 3, name="first"), layers.Dense(2)])
    data = np.zeros((2, 8, 3), np.float32)
    with pytest.warns(UserWarning, match=r"the weights of first \(Conv1D\) stay in float"):
        qatfast.quantize_model(model, data)
    qatfast.quantize_model(model, data, qatfast.QATConfig(float_layers=["first"]))


def test_a_model_with_a_train_step_of_its_own_is_refused():
    class Mine(tf.keras.Model):
        def train_step(self, data):
            return super().train_step(data)

    inputs = tf.keras.Input((6,))
    model = Mine(inputs, layers.Dense(2)(inputs), name="mine")
    with pytest.raises(ValueError, match="model must not override train_step.* got 'mine' of class Mine"):
        qatfast.quantize_model(model, np.zeros((2, 6), np.float32))


def test_a_file_of_one_format_leaves_the_optimizer_for_the_next(tmp_path):
    model = train(qatfast.quantize_model(dense_net(), np.ones((8, 6), np.float32)), np.ones((8, 6)), labels(8, 3))
    for suffix in (*SAVE_FORMATS, ".keras"):
        qatfast.save_model(model, tmp_path / f"model{suffix}")
        loaded = qatfast.load_model(tmp_path / f"model{suffix}")
        assert type(loaded.optimizer) is type(model.optimizer)
        assert loaded.optimizer.iterations.numpy() == model.optimizer.iterations.numpy() == 1
