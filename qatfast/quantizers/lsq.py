"""Learned step size quantizers (Esser et al., https://arxiv.org/abs/1902.08153): the range trains with the weights.

Whatever an optimizer does to the variables, training computes with a threshold, or a range as wide, of at least the
config's `min_threshold`, and with a power of two where that is the method; gradients pass these guards straight
through, as in Trained Quantization Thresholds (Jain et al., https://arxiv.org/abs/1903.08066). What training computes
with is what is exported; the guards, like all arithmetic, are in the one op of a call.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from mct_quantizers import QuantizationTarget, mark_quantizer

from qatfast import ops
from qatfast.config import (
    GradientScale,
    TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig,
    TrainingMethod,
)
from qatfast.quantizers.gradient_scale import activation_gradient_scale, weight_gradient_scale
from qatfast.quantizers.range_quantizer import (
    MAX_VARIABLE,
    METHODS,
    MIN_VARIABLE,
    THRESHOLD_VARIABLE,
    RangeQuantizer,
    floats,
)
from qatfast.quantizers.ranges import exportable_grid, exportable_threshold
from qatfast.reference.learned_step import symmetric_grid, uniform_grid

__all__ = ["LSQActivationQuantizer", "LSQWeightsQuantizer", "TrainedGrid"]


class TrainedGrid(NamedTuple):
    """The numbers step * k for the integers k from smallest to largest.

    Training rounds x / step to the nearest of these integers, halves to even.
    """

    step: np.ndarray
    smallest: np.ndarray
    largest: np.ndarray


class _LSQQuantizer(RangeQuantizer):
    """What the weights and the activation quantizer share."""

    trains_range = True

    def __init__(self, quantization_config, freeze_quant_params, gradient_scale):
        super().__init__(quantization_config, freeze_quant_params)
        if not isinstance(gradient_scale, GradientScale):
            self._fail("gradient_scale", "a GradientScale", repr(gradient_scale))
        smallest_step = np.float32(quantization_config.min_threshold) / np.float32(2**self._num_bits - 1)
        if smallest_step < np.finfo(np.float32).tiny:
            self._fail(
                "min_threshold", "such that its quantization step is a normal number", quantization_config.min_threshold
            )
        self.gradient_scale = gradient_scale
        self._shape = None  # of the weight, or of the activation when it is first called

    def initialize_quantization(self, tensor_shape, name, layer):
        """Creates the variables: [channels] per channel, else scalars; float32, or float64 in a float64 layer."""
        super().initialize_quantization(tensor_shape, name, layer)
        self._shape = tensor_shape

    def __call__(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns `inputs` quantized and dequantized, in its type; `training` makes no difference.

        Raises:
            ValueError: The static shape of an activation does not tell what `gradient_scale` counts.
        """
        self._shape = inputs.shape
        if self._is_uniform:
            return ops.lsq_uniform(
                inputs,
                self.get_quantizer_variable(MIN_VARIABLE),
                self.get_quantizer_variable(MAX_VARIABLE),
                num_bits=self._num_bits,
                grad_scale=self._grad_scale(),
                axis=self._axis,
                min_width=self.quantization_config.min_threshold,
                exact_zero=True,
            )
        return ops.lsq_symmetric(
            inputs,
            self.get_quantizer_variable(THRESHOLD_VARIABLE),
            num_bits=self._num_bits,
            signed=self._signed,
            grad_scale=self._grad_scale(),
            axis=self._axis,
            power_of_two=self._is_power_of_two,
            min_threshold=self.quantization_config.min_threshold,
        )

    def convert2inferable(self):
        """Returns mct-quantizers' quantizer of the same method, on the grid that training computes with.

        The op under that quantizer rounds halves up, where training rounds them to even, and divides after a shift:
        an element next to the middle of two grid values may go to the other one. Any other element equals training's
        bit for bit where the step can be exported (always for a power of two, mostly for the other methods: see
        `exportable_step`), else to float32 rounding. The integers of the grid are the same, and zero is zero.

        The gradient scale moves the last bit of some steps (as in MCT). For an activation it depends on the shape, so
        a quantizer that was never called is exported without that.

        Raises:
            KeyError: The layer is not built.
            ValueError: A variable is not finite.
            InvalidArgumentError: A variable is so large that training cannot compute with it either.
        """
        return super().convert2inferable()

    def _make_initial_values(self, given):
        """What the config gives; a power of two starts in the middle of the octave that it rounds up.

        Training computes with the same threshold. From the power of two itself the first gradient upward would double
        the threshold, and cost accuracy that takes long to win back.
        """
        values = super()._make_initial_values(given)
        if self._is_power_of_two:
            values = {name: value * np.float32(math.sqrt(0.5)) for name, value in values.items()}
        return values

    def trained_grid(self) -> TrainedGrid:
        """Returns the grid that training computes with: float32 and integers, arrays of the variables' shape.

        Raises:
            KeyError: The layer is not built.
            ValueError: A variable is not finite.
            InvalidArgumentError: A variable is so large that training cannot compute with it either.
        """
        variables = self._read_variables()
        for name, value in variables.items():
            if not np.isfinite(value).all():
                self._fail(f"variable {name}", "finite", value)
        # The reference knows what the op makes of the variables. Per channel they need no other shape for that.
        shared = {"x": None, "axis": None, "num_bits": self._num_bits, "grad_scale": self._grad_scale()}
        floor = self.quantization_config.min_threshold
        if self._is_uniform:
            lower, upper = (tf.constant(variables[name]) for name in (MIN_VARIABLE, MAX_VARIABLE))
            grid = uniform_grid(min=lower, max=upper, min_width=floor, exact_zero=True, **shared)
        else:
            grid = symmetric_grid(
                threshold=tf.constant(variables[THRESHOLD_VARIABLE]),
                signed=self._signed,
                power_of_two=self._is_power_of_two,
                min_threshold=floor,
                **shared,
            )
        return TrainedGrid(grid.step.numpy(), np.asarray(grid.smallest), np.asarray(grid.largest))

    def _exported_range(self):
        grid = self.trained_grid()
        if self._is_uniform:
            lower, upper = exportable_grid(grid.step, grid.smallest, self._num_bits)
            return {"min_range": floats(lower), "max_range": floats(upper)}
        return {"threshold": floats(exportable_threshold(grid.step, self._num_bits, self._signed))}

    def _grad_scale(self):
        """What the gradient to the step is scaled by; 1 for an activation that was never called."""
        if self._shape is None:
            return 1.0
        largest = 2 ** (self._num_bits - self._signed) - 1
        if self._is_for_weights:
            return weight_gradient_scale(self.gradient_scale, largest, tuple(self._shape), self._steps)
        shape = tf.TensorShape(self._shape)
        return activation_gradient_scale(type(self).__name__, self.gradient_scale, largest, shape)


@mark_quantizer(
    quantization_target=QuantizationTarget.Weights, quantization_method=METHODS, identifier=TrainingMethod.LSQ
)
class LSQWeightsQuantizer(_LSQQuantizer):
    """Trains a weight and its range: symmetric, power of two or uniform, per tensor or per channel on any axis.

    Args:
        quantization_config: Its params hold 'threshold', or 'range_min' and 'range_max' (uniform), to start from. Its
            `min_threshold` is the least threshold, or width of a range, that is computed with.
        freeze_quant_params: Whether the range stays as it is.
        gradient_scale: What the gradient to the range is scaled by; by default as in MCT, which is not as in the paper.

    Raises:
        ValueError: As `STEWeightsQuantizer` does; or `min_threshold` is too small for float32.
    """

    def __init__(
        self,
        quantization_config: TrainableQuantizerWeightsConfig,
        freeze_quant_params: bool = False,
        gradient_scale: GradientScale = GradientScale.CHANNELS,
    ):
        super().__init__(quantization_config, freeze_quant_params, gradient_scale)


@mark_quantizer(
    quantization_target=QuantizationTarget.Activation, quantization_method=METHODS, identifier=TrainingMethod.LSQ
)
class LSQActivationQuantizer(_LSQQuantizer):
    """Trains the range of an activation, per tensor: symmetric or power of two (signed or not), or uniform.

    Args:
        quantization_config: Its params hold 'threshold' and 'is_signed', or 'range_min' and 'range_max' (uniform), to
            start from. Its `min_threshold` is the least threshold, or width of a range, that is computed with.
        freeze_quant_params: Whether the range stays as it is.
        gradient_scale: What the gradient to the range is scaled by; by default as in MCT, which is not as in the paper.

    Raises:
        ValueError: As `LSQWeightsQuantizer` does.
    """

    def __init__(
        self,
        quantization_config: TrainableQuantizerActivationConfig,
        freeze_quant_params: bool = False,
        gradient_scale: GradientScale = GradientScale.CHANNELS,
    ):
        super().__init__(quantization_config, freeze_quant_params, gradient_scale)
