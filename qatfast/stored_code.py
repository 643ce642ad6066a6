"""Finds what a stored config would have Keras run when a model is made of it, and runs none of it.

Keras stores a Python lambda as marshalled bytecode. Besides, a config names functions: TensorFlow's, that a layer calls
(`a + b` is a layer), and any other, by its module. A file can name ones that no model is made of, and give them
constants: `tf.io.gfile.rmtree`, `tf.load_library`, `os.system`.
"""

import builtins
import sys

import tensorflow as tf

from qatfast._keras import keras_module
from qatfast.stored_config import stored_objects

__all__ = ["StoredCodeError", "find_code"]

_TENSORS = (tf.Tensor, tf.RaggedTensor, tf.SparseTensor, tf.IndexedSlices)
# TensorFlow marks with this what takes tensors of Keras, and so can become a layer.
_DISPATCHED = "_tf_fallback_dispatchers"
_WRITES_FILES = (tf.io.write_file, tf.print)


class StoredCodeError(ValueError):
    """A file holds code, which is not to be run."""


def find_code(configs: list) -> list[str]:
    """Returns what there is of code in stored configs, in words, in no order; nothing if there is none.

    Args:
        configs: JSON data, as `read_configs` returns it.
    """
    found = {}
    for value, layer in stored_objects(configs):
        for finding in (_lambda(value), _function(value), _layer_function(value)):
            if finding:
                found[f"{finding} in layer {layer!r}" if layer else finding] = None
    return list(found)


def _lambda(value):
    """Bytecode: of the .keras format, or of the older ones, where 'function_type' tells what 'function' is."""
    is_new = value.get("class_name") == "__lambda__"
    is_old = any(str(key).endswith("_type") and item == "lambda" for key, item in value.items())
    return "a Python lambda" if is_new or is_old else None


def _function(value):
    """Something of Python's own library, which no model is made of."""
    if "qatfast_type" in value and "class_name" not in value:
        return None  # names the class of an Enum member, which is looked up among those that exist
    for key, module in value.items():
        if not isinstance(module, str) or not (key == "module" or key.endswith("_module")):
            continue
        names = [item for item in value.values() if isinstance(item, str) and item != module]
        # Keras says 'builtins' of its own functions, too.
        if module == "builtins" and not any(hasattr(builtins, name) for name in names):
            continue
        if module.split(".")[0] in sys.stdlib_module_names:
            return f"{module} ({', '.join(names)})"
    return None


def _layer_function(value):
    """A function of TensorFlow or Keras that is no operation on tensors."""
    config = value.get("config")
    if not isinstance(config, dict):
        return None
    find = keras_module("layers.core.tf_op_layer").get_symbol_from_name
    if value.get("class_name") in ("TFOpLambda", "SlicingOpLambda") and isinstance(config.get("function"), str):
        function = find(config["function"])
        if function is not None and (not hasattr(function, _DISPATCHED) or function in _WRITES_FILES):
            return f"tf.{config['function']}"
    if value.get("class_name") == "ClassMethod" and isinstance(config.get("cls_symbol"), str):
        cls = find(config["cls_symbol"])
        if cls is not None and not (isinstance(cls, type) and issubclass(cls, _TENSORS)):
            return f"tf.{config['cls_symbol']}"
    return None
