"""Finds what a stored config would have Keras run when a model is made of it, and runs none of it.

Keras stores a Python lambda as marshalled bytecode. Besides, a config names functions: TensorFlow's, that a layer calls
(`a + b` is a layer), and classes and functions in any module. A file can name ones that no model is made of, and give
them constants: `tf.io.gfile.rmtree`, `tf.load_library`, `os.system`; or a module that lies beside it, which an import
would run. What is not known to be a part of models is therefore code.
"""

import builtins
import sys

import tensorflow as tf

from qatfast._keras import keras_module
from qatfast.stored_config import stored_objects

__all__ = ["StoredCodeError", "find_code", "is_operation"]

_TENSORS = (tf.Tensor, tf.RaggedTensor, tf.SparseTensor, tf.IndexedSlices)
# TensorFlow marks with this what takes tensors of Keras, and so can become a layer.
_DISPATCHED = "_tf_fallback_dispatchers"
_WRITES_FILES = (tf.io.write_file, tf.print)
# The packages whose classes with a `from_config` are made to be parts of models.
_PACKAGES = (tf.keras.layers.Layer.__module__.split(".")[0], "tensorflow", "mct_quantizers", "qatfast")


class StoredCodeError(ValueError):
    """A file holds code, which is not to be run."""


def find_code(configs: list, objects: dict | None = None) -> list[str]:
    """Returns what there is of code in stored configs, in words, in no order; nothing if there is none.

    Args:
        configs: JSON data, as `read_configs` returns it.
        objects: Classes and functions by name that the model may be made of, as Keras' `custom_objects`; besides those
            that are registered with Keras, and Keras' own.
    """
    found = {}
    for value, layer in stored_objects(configs):
        findings = (_lambda(value), _lambda_module(value), _object(value, objects or {}), *_layer_functions(value))
        for finding in filter(None, findings):
            found[f"{finding} in layer {layer!r}" if layer else finding] = None
    return list(found)


def is_operation(symbol: str) -> bool:
    """Returns whether a name, as a layer stores it ('nn.relu'), is that of an operation on tensors, or of nothing."""
    function = _symbol(symbol)
    return function is None or _is_operation(function)


def _symbol(name):
    return keras_module("layers.core.tf_op_layer").get_symbol_from_name(name)


def _is_operation(function):
    return hasattr(function, _DISPATCHED) and function not in _WRITES_FILES


def _lambda(value):
    """Bytecode: of the .keras format, or of the older ones, where 'function_type' tells what 'function' is."""
    is_new = value.get("class_name") == "__lambda__"
    is_old = any(value.get(f"{key}_type") == "lambda" for key in value)
    return "a Python lambda" if is_new or is_old else None


def _lambda_module(value):
    """A module of Python's own library that a Lambda layer's function is said to be of."""
    if not any(str(key).endswith("_type") and item == "function" for key, item in value.items()):
        return None
    for key, module in value.items():
        is_key = key == "module" or str(key).endswith("_module")
        if is_key and isinstance(module, str) and _root(module) in sys.stdlib_module_names:
            return (
                f"{module} ({', '.join(item for item in value.values() if isinstance(item, str) and item != module)})"
            )
    return None


def _object(value, objects):
    """A class or function of some module that is not known to be a part of models; or a module not imported yet."""
    module, kind = value.get("module"), value.get("class_name")
    if "class_name" not in value or not module or not isinstance(module, str):
        return None
    is_function = kind == "function"
    name = value.get("config") if is_function else value.get("spec_name") if kind == "__typespec__" else kind
    registered = value.get("registered_name") or kind
    words = f"{module} ({name}), which is neither a part of Keras' models nor registered nor in custom_objects,"
    if not all(isinstance(item, str) for item in (name, registered)) or (is_function and "." in name):
        return words
    if tf.keras.utils.get_registered_object(name if is_function else registered, objects) is not None:
        return None
    try:  # Keras looks for either name
        items = [_look_up(module, key, is_function) for key in (name, registered)]
    except KeyError:  # to import it would run it
        return words
    return None if all(item is None or _is_part_of_models(item, objects) for item in items) else words


def _look_up(module, name, is_function):
    """What Keras finds under a name in a module; None if nothing.

    Raises:
        KeyError: Keras would import the module.
    """
    if _root(module) in ("keras", "tf_keras"):
        public = f"{module}.{name}"
        found = _symbol(f"compat.v1.{public}" if "__internal__.legacy" in public else public)
        if found is not None:
            return found
    if module == "builtins":  # so Keras says of functions, its own and others
        names = keras_module("saving.serialization_lib").BUILTIN_MODULES if is_function else ()
        found = next(filter(None, (_symbol(f"keras.{part}.{name}") for part in names)), None)
        return found if found is not None else getattr(builtins, name, None)
    # Keras takes its package's earlier name for the present one.
    is_renamed = module.startswith("keras") and _PACKAGES[0] == "tf_keras"
    contents = getattr(sys.modules[f"tf_{module}" if is_renamed else module], "__dict__", {})
    found = contents.get(name)
    if found is None and "." in name:  # a class in a class; what is in another thing is not looked for
        outer, _, inner = name.partition(".")
        found = contents.get(outer)
        found = getattr(found, inner, None) if isinstance(found, type) else found
    return found


def _is_part_of_models(item, objects):
    if any(item is known for known in (*objects.values(), *tf.keras.utils.get_custom_objects().values())):
        return True
    if not isinstance(item, type):
        return _is_operation(item)
    return _root(item.__module__) in _PACKAGES and (hasattr(item, "from_config") or issubclass(item, tf.TypeSpec))


def _root(module):
    return module.split(".")[0]


def _layer_functions(value):
    """What a layer calls that is no operation on tensors, whatever the layer's class is said to be."""
    config = value.get("config")
    if not isinstance(config, dict):
        return
    function, symbol = config.get("function"), config.get("cls_symbol")
    if isinstance(function, str) and not is_operation(function):
        yield f"tf.{function}"
    if isinstance(symbol, str):
        cls = _symbol(symbol)
        if cls is not None and not (isinstance(cls, type) and issubclass(cls, _TENSORS)):
            yield f"tf.{symbol}"
    if "node_def" in config:  # Keras itself has not written one since TensorFlow 2.4
        yield "an operation of TensorFlow's graphs"
