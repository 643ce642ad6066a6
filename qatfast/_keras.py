"""Makes `tf.keras` mean Keras 2, which Keras quantizers and mct-quantizers are written for."""

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
