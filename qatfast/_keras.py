"""Makes `tf.keras` mean Keras 2, which Keras quantizers and mct-quantizers are written for; what that asks of us."""

import importlib
import importlib.util
import os

import tensorflow as tf

_SWITCH = "TF_USE_LEGACY_KERAS"


def use_legacy_keras() -> None:
    """Routes `tf.keras` to `tf-keras` on TensorFlow 2.16 and newer, where it would mean Keras 3.

    TensorFlow reads the switch when `tf.keras` is first touched, so this works after
    `import tensorflow` too, and must run before anything that touches `tf.keras` (mct-quantizers does).
    TensorFlow 2.15 ships Keras 2, and setting the switch there breaks `tf.keras`.

    Raises:
        ImportError: `tf-keras` is missing, or `tf.keras` is Keras 3 already.
    """
    if tuple(int(part) for part in tf.__version__.split(".")[:2]) < (2, 16):
        return
    if importlib.util.find_spec("tf_keras") is None:
        raise ImportError(
            f"qatfast: TensorFlow {tf.__version__} needs the package tf-keras (Keras 2) for quantization-aware "
            f"training. Run: pip install 'tf-keras=={'.'.join(tf.__version__.split('.')[:2])}.*'"
        )
    value = os.environ.setdefault(_SWITCH, "1")
    package = tf.keras.layers.Layer.__module__.split(".")[0]
    if package != "tf_keras":
        raise ImportError(
            f"qatfast: tf.keras must be Keras 2 (the package tf_keras), got the package {package} with "
            f"{_SWITCH}={value}. Import qatfast before the first use of tf.keras, or set {_SWITCH}=1."
        )


def keras_module(name: str):
    """Returns a module of Keras 2 that has no public name, as 'saving.serialization_lib'."""
    package = tf.keras.layers.Layer.__module__.split(".")[0]
    return importlib.import_module(f"{package}.src.{name}")


def register_for_saving(cls: type, package: str) -> None:
    """Lets Keras find a class when it makes a model from its config, as `clone_model` and `copy.deepcopy` do.

    Under '<package>><qualified name>', where no other class of the same bare name is in the way. A class that is
    defined again takes the place of the older one.
    """
    tf.keras.utils.register_keras_serializable(package, cls.__qualname__)(cls)
