"""Lists what a quantized model quantizes."""

import collections
import math
from typing import NamedTuple

import tensorflow as tf

from qatfast.flow.adapter import KerasAdapter


class QuantizedTensor(NamedTuple):
    """A tensor that a training step quantizes: its shape (an activation's with the batch) and channel axis."""

    kind: str
    shape: tuple[int, ...]
    axis: int | None

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def quantized_tensors(keras: KerasAdapter, model, batch: list) -> list[QuantizedTensor]:
    """The weights and activations that `model`, of `quantize_model`, quantizes in a step on `batch`."""
    tensors, held = [], []
    for layer in model.layers:
        for weight, quantizer in keras.quantized_weights(layer):
            config = quantizer.quantization_config
            axis = config.weights_channels_axis if config.weights_per_channel_threshold else None
            tensors.append(QuantizedTensor("weight", tuple(weight.shape), axis))
        if isinstance(layer, keras.holder):
            held.append(layer.output)
    if held:  # traced, not run: the shapes are all that is wanted
        specs = [tf.TensorSpec(array.shape, array.dtype) for array in batch]
        traced = tf.function(keras.api.Model(model.inputs, held)).get_concrete_function(specs)
        tensors += [QuantizedTensor("activation", tuple(output.shape), None) for output in traced.outputs]
    return tensors


def inventory_rows(tensors: list[QuantizedTensor]) -> list[list[str]]:
    """The rows of a table of equal tensors and how many there are, the largest first; the header before them."""
    counts = collections.Counter(tensors)
    rows = [["quantized", "shape", "axis", "count", "elements in all"]]
    for tensor, count in sorted(counts.items(), key=lambda item: -item[0].elements * item[1]):
        axis = "-" if tensor.axis is None else str(tensor.axis)
        rows.append([tensor.kind, str(list(tensor.shape)), axis, str(count), f"{tensor.elements * count:,}"])
    total = sum(tensor.elements for tensor in tensors)
    return [*rows, ["all", "", "", str(len(tensors)), f"{total:,}"]]
