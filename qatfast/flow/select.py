"""Which Keras a model, or a file, is of."""

import importlib
import importlib.util
import sys

import tensorflow as tf

from qatfast.flow.adapter import KerasAdapter

__all__ = ["adapter_of", "adapter_of_tf_keras", "adapter_of_version", "tf_keras_version"]

_OLDEST_KERAS_3 = (3, 10)
_SWITCH = "TF_USE_LEGACY_KERAS"


def adapter_of(function: str, model, argument: str = "model") -> KerasAdapter:
    """Returns the adapter for the Keras that a model is of.

    Args:
        function: Who asks, for messages.
        model: The model.
        argument: What it is, for messages.

    Raises:
        TypeError: It is no Keras model.
        ImportError: It is of a Keras that cannot be used in this process; the message says what to do.
    """
    if isinstance(model, tf.keras.Model):
        return adapter_of_tf_keras()
    keras = sys.modules.get("keras")
    if keras is not None and isinstance(model, getattr(keras, "Model", ())):
        return adapter_of_version(_version(keras)[0])
    if any(cls.__module__.startswith("tf_keras.") and cls.__name__ == "Model" for cls in type(model).__mro__):
        return adapter_of_version(2)
    raise TypeError(f"{function}: {argument} must be a Keras model, got {type(model)}")


def adapter_of_tf_keras() -> KerasAdapter:
    """Returns the adapter for the Keras that `tf.keras` is."""
    return adapter_of_version(tf_keras_version())


def adapter_of_version(version: int) -> KerasAdapter:
    """Returns the adapter for Keras 2 or Keras 3.

    Raises:
        ImportError: That Keras cannot be used in this process; the message says what to do.
    """
    if version == 2:
        _check_keras_2()
        from qatfast.flow.keras2 import KERAS_2

        return KERAS_2
    _check_keras_3()
    from qatfast.flow.keras3 import KERAS_3

    return KERAS_3


def tf_keras_version() -> int:
    """Returns which Keras `tf.keras` is, 2 or 3."""
    package = tf.keras.layers.Layer.__module__.split(".")[0]
    return 2 if package == "tf_keras" else _version(importlib.import_module(package))[0]


def _version(keras):
    return tuple(int(part) for part in keras.__version__.split(".")[:2])


def _check_keras_2():
    # mct-quantizers' layers, which Keras 2 models are quantized with, are of the Keras that tf.keras was when they were
    # imported.
    if tf_keras_version() != 2:
        minor = ".".join(tf.__version__.split(".")[:2])
        installed = importlib.util.find_spec("tf_keras") is not None
        missing = "" if installed else f", and the package tf-keras: run pip install 'tf-keras=={minor}.*'"
        raise ImportError(
            f"qatfast: a Keras 2 model needs tf.keras to be Keras 2, which TensorFlow {tf.__version__} makes it where "
            f"{_SWITCH}=1 is set before tf.keras is first used{missing}; got tf.keras of Keras 3"
        )


def _check_keras_3():
    found = importlib.util.find_spec("keras") and importlib.import_module("keras")
    if not found or _version(found) < _OLDEST_KERAS_3:
        got = f"Keras {found.__version__}" if found else "none"
        raise ImportError(
            f"qatfast: a Keras 3 model needs TensorFlow 2.16 or newer and Keras {'.'.join(map(str, _OLDEST_KERAS_3))} "
            f"or newer, got TensorFlow {tf.__version__} and {got}"
        )
    if found.backend.backend() != "tensorflow":
        raise ImportError(
            f"qatfast: Keras 3 must run on the TensorFlow backend, got {found.backend.backend()!r}: qatfast's ops are "
            "TensorFlow's. Set KERAS_BACKEND=tensorflow"
        )
