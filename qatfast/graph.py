"""Walks the layer graph of a Keras model: rebuilds it with other layers, and finds the tensors to quantize.

Keras keeps one node per call of a layer. Rebuilding calls a new layer for every node, in the order of depth, as
Keras' own cloning does. Nested models are walked through, so that the new model is flat.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from qatfast.wrapper import copy_weights

__all__ = [
    "ActivationPoint",
    "FloatInput",
    "activation_points",
    "all_layers",
    "check_graph_model",
    "clone_layer",
    "float_inputs",
    "function_name",
    "rebuild",
]

_layers = tf.keras.layers
_ACTIVATION_LAYERS = (
    _layers.Activation,
    _layers.ReLU,
    _layers.LeakyReLU,
    _layers.PReLU,
    _layers.ELU,
    _layers.ThresholdedReLU,
    _layers.Softmax,
)
_MERGE_LAYERS = (
    _layers.Add,
    _layers.Subtract,
    _layers.Multiply,
    _layers.Average,
    _layers.Maximum,
    _layers.Minimum,
    _layers.Concatenate,
    _layers.Dot,
)
# What `a + b`, `tf.concat` and `tf.nn.relu` become in a Functional model: a TFOpLambda layer of this function.
_FUNCTIONS = frozenset(
    "__operators__.add __operators__.sub __operators__.mul math.add math.subtract math.multiply math.maximum "
    "math.minimum math.add_n concat stack nn.relu nn.relu6 nn.leaky_relu nn.elu nn.selu nn.silu nn.swish nn.gelu "
    "nn.softmax nn.sigmoid nn.tanh math.sigmoid math.tanh math.softplus math.softmax".split()
)
# What, in inference, returns numbers that it reads, and zeros besides: both are on the grid of what it reads.
_MOVING_LAYERS = (
    _layers.Flatten,
    _layers.Reshape,
    _layers.Permute,
    _layers.RepeatVector,
    _layers.Cropping1D,
    _layers.Cropping2D,
    _layers.Cropping3D,
    _layers.ZeroPadding1D,
    _layers.ZeroPadding2D,
    _layers.ZeroPadding3D,
    _layers.UpSampling1D,
    _layers.UpSampling3D,
    _layers.MaxPooling1D,
    _layers.MaxPooling2D,
    _layers.MaxPooling3D,
    _layers.GlobalMaxPooling1D,
    _layers.GlobalMaxPooling2D,
    _layers.GlobalMaxPooling3D,
    _layers.Masking,
    _layers.ActivityRegularization,
    # From here on, identity in inference.
    _layers.Dropout,
    _layers.AlphaDropout,
    _layers.GaussianDropout,
    _layers.GaussianNoise,
    _layers.RandomBrightness,
    _layers.RandomContrast,
    _layers.RandomFlip,
    _layers.RandomRotation,
    _layers.RandomTranslation,
    _layers.RandomZoom,
)
_RESIZING_LAYERS = (_layers.Resizing, _layers.UpSampling2D)  # which move numbers unless they interpolate
_PAD = "compat.v1.pad"  # which is tf.pad, too
_MOVING_FUNCTIONS = frozenset(
    "__operators__.getitem broadcast_to cast compat.v1.squeeze compat.v1.transpose expand_dims identity "
    "image.flip_left_right image.flip_up_down math.reduce_max nn.depth_to_space "
    "nn.max_pool2d nn.space_to_depth repeat reshape reverse roll slice split stop_gradient tile unstack".split()
) | {_PAD}


class ActivationPoint(NamedTuple):
    """A tensor to quantize: the layer that makes it, a name for its holder, and the tensor."""

    layer: tf.keras.layers.Layer
    holder_name: str
    tensor: object


class FloatInput(NamedTuple):
    """An input that stays in float: the layer that reads it, and the layer that computed its numbers."""

    reader: tf.keras.layers.Layer
    maker: tf.keras.layers.Layer


def check_graph_model(function: str, model) -> None:
    """Raises an error unless `model` is a built Sequential or a Functional model.

    Raises:
        TypeError: It is no Keras model of `tf.keras`.
        ValueError: It is a subclassed model, also one of a Functional graph with a train_step or call of its own; a
            Sequential model that is not built; or has losses or metrics that hang on its graph.
    """
    if not isinstance(model, tf.keras.Model):
        raise TypeError(f"{function}: model must be a tf.keras.Model (Keras 2), got {type(model)}")
    if _is_graph_model(model):
        _check_no_training_of_its_own(function, model)
        for _, nested in _walk_nodes(model):
            if isinstance(nested, tf.keras.Model):
                check_graph_model(function, nested)
        return
    if isinstance(model, tf.keras.Sequential):
        raise ValueError(
            f"{function}: model must be built (call build() or give it an Input), got {model.name!r} unbuilt"
        )
    rest = ", data" if function == "quantize_model" else ""
    raise ValueError(
        f"{function}: model must be Sequential or Functional, got the subclassed model {model.name!r} of class "
        f"{type(model).__name__}, whose layers are called where qatfast cannot see it; pass the Functional model that "
        f"it calls, as in model.body = qatfast.{function}(model.body{rest}), or make one of its call: inputs = "
        f"tf.keras.Input(shape), then qatfast.{function}(tf.keras.Model(inputs, model.call(inputs)){rest})"
    )


def _check_no_training_of_its_own(function, model):
    overridden = [
        name
        for name in ("call", "train_step", "test_step", "predict_step", "make_train_function", "compute_loss")
        if not getattr(type(model), name).__module__.startswith(("keras.", "tf_keras."))
    ]
    if overridden:
        raise ValueError(
            f"{function}: model must not override {', '.join(overridden)}, which the new model would not have, got "
            f"{model.name!r} of class {type(model).__name__}; pass tf.keras.Model(model.inputs, model.outputs)"
        )


def all_layers(model: tf.keras.Model) -> Iterator[tf.keras.layers.Layer]:
    """Yields the layers of a model and of its nested models, in the order of their calls; shared ones several times."""
    for _, layer in _walk_nodes(model):
        yield from all_layers(layer) if isinstance(layer, tf.keras.Model) else [layer]


def clone_layer(layer: tf.keras.layers.Layer, name: str) -> tf.keras.layers.Layer:
    """Returns a new layer of the same configuration under another name, without the weights."""
    return type(layer).from_config({**layer.get_config(), "name": name})


def rebuild(
    model: tf.keras.Model,
    replace_layer: Callable[[tf.keras.layers.Layer, str], tf.keras.layers.Layer] = clone_layer,
    holders: dict[int, tf.keras.layers.Layer] | None = None,
    dtype_policy: tf.keras.mixed_precision.Policy | str | None = None,
) -> tf.keras.Model:
    """Returns a new flat Functional model with the weights of `model`, which stays as it is.

    Inputs, outputs (as lists or dicts, if they are) and the model's name are kept. A layer that is called several
    times is replaced once. Where two layers of nested models have the same name, the later one's is prefixed with its
    model's.

    Args:
        model: A model that `check_graph_model` accepts.
        replace_layer: Makes the layer, of the given name, to put in the place of another.
        holders: Maps `id(tensor)` of tensors of `model` to a layer through which every layer reads that tensor. The
            model's outputs are not read through it.
        dtype_policy: The new model's policy, by default that of `model`. Layers have their own; the model's decides
            whether `compile` scales the loss.
    """
    rebuilding = _Rebuilding(replace_layer, holders or {})
    for tensor in model.inputs:
        layer = tensor.node.layer
        new = _layers.InputLayer.from_config(layer.get_config())
        rebuilding.names.add(new.name)
        rebuilding.record(tensor, new.output)
    rebuilding.walk(model, training=None)
    find = rebuilding.tensors.__getitem__
    inputs = tf.nest.map_structure(lambda tensor: find(id(tensor)), model.input)
    outputs = tf.nest.map_structure(lambda tensor: find(id(tensor)), model.output)
    with _global_policy(dtype_policy or model.dtype_policy):  # which a Functional model takes
        rebuilt = tf.keras.Model(inputs, outputs, name=model.name)
    for old, new in rebuilding.replacements.values():
        copy_weights(old, new)
    return rebuilt


@contextlib.contextmanager
def _global_policy(policy):
    previous = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(previous)


class _Rebuilding:
    """The state of one `rebuild`: tensors and layers of the old model, and what stands for them in the new one."""

    def __init__(self, replace_layer, holders):
        self.replace_layer = replace_layer
        self.holders = holders
        self.tensors = {}  # id(old tensor) -> new tensor
        self.held_tensors = {}  # id(old tensor) -> the new tensor that layers read, where it differs
        self.replacements = {}  # id(old layer) -> (old layer, new layer)
        self.names = set()

    def record(self, old, new):
        self.tensors[id(old)] = new
        if id(old) in self.holders:
            self.held_tensors[id(old)] = self.holders[id(old)](new)

    def read(self, value):
        return self.held_tensors.get(id(value), self.tensors.get(id(value), value))

    def walk(self, model, training):
        """Calls the new layers of all nodes of `model`, whose inputs are recorded already."""
        for node, layer in _walk_nodes(model):
            args, kwargs = tf.nest.map_structure(self.read, (node.call_args, node.call_kwargs))
            if isinstance(layer, tf.keras.Model):
                outputs = self.call_nested(layer, args, kwargs, training)
            else:
                # What a nested model was called with reaches its layers: walked through, there is no model to pass it.
                if training is not None and "training" in inspect.signature(layer.call).parameters:
                    kwargs = {"training": training, **kwargs}
                outputs = tf.nest.flatten(self.replacement(layer, model)(*args, **kwargs))
            for old, new in zip(tf.nest.flatten(node.outputs), outputs, strict=True):
                self.record(old, new)

    def call_nested(self, model, args, kwargs, training):
        """Walks through a nested model and returns its outputs; a shared one is walked once per call."""
        given = args[0] if args else kwargs["inputs"]
        if isinstance(given, dict):
            given = [given[tensor.node.layer.name] for tensor in model.inputs]
        for inner, outer in zip(model.inputs, tf.nest.flatten(given), strict=True):
            self.tensors[id(inner)] = outer
        chosen = kwargs.get("training", args[1] if len(args) > 1 else None)
        self.walk(model, training if chosen is None else chosen)
        return [self.tensors[id(tensor)] for tensor in model.outputs]

    def replacement(self, layer, model):
        if id(layer) not in self.replacements:
            name = layer.name
            if name in self.names:
                name = f"{model.name}_{layer.name}"
            stem, count = name, 1
            while name in self.names:
                name, count = f"{stem}_{count}", count + 1
            self.names.add(name)
            self.replacements[id(layer)] = (layer, self.replace_layer(layer, name))
        return self.replacements[id(layer)][1]


def activation_points(model: tf.keras.Model, quantize_input: bool, float_layers) -> list[ActivationPoint]:
    """Returns the floating-point tensors of a flat model to quantize, in the order in which the model computes them.

    These are the model's inputs and the outputs of activation layers, of layers with a non-linear `activation`, and of
    additions, concatenations and the like, as far as a layer of the model reads them: what only leaves the model is
    read by nobody that computes in integers.

    Args:
        model: A flat Functional model, as `rebuild` returns it.
        quantize_input: Whether the inputs count.
        float_layers: Names of layers whose output does not count.
    """
    made = [(tensor.node.layer, tensor) for tensor in model.inputs if quantize_input]
    read = set()
    for node, layer in _walk_nodes(model):
        read.update(id(value) for value in tf.nest.flatten((node.call_args, node.call_kwargs)))
        if _makes_activation(layer) and tf.is_tensor(node.outputs):
            made.append((layer, node.outputs))
    points, calls = [], {}
    for layer, tensor in made:
        if id(tensor) in read and tensor.dtype.is_floating and layer.name not in float_layers:
            calls[layer] = calls.get(layer, -1) + 1
            suffix = f"_{calls[layer]}" if calls[layer] else ""
            stem = layer.name.replace(".", "_")  # Keras does not find a layer with weights and dots in a SavedModel
            points.append(ActivationPoint(layer, f"{stem}_activation_holder_quantizer{suffix}", tensor))
    return points


def float_inputs(model: tf.keras.Model, readers, points: list[ActivationPoint]) -> list[FloatInput]:
    """Returns the inputs that are not on the grid of an activation point, in the order in which they are computed.

    An input is on a grid if it is the tensor of a point, or comes from one through layers that only move numbers:
    reshaping, cropping, padding with zeros, taking the maximum, and what is the identity in inference.

    Args:
        model: A flat Functional model, as `rebuild` returns it.
        readers: Layers of the model that read one tensor each; an input per call.
        points: The tensors that are quantized.
    """
    quantized = {id(point.tensor) for point in points}
    # id(tensor) -> the layer that computed its numbers, None for numbers on a grid.
    makers = {id(tensor): None if id(tensor) in quantized else tensor.node.layer for tensor in model.inputs}
    reading = {id(layer) for layer in readers}
    found = []
    for node, layer in _walk_nodes(model):
        read = [
            makers[id(value)] for value in tf.nest.flatten((node.call_args, node.call_kwargs)) if id(value) in makers
        ]
        if id(layer) in reading and read[0] is not None:
            found.append(FloatInput(layer, read[0]))
        maker = read[0] if _moves_numbers(node, layer) else layer
        for tensor in tf.nest.flatten(node.outputs):
            makers[id(tensor)] = None if id(tensor) in quantized else maker
    return found


def _moves_numbers(node, layer) -> bool:
    """Whether this call of a layer returns nothing but numbers of the first tensor that it reads, and zeros."""
    function = function_name(layer)
    if function == _PAD:
        in_place = node.call_args[4] if len(node.call_args) > 4 else 0
        return not np.any(node.call_kwargs.get("constant_values", in_place))
    if function is not None:
        return function in _MOVING_FUNCTIONS
    if isinstance(layer, _layers.Activation):
        return layer.activation is tf.keras.activations.linear
    if isinstance(layer, _RESIZING_LAYERS):
        return layer.interpolation == "nearest"
    return isinstance(layer, _MOVING_LAYERS)


def function_name(layer: tf.keras.layers.Layer) -> str | None:
    """The function of TensorFlow that the layer calls: 'reshape' of `tf.reshape(x)`; None for other layers."""
    lambdas = ("TFOpLambda", "SlicingOpLambda")
    return layer.get_config()["function"] if type(layer).__name__ in lambdas else None


def _makes_activation(layer) -> bool:
    if isinstance(layer, _MERGE_LAYERS):
        return True
    if function_name(layer) is not None:
        return function_name(layer) in _FUNCTIONS
    if isinstance(layer, _ACTIVATION_LAYERS) and not isinstance(layer, _layers.Activation):
        return True
    # A recurrent layer's activation acts inside its cell; what it returns is a product of two such.
    activation = None if isinstance(layer, _layers.RNN) else getattr(layer, "activation", None)
    return activation is not None and activation is not tf.keras.activations.linear


def _is_graph_model(model):
    return isinstance(model, tf.keras.Model) and bool(getattr(model, "_is_graph_network", False))


def _walk_nodes(model) -> Iterator[tuple]:
    """Yields (node, its layer) for every call of a layer in `model`, each after those whose outputs it reads."""
    by_depth = model._nodes_by_depth
    if min(by_depth) < 0:
        raise ValueError(
            f"model {model.name!r} must have no losses or metrics of add_loss() and add_metric() on its graph: they "
            f"are not carried over"
        )
    for depth in sorted(by_depth, reverse=True):
        for node in by_depth[depth]:
            if not node.is_input:
                yield node, node.layer
