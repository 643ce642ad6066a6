"""Which tensors of a model are quantized, and which inputs of quantized kernels stay in float."""

from typing import Any, NamedTuple

import tensorflow as tf

from qatfast.flow.adapter import KerasAdapter
from qatfast.flow.operations import makes_activation, moves_numbers

__all__ = ["ActivationPoint", "FloatInput", "activation_points", "float_inputs"]


class ActivationPoint(NamedTuple):
    """A tensor to quantize: the operation that makes it, a name for its holder, and the tensor."""

    operation: Any
    holder_name: str
    tensor: Any


class FloatInput(NamedTuple):
    """An input that stays in float: the operation that reads it, and the one that computed its numbers."""

    reader: Any
    maker: Any


def activation_points(keras: KerasAdapter, model, quantize_input: bool, float_layers) -> list[ActivationPoint]:
    """Returns the floating-point tensors of a flat model to quantize, in the order in which the model computes them.

    These are the model's inputs and the outputs of activation layers, of layers with a non-linear `activation`, and of
    additions, concatenations and the like, as far as an operation of the model reads them: what only leaves the model
    is read by nobody that computes in integers.

    Args:
        keras: The model's Keras.
        model: A flat Functional model, as `rebuild` returns it.
        quantize_input: Whether the inputs count.
        float_layers: Names of operations whose output does not count.
    """
    made = [(keras.producer(tensor), tensor) for tensor in model.inputs if quantize_input]
    read = set()
    for call in keras.calls(model):
        read.update(id(value) for value in tf.nest.flatten(call.arguments))
        outputs = tf.nest.flatten(call.outputs)
        if makes_activation(keras, call.operation) and len(outputs) == 1:
            made.append((call.operation, outputs[0]))
    points, calls = [], {}
    for operation, tensor in made:
        is_quantized = id(tensor) in read and tf.as_dtype(tensor.dtype).is_floating
        if is_quantized and operation.name not in float_layers:
            calls[operation] = calls.get(operation, -1) + 1
            suffix = f"_{calls[operation]}" if calls[operation] else ""
            stem = operation.name.replace(".", "_")  # Keras 2 does not find a layer with dots in a SavedModel
            points.append(ActivationPoint(operation, f"{stem}_activation_holder_quantizer{suffix}", tensor))
    return points


def float_inputs(keras: KerasAdapter, model, readers, points: list[ActivationPoint]) -> list[FloatInput]:
    """Returns the inputs that are not on the grid of an activation point, in the order in which they are computed.

    An input is on a grid if it is the tensor of a point, or comes from one through operations that only move numbers:
    reshaping, cropping, padding with zeros, taking the maximum, and what is the identity in inference.

    Args:
        keras: The model's Keras.
        model: A flat Functional model, as `rebuild` returns it.
        readers: Layers of the model that read one tensor each; an input per call.
        points: The tensors that are quantized.
    """
    quantized = {id(point.tensor) for point in points}
    # id(tensor) -> the operation that computed its numbers, None for numbers on a grid.
    makers = {id(tensor): None if id(tensor) in quantized else keras.producer(tensor) for tensor in model.inputs}
    reading = {id(layer) for layer in readers}
    found = []
    for call in keras.calls(model):
        read = [makers[id(value)] for value in tf.nest.flatten(call.arguments) if id(value) in makers]
        if id(call.operation) in reading and read[0] is not None:
            found.append(FloatInput(call.operation, read[0]))
        maker = read[0] if moves_numbers(keras, call) else call.operation
        for tensor in tf.nest.flatten(call.outputs):
            makers[id(tensor)] = None if id(tensor) in quantized else maker
    return found
