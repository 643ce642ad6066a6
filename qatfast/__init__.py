"""Fast fake quantization for quantization-aware training with Keras."""

from qatfast import ops, quantizers, reference
from qatfast._library import build_info
from qatfast.config import (
    CalibrationMethod,
    GradientScale,
    QATConfig,
    TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig,
    TrainingMethod,
)
from qatfast.flow import finalize_model, load_model, quantize_model, save_model
from qatfast.flow.select import adapter_of_tf_keras
from qatfast.quantizers import BaseKerasQATTrainableQuantizer

__all__ = [
    "BaseKerasQATTrainableQuantizer",
    "CalibrationMethod",
    "GradientScale",
    "KerasActivationQuantizationHolder",
    "KerasTrainableQuantizationWrapper",
    "QATConfig",
    "TrainableQuantizerActivationConfig",
    "TrainableQuantizerWeightsConfig",
    "TrainingMethod",
    "build_info",
    "finalize_model",
    "load_model",
    "ops",
    "quantize_model",
    "quantizers",
    "reference",
    "save_model",
]


def __getattr__(name):
    """The layers of the Keras that tf.keras is; the flow itself uses those of a model's Keras."""
    if name == "KerasTrainableQuantizationWrapper":
        return adapter_of_tf_keras().wrapper
    if name == "KerasActivationQuantizationHolder":
        return adapter_of_tf_keras().holder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
