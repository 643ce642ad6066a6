"""From a float Keras model to one that trains quantized, to files, and to one to deploy; for Keras 2 and Keras 3."""

from qatfast.flow.files import load_model, save_model
from qatfast.flow.finalization import finalize_model
from qatfast.flow.quantization import quantize_model

__all__ = ["finalize_model", "load_model", "quantize_model", "save_model"]
