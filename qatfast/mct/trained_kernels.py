"""Whether any quantized kernel of a model trains."""

import warnings

from mct_quantizers import KerasQuantizationWrapper

__all__ = ["connected_layers", "warn_unless_a_kernel_trains"]

_NO_KERNEL = (
    "qatfast.mct: the model quantizes activations, but no kernel that trains. The target platform capabilities decide "
    "which are quantized: give kernels a configuration of their own there with enable_weights_quantization=True, as "
    "MCT's get_target_platform_capabilities() does."
)


def warn_unless_a_kernel_trains(layers) -> None:
    """Warns if no layer among those of a model is a wrapper that quantizes a weight, and trains it."""
    if not any(_trains_quantized_kernel(layer) for layer in layers):
        warnings.warn(_NO_KERNEL, stacklevel=3)


def _trains_quantized_kernel(layer):
    if not isinstance(layer, KerasQuantizationWrapper) or not layer.built:
        return False
    trained = {id(weight) for weight in layer.trainable_weights}
    return any(id(weight) in trained for _, weight, _ in layer.get_weights_vars())


def connected_layers(layer):
    """Returns the layers of the Functional models that `layer` is part of."""
    found, pending = {id(layer): layer}, [layer]
    while pending:
        current = pending.pop()
        neighbours = [parent.layer for node in current.inbound_nodes for parent in node.parent_nodes]
        neighbours += [node.layer for node in current.outbound_nodes]
        new = {id(neighbour): neighbour for neighbour in neighbours if id(neighbour) not in found}
        found.update(new)
        pending.extend(new.values())
    return list(found.values())
