"""The trainable wrapper, and its conversion to mct-quantizers' own."""

import numpy as np
import pytest
import tensorflow as tf
from mct_quantizers import KerasQuantizationWrapper
from models import (
    IS_KERAS_3,
    KERAS,
    METHODS,
    computed_kernel,
    exported,
    images,
    kernel_of,
    layers,
    train,
    weights_config,
)

import qatfast
from qatfast.quantizers import STEWeightsQuantizer

LAYERS = {
    "dense": (lambda **kwargs: layers.Dense(4, **kwargs), "kernel", -1),
    "conv": (lambda **kwargs: layers.Conv2D(4, 3, **kwargs), "kernel", -1),
    "depthwise": (lambda **kwargs: layers.DepthwiseConv2D(3, depth_multiplier=2, **kwargs), KERAS.depthwise_kernel, 2),
    "transpose": (lambda **kwargs: layers.Conv2DTranspose(4, 3, **kwargs), "kernel", -2),
}
CHANNELS = {"dense": 4, "conv": 4, "depthwise": 3, "transpose": 4}


def wrap(kind, method=METHODS[0], **kwargs):
    make, attribute, axis = LAYERS[kind]
    ones = np.ones(CHANNELS[kind], np.float32)
    params = {"range_min": -ones, "range_max": 0.3 * ones} if method is METHODS[2] else {"threshold": 0.7 * ones}
    quantizer = STEWeightsQuantizer(weights_config(method, axis=axis, **params))
    return qatfast.KerasTrainableQuantizationWrapper(make(**kwargs), {attribute: quantizer}, name="wrapped")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_converted_wrapper_has_the_same_output_weights_and_name(kind, use_bias, method):
    wrapper = wrap(kind, method, use_bias=use_bias, bias_initializer="random_normal")
    expected = wrapper(images())
    converted = exported(wrapper)
    assert type(converted) is (type(wrapper.layer) if IS_KERAS_3 else KerasQuantizationWrapper)
    assert converted.name == "wrapped"
    np.testing.assert_array_equal(converted(images()), expected)
    np.testing.assert_array_equal(computed_kernel(converted), computed_kernel(wrapper))
    if not IS_KERAS_3:  # which keeps the kernel as it is, and a variable for the optimizer's step
        np.testing.assert_array_equal(converted.get_weights()[0], wrapper.get_weights()[0])
    assert len(converted.get_weights()) == 2 - IS_KERAS_3 + use_bias


def test_converting_leaves_the_wrapper_as_it_was_and_shares_nothing():
    wrapper = wrap("conv")
    before = wrapper(images())
    quantizers, weights = dict(wrapper.weights_quantizers), list(wrapper.weights)
    converted = exported(wrapper)
    assert wrapper.weights_quantizers == quantizers
    assert all(old is new for old, new in zip(wrapper.weights, weights, strict=True))
    for variable in converted.weights:
        variable.assign(tf.zeros_like(variable))
    np.testing.assert_array_equal(wrapper(images()), before)


def test_a_wrapper_that_is_built_but_never_called_converts():
    wrapper = wrap("dense")
    wrapper.build((None, 6))
    converted = exported(wrapper)
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)
    np.testing.assert_array_equal(converted(x), wrapper(x))


@pytest.mark.keras2_only(reason="conversion of a single wrapper is for models of layers of mct-quantizers")
def test_a_wrapper_that_is_not_built_does_not_convert():
    with pytest.raises(ValueError, match="KerasTrainableQuantizationWrapper: layer wrapped must be built"):
        wrap("dense").convert_to_inferable_quantizers()


@pytest.mark.parametrize("kind", LAYERS)
def test_the_kernel_is_quantized_and_trains(kind):
    wrapper = wrap(kind)
    model = tf.keras.Sequential([tf.keras.Input((8, 8, 3)), wrapper, layers.Flatten(), layers.Dense(4)])
    kernel = kernel_of(wrapper)[0]
    before = kernel.numpy()
    train(model)
    assert any(kernel is weight for weight in model.trainable_weights)
    assert np.any(kernel.numpy() != before)
    axis = LAYERS[kind][2]
    assert all(len(np.unique(channel)) <= 16 for channel in np.moveaxis(computed_kernel(wrapper), axis, 0))


def test_a_wrapper_comes_back_from_its_config_with_its_quantizers():
    wrapper = wrap("depthwise")
    wrapper.build((None, 8, 8, 3))
    loaded = qatfast.KerasTrainableQuantizationWrapper.from_config(wrapper.get_config())
    loaded.build((None, 8, 8, 3))
    loaded.set_weights(wrapper.get_weights())
    assert type(loaded.weights_quantizers[KERAS.depthwise_kernel]) is STEWeightsQuantizer
    np.testing.assert_array_equal(loaded(images()), wrapper(images()))


def test_the_wrapped_layer_can_quantize_two_weights():
    quantizers = {name: STEWeightsQuantizer(weights_config(n_bits=3)) for name in ("kernel", "bias")}
    wrapper = qatfast.KerasTrainableQuantizationWrapper(layers.Dense(4, bias_initializer="random_normal"), quantizers)
    expected = wrapper(images())
    converted = exported(wrapper)
    np.testing.assert_array_equal(converted(images()), expected)
