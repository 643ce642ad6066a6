"""From a float Keras model to one that trains quantized."""

import warnings

import numpy as np
import tensorflow as tf
from mct_quantizers import QuantizationTarget
from tqdm import tqdm

from qatfast.calibration import activation_params, observe, weight_params
from qatfast.config import QATConfig, TrainableQuantizerActivationConfig, TrainableQuantizerWeightsConfig
from qatfast.flow.graph import all_operations, check_graph_model, rebuild
from qatfast.flow.operations import KERNEL_KINDS, find_kernel, kind
from qatfast.flow.placement import activation_points, float_inputs
from qatfast.flow.select import adapter_of
from qatfast.quantizers.base import get_quantizer_class

__all__ = ["quantize_model"]

# The policy under which a holder neither casts what it reads nor makes half-precision variables.
_MIXED_POLICIES = {"float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}
_DEFAULT_CONFIG = QATConfig()


def quantize_model(model, representative_data, config: QATConfig = _DEFAULT_CONFIG):
    """Returns a model that computes with quantized kernels and activations, ready to compile and train.

    Kernels of Conv2D, DepthwiseConv2D, Conv2DTranspose and Dense layers are wrapped; other layers stay as they are,
    with a warning that names them if they have a kernel or a matrix of weights.
    Activations are quantized, in a `KerasActivationQuantizationHolder`, after the input, activation layers, layers
    with a non-linear `activation`, additions, concatenations and the like, wherever a layer reads them. All else stays
    float: the model's outputs, which no layer reads (where a layer reads an output too, that layer reads it quantized,
    and the output stays float), and what a linear layer, a normalization or average pooling makes, also where a
    quantized kernel reads it: a warning names those kernels' layers, unless the layer that makes their input is one of
    `float_layers`, or an input under `quantize_input=False`.

    Every layer keeps its dtype policy: under mixed precision kernels and activations are quantized in the half type
    that Keras computes in, and the quantizers' variables are float32. Values on the grid are rounded to that type; with
    power-of-two thresholds they are on it already, up to 8 bits in bfloat16 and 11 in float16.

    Args:
        model: A float Sequential or Functional model, which stays as it is. Its nested models are flattened.
        representative_data: Data like the model's inputs, to calibrate ranges on: an array, a list of arrays (one per
            input), a function that returns an iterable of batches, or an iterable of batches (`tf.data.Dataset`,
            generator); see `representative_data.representative_batches`, also for models of a fixed batch size.
        config: Bit-widths, methods, and what to leave in float.

    Returns:
        A Functional model of the same inputs, outputs, name, weights, dtype policies and trainable flags, not
        compiled. Wrapped layers keep their names; the holder after layer 'relu' is called
        'relu_activation_holder_quantizer'.

    Raises:
        TypeError: `model` is no Keras model, `config` no QATConfig, or the representative data of a kind or type that
            the model's inputs do not take.
        ValueError: The model is subclassed, not built or quantized already; nothing would be quantized, or no kernel
            that would be is trainable; `float_layers` names a layer that there is not; the representative data is
            empty, does not fit, or makes a layer's output not finite; no quantizer fits the configuration.
    """
    if not isinstance(config, QATConfig):
        raise TypeError(f"quantize_model: config must be a QATConfig, got {type(config).__name__}")
    keras = adapter_of("quantize_model", model)
    check_graph_model("quantize_model", keras, model)
    _check_not_quantized(keras, model)
    float_model = rebuild(keras, model)
    _check_float_layers(keras, float_model, config)
    kernels = {
        id(operation): kernel
        for operation in keras.operations(float_model)
        if operation.name not in config.float_layers and (kernel := find_kernel(keras, operation))
    }
    _check_kernels(keras, float_model, kernels)
    _warn_of_float_weights(float_model, kernels, config)
    points = activation_points(keras, float_model, config.quantize_input, config.float_layers)
    _warn_of_float_inputs(keras, float_model, kernels, points, config)

    quantizers = {}
    for layer in tqdm(float_model.layers, desc="Calibrating kernels", unit="layer"):
        if id(layer) in kernels:
            quantizers[id(layer)] = _weights_quantizer(layer, *kernels[id(layer)], config)
    holders = _activation_holders(keras, float_model, points, representative_data, config)

    def wrap(operation, name):
        clone = keras.clone(operation, name)
        if id(operation) not in kernels:
            return clone
        quantized = {kernels[id(operation)].path: quantizers[id(operation)]}
        return keras.wrapper(clone, quantized, name=name, trainable=operation.trainable, **keras.jit(config))

    return rebuild(keras, float_model, wrap, holders)


def _weights_quantizer(layer, attribute, channel_axis, config):
    kernel = getattr(layer, attribute).numpy().astype(np.float32)
    if not np.isfinite(kernel).all():
        raise ValueError(f"quantize_model: the {attribute} of layer {layer.name!r} must be finite, got NaN or infinity")
    method = config.weight_quantization_method
    quantizer_class = get_quantizer_class(QuantizationTarget.Weights, method, config.weight_training_method)
    quantization_config = TrainableQuantizerWeightsConfig(
        weights_quantization_method=method,
        weights_n_bits=config.weight_n_bits,
        weights_quantization_params=weight_params(kernel, channel_axis, config),
        enable_weights_quantization=True,
        weights_channels_axis=channel_axis,
        weights_per_channel_threshold=config.weight_per_channel,
        min_threshold=config.min_threshold,
    )
    return quantizer_class(quantization_config, **(config.weight_quantizer_params_override or {}))


def _activation_holders(keras, model, points, representative_data, config):
    """Maps id(tensor) to the holder of every activation of `model` to quantize."""
    if not points:
        return {}
    method = config.activation_quantization_method
    quantizer_class = get_quantizer_class(QuantizationTarget.Activation, method, config.activation_training_method)
    histograms = observe(keras, model, points, representative_data)
    holders = {}
    for point, histogram in zip(points, histograms, strict=True):
        quantization_config = TrainableQuantizerActivationConfig(
            activation_quantization_method=method,
            activation_n_bits=config.activation_n_bits,
            activation_quantization_params=activation_params(histogram, config),
            enable_activation_quantization=True,
            min_threshold=config.min_threshold,
        )
        quantizer = quantizer_class(quantization_config, **(config.activation_quantizer_params_override or {}))
        dtype = tf.as_dtype(point.tensor.dtype).name
        holders[id(point.tensor)] = keras.holder(
            quantizer, name=point.holder_name, dtype=_MIXED_POLICIES.get(dtype, dtype), **keras.jit(config)
        )
    return holders


def _check_not_quantized(keras, model):
    operations = list(all_operations(keras, model))
    names = [operation.name for operation in operations if keras.is_quantized(operation)]
    if names:
        raise ValueError(
            f"quantize_model: model must be a float model, got {model.name!r} with quantized layers {names}"
        )
    for operation in operations:
        keras.check_is_float(operation)


def _check_float_layers(keras, model, config):
    names = [operation.name for operation in keras.operations(model)]
    unknown = [name for name in config.float_layers if name not in names]
    if unknown:
        raise ValueError(f"quantize_model: float_layers must name layers of the model, {names}, got {unknown}")


def _warn_of_float_weights(model, kernels, config):
    left = [
        f"{layer.name} ({type(layer).__name__})"
        for layer in model.layers
        if id(layer) not in kernels
        and layer.name not in config.float_layers
        and any(len(weight.shape) >= 2 for weight in layer.trainable_weights)
    ]
    if left:
        warnings.warn(
            f"quantize_model: the weights of {', '.join(left)} stay in float: no quantizer is put in layers of these "
            "kinds. Name them in float_layers if that is meant.",
            stacklevel=3,
        )


def _warn_of_float_inputs(keras, model, kernels, points, config):
    layers = [layer for layer in model.layers if id(layer) in kernels]
    readers, count = {}, 0  # names by what makes their input
    for reader, maker in float_inputs(keras, model, layers, points):
        is_input = isinstance(maker, keras.layers.InputLayer)
        if maker.name in config.float_layers or (is_input and not config.quantize_input):
            continue  # meant
        readers.setdefault(kind(keras, maker), {})[reader.name] = None
        count += 1
    if count:
        named = "; ".join(f"{made_by} makes those of {', '.join(names)}" for made_by, names in readers.items())
        warnings.warn(
            f"quantize_model: inputs of quantized kernels stay in float ({count}): {named}. Training needs no change; "
            "hardware that computes in integers would have to compute the layers that read them in float.",
            stacklevel=3,
        )


def _check_kernels(keras, model, kernels):
    if not kernels:
        kinds = ", ".join(KERNEL_KINDS)
        raise ValueError(
            f"quantize_model: nothing gets quantized: model must have a layer of {kinds} outside float_layers, got "
            f"{model.name!r} with layers {[operation.name for operation in keras.operations(model)]}"
        )
    layers = [layer for layer in model.layers if id(layer) in kernels]
    if not any(layer.trainable for layer in layers):
        raise ValueError(
            f"quantize_model: at least one quantized kernel must be trainable, got trainable=False on all of "
            f"{[layer.name for layer in layers]}"
        )
