"""Quantizer configurations as JSON data, and back, without loss.

JSON knows bool, int, float, str, None, lists and dicts with string keys. Everything else is written as a dict with
the key `_TAG`, which names its type. Keras passes such data through all three of its file formats unchanged.
"""

import dataclasses
import math
from enum import Enum

import numpy as np

from qatfast.config import (
    TrainableQuantizerActivationConfig,
    TrainableQuantizerCandidateConfig,
    TrainableQuantizerWeightsConfig,
)

__all__ = ["from_json", "to_json"]

_TAG = "qatfast_type"
# Of arrays. A file may name any other: one of NumPy's asks for 100 MB an element.
_DTYPES = {np.dtype(code).name for code in "?" + np.typecodes["AllInteger"] + np.typecodes["Float"]}
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
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.name in _DTYPES:
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


def from_json(data, argument: str = "data"):
    """Returns the value that `to_json` made `data` of. Imports nothing and calls no code that `data` names.

    Args:
        data: JSON data, perhaps of a file that somebody else has made.
        argument: What it is, for the error message.

    Raises:
        ValueError: `data` is not what `to_json` makes, or an Enum member's class is not defined in this process.
    """
    if isinstance(data, list):
        return [from_json(item, argument) for item in data]
    if not isinstance(data, dict):
        return data
    if _TAG not in data:
        return {key: from_json(item, f"{argument}[{key!r}]") for key, item in data.items()}
    kind = data[_TAG]
    if not isinstance(kind, str) or kind not in _READERS:
        raise ValueError(f"{argument}: {_TAG} must be among {sorted(_READERS)}, got {kind!r}")
    keys, read = _READERS[kind]
    if data.keys() != {_TAG, *keys}:
        raise ValueError(f"{argument}: {kind} must have the keys {sorted(keys)}, got {sorted(data.keys() - {_TAG})}")
    return read(argument, **{_ARGUMENTS.get(key, key): data[key] for key in keys})


def _read_array(argument, dtype, shape, value):
    numbers = isinstance(value, list) and all(isinstance(item, (bool, int, float)) for item in value)
    sizes = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    if not numbers or not sizes or len(value) != math.prod(shape):
        raise ValueError(
            f"{argument}: value of an array must be a list of as many numbers as its shape has, got shape {shape!r} "
            f"and {len(value) if numbers else 'no list of'} numbers"
        )
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"{argument}: dtype of an array must be bool, or one of integers or floats, got {dtype!r}")
    if np.issubdtype(dtype, np.integer):  # where a number does not fit, NumPy may wrap it around
        limits = np.iinfo(dtype)
        if not all(isinstance(item, int) and limits.min <= item <= limits.max for item in value):
            raise ValueError(f"{argument}: value of an array of {dtype} must be integers of that type, got {value[:8]}")
    array = np.array(value, dtype).reshape(shape)
    return array if shape else array[()]


def _read_enum(argument, module, cls, name):
    found = [kind for kind in _subclasses(Enum) if (kind.__module__, kind.__qualname__) == (module, cls)]
    if not found:  # nothing is imported that a file names
        raise ValueError(f"{argument}: the Enum {module}.{cls} is not defined: import it before loading the quantizer")
    members = found[-1].__members__  # where a notebook's cell ran twice, of the newest
    if not isinstance(name, str) or name not in members:
        raise ValueError(f"{argument}: a member of {module}.{cls} must be among {list(members)}, got {name!r}")
    return members[name]


def _read_config(argument, cls, fields):
    if not isinstance(cls, str) or cls not in _CONFIGS:
        raise ValueError(f"{argument}: class of a config must be among {sorted(_CONFIGS)}, got {cls!r}")
    known = [field.name for field in dataclasses.fields(_CONFIGS[cls])]
    if not isinstance(fields, dict) or fields.keys() != set(known):
        got = sorted(fields) if isinstance(fields, dict) else repr(fields)
        raise ValueError(f"{argument}: fields of a {cls} must be {known}, got {got}")
    return _CONFIGS[cls](**from_json(fields, argument))


def _read_tuple(argument, value):
    if not isinstance(value, list):
        raise ValueError(f"{argument}: value of a tuple must be a list, got {value!r}")
    return tuple(from_json(value, argument))


def _read_dict(argument, items):
    if not isinstance(items, list) or not all(isinstance(item, list) and len(item) == 2 for item in items):
        raise ValueError(f"{argument}: items of a dict must be a list of pairs, got {items!r}")
    try:
        return {from_json(key, argument): from_json(item, argument) for key, item in items}
    except TypeError as error:
        raise ValueError(f"{argument}: keys of a dict must be hashable, got {error}") from None


# By tag: the keys that go with it, and what makes the value of them.
_READERS = {
    "array": (("dtype", "shape", "value"), _read_array),
    "enum": (("module", "class", "name"), _read_enum),
    "config": (("class", "fields"), _read_config),
    "tuple": (("value",), _read_tuple),
    "dict": (("items",), _read_dict),
}
_ARGUMENTS = {"class": "cls"}


def _subclasses(cls):
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
