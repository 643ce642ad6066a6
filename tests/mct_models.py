"""What tests of `qatfast.mct` share: quantizer configs, target platforms, and models taken through MCT's own init."""

import model_compression_toolkit as mct
import numpy as np
import tensorflow as tf
from mct_quantizers import QuantizationMethod, QuantizationTarget
from model_compression_toolkit import trainable_infrastructure
from model_compression_toolkit.target_platform_capabilities.constants import KERNEL_ATTR
from model_compression_toolkit.target_platform_capabilities.tpc_models.imx500_tpc.v1_0.tpc import (
    generate_tpc,
    get_op_quantization_configs,
)
from model_compression_toolkit.trainable_infrastructure import (
    TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig,
)
from models import conv_net, dense_net, images, layers

import qatfast.mct
from qatfast.mct.quantizers import QUANTIZERS

STOCK, OURS = trainable_infrastructure.TrainingMethod, qatfast.mct.TrainingMethod
# MCT's default search for the best uniform ranges takes ten times as long as all the rest of a test.
QUICK_SEARCH = mct.core.QuantizationConfig(
    activation_error_method=mct.core.QuantizationErrorMethod.NOCLIPPING,
    weights_error_method=mct.core.QuantizationErrorMethod.NOCLIPPING,
)
METHODS = [QuantizationMethod.SYMMETRIC, QuantizationMethod.POWER_OF_TWO, QuantizationMethod.UNIFORM]


def platform(method=QuantizationMethod.SYMMETRIC, activation_method=QuantizationMethod.POWER_OF_TWO, bits=8, **kernel):
    """A target platform that quantizes kernels and activations by these methods; `kernel` edits kernels' configs."""
    linear, _, default = get_op_quantization_configs()
    edits = {"weights_quantization_method": method, "weights_n_bits": bits, **kernel}
    activation = {"activation_quantization_method": activation_method}
    linear = linear.clone_and_edit(attr_to_edit={KERNEL_ATTR: edits}, **activation)
    return generate_tpc(default.clone_and_edit(**activation), linear, [linear], "tests")


def init(model, training_method, tpc=None, core_config=None, config=None, override=None, **options):
    """`model` after MCT's init, with quantizers of one training method, or of MCT's `config`."""
    shapes = [tensor.shape[1:] for tensor in model.inputs]
    rng = np.random.default_rng(5)
    batches = [[rng.normal(size=(8, *shape)).astype(np.float32) for shape in shapes] for _ in range(2)]
    config = config or mct.qat.QATConfig(training_method, training_method, override, override)
    return mct.qat.keras_quantization_aware_training_init_experimental(
        model,
        lambda: batches,
        core_config=core_config or mct.core.CoreConfig(QUICK_SEARCH),
        qat_config=config,
        target_platform_capabilities=tpc or platform(),
        **options,
    )[0]


def quantizers(model):
    """All quantizers of a model."""
    found = []
    for layer in model.layers:
        found += getattr(layer, "weights_quantizers", {}).values()
        if hasattr(layer, "activation_holder_quantizer"):
            found.append(layer.activation_holder_quantizer)
    return found


def stock_class(target, method, identifier):
    """The stock quantizer of a target, a method and the name of a training method."""
    (found,) = [
        cls
        for cls in QUANTIZERS
        if cls.quantization_target is target
        and method in cls.quantization_method
        and cls.identifier is STOCK[identifier]
    ]
    return found


def weights_config(method, shape, axis, bits=8, seed=0, min_threshold=2.0**-16):
    """MCT's config of a weight: float64 params of the weight's rank, as its search gives them."""
    rng = np.random.default_rng(seed)
    channels = () if axis is None else [n if i == axis % len(shape) else 1 for i, n in enumerate(shape)]
    params = {"threshold": rng.uniform(0.5, 3, channels)}
    if method is QuantizationMethod.UNIFORM:
        params = {"range_min": rng.uniform(-2, -0.2, channels), "range_max": rng.uniform(0.2, 2, channels)}
    channel_axis = 0 if axis is None else axis
    return TrainableQuantizerWeightsConfig(method, bits, params, True, channel_axis, axis is not None, min_threshold)


def activation_config(method, bits=8, signed=True, seed=0, min_threshold=2.0**-16):
    """MCT's config of an activation."""
    rng = np.random.default_rng(seed)
    params = {"threshold": np.float64(rng.uniform(0.5, 3)), "is_signed": signed}
    if method is QuantizationMethod.UNIFORM:
        params = {"range_min": rng.uniform(-2, -0.2), "range_max": rng.uniform(0.2, 2)}
    return TrainableQuantizerActivationConfig(method, bits, params, True, min_threshold)


def make(cls, config, shape=None, **arguments):
    """A quantizer with its variables."""
    quantizer = cls(config, **arguments)
    layer = tf.keras.layers.Layer()
    quantizer.initialize_quantization(None if shape is None else tf.TensorShape(shape), "kernel", layer)
    quantizer.owner = layer
    return quantizer


def multi_output_net():
    """Two inputs, a residual, a shared layer, and two outputs."""
    tf.keras.utils.set_random_seed(4)
    first, second = tf.keras.Input((8, 8, 3), name="first"), tf.keras.Input((8, 8, 3), name="second")
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    x = layers.Add(name="sum")([layers.ReLU(name="relu")(shared(first)), shared(second)])
    pooled = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = [layers.Dense(4, activation="softmax", name="classes")(pooled), layers.Dense(2, name="box")(pooled)]
    return tf.keras.Model([first, second], outputs, name="multi_output_net")


NETS = {"conv": conv_net, "dense": dense_net, "multi_output": multi_output_net}
TARGETS = [QuantizationTarget.Weights, QuantizationTarget.Activation]

__all__ = [
    "METHODS", "NETS", "OURS", "STOCK", "TARGETS", "activation_config", "images", "init", "make", "multi_output_net",
    "platform", "quantizers", "stock_class", "weights_config",
]  # fmt: skip
