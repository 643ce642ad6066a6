"""What Keras 2 finds under names: modules of its own that have no public name, and what a layer of TensorFlow calls."""

import importlib

import tensorflow as tf

__all__ = ["KERAS_PACKAGE", "is_operation", "is_operation_name", "keras_module", "symbol_of"]

KERAS_PACKAGE = tf.keras.layers.Layer.__module__.split(".")[0]
# TensorFlow marks with this what takes tensors of Keras, and so can become a layer.
_DISPATCHED = "_tf_fallback_dispatchers"
_WRITES_FILES = (tf.io.write_file, tf.print)


def keras_module(name: str):
    """Returns a module of Keras 2 that has no public name, as 'saving.serialization_lib'."""
    return importlib.import_module(f"{KERAS_PACKAGE}.src.{name}")


def symbol_of(name: str):
    """Returns the function or class of TensorFlow or Keras of a public name, without 'tf.'; None if there is none."""
    return keras_module("layers.core.tf_op_layer").get_symbol_from_name(name)


def is_operation(function) -> bool:
    """Returns whether a function is an operation of TensorFlow on tensors, and does nothing else."""
    return hasattr(function, _DISPATCHED) and function not in _WRITES_FILES


def is_operation_name(symbol: str) -> bool:
    """Returns whether a name, as a layer stores it ('nn.relu'), is that of an operation on tensors, or of nothing."""
    function = symbol_of(symbol)
    return function is None or is_operation(function)
