"""What to quantize and how: the configuration of a quantizer, and of a whole model."""

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from mct_quantizers import QuantizationMethod

__all__ = [
    "MIN_THRESHOLD",
    "RANGE_MAX",
    "RANGE_MIN",
    "SIGNED",
    "THRESHOLD",
    "CalibrationMethod",
    "GradientScale",
    "QATConfig",
    "TrainableQuantizerActivationConfig",
    "TrainableQuantizerCandidateConfig",
    "TrainableQuantizerWeightsConfig",
    "TrainingMethod",
]

MIN_THRESHOLD = 2**-16

# Keys of a config's quantization params; MCT's, so that its configs serve here.
THRESHOLD = "threshold"
SIGNED = "is_signed"
RANGE_MIN = "range_min"
RANGE_MAX = "range_max"


class TrainingMethod(Enum):
    """How a quantizer is trained; a member of a user's own Enum serves wherever one of these does.

    STE: straight-through estimator; the gradient passes where the input is in range, the range stays as calibrated.
    LSQ: learned step size quantization (Esser et al., https://arxiv.org/abs/1902.08153).
    """

    STE = "STE"
    LSQ = "LSQ"


class CalibrationMethod(Enum):
    """How a quantization range is chosen from data.

    MIN_MAX: the range that holds every observed value.
    MSE: the range with the least mean squared quantization error.
    """

    MIN_MAX = "min_max"
    MSE = "mse"


class GradientScale(Enum):
    """What an LSQ quantizer divides the gradient of its step by: the square root of a count times the largest integer.

    The gradient of a step sums over all elements that share it, so that it outgrows the gradients of weights. The
    count is meant to even that out; it works as a learning rate of the step's own.

    CHANNELS: as MCT counts. For a weight the number of its steps (1 per tensor); for an activation the size of the
        last axis.
    ELEMENTS: as Esser et al. count (https://arxiv.org/abs/1902.08153, section 2.2). For a weight the number of its
        elements that share a step; for an activation the features of one sample: all axes but the first.
    """

    CHANNELS = "channels"
    ELEMENTS = "elements"


@dataclass(frozen=True, eq=False)
class TrainableQuantizerCandidateConfig:
    """One candidate among several bit-widths of a trainable quantizer.

    Args:
        n_bits: Number of bits.
        quantization_params: The quantization parameters for this number of bits.

    Raises:
        ValueError: An argument is not what it must be.
    """

    n_bits: int
    quantization_params: dict

    def __post_init__(self):
        """Checks every field."""
        _check_n_bits(self, "n_bits")
        _check_type(self, "quantization_params", dict, "a dict")


@dataclass(frozen=True, eq=False)
class TrainableQuantizerActivationConfig:
    """The configuration of a trainable activation quantizer; fields and order are MCT's.

    Args:
        activation_quantization_method: The grid's kind.
        activation_n_bits: Number of bits.
        activation_quantization_params: 'threshold' and 'is_signed', or 'range_min' and 'range_max' (uniform):
            numbers. Quantizers of your own may ask for other keys.
        enable_activation_quantization: Whether the activation is quantized.
        min_threshold: The smallest threshold (uniform: width of the range) that calibration chooses, and that an LSQ
            quantizer computes with.
        activation_quantization_candidates: Candidate bit-widths, for mixed-precision quantizers.

    Raises:
        ValueError: An argument is not what it must be.
    """

    activation_quantization_method: QuantizationMethod
    activation_n_bits: int
    activation_quantization_params: dict
    enable_activation_quantization: bool
    min_threshold: float
    activation_quantization_candidates: list[TrainableQuantizerCandidateConfig] | None = None

    def __post_init__(self):
        """Checks every field."""
        _check_type(self, "activation_quantization_method", QuantizationMethod, "a QuantizationMethod")
        _check_n_bits(self, "activation_n_bits")
        _check_type(self, "activation_quantization_params", dict, "a dict")
        _check_type(self, "enable_activation_quantization", bool, "a bool")
        _check_positive(self, "min_threshold")
        _check_candidates(self, "activation_quantization_candidates")


@dataclass(frozen=True, eq=False)
class TrainableQuantizerWeightsConfig:
    """The configuration of a trainable weights quantizer; fields and order are MCT's.

    Args:
        weights_quantization_method: The grid's kind.
        weights_n_bits: Number of bits.
        weights_quantization_params: 'threshold', or 'range_min' and 'range_max' (uniform): numbers, or per channel
            arrays of shape [channels] or of the weight's rank with size one on every other axis. Quantizers of your
            own may ask for other keys.
        enable_weights_quantization: Whether the weight is quantized.
        weights_channels_axis: The weight's channel axis, which may be negative; None is allowed per tensor.
        weights_per_channel_threshold: Whether every channel has a range of its own.
        min_threshold: The smallest threshold (uniform: width of the range) that calibration chooses, and that an LSQ
            quantizer computes with.
        weights_quantization_candidates: Candidate bit-widths, for mixed-precision quantizers.

    Raises:
        ValueError: An argument is not what it must be.
    """

    weights_quantization_method: QuantizationMethod
    weights_n_bits: int
    weights_quantization_params: dict
    enable_weights_quantization: bool
    weights_channels_axis: int | None
    weights_per_channel_threshold: bool
    min_threshold: float
    weights_quantization_candidates: list[TrainableQuantizerCandidateConfig] | None = None

    def __post_init__(self):
        """Checks every field."""
        _check_type(self, "weights_quantization_method", QuantizationMethod, "a QuantizationMethod")
        _check_n_bits(self, "weights_n_bits")
        _check_type(self, "weights_quantization_params", dict, "a dict")
        _check_type(self, "enable_weights_quantization", bool, "a bool")
        _check_type(self, "weights_per_channel_threshold", bool, "a bool")
        axis = self.weights_channels_axis
        if not (_is_integer(axis) or (axis is None and not self.weights_per_channel_threshold)):
            _fail(self, "weights_channels_axis", "an integer (or None per tensor)")
        _check_positive(self, "min_threshold")
        _check_candidates(self, "weights_quantization_candidates")


@dataclass(frozen=True)
class QATConfig:
    """How `quantize_model` quantizes a model.

    Args:
        weight_training_method: Which quantizers train the kernels: a `TrainingMethod`, or a member of your own Enum
            with which you marked a quantizer.
        activation_training_method: The same for activations.
        weight_quantizer_params_override: Further constructor arguments of every weights quantizer, as
            {"gradient_scale": GradientScale.ELEMENTS} or {"freeze_quant_params": True}.
        activation_quantizer_params_override: Further constructor arguments of every activation quantizer.
        weight_n_bits: Number of bits of the kernels.
        activation_n_bits: Number of bits of the activations.
        weight_quantization_method: The kernels' grid: SYMMETRIC, POWER_OF_TWO or UNIFORM.
        activation_quantization_method: The activations' grid: SYMMETRIC, POWER_OF_TWO or UNIFORM.
        weight_per_channel: Whether every output channel of a kernel has a range of its own.
        weight_calibration_method: How the kernels' ranges are chosen.
        activation_calibration_method: How the activations' ranges are chosen.
        min_threshold: The smallest threshold (uniform: the smallest width of a range) that calibration chooses, and
            that LSQ computes with, whatever its variables become.
        float_layers: Names of layers whose kernel and output stay in float.
        quantize_input: Whether the model's inputs are quantized.
        supports_jit: Whether Keras 3 may compile the quantized model by XLA, which it does on a GPU unless `compile` is
            told `jit_compile=False`. XLA then compiles the plain formulas of `qatfast.reference`; the native ops run
            where this is False, in graph mode. Keras 2 compiles by XLA whatever is told `jit_compile=True`.

    Raises:
        ValueError: An argument is not what it must be.
    """

    weight_training_method: Enum = TrainingMethod.STE
    activation_training_method: Enum = TrainingMethod.STE
    weight_quantizer_params_override: dict | None = None
    activation_quantizer_params_override: dict | None = None
    weight_n_bits: int = 8
    activation_n_bits: int = 8
    weight_quantization_method: QuantizationMethod = QuantizationMethod.SYMMETRIC
    activation_quantization_method: QuantizationMethod = QuantizationMethod.SYMMETRIC
    weight_per_channel: bool = True
    weight_calibration_method: CalibrationMethod = CalibrationMethod.MIN_MAX
    activation_calibration_method: CalibrationMethod = CalibrationMethod.MIN_MAX
    min_threshold: float = MIN_THRESHOLD
    float_layers: Sequence[str] = ()
    quantize_input: bool = True
    supports_jit: bool = False

    def __post_init__(self):
        """Checks every field."""
        for name in ("weight_training_method", "activation_training_method"):
            _check_type(self, name, Enum, "a TrainingMethod or a member of your own Enum")
        for name in ("weight_quantizer_params_override", "activation_quantizer_params_override"):
            _check_type(self, name, (dict, type(None)), "a dict or None")
        for name in ("weight_n_bits", "activation_n_bits"):
            _check_n_bits(self, name)
        for name in ("weight_quantization_method", "activation_quantization_method"):
            if getattr(self, name) not in CALIBRATED_METHODS:
                _fail(self, name, "QuantizationMethod." + ", ".join(method.name for method in CALIBRATED_METHODS))
        for name in ("weight_per_channel", "quantize_input", "supports_jit"):
            _check_type(self, name, bool, "a bool")
        for name in ("weight_calibration_method", "activation_calibration_method"):
            _check_type(self, name, CalibrationMethod, "a CalibrationMethod")
        _check_positive(self, "min_threshold")
        names = self.float_layers
        if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
            _fail(self, "float_layers", "a sequence of layer names")


CALIBRATED_METHODS = (QuantizationMethod.SYMMETRIC, QuantizationMethod.POWER_OF_TWO, QuantizationMethod.UNIFORM)


def _fail(config, argument, requirement):
    value = getattr(config, argument)
    raise ValueError(f"{type(config).__name__}: {argument} must be {requirement}, got {value!r}")


def _check_type(config, argument, types, requirement):
    if not isinstance(getattr(config, argument), types):
        _fail(config, argument, requirement)


def _is_integer(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check_n_bits(config, argument):
    value = getattr(config, argument)
    if not _is_integer(value) or not 1 <= value <= 32:
        _fail(config, argument, "an integer from 1 to 32")


def _check_positive(config, argument):
    value = getattr(config, argument)
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not 0 < value < float("inf"):
        _fail(config, argument, "a positive number")


def _check_candidates(config, argument):
    candidates = getattr(config, argument)
    if candidates is None:
        return
    if not isinstance(candidates, (list, tuple)) or not all(
        isinstance(candidate, TrainableQuantizerCandidateConfig) for candidate in candidates
    ):
        _fail(config, argument, "None or a list of TrainableQuantizerCandidateConfig")
