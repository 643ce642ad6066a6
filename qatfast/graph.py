"""Walks the layer graph of a Keras model: rebuilds it with other layers, and finds the tensors to quantize.

Keras keeps one node per call of a layer. Rebuilding calls a new layer for every node, in the order of depth, as
Keras' own cloning does. Nested models are walked through, so that the new model is flat.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import NamedTuple

import tensorflow as tf

from qatfast.wrapper import copy_weights

__all__ = ["ActivationPoint", "activation_points", "all_layers", "check_graph_model", "clone_layer", "rebuild"]

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


class ActivationPoint(NamedTuple):
    """A tensor to quantize: the layer that makes it, a name for its holder, and the tensor."""

    layer: tf.keras.layers.Layer
    holder_name: str
    tensor: object


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
    raise ValueError(
        f"{function}: model must be Sequential or Functional, got the subclassed model {model.name!r} of class "
        f"{type(model).__name__}, whose layers are called where qatfast cannot see it"
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


def _makes_activation(layer) -> bool:
    if isinstance(layer, _MERGE_LAYERS):
        return True
    if type(layer).__name__ == "TFOpLambda":
        return layer.get_config()["function"] in _FUNCTIONS
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
