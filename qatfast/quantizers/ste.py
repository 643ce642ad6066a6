"""Straight-through-estimator quantizers: the range is calibrated and stays, the gradient passes where it holds.

One op per call, on ranges that are computed once. What is trained is what is exported: `convert2inferable` reads the
variables and hands mct-quantizers a range that comes out as the same float32 numbers, saved and loaded or not.
"""

import numpy as np
import tensorflow as tf
from mct_quantizers import QuantizationTarget, mark_quantizer

from qatfast import ops
from qatfast.config import TrainableQuantizerActivationConfig, TrainableQuantizerWeightsConfig, TrainingMethod
from qatfast.quantizers.range_quantizer import (
    MAX_VARIABLE,
    METHODS,
    MIN_VARIABLE,
    THRESHOLD_VARIABLE,
    RangeQuantizer,
    floats,
)
from qatfast.quantizers.ranges import exportable_uniform_range, symmetric_range

__all__ = ["STEActivationQuantizer", "STEWeightsQuantizer"]


class _STEQuantizer(RangeQuantizer):
    """What the weights and the activation quantizer share.

    `min` and `max` are what training quantizes with. For the symmetric methods they follow from the threshold, which
    is what gets exported; for the uniform method they are exported themselves.
    """

    def __call__(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns `inputs` quantized and dequantized, in its type; `training` makes no difference."""
        return ops.fake_quant(
            inputs,
            self.get_quantizer_variable(MIN_VARIABLE),
            self.get_quantizer_variable(MAX_VARIABLE),
            num_bits=self._num_bits,
            axis=self._axis,
        )

    def convert2inferable(self):
        """Returns mct-quantizers' quantizer of the same method and of the same output, bit for bit.

        Raises:
            KeyError: The layer is not built.
            ValueError: The variables were set to values that export would change; see `snap_range`.
        """
        return super().convert2inferable()

    def snap_range(self) -> None:
        """Moves the variables to the nearest range that can be exported as it is.

        They are on one from the start. Variables that were set from elsewhere, as by a checkpoint of MCT's, may not
        be; the range then moves by less than one step of its grid (by more where min and max do not fit threshold).
        """
        for name, value in self._make_initial_values(self._read_variables()).items():
            self.get_quantizer_variable(name).assign(value)

    def _exported_range(self):
        """The variables as arguments of an inferable quantizer.

        They must already be such that export leaves them alone. Moving them here would export what was not trained,
        and moving the variables would change the model that is being exported.
        """
        stored = self._read_variables()
        for name, value in self._make_initial_values(stored).items():
            if not np.array_equal(value, stored[name]):
                self._fail(
                    f"variable {name}",
                    "a value that export leaves unchanged (snap_range() moves it to the nearest one)",
                    stored[name],
                )
        if self._is_uniform:
            return {"min_range": floats(stored[MIN_VARIABLE]), "max_range": floats(stored[MAX_VARIABLE])}
        return {"threshold": floats(stored[THRESHOLD_VARIABLE])}

    def _make_initial_values(self, given):
        """The values of all variables: from the threshold, or from min and max, among `given`."""
        values = super()._make_initial_values(given)
        if self._is_uniform:
            lower, upper = exportable_uniform_range(values[MIN_VARIABLE], values[MAX_VARIABLE], self._num_bits)
        else:
            lower, upper = symmetric_range(values[THRESHOLD_VARIABLE], self._num_bits, self._signed)
        step = (upper - lower) / np.float32(2**self._num_bits - 1)
        if not np.all(np.isfinite(step) & (step >= np.finfo(np.float32).tiny)):
            self._fail("the quantization step", "a normal float32 number", step)
        return {**values, MIN_VARIABLE: lower, MAX_VARIABLE: upper}


@mark_quantizer(
    quantization_target=QuantizationTarget.Weights, quantization_method=METHODS, identifier=TrainingMethod.STE
)
class STEWeightsQuantizer(_STEQuantizer):
    """Trains a weight under fixed ranges: symmetric, power of two or uniform, per tensor or per channel on any axis.

    Args:
        quantization_config: Its params hold 'threshold', or 'range_min' and 'range_max' (uniform).
        freeze_quant_params: Makes no difference: the ranges do not train.

    Raises:
        ValueError: The config asks for what there is not: fewer than 2 or more than 16 bits, a threshold that is not
            positive, a range that is empty, parameters missing or of a wrong shape.
    """

    def __init__(self, quantization_config: TrainableQuantizerWeightsConfig, freeze_quant_params: bool = False):
        super().__init__(quantization_config, freeze_quant_params)


@mark_quantizer(
    quantization_target=QuantizationTarget.Activation, quantization_method=METHODS, identifier=TrainingMethod.STE
)
class STEActivationQuantizer(_STEQuantizer):
    """Quantizes an activation in a fixed range, per tensor: symmetric or power of two (signed or not), or uniform.

    Args:
        quantization_config: Its params hold 'threshold' and 'is_signed', or 'range_min' and 'range_max' (uniform).
        freeze_quant_params: Makes no difference: the ranges do not train.

    Raises:
        ValueError: As `STEWeightsQuantizer` does.
    """

    def __init__(self, quantization_config: TrainableQuantizerActivationConfig, freeze_quant_params: bool = False):
        super().__init__(quantization_config, freeze_quant_params)
