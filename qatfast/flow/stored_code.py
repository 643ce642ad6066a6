"""Finds what a stored config would have Keras run when a model is made of it, and runs none of it.

Keras stores a Python lambda as marshalled bytecode. Besides, a config names functions: TensorFlow's, that a layer calls
(`a + b` is a layer), and classes and functions in any module. A file can name ones that no model is made of, and give
them constants: `tf.io.gfile.rmtree`, `tf.load_library`, `os.system`; or a module that lies beside it, which an import
would run. What is not known to be a part of models is therefore code.
"""

import builtins
import sys

import tensorflow as tf

from qatfast.flow.adapter import KerasAdapter
from qatfast.flow.stored_config import stored_objects

__all__ = ["StoredCodeError", "find_code"]

# Beside Keras' own, the packages whose classes with a `from_config` are made to be parts of models.
_PACKAGES = ("tensorflow", "mct_quantizers", "qatfast")
# Layers of Keras 3 that read code, or graphs, from another file.
_FOREIGN_LAYERS = ("TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")


class StoredCodeError(ValueError):
    """A file holds code, which is not to be run."""


def find_code(keras: KerasAdapter, configs: list, objects: dict | None = None) -> list[str]:
    """Returns what there is of code in stored configs, in words, in no order; nothing if there is none.

    Args:
        keras: The Keras that is to make a model of them.
        configs: JSON data, as `read_stored` returns it.
        objects: Classes and functions by name that the model may be made of, as Keras' `custom_objects`; besides those
            that are registered with Keras, and Keras' own.
    """
    found = {}
    for value, layer in stored_objects(configs):
        findings = (_lambda(value), _lambda_module(value), _foreign_layer(value), _object(keras, value, objects or {}))
        config = value.get("config")
        called = keras.stored_functions(config) if isinstance(config, dict) else ()
        for finding in filter(None, (*findings, *called)):
            found[f"{finding} in layer {layer!r}" if layer else finding] = None
    return list(found)


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


def _foreign_layer(value):
    return f"a {value['class_name']}, which loads another file," if value.get("class_name") in _FOREIGN_LAYERS else None


def _object(keras, value, objects):
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
    if keras.registered(name if is_function else registered, objects) is not None:
        return None
    try:  # Keras looks for either name
        items = [_look_up(keras, module, key, is_function) for key in (name, registered)]
    except KeyError:  # to import it would run it
        return words
    return None if all(item is None or _is_part_of_models(keras, item, objects) for item in items) else words


def _look_up(keras, module, name, is_function):
    """What Keras finds under a name in a module; None if nothing.

    Raises:
        KeyError: Keras would import the module.
    """
    found = keras.public_symbol(module, name)
    if found is not None:
        return found
    if module == "builtins":  # so Keras says of functions, its own and others
        found = keras.builtin_function(name) if is_function else None
        return found if found is not None else getattr(builtins, name, None)
    contents = getattr(sys.modules[keras.present_name(module)], "__dict__", {})
    found = contents.get(name)
    if found is None and "." in name:  # a class in a class; what is in another thing is not looked for
        outer, _, inner = name.partition(".")
        found = contents.get(outer)
        found = getattr(found, inner, None) if isinstance(found, type) else found
    return found


def _is_part_of_models(keras, item, objects):
    if any(item is known for known in (*objects.values(), *keras.registered_objects().values())):
        return True
    if not isinstance(item, type):
        return keras.is_operation(item)
    is_known = _root(item.__module__) in (keras.package, *_PACKAGES)
    return is_known and (hasattr(item, "from_config") or issubclass(item, tf.TypeSpec))


def _root(module):
    return module.split(".")[0]
