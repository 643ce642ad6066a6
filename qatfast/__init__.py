"""Fast fake quantization for quantization-aware training with Keras."""

from qatfast._keras import use_legacy_keras

use_legacy_keras()

from qatfast import ops, reference  # noqa: E402

__all__ = ["ops", "reference"]
