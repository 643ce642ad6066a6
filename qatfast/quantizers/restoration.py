"""How the variables of an activation's quantizer are found in a checkpoint of TensorFlow's format.

mct-quantizers has a quantizer name its variables after the layer that holds it ('relu_holder/out_max'), and Keras
tracks a variable under its whole name. Where the same model is built again in one process, Keras gives its layers other
names, and TensorFlow passes over a variable that it does not find, without a word.
"""

import types

import tensorflow as tf

__all__ = ["restore_under_any_layer_name"]


def restore_under_any_layer_name(layer, prefix: str) -> None:
    """Has a layer find a quantizer's variables in a checkpoint, whatever the layer was called when it was written.

    Nothing changes in what is written, so that checkpoints go both ways between qatfast and MCT as before. The look-up
    is replaced on this one layer: its class is that of mct-quantizers.

    Args:
        layer: The layer that has created the variables.
        prefix: What their names start with. Nothing is done unless that is the layer's own name and more, as for an
            activation: '<layer name>/out_'.
    """
    mark = prefix[len(layer.name) :]
    if not isinstance(layer, tf.Module):  # Keras 3, where variables are tracked by their order
        return
    if not prefix.startswith(f"{layer.name}/") or len(mark) < 2:
        return

    def lookup(self, name, cached_dependencies=None):
        found = type(self)._lookup_dependency(self, name, cached_dependencies)
        if found is None and mark in name:
            found = type(self)._lookup_dependency(self, prefix + name.rpartition(mark)[2], cached_dependencies)
        return found

    layer._lookup_dependency = types.MethodType(lookup, layer)
    for name in list(layer._deferred_dependencies):  # of a checkpoint that was loaded before the layer was built
        if (variable := layer._lookup_dependency(name)) is not None:
            layer._handle_deferred_dependencies(name, variable)
