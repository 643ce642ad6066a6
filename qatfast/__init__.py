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

# Of the Keras that tf.keras is. The flow itself uses those of a model's Keras.
KerasTrainableQuantizationWrapper = adapter_of_tf_keras().wrapper
KerasActivationQuantizationHolder = adapter_of_tf_keras().holder

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
