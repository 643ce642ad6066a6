"""The Keras 2 layers that quantizers train in, and their conversion to layers of mct-quantizers alone."""

import tensorflow as tf
from mct_quantizers import KerasActivationQuantizationHolder, KerasQuantizationWrapper
from mct_quantizers.common.base_inferable_quantizer import BaseInferableQuantizer
from mct_quantizers.common.constants import ACTIVATION_HOLDER_QUANTIZER

from qatfast._keras import register_for_saving
from qatfast.flow.float32 import float32_config
from qatfast.flow.keras2_symbols import is_operation_name
from qatfast.quantizers.base import call_quantizer, is_trainable_quantizer, quantizer_classes

__all__ = [
    "KerasTrainableQuantizationWrapper",
    "call_through_wrapper_only",
    "copy_weights",
    "inferable_holder",
    "inferable_wrapper",
    "round_as_trained",
]


class KerasTrainableQuantizationWrapper(KerasQuantizationWrapper):
    """Wraps a layer and quantizes some of its weights with trainable quantizers.

    Args:
        layer: The Keras layer.
        weights_quantizers: Maps names of the layer's weights ('kernel', 'depthwise_kernel') to quantizers.
        **kwargs: As for mct-quantizers' `KerasQuantizationWrapper`. The dtype policy is the layer's unless given.

    Raises:
        TypeError: A quantizer is none, as where Keras did not find the class that a config names.
    """

    def __init__(self, layer: tf.keras.layers.Layer, weights_quantizers: dict, **kwargs):
        for name, quantizer in weights_quantizers.items():
            if not isinstance(quantizer, BaseInferableQuantizer):
                raise TypeError(
                    f"KerasTrainableQuantizationWrapper: weights_quantizers must map names to quantizers, got "
                    f"{quantizer!r} for {name!r} (import the module that defines the class first)"
                )
        # The wrapper's policy rules in the layer's place: Keras casts inputs and weights around the outer call only.
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, weights_quantizers, **kwargs)

    @classmethod
    def from_config(cls, config):
        """Returns the wrapper that `get_config` described; quantizer classes need no registration."""
        names = {
            name: cls for cls in quantizer_classes() for name in (cls.__name__, tf.keras.utils.get_registered_name(cls))
        }
        with tf.keras.utils.custom_object_scope(names):
            return super().from_config(config)

    def build(self, input_shape):
        """Builds the wrapped layer and the quantizers' variables."""
        super().build(input_shape)
        self._built_for = input_shape
        call_through_wrapper_only(self.layer)

    def convert_to_inferable_quantizers(self) -> KerasQuantizationWrapper:
        """Returns a built wrapper of mct-quantizers with the same name, weights and output; this one stays as it is.

        It computes in float32, with the numbers that this one makes of the weights; see `inferable_wrapper` and
        `round_as_trained`.

        Raises:
            ValueError: This wrapper is not built.
        """
        converted = inferable_wrapper(self, self.name)
        round_as_trained(self, converted)
        return converted


class _Holder:
    """What Keras finds under the name of mct-quantizers' holder, to make one from its config."""

    @staticmethod
    def from_config(config):
        if ACTIVATION_HOLDER_QUANTIZER in config:
            return KerasActivationQuantizationHolder.from_config(config)
        # MCT's exporter makes functions of holders, but leaves the name there that the holder was registered under.
        if not is_operation_name(str(config.get("function"))):
            raise ValueError(
                f"{KerasActivationQuantizationHolder.__name__}: function must be an operation on tensors, got "
                f"{config['function']!r}"
            )
        return tf.keras.layers.deserialize({"class_name": "TFOpLambda", "config": config})


register_for_saving(KerasTrainableQuantizationWrapper, "qatfast")  # MCT has a class of the same bare name
# Under their bare names, which mct-quantizers itself looks them up by: files must not tell that qatfast was here.
for _name, _layer in (
    (KerasActivationQuantizationHolder.__name__, _Holder),
    (KerasQuantizationWrapper.__name__, KerasQuantizationWrapper),
):
    tf.keras.utils.get_custom_objects().setdefault(_name, _layer)


def inferable_wrapper(wrapper: KerasQuantizationWrapper, name: str) -> KerasQuantizationWrapper:
    """Returns a built `KerasQuantizationWrapper` of another name, with inferable quantizers and the same weights.

    It computes in float32 whatever the policy of `wrapper`: mct-quantizers' quantizers take nothing else.

    Raises:
        ValueError: `wrapper` is not built.
    """
    if not wrapper.built:
        raise ValueError(f"{type(wrapper).__name__}: layer {wrapper.name} must be built to be converted, got unbuilt")
    positional = {}
    if wrapper.weight_values:
        positional = {
            "weight_values": {position: variable.numpy() for position, variable, _ in wrapper.get_weights_vars()},
            "op_call_args": list(wrapper.op_call_args),
            "op_call_kwargs": dict(wrapper.op_call_kwargs),
            "is_inputs_as_list": wrapper.is_inputs_as_list,
        }
    converted = KerasQuantizationWrapper(
        layer=type(wrapper.layer).from_config(float32_config(wrapper.layer)),
        weights_quantizers={name: _inferable(quantizer) for name, quantizer in wrapper.weights_quantizers.items()},
        name=name,
        dtype="float32",
        **positional,
    )
    converted.build(_build_input_shape(wrapper))
    call_through_wrapper_only(converted.layer)
    copy_weights(wrapper, converted)
    return converted


def inferable_holder(holder: KerasActivationQuantizationHolder, name: str) -> KerasActivationQuantizationHolder:
    """Returns a float32 `KerasActivationQuantizationHolder` of this name with the inferable form of the quantizer."""
    return KerasActivationQuantizationHolder(_inferable(holder.activation_holder_quantizer), name=name, dtype="float32")


def round_as_trained(source: KerasQuantizationWrapper, target: KerasQuantizationWrapper) -> None:
    """Makes an exported wrapper quantize every weight to the number that training does.

    The two may disagree about a weight in the middle of two numbers of the grid, which the exported formula rounds up
    and LSQ rounds to even, and about one that a half type moves across that middle before it is quantized. Such a
    weight is replaced by the number that training makes of it, which any quantizer of the same grid leaves alone.

    Args:
        source: The trained wrapper, which stays as it is.
        target: What `inferable_wrapper` made of it; its weights are the source's.
    """
    pairs = zip(source.get_weights_vars(), target.get_weights_vars(), strict=True)
    for (_, weight, quantizer), (_, variable, exported) in pairs:
        if not is_trainable_quantizer(quantizer):
            continue
        quantized = call_quantizer(quantizer, tf.cast(weight, source.compute_dtype), training=False)
        trained = tf.cast(quantized, tf.float32)
        helps = tf.abs(exported(trained) - trained) < tf.abs(exported(variable) - trained)
        variable.assign(tf.where(helps, trained, variable))


def copy_weights(source: tf.keras.layers.Layer, target: tf.keras.layers.Layer) -> None:
    """Copies a built layer's weights to a built layer of the same kind; either may be wrapped.

    A wrapper's kernels are its own, and leave the wrapped layer's lists when it is first called, so quantized weights
    are matched by name and the others by order. Quantizers' variables are not copied.

    Args:
        source: A layer, wrapped or not.
        target: The same layer, wrapped or not, perhaps of another dtype policy; at least its quantized weights exist
            in the source.
    """
    if isinstance(source, KerasActivationQuantizationHolder):
        return  # all its variables are its quantizer's
    quantized = dict.fromkeys(name for layer in (source, target) for name in _quantized_weights(layer))
    for (_, value), (_, variable) in zip(_weights(source, quantized), _weights(target, quantized), strict=True):
        variable.assign(tf.cast(value, variable.dtype))
    inner = target.layer if isinstance(target, tf.keras.layers.Wrapper) else target
    if hasattr(inner, "finalize_state"):  # Normalization and its like compute with tensors made of their weights
        inner.finalize_state()


def _weights(layer, quantized):
    """(name, variable) of the quantized weights, and then (None, variable) of the wrapped layer's others."""
    own = _quantized_weights(layer)
    inner = layer.layer if isinstance(layer, KerasQuantizationWrapper) else layer
    named = [(name, own[name] if name in own else getattr(inner, name)) for name in quantized]
    others = [variable for variable in inner.weights if all(variable is not other for _, other in named)]
    return named + [(None, variable) for variable in others]


def _quantized_weights(layer):
    if not isinstance(layer, KerasQuantizationWrapper):
        return {}
    return {name: variable for name, variable, _ in layer.get_weights_vars()}


def _build_input_shape(wrapper):
    """The shape that a wrapper was built for; Keras keeps it for layers that it built itself, but not from a file."""
    if isinstance(wrapper, KerasTrainableQuantizationWrapper):
        return wrapper._built_for
    return wrapper.get_input_shape_at(0)


def call_through_wrapper_only(layer):
    """Keeps Keras from tracing `layer` on its own for a SavedModel, which fails: its kernel is the wrapper's tensor.

    Keras does so for layers whose input spec fixes the rank (Conv2DTranspose). A wrapped layer's spec has no other
    use, since the wrapper calls `layer.call`.
    """
    layer.input_spec = None


def _inferable(quantizer):
    if is_trainable_quantizer(quantizer):
        return quantizer.convert2inferable()
    return type(quantizer).from_config(quantizer.get_config())
