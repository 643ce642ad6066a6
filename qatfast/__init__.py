"""Fast fake quantization for quantization-aware training with Keras."""

from qatfast._keras import use_legacy_keras

use_legacy_keras()

from qatfast import ops, quantizers, reference  # noqa: E402
from qatfast._library import build_info  # noqa: E402
from qatfast.config import (  # noqa: E402
    CalibrationMethod,
    GradientScale,
    QATConfig,
    TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig,
    TrainingMethod,
)
from qatfast.files import load_model, save_model  # noqa: E402
from qatfast.model import finalize_model, quantize_model  # noqa: E402
from qatfast.quantizers import BaseKerasQATTrainableQuantizer  # noqa: E402
from qatfast.wrapper import KerasTrainableQuantizationWrapper  # noqa: E402

__all__ = [
    "BaseKerasQATTrainableQuantizer",
    "CalibrationMethod",
    "GradientScale",
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
