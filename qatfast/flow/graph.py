"""A model as operations and tensors, whichever Keras made it: checked, walked through, rebuilt of other operations.

Keras keeps one node per call of an operation. Rebuilding calls a new operation for every node, in the order of depth,
as Keras' own cloning does. Nested models are walked through, so that the new model is flat.
"""

import inspect
from collections.abc import Callable, Iterator

import tensorflow as tf

from qatfast.flow.adapter import KerasAdapter

__all__ = ["all_operations", "check_graph_model", "rebuild"]


def check_graph_model(function: str, keras: KerasAdapter, model) -> None:
    """Raises an error unless `model` is a built Sequential or a Functional model.

    Raises:
        ValueError: It is a subclassed model, also one of a Functional graph with a train_step or call of its own; a
            Sequential model that is not built; or has losses or metrics that hang on its graph.
    """
    if keras.is_graph_model(model):
        _check_no_training_of_its_own(function, model)
        for call in keras.calls(model):
            if isinstance(call.operation, keras.api.Model):
                check_graph_model(function, keras, call.operation)
        return
    if isinstance(model, keras.api.Sequential):
        raise ValueError(
            f"{function}: model must be built (call build() or give it an Input), got {model.name!r} unbuilt"
        )
    when = " before its own first call" if keras.locks_models else ""
    rest = ", data" if function == "quantize_model" else ""
    raise ValueError(
        f"{function}: model must be Sequential or Functional, got the subclassed model {model.name!r} of class "
        f"{type(model).__name__}, whose layers are called where qatfast cannot see it; pass the Functional model that "
        f"it calls{when}, as in model.body = qatfast.{function}(model.body{rest}), or make one of its call: inputs = "
        f"keras.Input(shape), then qatfast.{function}(keras.Model(inputs, model.call(inputs)){rest})"
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
            f"{model.name!r} of class {type(model).__name__}; pass keras.Model(model.input, model.output)"
        )


def all_operations(keras: KerasAdapter, model) -> Iterator:
    """Yields the operations of a model and its nested models in the order of their calls; shared ones several times."""
    for call in keras.calls(model):
        is_model = isinstance(call.operation, keras.api.Model)
        yield from all_operations(keras, call.operation) if is_model else [call.operation]


def rebuild(
    keras: KerasAdapter,
    model,
    replace: Callable | None = None,
    holders: dict[int, Callable] | None = None,
    dtype_policy=None,
):
    """Returns a new flat Functional model with the weights of `model`, which stays as it is.

    Inputs, outputs (as lists or dicts, if they are) and the model's name are kept. An operation that is called several
    times is replaced once. Where two of nested models have the same name, the later one's is prefixed with its model's.

    Args:
        keras: The model's Keras.
        model: A model that `check_graph_model` accepts.
        replace: Makes the operation, of the given name, to put in the place of another; by default a clone.
        holders: Maps `id(tensor)` of tensors of `model` to what is called on it, and gives what all read in its place.
            The model's outputs are not read through it.
        dtype_policy: The new model's policy, by default that of `model`. Layers have their own; the model's decides
            whether `compile` scales the loss.
    """
    rebuilding = _Rebuilding(keras, replace or keras.clone, holders or {})
    for tensor in model.inputs:
        new = keras.layers.InputLayer.from_config(keras.producer(tensor).get_config())
        rebuilding.names.add(new.name)
        rebuilding.record(tensor, new.output)
    rebuilding.walk(model, training=None)
    find = rebuilding.tensors.__getitem__
    functional = keras.functional(model)
    inputs = tf.nest.map_structure(lambda tensor: find(id(tensor)), functional.input)
    outputs = tf.nest.map_structure(lambda tensor: find(id(tensor)), functional.output)
    with keras.policy_scope(dtype_policy or model.dtype_policy):  # which a Functional model takes
        rebuilt = keras.api.Model(inputs, outputs, name=model.name)
    for old, new in rebuilding.replacements.values():
        keras.copy_weights(old, new)
    return rebuilt


class _Rebuilding:
    """The state of one `rebuild`: tensors and operations of the old model, and what stands for them in the new one."""

    def __init__(self, keras, replace, holders):
        self.keras = keras
        self.replace = replace
        self.holders = holders
        self.tensors = {}  # id(old tensor) -> new tensor
        self.held_tensors = {}  # id(old tensor) -> the new tensor that operations read, where it differs
        self.replacements = {}  # id(old operation) -> (old operation, new operation)
        self.names = set()

    def record(self, old, new):
        self.tensors[id(old)] = new
        if id(old) in self.holders:
            self.held_tensors[id(old)] = self.holders[id(old)](new)

    def read(self, value):
        return self.held_tensors.get(id(value), self.tensors.get(id(value), value))

    def walk(self, model, training):
        """Calls the new operations of all calls in `model`, whose inputs are recorded already."""
        for operation, arguments, old_outputs in self.keras.calls(model):
            args, kwargs = tf.nest.map_structure(self.read, arguments)
            if isinstance(operation, self.keras.api.Model):
                outputs = self.call_nested(operation, args, kwargs, training)
            else:
                # What a nested model was called with reaches its layers: walked through, there is no model to pass it.
                if training is not None and "training" in inspect.signature(operation.call).parameters:
                    kwargs = {"training": training, **kwargs}
                outputs = tf.nest.flatten(self.replacement(operation, model)(*args, **kwargs))
            for old, new in zip(tf.nest.flatten(old_outputs), outputs, strict=True):
                self.record(old, new)

    def call_nested(self, model, args, kwargs, training):
        """Walks through a nested model and returns its outputs; a shared one is walked once per call."""
        given = args[0] if args else kwargs["inputs"]
        if isinstance(given, dict):
            given = [given[name] for name in self.keras.input_names(model)]
        for inner, outer in zip(model.inputs, tf.nest.flatten(given), strict=True):
            self.tensors[id(inner)] = outer
        chosen = kwargs.get("training", args[1] if len(args) > 1 else None)
        self.walk(model, training if chosen is None else chosen)
        return [self.tensors[id(tensor)] for tensor in model.outputs]

    def replacement(self, operation, model):
        if id(operation) not in self.replacements:
            name = operation.name
            if name in self.names:
                name = f"{model.name}_{operation.name}"
            stem, count = name, 1
            while name in self.names:
                name, count = f"{stem}_{count}", count + 1
            self.names.add(name)
            self.replacements[id(operation)] = (operation, self.replace(operation, name))
        return self.replacements[id(operation)][1]
