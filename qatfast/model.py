"""From a float Keras model to one that trains quantized, and from that to one to deploy."""

import warnings

import numpy as np
import tensorflow as tf
from mct_quantizers import KerasActivationQuantizationHolder, KerasQuantizationWrapper, QuantizationTarget
from tqdm import tqdm

from qatfast.calibration import activation_params, observe, weight_params
from qatfast.config import QATConfig, TrainableQuantizerActivationConfig, TrainableQuantizerWeightsConfig
from qatfast.graph import (
    activation_points,
    all_layers,
    check_graph_model,
    clone_layer,
    float_inputs,
    function_name,
    rebuild,
)
from qatfast.quantizers.base import get_quantizer_class
from qatfast.wrapper import (
    KerasTrainableQuantizationWrapper,
    float32_config,
    inferable_holder,
    inferable_wrapper,
    is_trainable_quantizer,
    round_as_trained,
)

__all__ = ["finalize_model", "quantize_model"]

# The kernel's attribute and channel axis. Conv2DTranspose is a Conv2D, so the order matters.
_KERNELS = (
    (tf.keras.layers.Conv2DTranspose, "kernel", 2),
    (tf.keras.layers.DepthwiseConv2D, "depthwise_kernel", 2),
    (tf.keras.layers.Conv2D, "kernel", 3),
    (tf.keras.layers.Dense, "kernel", 1),
)
# The policy under which a holder neither casts what it reads nor makes half-precision variables.
_MIXED_POLICIES = {"float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}
_DEFAULT_CONFIG = QATConfig()


def quantize_model(
    model: tf.keras.Model, representative_data, config: QATConfig = _DEFAULT_CONFIG
) -> tf.keras.Model:  # fmt: skip
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
    check_graph_model("quantize_model", model)
    _check_not_quantized(model)
    float_model = rebuild(model)
    _check_float_layers(float_model, config)
    kernels = {id(layer): kernel for layer in float_model.layers if (kernel := _find_kernel(layer, config))}
    _check_kernels(float_model, kernels)
    _warn_of_float_weights(float_model, kernels, config)
    points = activation_points(float_model, config.quantize_input, config.float_layers)
    _warn_of_float_inputs(float_model, kernels, points, config)

    quantizers = {}
    for layer in tqdm(float_model.layers, desc="Calibrating kernels", unit="layer"):
        if id(layer) in kernels:
            quantizers[id(layer)] = _weights_quantizer(layer, *kernels[id(layer)], config)
    holders = _activation_holders(float_model, points, representative_data, config)

    def wrap(layer, name):
        clone = clone_layer(layer, name)
        if id(layer) not in kernels:
            return clone
        attribute, _ = kernels[id(layer)]
        return KerasTrainableQuantizationWrapper(
            clone, {attribute: quantizers[id(layer)]}, name=name, trainable=layer.trainable
        )

    return rebuild(float_model, wrap, holders)


def finalize_model(qat_model: tf.keras.Model) -> tf.keras.Model:
    """Returns the model to deploy: the same outputs, computed by mct-quantizers' inferable quantizers only.

    Nothing of qatfast is left in it: it loads with `mct_quantizers.keras_load_quantized_model`.

    STE quantizers export what they trained, bit for bit. LSQ quantizers export the grid that they trained on, but
    mct-quantizers rounds by another formula: an activation next to the middle of two numbers of the grid may go to the
    other one. A kernel's element in that place is exported as the number that training makes of it, so that kernels
    are quantized as in training.

    The exported model computes in float32, whatever policies the layers trained under: mct-quantizers' quantizers take
    nothing else. Its quantized kernels are training's but for the rounding to a half type, and so are the grids of its
    activations; what layers compute differs by the precision of that type. Outputs of half types become float32.

    Args:
        qat_model: A model from `quantize_model` or `load_model`, or a Functional or Sequential model of your own with
            trainable quantizers. It stays as it is, ready to go on training.

    Returns:
        A Functional model of the same inputs, outputs and names, not compiled and not trainable.

    Raises:
        TypeError: `qat_model` is no Keras model.
        ValueError: It is subclassed or not built, or has no trainable quantizer; or a quantizer cannot be exported
            such that it computes what it trained.
    """
    check_graph_model("finalize_model", qat_model)
    found = False
    wrappers = []

    def convert(layer, name):
        nonlocal found
        if isinstance(layer, KerasQuantizationWrapper):
            found |= any(map(is_trainable_quantizer, layer.weights_quantizers.values()))
            wrappers.append((layer, inferable_wrapper(layer, name)))
            return wrappers[-1][1]
        if isinstance(layer, KerasActivationQuantizationHolder):
            found |= is_trainable_quantizer(layer.activation_holder_quantizer)
            return inferable_holder(layer, name)
        return type(layer).from_config({**float32_config(layer), "name": name})

    finalized = rebuild(qat_model, convert, dtype_policy="float32")
    if not found:
        raise ValueError(
            f"finalize_model: qat_model must have trainable quantizers, got {qat_model.name!r} without any"
        )
    for trained, exported in wrappers:  # after `rebuild` has copied the weights
        round_as_trained(trained, exported)
    finalized.trainable = False
    return finalized


def _find_kernel(layer, config):
    """(attribute, channel axis) of the layer's kernel to quantize, or None."""
    if layer.name in config.float_layers:
        return None
    return next(((attribute, axis) for kind, attribute, axis in _KERNELS if isinstance(layer, kind)), None)


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


def _activation_holders(model, points, representative_data, config):
    """Maps id(tensor) to the holder of every activation of `model` to quantize."""
    if not points:
        return {}
    method = config.activation_quantization_method
    quantizer_class = get_quantizer_class(QuantizationTarget.Activation, method, config.activation_training_method)
    histograms = observe(model, points, representative_data)
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
        dtype = point.tensor.dtype.name
        holders[id(point.tensor)] = KerasActivationQuantizationHolder(
            quantizer, name=point.holder_name, dtype=_MIXED_POLICIES.get(dtype, dtype)
        )
    return holders


def _check_not_quantized(model):
    quantized = (KerasQuantizationWrapper, KerasActivationQuantizationHolder)
    names = [layer.name for layer in all_layers(model) if isinstance(layer, quantized)]
    if names:
        raise ValueError(
            f"quantize_model: model must be a float model, got {model.name!r} with quantized layers {names}"
        )


def _check_float_layers(model, config):
    names = [layer.name for layer in model.layers]
    unknown = [name for name in config.float_layers if name not in names]
    if unknown:
        raise ValueError(f"quantize_model: float_layers must name layers of the model, {names}, got {unknown}")


def _warn_of_float_weights(model, kernels, config):
    left = [
        f"{layer.name} ({type(layer).__name__})"
        for layer in model.layers
        if id(layer) not in kernels
        and layer.name not in config.float_layers
        and any(weight.shape.rank >= 2 for weight in layer.trainable_weights)
    ]
    if left:
        warnings.warn(
            f"quantize_model: the weights of {', '.join(left)} stay in float: no quantizer is put in layers of these "
            "kinds. Name them in float_layers if that is meant.",
            stacklevel=3,
        )


def _warn_of_float_inputs(model, kernels, points, config):
    layers = [layer for layer in model.layers if id(layer) in kernels]
    readers, count = {}, 0  # names by what makes their input
    for reader, maker in float_inputs(model, layers, points):
        is_input = isinstance(maker, tf.keras.layers.InputLayer)
        if maker.name in config.float_layers or (is_input and not config.quantize_input):
            continue  # meant
        readers.setdefault(_kind(maker), {})[reader.name] = None
        count += 1
    if count:
        named = "; ".join(f"{kind} makes those of {', '.join(names)}" for kind, names in readers.items())
        warnings.warn(
            f"quantize_model: inputs of quantized kernels stay in float ({count}): {named}. Training needs no change; "
            "hardware that computes in integers would have to compute the layers that read them in float.",
            stacklevel=3,
        )


def _kind(layer):
    """What a layer is, for a sentence about what it makes."""
    if isinstance(layer, tf.keras.layers.InputLayer):
        return f"an input of {layer.output.dtype.name}"
    if function_name(layer) is not None:
        return f"tf.{function_name(layer)}"
    is_linear = getattr(layer, "activation", None) is tf.keras.activations.linear
    return f"linear {type(layer).__name__}" if is_linear else type(layer).__name__


def _check_kernels(model, kernels):
    if not kernels:
        kinds = ", ".join(kind.__name__ for kind, _, _ in _KERNELS)
        raise ValueError(
            f"quantize_model: nothing gets quantized: model must have a layer of {kinds} outside float_layers, got "
            f"{model.name!r} with layers {[layer.name for layer in model.layers]}"
        )
    layers = [layer for layer in model.layers if id(layer) in kernels]
    if not any(layer.trainable for layer in layers):
        raise ValueError(
            f"quantize_model: at least one quantized kernel must be trainable, got trainable=False on all of "
            f"{[layer.name for layer in layers]}"
        )
