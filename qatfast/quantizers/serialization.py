"""Quantizer configurations as JSON data, and back, without loss.

JSON knows bool, int, float, str, None, lists and dicts with string keys. Everything else is written as a dict with
the key `_TAG`, which names its type. Keras passes such data through all three of its file formats unchanged.
"""

import dataclasses
from enum import Enum

import numpy as np

from qatfast.config import (
    TrainableQuantizerActivationConfig,
    TrainableQuantizerCandidateConfig,
    TrainableQuantizerWeightsConfig,
)

__all__ = ["from_json", "to_json"]

_TAG = "qatfast_type"
_CONFIGS = {
    config.__name__: config
    for config in (
        TrainableQuantizerActivationConfig,
        TrainableQuantizerCandidateConfig,
        TrainableQuantizerWeightsConfig,
    )
}


def to_json(value, argument: str):
    """Returns `value` as JSON data.

    Args:
        value: Python or NumPy numbers, strings, None, Enum members, arrays, quantizer configs, and lists, tuples and
            dicts of these.
        argument: What `value` is, for the error message.

    Raises:
        TypeError: `value` is, or holds, something else.
    """
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
        return {_TAG: "array", "dtype": value.dtype.name, "shape": list(value.shape), "value": value.ravel().tolist()}
    if isinstance(value, Enum):
        cls = type(value)
        return {_TAG: "enum", "module": cls.__module__, "class": cls.__qualname__, "name": value.name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple(_CONFIGS.values())):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        encoded = {name: to_json(field, f"{argument}.{name}") for name, field in fields.items()}
        return {_TAG: "config", "class": type(value).__name__, "fields": encoded}
    if isinstance(value, tuple):
        return {_TAG: "tuple", "value": [to_json(item, argument) for item in value]}
    if isinstance(value, list):  # Keras turns the lists and dicts of a layer's attributes into subclasses
        return [to_json(item, argument) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value) and _TAG not in value:
            return {key: to_json(item, f"{argument}[{key!r}]") for key, item in value.items()}
        items = [[to_json(key, argument), to_json(item, f"{argument}[{key!r}]")] for key, item in value.items()]
        return {_TAG: "dict", "items": items}
    raise TypeError(
        f"{argument} must be made of numbers, strings, None, Enum members, NumPy arrays, lists, tuples and dicts to "
        f"be saved, got {value!r} of type {type(value).__name__}"
    )


def from_json(data):
    """Returns the value that `to_json` made `data` of.

    Raises:
        ValueError: An Enum member's class is not defined in this process.
    """
    if isinstance(data, list):
        return [from_json(item) for item in data]
    if not isinstance(data, dict):
        return data
    kind = data.get(_TAG)
    if kind is None:
        return {key: from_json(item) for key, item in data.items()}
    if kind == "array":
        array = np.array(data["value"], data["dtype"]).reshape(data["shape"])
        return array if data["shape"] else array[()]
    if kind == "enum":
        return _find_enum(data["module"], data["class"])[data["name"]]
    if kind == "config":
        return _CONFIGS[data["class"]](**from_json(data["fields"]))
    if kind == "tuple":
        return tuple(from_json(data["value"]))
    return {from_json(key): from_json(item) for key, item in data["items"]}


def _find_enum(module, qualname):
    """Returns the Enum class of this name among those that exist, importing nothing that a file names."""
    found = [cls for cls in _subclasses(Enum) if (cls.__module__, cls.__qualname__) == (module, qualname)]
    if not found:
        raise ValueError(f"the Enum {module}.{qualname} is not defined: import it before loading the quantizer")
    return found[-1]  # where a notebook's cell ran twice, the newest


def _subclasses(cls):
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
