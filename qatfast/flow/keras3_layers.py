"""The Keras 3 layers that quantizers train in.

Both have the names and arguments of mct-quantizers' layers for Keras 2, and what quantizers see of them is what they
see there.
"""

import functools
import inspect
from typing import Any

import keras
import tensorflow as tf
from mct_quantizers.common.base_inferable_quantizer import BaseInferableQuantizer
from mct_quantizers.common.constants import ACTIVATION_HOLDER_QUANTIZER, WEIGHTS_QUANTIZERS

from qatfast.quantizers.base import call_quantizer, classes_by_name

__all__ = [
    "KerasActivationQuantizationHolder",
    "KerasTrainableQuantizationWrapper",
    "check_plain_weights",
    "find_variable",
]

_PACKAGE = "qatfast"


class _Substitution(keras.StatelessScope):
    """Has variables read as other tensors. Unlike in its parent, variables may be assigned, and scopes may nest."""

    def __init__(self, values: list[tuple[keras.Variable, tf.Tensor]]):
        super().__init__(collect_losses=True, initialize_variables=False)
        # Not as the parent's argument, which would cast a tensor of a half type to the variable's and back.
        self._substituted = {id(variable): value for variable, value in values}
        self.state_mapping.update(self._substituted)

    def get_current_value(self, variable):
        value = super().get_current_value(variable)
        if value is None and self.original_scope is not None:
            return self.original_scope.get_current_value(variable)
        return value

    def add_update(self, update):
        variable, value = update
        if id(variable) in self._substituted:
            raise ValueError(
                f"{KerasTrainableQuantizationWrapper.__name__}: a layer must not assign a quantized weight while "
                f"it is called, as its float numbers would be lost, got an assignment to {variable.path}"
            )
        if self.original_scope is not None:
            self.original_scope.add_update(update)
        else:
            variable._direct_assign(value)


class _VariableFactory:
    """What a quantizer gets as `layer`: a Keras 3 layer with the `add_weight` of Keras 2."""

    def __init__(self, layer: keras.layers.Layer):
        self._layer = layer

    def __getattr__(self, name):
        return getattr(self._layer, name)

    def add_weight(
        self,
        name=None,
        shape=None,
        dtype=None,
        initializer=None,
        regularizer=None,
        trainable=None,
        constraint=None,
        use_resource=None,
        synchronization=None,
        aggregation="none",
        *,
        experimental_autocast=True,
        autocast=True,
    ) -> keras.Variable:
        """Returns a variable of the layer; arguments are those of Keras 2 and of Keras 3.

        A name is cut to what follows its last '/', which Keras 3 does not allow. `use_resource` and `synchronization`
        have no meaning in Keras 3.
        """
        variable = self._layer.add_weight(
            name=name and str(name).rpartition("/")[2],
            shape=() if shape is None else tuple(shape),
            dtype=None if dtype is None else tf.as_dtype(dtype).name,
            initializer=initializer,
            regularizer=regularizer,
            constraint=constraint,
            trainable=trainable is not False,
            aggregation=getattr(aggregation, "name", str(aggregation)).lower(),
            autocast=experimental_autocast and autocast,
        )
        # TensorFlow's checkpoints hold what is in attributes; Keras itself then knows the variable once.
        attribute = f"quantizer_{variable.name}"
        while hasattr(self._layer, attribute):
            attribute += "_"
        setattr(self._layer, attribute, variable)
        return variable


@keras.saving.register_keras_serializable(_PACKAGE)
class KerasTrainableQuantizationWrapper(keras.layers.Wrapper):
    """Calls a layer with some of its variables quantized.

    The layer itself stays as it is, weights and all: it is called in a scope in which these variables read as their
    quantized values, whatever attribute or inner layer reads them.

    Args:
        layer: The Keras 3 layer. One with several inputs must be built.
        weights_quantizers: Maps variables of the layer to quantizers. A variable is named by its attribute, or by a
            path of attributes and indices: 'kernel', 'cell.recurrent_kernel', '_query_dense.kernel'.
        supports_jit: Whether Keras may compile a model with this layer by XLA, which then compiles the formulas of
            `qatfast.reference`. False: Keras trains it in graph mode, by qatfast's own ops.
        **kwargs: As for `keras.layers.Layer`. Name and dtype policy are the layer's unless given.

    Raises:
        TypeError: `layer` is no layer of Keras 3, or a quantizer is none.
        ValueError: The layer uses LoRA or is quantized by Keras; a path leads to no variable.
    """

    def __new__(cls, layer, *args, **kwargs):
        """Gives `call` the signature of the layer's, by which Keras passes masks, and builds and checks inputs."""
        wrapper = super().__new__(cls, layer, *args, **kwargs)
        if isinstance(layer, keras.layers.Layer):
            wrapper.call = _with_signature_of(layer.call, wrapper.call)
        return wrapper

    def __init__(self, layer: keras.layers.Layer, weights_quantizers: dict, supports_jit: bool = False, **kwargs):
        if not isinstance(layer, keras.layers.Layer):
            raise TypeError(f"{type(self).__name__}: layer must be a Keras 3 layer, got {layer!r}")
        for path, quantizer in weights_quantizers.items():
            _check_quantizer(type(self).__name__, f"weights_quantizers[{path!r}]", quantizer)
        check_plain_weights(layer)
        kwargs.setdefault("dtype", layer.dtype_policy)
        kwargs.setdefault("name", layer.name)
        super().__init__(layer, **kwargs)
        self.weights_quantizers = dict(weights_quantizers)
        self._layer_takes_training = "training" in inspect.signature(layer.call).parameters
        self.supports_masking = layer.supports_masking
        self.supports_jit = bool(supports_jit)
        if layer.built:
            self.build(None)

    def build(self, input_shape=None):
        """Builds the layer, if it is not, and the quantizers' variables; nothing if that was done already.

        A layer of a config is built if it was when that was made, and the wrapper with it.
        """
        if self.built:
            return
        if not self.layer.built:
            needed = [p for p in inspect.signature(self.layer.build).parameters.values() if p.default is p.empty]
            if sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in needed) > 1:
                raise ValueError(
                    f"{type(self).__name__}: layer must be built before it is wrapped if it has several inputs, got "
                    f"{self.layer.name!r} unbuilt"
                )
            self.layer.build(input_shape)
        # No attribute may hold the layer's variables: Keras would save them there once more.
        for path, quantizer in self.weights_quantizers.items():
            shape = tuple(find_variable(self.layer, path).shape)
            quantizer.initialize_quantization(shape, path, _VariableFactory(self))

    def get_build_config(self):
        """Returns what the layer is built from."""
        return {"layer": self.layer.get_build_config()}

    def build_from_config(self, config):
        """Builds the layer, and the quantizers' variables."""
        if not self.layer.built:
            self.layer.build_from_config(config["layer"])
        self.build(None)

    def call(self, *args, training=None, **kwargs):
        """Calls the layer."""
        if self._layer_takes_training:
            kwargs["training"] = training
        values = []
        for path, quantizer in self.weights_quantizers.items():
            variable = find_variable(self.layer, path)
            values.append((variable, call_quantizer(quantizer, keras.ops.convert_to_tensor(variable), training)))
        with _Substitution(values) as scope:
            outputs = self.layer(*args, **kwargs)
        for loss in scope.losses:
            self.add_loss(loss)
        return outputs

    def compute_mask(self, inputs, previous_mask):
        """Returns the layer's mask."""
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self):
        """Returns the layer's and the quantizers' configs as JSON data."""
        quantizers = {path: _serialized(quantizer) for path, quantizer in self.weights_quantizers.items()}
        return {**super().get_config(), WEIGHTS_QUANTIZERS: quantizers, "supports_jit": self.supports_jit}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Returns the wrapper that `get_config` described; quantizer classes need no registration."""
        config = dict(config)
        quantizers = {
            path: _deserialized(cls.__name__, data, custom_objects)
            for path, data in config.pop(WEIGHTS_QUANTIZERS).items()
        }
        layer = keras.saving.deserialize_keras_object(config.pop("layer"), custom_objects=custom_objects)
        return cls(layer, quantizers, **config)


@keras.saving.register_keras_serializable(_PACKAGE)
class KerasActivationQuantizationHolder(keras.layers.Layer):
    """Quantizes what it is given.

    Args:
        activation_holder_quantizer: The quantizer.
        supports_jit: As for `KerasTrainableQuantizationWrapper`.
        **kwargs: As for `keras.layers.Layer`.

    Raises:
        TypeError: The quantizer is none.
    """

    def __init__(self, activation_holder_quantizer, supports_jit: bool = False, **kwargs):
        _check_quantizer(type(self).__name__, ACTIVATION_HOLDER_QUANTIZER, activation_holder_quantizer)
        super().__init__(**kwargs)
        self.activation_holder_quantizer = activation_holder_quantizer
        self.supports_masking = True
        self.supports_jit = bool(supports_jit)

    def build(self, input_shape=None):
        """Builds the quantizer's variables."""
        self.activation_holder_quantizer.initialize_quantization(None, f"{self.name}/out_", _VariableFactory(self))

    def call(self, inputs, training=None):
        """Returns `inputs` quantized."""
        return call_quantizer(self.activation_holder_quantizer, inputs, training)

    def compute_output_spec(self, inputs, training=None):
        """Returns a symbolic tensor like `inputs`."""
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def get_config(self):
        """Returns the quantizer's config as JSON data."""
        quantizer = _serialized(self.activation_holder_quantizer)
        return {**super().get_config(), ACTIVATION_HOLDER_QUANTIZER: quantizer, "supports_jit": self.supports_jit}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Returns the holder that `get_config` described; quantizer classes need no registration."""
        config = dict(config)
        data = config.pop(ACTIVATION_HOLDER_QUANTIZER)
        return cls(_deserialized(cls.__name__, data, custom_objects), **config)


def find_variable(layer: keras.layers.Layer, path: str) -> keras.Variable:
    """Returns the variable of a layer at a path of attributes and indices.

    Raises:
        ValueError: There is no float variable.
    """
    value: Any = layer
    for name in path.split("."):
        try:
            value = value[int(name)] if name.isdigit() else getattr(value, name)
        except (AttributeError, LookupError, TypeError):
            value = None
    if not (isinstance(value, keras.Variable) and keras.backend.is_float_dtype(value.dtype)):
        raise ValueError(
            f"{KerasTrainableQuantizationWrapper.__name__}: {path!r} must be a float variable of layer {layer.name!r}, "
            f"got {value!r}"
        )
    return value


def check_plain_weights(layer: keras.layers.Layer) -> None:
    """Raises a ValueError if a layer, or one in it, computes with other numbers than its kernel's."""
    for inner in layer._flatten_layers():
        if getattr(inner, "lora_enabled", False):
            raise ValueError(
                f"layer {inner.name!r} must not use LoRA to be quantized: its kernel is a sum, got lora_rank="
                f"{inner.lora_rank}. Save it, which merges the two, and load it"
            )
        mode = getattr(inner, "quantization_mode", None)
        if mode is not None:
            raise ValueError(f"layer {inner.name!r} must be a float layer to be quantized, got one quantized to {mode}")


def _with_signature_of(wrapped, call):
    """`call`, with the signature of `wrapped` and an argument `training`."""
    signature = inspect.signature(wrapped)
    parameters = list(signature.parameters.values())
    if "training" not in signature.parameters:
        training = inspect.Parameter("training", inspect.Parameter.KEYWORD_ONLY, default=None)
        has_rest = parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
        parameters.insert(len(parameters) - bool(has_rest), training)

    @functools.wraps(call)
    def with_signature(*args, **kwargs):
        return call(*args, **kwargs)

    with_signature.__signature__ = signature.replace(parameters=parameters)
    return with_signature


def _check_quantizer(owner, argument, quantizer):
    if not isinstance(quantizer, BaseInferableQuantizer):
        raise TypeError(
            f"{owner}: {argument} must be a quantizer, got {quantizer!r} (import the module that defines the class "
            "first)"
        )


def _serialized(quantizer):
    cls = type(quantizer)
    return {"module": cls.__module__, "class_name": cls.__name__, "config": quantizer.get_config()}


def _deserialized(owner, data, custom_objects):
    """The quantizer of `_serialized` data; of several classes of one name the newest, unless the config says which."""
    name = data["class_name"]
    cls = keras.saving.get_registered_object(name, custom_objects) or classes_by_name().get(name)
    if cls is None:
        raise ValueError(
            f"{owner}: the class of a quantizer must be defined before it is made of a config, got "
            f"{data.get('module')}.{name}: import {data.get('module')} first, or pass the class in custom_objects"
        )
    return cls.from_config(data["config"])
