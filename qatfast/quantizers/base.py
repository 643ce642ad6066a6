"""The interface to write a trainable quantizer on, and the look-up of quantizer classes."""

import functools
import inspect
import itertools
from abc import ABC, abstractmethod
from enum import Enum
from typing import Any

from mct_quantizers import QuantizationMethod, QuantizationTarget
from mct_quantizers.common.base_inferable_quantizer import BaseInferableQuantizer
from mct_quantizers.common.get_all_subclasses import get_all_subclasses
from mct_quantizers.keras.quantizers import BaseKerasInferableQuantizer

from qatfast._keras import register_for_saving
from qatfast.config import TrainableQuantizerActivationConfig, TrainableQuantizerWeightsConfig
from qatfast.quantizers.restoration import restore_under_any_layer_name
from qatfast.quantizers.serialization import from_json, to_json

__all__ = [
    "BaseKerasQATTrainableQuantizer",
    "VariableGroup",
    "call_quantizer",
    "classes_by_name",
    "get_quantizer_class",
    "is_trainable_quantizer",
    "quantizer_classes",
]

_QUANTIZATION_CONFIG = "quantization_config"
_CLASS = "class"
_MARKS = ("quantization_target", "quantization_method", "identifier")
_CONFIG_OF_TARGET = {
    QuantizationTarget.Weights: (TrainableQuantizerWeightsConfig, "weights"),
    QuantizationTarget.Activation: (TrainableQuantizerActivationConfig, "activation"),
}
_definition_count = itertools.count()


class VariableGroup(Enum):
    """What a quantizer's variable belongs to: the layer's weights, or the quantization parameters."""

    WEIGHTS = 0
    QPARAMS = 1


class BaseKerasQATTrainableQuantizer(BaseInferableQuantizer, ABC):
    """A quantizer that trains inside a Keras layer and is exported to one of mct-quantizers' inferable quantizers.

    To write your own: subclass, decorate with `@mct_quantizers.mark_quantizer`, and implement
    `initialize_quantization`, `__call__` and `convert2inferable`. The constructor takes the quantization config first;
    further arguments need a default and an attribute of the same name, from which they are saved.

    `quantizer_parameters` maps names to variables. Fill it with `add_quantizer_variable`, or assign a plain dict of
    variables, which then belong to `VariableGroup.QPARAMS`.

    Args:
        quantization_config: A `TrainableQuantizerWeightsConfig` or `TrainableQuantizerActivationConfig`, as the target
            that the class is marked with asks.
        freeze_quant_params: Whether the quantization parameters stay as they are; a subclass that learns them creates
            them with `trainable=not self.freeze_quant_params`.

    Raises:
        TypeError: The class itself is not decorated with `@mark_quantizer` (a decorated parent does not count).
        ValueError: The config is not of the target's kind, or its method is none of the class'.
    """

    def __init_subclass__(cls, **kwargs):
        """Numbers the classes in the order of their definition, and lets Keras and checkpoints find what they made."""
        super().__init_subclass__(**kwargs)
        cls._definition_number = next(_definition_count)
        register_for_saving(cls, cls.__module__)
        if "initialize_quantization" in vars(cls):
            cls.initialize_quantization = _with_restorable_variables(cls.initialize_quantization)

    def __init__(self, quantization_config, freeze_quant_params: bool = False):
        super().__init__()
        _check_marks(type(self))
        self.quantization_config = quantization_config
        self.freeze_quant_params = freeze_quant_params
        self.quantizer_parameters: dict[str, Any] = {}
        self._variable_groups: dict[str, VariableGroup] = {}
        self._check_config()

    @abstractmethod
    def initialize_quantization(self, tensor_shape, name: str, layer) -> dict | None:
        """Creates the quantizer's variables with `layer.add_weight`; called once, when `layer` is built.

        Args:
            tensor_shape: Shape of the weight; None for an activation (`KerasActivationQuantizationHolder` passes none).
            name: The weight's name ('kernel'), or '<layer name>/out_' for an activation: a prefix for variable names.
            layer: The Keras layer that owns the variables.

        Returns:
            Nothing that is used. The mission document's form returns `quantizer_parameters`.
        """

    @abstractmethod
    def __call__(self, inputs, training: bool):
        """Returns `inputs` quantized and dequantized. A subclass may leave out `training`."""

    @abstractmethod
    def convert2inferable(self) -> BaseInferableQuantizer:
        """Returns the mct-quantizers quantizer that computes what this one does, and changes nothing."""

    def add_quantizer_variable(self, name: str, variable, group: VariableGroup = VariableGroup.WEIGHTS) -> None:
        """Keeps a variable under `name`, for `get_quantizer_variable` and `get_trainable_variables`."""
        self.quantizer_parameters[name] = variable
        self._variable_groups[name] = group

    def get_quantizer_variable(self, name: str):
        """Returns the variable kept under `name`.

        Raises:
            KeyError: There is none, as before the layer is built.
        """
        if name not in self.quantizer_parameters:
            kept = ", ".join(self.quantizer_parameters) or "none (is the layer built?)"
            raise KeyError(f"{type(self).__name__}: no quantizer variable {name!r}, only: {kept}")
        return self.quantizer_parameters[name]

    def get_trainable_variables(self, group: VariableGroup) -> list:
        """Returns the trainable variables of a group.

        Raises:
            ValueError: A quantization parameter is trainable although `freeze_quant_params` is set.
        """
        variables = [
            variable
            for name, variable in self.quantizer_parameters.items()
            if variable.trainable and self._variable_groups.get(name, VariableGroup.QPARAMS) is group
        ]
        if variables and group is VariableGroup.QPARAMS and self.freeze_quant_params:
            names = [variable.name for variable in variables]
            raise ValueError(
                f"{type(self).__name__}: quantization parameters must be created with trainable=False when "
                f"freeze_quant_params is set, got trainable {names}"
            )
        return variables

    def get_config(self) -> dict:
        """Returns the quantization config and all further constructor arguments as JSON data.

        Raises:
            AttributeError: A constructor argument has no attribute of its name to be read from.
            TypeError: A value cannot be saved.
        """
        cls = type(self)
        config = {
            _CLASS: _full_name(cls),
            _QUANTIZATION_CONFIG: to_json(self.quantization_config, f"{cls.__name__}: {_QUANTIZATION_CONFIG}"),
        }
        for name in _further_arguments(cls):
            if not hasattr(self, name):
                raise AttributeError(
                    f"{cls.__name__}: constructor argument {name} must be kept in an attribute of that name to be "
                    f"saved, got no attribute {name!r}"
                )
            config[name] = to_json(getattr(self, name), f"{cls.__name__}: {name}")
        return config

    @classmethod
    def from_config(cls, config: dict) -> "BaseKerasQATTrainableQuantizer":
        """Returns the quantizer that `get_config` described.

        Keras may find the class by its bare name, which another class can share: the class that was saved, if it is
        defined under the same module and qualified name, goes before `cls`.

        Raises:
            ValueError: `config` is not what `get_config` makes.
        """
        if not isinstance(config, dict) or _QUANTIZATION_CONFIG not in config:
            raise ValueError(
                f"{cls.__name__}: config must be a dict with the key {_QUANTIZATION_CONFIG!r}, got {config!r}"
            )
        config = dict(config)
        saved_class = config.pop(_CLASS, _full_name(cls))
        if saved_class != _full_name(cls):
            named = [other for other in quantizer_classes() if _full_name(other) == saved_class]
            cls = named[-1] if named else cls
        quantization_config = from_json(config.pop(_QUANTIZATION_CONFIG), f"{cls.__name__}: {_QUANTIZATION_CONFIG}")
        arguments = {name: from_json(value, f"{cls.__name__}: {name}") for name, value in config.items()}
        return cls(quantization_config, **arguments)

    def _check_config(self):
        cls, config = type(self), self.quantization_config
        config_class, prefix = _CONFIG_OF_TARGET[cls.quantization_target]
        if not isinstance(config, config_class):
            raise ValueError(
                f"{cls.__name__}: quantization_config must be a {config_class.__name__}, got {type(config).__name__}"
            )
        method = getattr(config, f"{prefix}_quantization_method")
        if method not in cls.quantization_method:
            allowed = ", ".join(allowed.name for allowed in cls.quantization_method)
            raise ValueError(f"{cls.__name__}: {prefix}_quantization_method must be {allowed}, got {method!r}")
        if not getattr(config, f"enable_{prefix}_quantization"):
            raise ValueError(
                f"{cls.__name__}: enable_{prefix}_quantization must be True (a tensor that stays in float needs no "
                f"quantizer), got False"
            )


def is_trainable_quantizer(quantizer) -> bool:
    """Returns whether a quantizer can be converted to an inferable one."""
    return callable(getattr(quantizer, "convert2inferable", None))


def call_quantizer(quantizer, inputs, training):
    """Returns `inputs` quantized; a quantizer may leave out the argument `training`."""
    if _takes_training(type(quantizer)):
        return quantizer(inputs, training=bool(training))
    return quantizer(inputs)


@functools.lru_cache(maxsize=256)
def _takes_training(cls):
    return "training" in inspect.signature(cls.__call__).parameters


def classes_by_name() -> dict[str, type]:
    """Returns all quantizers, mct-quantizers' included, by their bare names; of several of one name the newest."""
    classes = (*get_all_subclasses(BaseKerasInferableQuantizer), *quantizer_classes())
    return {cls.__name__: cls for cls in classes}


def quantizer_classes(base: type = BaseKerasQATTrainableQuantizer) -> list[type]:
    """Returns all subclasses of `base`, in the order of their definition."""
    found, pending = set(), [base]
    while pending:
        subclasses = pending.pop().__subclasses__()
        pending.extend(subclasses)
        found.update(subclasses)
    return sorted(found, key=lambda cls: getattr(cls, "_definition_number", -1))


def get_quantizer_class(
    target: QuantizationTarget,
    method: QuantizationMethod,
    identifier: Any,
    base: type = BaseKerasQATTrainableQuantizer,
) -> type:
    """Returns the quantizer class marked with this target, method and identifier.

    Only classes that are decorated themselves count: an undecorated subclass does not stand for its parent. Where a
    class was defined again under the same module and qualified name, as when a notebook's cell runs twice, the newest
    counts: no name leads to the older ones any more.

    Args:
        target: Weights or Activation.
        method: One of the methods that the class is marked with.
        identifier: The training method that the class is marked with: an Enum member.
        base: The class whose subclasses are searched.

    Raises:
        ValueError: No class is marked so, or several are.
    """
    matching = {}
    for cls in quantizer_classes(base):
        if _is_marked(cls) and cls.quantization_target == target and cls.identifier == identifier:
            if method in (cls.quantization_method or ()):
                matching[_full_name(cls)] = cls
    if len(matching) == 1:
        return next(iter(matching.values()))
    wanted = f"target {target.name}, method {method.name} and identifier {identifier!r}"
    if matching:
        raise ValueError(f"{len(matching)} quantizers are marked with {wanted}, need one: {', '.join(matching)}")
    marked = [cls for cls in quantizer_classes(base) if _is_marked(cls)]
    raise ValueError(f"no quantizer is marked with {wanted}; there are: {'; '.join(map(_describe_marks, marked))}")


def _with_restorable_variables(initialize_quantization):
    """`initialize_quantization`, whose variables are then found in checkpoints of layers of other names."""

    @functools.wraps(initialize_quantization)
    def initialize(self, tensor_shape, name, layer):
        result = initialize_quantization(self, tensor_shape, name, layer)
        restore_under_any_layer_name(layer, name)
        return result

    return initialize


def _is_marked(cls):
    return all(mark in vars(cls) for mark in _MARKS)


def _check_marks(cls):
    if not _is_marked(cls):
        parent = next((parent for parent in cls.__mro__ if _is_marked(parent)), None)
        inherited = "no decoration" if parent is None else f"only that of its parent {parent.__name__}"
        raise TypeError(f"{cls.__name__}: class must be decorated with @mark_quantizer, got {inherited}")
    if cls.quantization_target not in _CONFIG_OF_TARGET:
        raise TypeError(
            f"{cls.__name__}: quantization_target must be a QuantizationTarget, got {cls.quantization_target!r}"
        )
    methods = cls.quantization_method
    if not isinstance(methods, (list, tuple)) or not all(isinstance(method, QuantizationMethod) for method in methods):
        raise TypeError(f"{cls.__name__}: quantization_method must be a list of QuantizationMethod, got {methods!r}")


def _describe_marks(cls):
    methods = ", ".join(getattr(method, "name", str(method)) for method in cls.quantization_method or ())
    return f"{cls.__name__} ({getattr(cls.quantization_target, 'name', None)}; {methods}; {cls.identifier!r})"


def _full_name(cls):
    return f"{cls.__module__}.{cls.__qualname__}"


def _further_arguments(cls):
    """The names of the constructor's arguments after the config, through `*args` and `**kwargs` to the parents'."""
    names = []
    for parent in cls.__mro__:
        if "__init__" not in vars(parent):
            continue
        parameters = list(inspect.signature(parent.__init__).parameters.values())[1:]
        named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        first_is_config = bool(parameters) and parameters[0].kind is not parameters[0].VAR_POSITIONAL
        names += [name for name in named[first_is_config:] if name not in names]
        if len(named) == len(parameters) or parent is BaseKerasQATTrainableQuantizer:
            break
    return [name for name in names if name != _QUANTIZATION_CONFIG]
