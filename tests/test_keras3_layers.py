"""Keras 3's layer that quantizes weights, around layers of all kinds, and its holder."""

import os
import subprocess
import sys
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import tensorflow as tf
from mct_quantizers.common.constants import WEIGHTS_QUANTIZERS
from models import KERAS, activation_config, layers, weights_config

import qatfast
from qatfast.quantizers import LSQWeightsQuantizer, STEActivationQuantizer, STEWeightsQuantizer

pytestmark = pytest.mark.keras3_only(reason="Keras 2 quantizes weights by a layer of mct-quantizers")

POLICIES = ["float32", "mixed_float16", "mixed_bfloat16"]
RNG = np.random.default_rng(3)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


class Kind(NamedTuple):
    """A kind of layer: how to make it, paths of its weights to quantize, and what to call it with."""

    make: Any
    paths: str
    args: tuple
    kwargs: dict = {}


ROWS, STEPS, IMAGES = normal(4, 6), normal(4, 5, 6), normal(2, 6, 6, 3)
TOKENS = np.array([[1, 2, 3, 0], [4, 0, 0, 0]], np.int32)
ATTENTION = "_query_dense.kernel _key_dense.kernel _value_dense.kernel _output_dense.kernel"
MASKED = {"attention_mask": RNG.random((4, 5, 5)) > 0.2, "use_causal_mask": True}
CELL = "cell.kernel cell.recurrent_kernel"


def attention(name, *args, **kwargs):
    return getattr(layers, name)(*args, use_bias=True, seed=1, **kwargs)


def stacked(**kwargs):
    return layers.RNN([layers.LSTMCell(3, **kwargs), layers.GRUCell(4, **kwargs)], **kwargs)


KINDS = {
    "dense": Kind(lambda **k: layers.Dense(4, activation="relu", **k), "kernel", (ROWS,)),
    "einsum": Kind(lambda **k: layers.EinsumDense("abc,cd->abd", (5, 4), bias_axes="d", **k), "kernel", (STEPS,)),
    "conv1d": Kind(lambda **k: layers.Conv1D(4, 3, **k), "kernel", (STEPS,)),
    "conv2d": Kind(lambda **k: layers.Conv2D(4, 3, strides=2, **k), "kernel", (IMAGES,)),
    "conv3d": Kind(lambda **k: layers.Conv3D(4, 2, **k), "kernel", (normal(2, 4, 4, 4, 3),)),
    "depthwise": Kind(lambda **k: layers.DepthwiseConv2D(3, depth_multiplier=2, **k), "kernel", (IMAGES,)),
    "transpose": Kind(lambda **k: layers.Conv2DTranspose(4, 3, **k), "kernel", (IMAGES,)),
    "separable": Kind(lambda **k: layers.SeparableConv2D(4, 3, **k), "depthwise_kernel pointwise_kernel", (IMAGES,)),
    "embedding": Kind(lambda **k: layers.Embedding(6, 4, **k), "embeddings", (TOKENS,)),
    "prelu": Kind(lambda **k: layers.PReLU(**k), "alpha", (ROWS,)),
    "batch_norm": Kind(lambda **k: layers.BatchNormalization(**k), "gamma", (IMAGES,)),
    "layer_norm": Kind(lambda **k: layers.LayerNormalization(**k), "gamma beta", (ROWS,)),
    "attention": Kind(lambda **k: attention("MultiHeadAttention", 2, 3, **k), ATTENTION, (STEPS, STEPS)),
    "masked_attention": Kind(
        lambda **k: attention("MultiHeadAttention", 2, 3, dropout=0.3, **k), ATTENTION, (STEPS, STEPS), MASKED
    ),
    "grouped_attention": Kind(
        lambda **k: attention("GroupQueryAttention", 3, 4, 2, **k), ATTENTION, (STEPS, STEPS), {"use_causal_mask": True}
    ),
    "simple_rnn": Kind(lambda **k: layers.SimpleRNN(4, **k), CELL, (STEPS,)),
    "lstm": Kind(lambda **k: layers.LSTM(4, return_sequences=True, **k), CELL, (STEPS,)),
    "unrolled_lstm": Kind(lambda **k: layers.LSTM(4, unroll=True, **k), CELL, (STEPS,)),
    "dropout_lstm": Kind(lambda **k: layers.LSTM(4, dropout=0.3, recurrent_dropout=0.3, seed=1, **k), CELL, (STEPS,)),
    "gru": Kind(lambda **k: layers.GRU(4, **k), CELL, (STEPS,)),
    "stateful_gru": Kind(lambda **k: layers.GRU(4, stateful=True, **k), CELL, (STEPS,)),
    "stacked_rnn": Kind(stacked, "cell.cells.0.kernel cell.cells.1.recurrent_kernel", (STEPS,)),
    "conv_lstm": Kind(lambda **k: layers.ConvLSTM2D(3, 2, **k), CELL, (normal(2, 3, 4, 4, 2),)),
    "bidirectional": Kind(
        lambda **k: layers.Bidirectional(layers.LSTM(3, **k), **k),
        "forward_layer.cell.kernel backward_layer.cell.recurrent_kernel",
        (STEPS,),
    ),
    "time_distributed": Kind(lambda **k: layers.TimeDistributed(layers.Dense(4, **k), **k), "layer.kernel", (STEPS,)),
    "spectral_norm": Kind(lambda **k: layers.SpectralNormalization(layers.Dense(4, **k), **k), "layer.kernel", (ROWS,)),
}
over_kinds = pytest.mark.parametrize("kind", KINDS)
over_policies = pytest.mark.parametrize("policy", POLICIES)


def built(kind, policy="float32", **kwargs):
    """A float layer of a kind with random weights, the same ones at every call."""
    tf.keras.utils.set_random_seed(4)
    layer = KINDS[kind].make(dtype=policy, **kwargs)
    layer(*KINDS[kind].args, **KINDS[kind].kwargs)
    random = np.random.default_rng(5)
    for weight in layer.trainable_weights:
        weight.assign(random.normal(scale=0.4, size=weight.shape))
    if hasattr(layer, "reset_states") and getattr(layer, "stateful", False):
        layer.reset_states()
    return layer


def quantized(layer, paths, quantizer=STEWeightsQuantizer, **kwargs):
    quantizers = {path: quantizer(weights_config()) for path in paths.split()}
    return qatfast.KerasTrainableQuantizationWrapper(layer, quantizers, **kwargs)


def assign_quantized(layer, wrapper):
    """Gives a float layer of the same weights the quantized ones in place of its own: in the type that it reads."""
    from qatfast.flow.keras3_layers import find_variable

    for path, quantizer in wrapper.weights_quantizers.items():
        variable = find_variable(layer, path)
        dtype = wrapper.compute_dtype if variable._autocast else variable.dtype
        value = quantizer(tf.cast(variable.value, dtype), training=False)
        variable.assign(tf.cast(value, variable.dtype))
    return layer


def assert_equal(found, expected):
    tf.nest.map_structure(np.testing.assert_array_equal, found, expected)


def model_of(kind, layer):
    """A Functional model of one layer, and its input."""
    args, kwargs = KINDS[kind].args, KINDS[kind].kwargs
    structure = (args, {name: value for name, value in kwargs.items() if isinstance(value, np.ndarray)})
    symbolic, tensors = tf.nest.map_structure(
        lambda value: tf.keras.Input(batch_shape=value.shape, dtype=value.dtype.name), structure
    )
    inputs = tf.nest.flatten((symbolic, tensors))
    outputs = layer(*symbolic, **{**kwargs, **tensors})
    return tf.keras.Model(inputs, outputs), tf.nest.flatten(structure)


def reset(model):
    for layer in model._flatten_layers():
        if getattr(layer, "stateful", False):
            layer.reset_states()
    return model


def saved_arrays(path):
    """Names of the arrays in a file of weights."""
    names = []
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names


@over_policies
@over_kinds
def test_the_output_is_that_of_the_layer_with_quantized_weights(kind, policy):
    if kind == "layer_norm" and policy != "float32":
        pytest.xfail("differs by the half type's last bit, of what is not found yet; the flow wraps no normalization")
    _, paths, args, kwargs = KINDS[kind]
    wrapper = quantized(built(kind, policy), paths)
    expected = assign_quantized(built(kind, policy), wrapper)
    assert_equal(wrapper(*args, **kwargs), expected(*args, **kwargs))
    if kind == "spectral_norm":  # which assigns its kernel
        return
    before = [weight.numpy() for weight in wrapper.layer.trainable_weights]
    assert_equal(wrapper(*args, training=True, **kwargs), layer_in_training(expected, args, kwargs))
    assert_equal(wrapper(*args, **kwargs), expected(*args, **kwargs))  # of statistics and states that moved, too
    assert_equal([weight.numpy() for weight in wrapper.layer.trainable_weights], before)


def layer_in_training(layer, args, kwargs):
    return layer(*args, **(kwargs | {"training": True} if layer._call_has_training_arg else kwargs))


@over_policies
@over_kinds
def test_gradients_reach_all_weights(kind, policy):
    _, paths, args, kwargs = KINDS[kind]
    wrapper = quantized(built(kind, policy), paths, LSQWeightsQuantizer)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.cast(wrapper(*args, **kwargs), "float32") ** 2)
    weights = wrapper.trainable_weights
    assert len(weights) == len(wrapper.layer.trainable_weights) + len(paths.split())
    gradients = tape.gradient(loss, [weight.value for weight in weights])
    assert all(gradient is not None for gradient in gradients)
    of_weight = {id(weight): tf.convert_to_tensor(found) for weight, found in zip(weights, gradients, strict=True)}
    for variable, quantizer in KERAS.quantized_weights(wrapper):
        assert np.any(of_weight[id(variable)])
        (threshold,) = quantizer.get_trainable_variables(qatfast.quantizers.VariableGroup.QPARAMS)
        assert np.any(of_weight[id(threshold)])


@over_policies
@over_kinds
def test_it_comes_back_from_files_and_clones(kind, policy, tmp_path):
    if kind == "stacked_rnn" and policy != "float32":
        pytest.xfail("Keras' loop refuses states of another type; the flow wraps no recurrent layer")
    model, inputs = model_of(kind, quantized(built(kind, policy), KINDS[kind].paths, LSQWeightsQuantizer))
    expected = reset(model)(inputs)
    reset(model).save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[-1].dtype_policy.name == policy
    assert_equal(reset(loaded)(inputs), expected)

    reset(model).save_weights(tmp_path / "model.weights.h5")
    clone = tf.keras.models.clone_model(model)
    clone.load_weights(tmp_path / "model.weights.h5")
    assert_equal(reset(clone)(inputs), expected)
    model_of(kind, built(kind, policy))[0].save_weights(tmp_path / "float.weights.h5")
    of_quantizers = len(KINDS[kind].paths.split())
    of_layer = len(saved_arrays(tmp_path / "float.weights.h5"))
    assert len(saved_arrays(tmp_path / "model.weights.h5")) == of_layer + of_quantizers
    clone.set_weights([0 * weight for weight in clone.get_weights()])
    assert_equal(reset(model)(inputs), expected)  # which shares nothing with its clone


def test_a_model_with_nested_and_shared_wrappers_saves_each_weight_once(tmp_path):
    wrapper = quantized(built("dense"), "kernel", name="shared")
    row = tf.keras.Input((6,))
    inner = tf.keras.Model(row, wrapper(row), name="inner")
    other = tf.keras.Input((6,))
    model = tf.keras.Model(other, layers.add([inner(other), inner(2 * other)]))
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    assert_equal(tf.keras.models.load_model(tmp_path / "model.keras")(ROWS), model(ROWS))
    quantizer = wrapper.weights_quantizers["kernel"]
    count = 2 + len(quantizer.quantizer_parameters)  # with kernel and bias
    assert len(model.variables) == count
    assert len(saved_arrays(tmp_path / "model.weights.h5")) == count
    assert_equal(model(ROWS), wrapper(ROWS) + wrapper(2 * ROWS))


def test_masks_go_through_it():
    embedding = layers.Embedding(6, 4, mask_zero=True)
    lstm = layers.LSTM(3)
    tokens = tf.keras.Input((4,), dtype="int32")
    tf.keras.Model(tokens, lstm(embedding(tokens)))
    embedding.set_weights([normal(6, 4)])
    wrapped = [quantized(embedding, "embeddings"), quantized(lstm, CELL)]
    model = tf.keras.Model(tokens, wrapped[1](wrapped[0](tokens)))
    found, unmasked = model(TOKENS), wrapped[1](tf.convert_to_tensor(wrapped[0](TOKENS).numpy()))
    assert_equal(wrapped[0].compute_mask(TOKENS, None), TOKENS != 0)
    for layer, wrapper in zip((embedding, lstm), wrapped, strict=True):
        assign_quantized(layer, wrapper)
    assert_equal(found, lstm(embedding(TOKENS)))
    assert not np.allclose(found, unmasked)


def test_losses_are_those_of_the_layer_with_its_own_kernel_regularized():
    options = {"kernel_regularizer": "l2", "bias_regularizer": "l1", "activity_regularizer": "l2"}

    def regularized():
        tf.keras.utils.set_random_seed(6)
        layer = layers.Dense(4, bias_initializer="ones", **options)
        layer.build((None, 6))
        return layer

    wrapper = quantized(regularized(), "kernel")
    expected = assign_quantized(regularized(), wrapper)
    wrapper(ROWS)
    expected(ROWS)
    of_activity, *of_weights = [float(loss) for loss in wrapper.losses]
    assert of_activity == float(expected.losses[0])
    assert of_weights == [float(loss) for loss in regularized().losses]


def test_a_state_goes_on_from_batch_to_batch():
    wrapper = quantized(built("stateful_gru"), CELL)
    expected = assign_quantized(built("stateful_gru"), wrapper)
    model, inputs = model_of("stateful_gru", wrapper)
    found = [model.predict(inputs, verbose=0) for _ in range(2)]
    of_layer, _ = model_of("stateful_gru", expected)
    assert_equal(found, [of_layer.predict(inputs, verbose=0) for _ in range(2)])
    assert not np.allclose(*found)


def test_it_trains():
    wrapper = quantized(built("dropout_lstm"), CELL, LSQWeightsQuantizer)
    model, inputs = model_of("dropout_lstm", wrapper)
    before = model.get_weights()
    model.compile("sgd", "mse")
    model.fit(inputs, np.ones((4, 4), np.float32), batch_size=4, epochs=2, verbose=0)
    moved = [np.any(old != new.numpy()) for old, new in zip(before, model.weights, strict=True)]
    assert all(moved)


def test_layers_that_compute_with_other_numbers_are_refused():
    with_lora = built("dense")
    with_lora.enable_lora(2)
    with pytest.raises(ValueError, match="must not use LoRA to be quantized"):
        quantized(with_lora, "kernel")
    in_int8 = built("dense")
    in_int8.quantize("int8")
    with pytest.raises(ValueError, match="must be a float layer to be quantized, got one quantized to int8"):
        quantized(in_int8, "kernel")


@pytest.mark.parametrize(
    "path", ["kernels", "kernel.0", "activation", "bias.kernel", "", "_layers.5.kernel", "activation.0", "0"]
)
def test_a_path_that_leads_to_no_variable_is_refused(path):
    quantizers = {path: STEWeightsQuantizer(weights_config())}
    with pytest.raises(ValueError, match=f"{path!r} must be a float variable of layer 'dense"):
        qatfast.KerasTrainableQuantizationWrapper(built("dense"), quantizers)


def test_an_unbuilt_layer_with_several_inputs_is_refused():
    wrapper = quantized(layers.MultiHeadAttention(2, 3, name="heads"), ATTENTION)
    with pytest.raises(ValueError, match="must be built before it is wrapped if it has several inputs, got 'heads'"):
        wrapper(STEPS, STEPS)


def test_what_is_no_layer_or_no_quantizer_is_refused():
    with pytest.raises(TypeError, match="layer must be a Keras 3 layer, got 3"):
        qatfast.KerasTrainableQuantizationWrapper(3, {})
    with pytest.raises(TypeError, match=r"weights_quantizers\['kernel'\] must be a quantizer, got None"):
        qatfast.KerasTrainableQuantizationWrapper(built("dense"), {"kernel": None})
    with pytest.raises(TypeError, match="activation_holder_quantizer must be a quantizer, got 'STE'"):
        qatfast.KerasActivationQuantizationHolder("STE")


def test_a_config_with_a_class_that_is_not_defined_says_what_to_import():
    wrapper = quantized(built("dense"), "kernel")
    holder = qatfast.KerasActivationQuantizationHolder(STEActivationQuantizer(activation_config()))
    for layer in (wrapper, holder):
        config = layer.get_config()
        stored = config[WEIGHTS_QUANTIZERS]["kernel"] if layer is wrapper else config["activation_holder_quantizer"]
        stored.update(module="my.quantizers", class_name="Mine")
        with pytest.raises(ValueError, match=r"got my\.quantizers\.Mine: import my\.quantizers first"):
            type(layer).from_config(config)


def test_keras_without_qatfast_says_what_a_file_needs(tmp_path):
    model, _ = model_of("dense", quantized(built("dense"), "kernel"))
    model.save(tmp_path / "model.keras")
    code = f"import keras; keras.models.load_model({str(tmp_path / 'model.keras')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), cwd="/")
    assert done.returncode == 1
    assert "qatfast" in done.stderr.rpartition("Error:")[2]


@over_policies
def test_a_holder_quantizes_in_the_policys_type_and_comes_back(policy, tmp_path):
    holder = qatfast.KerasActivationQuantizationHolder(STEActivationQuantizer(activation_config()), dtype=policy)
    row = tf.keras.Input((6,))
    model = tf.keras.Model(row, holder(row))
    expected = holder.activation_holder_quantizer(tf.cast(ROWS, holder.compute_dtype), training=False)
    assert expected.dtype == holder.compute_dtype
    assert_equal(model(ROWS), expected)
    model.save(tmp_path / "model.keras")
    assert_equal(tf.keras.models.load_model(tmp_path / "model.keras")(ROWS), expected)
    assert_equal(tf.keras.models.clone_model(model)(ROWS), expected)
