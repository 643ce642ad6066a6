"""Registration with the Keras that `tf.keras` is."""

import tensorflow as tf

__all__ = ["register_for_saving"]


def register_for_saving(cls: type, package: str) -> None:
    """Lets Keras find a class when it makes a model from its config, as `clone_model` and `copy.deepcopy` do.

    Under '<package>><qualified name>', where no other class of the same bare name is in the way. A class that is
    defined again takes the place of the older one.
    """
    tf.keras.utils.register_keras_serializable(package, cls.__qualname__)(cls)
