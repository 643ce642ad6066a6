"""Straight-through-estimator quantizers: the range is calibrated and stays, the gradient passes where it holds.

One op per call, on ranges that are computed once. What is trained is what is exported: `convert2inferable` reads the
variables and hands mct-quantizers a range that comes out as the same float32 numbers, saved and loaded or not.
"""

import numpy as np
import tensorflow as tf
from mct_quantizers import QuantizationMethod, QuantizationTarget, mark_quantizer
from mct_quantizers.keras import quantizers as inferable

from qatfast import ops
from qatfast.config import (
    RANGE_MAX,
    RANGE_MIN,
    SIGNED,
    THRESHOLD,
    TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig,
    TrainingMethod,
)
from qatfast.quantizers.base import BaseKerasQATTrainableQuantizer, VariableGroup
from qatfast.quantizers.ranges import exportable_uniform_range, power_of_two_threshold, symmetric_range

__all__ = ["STEActivationQuantizer", "STEWeightsQuantizer"]

# MCT's variable names, so that checkpoints interchange.
THRESHOLD_VARIABLE = "ptq_threshold_tensor"
MIN_VARIABLE = "min"
MAX_VARIABLE = "max"

_METHODS = [QuantizationMethod.SYMMETRIC, QuantizationMethod.POWER_OF_TWO, QuantizationMethod.UNIFORM]
_WEIGHTS_INFERABLE = {
    QuantizationMethod.SYMMETRIC: inferable.WeightsSymmetricInferableQuantizer,
    QuantizationMethod.POWER_OF_TWO: inferable.WeightsPOTInferableQuantizer,
    QuantizationMethod.UNIFORM: inferable.WeightsUniformInferableQuantizer,
}
_ACTIVATION_INFERABLE = {
    QuantizationMethod.SYMMETRIC: inferable.ActivationSymmetricInferableQuantizer,
    QuantizationMethod.POWER_OF_TWO: inferable.ActivationPOTInferableQuantizer,
    QuantizationMethod.UNIFORM: inferable.ActivationUniformInferableQuantizer,
}


class _STEQuantizer(BaseKerasQATTrainableQuantizer):
    """What the weights and the activation quantizer share.

    `min` and `max` are what training quantizes with. For the symmetric methods they follow from the threshold, which
    is what gets exported; for the uniform method they are exported themselves.
    """

    def _set_up(self, method, num_bits, params, *, signed, axis):
        """Computes the variables' initial values; the config is checked already."""
        if not 2 <= num_bits <= 16:
            self._fail("the number of bits", "an integer from 2 to 16", num_bits)
        self._method = method
        self._num_bits = num_bits
        self._signed = signed
        self._axis = axis
        keys = [RANGE_MIN, RANGE_MAX] if method is QuantizationMethod.UNIFORM else [THRESHOLD]
        given = [self._read_parameter(params, key) for key in keys]
        if len({value.shape for value in given}) > 1:
            self._fail(RANGE_MAX, f"of {RANGE_MIN}'s shape {given[0].shape}", f"shape {given[1].shape}")
        names = [MIN_VARIABLE, MAX_VARIABLE] if method is QuantizationMethod.UNIFORM else [THRESHOLD_VARIABLE]
        self._initial_values = self._follow_from(dict(zip(names, given, strict=True)))

    def initialize_quantization(self, tensor_shape, name, layer):
        """Creates the variables: [channels] per channel, else scalars; none is trainable.

        Raises:
            ValueError: The parameters' number of channels is not the weight's.
        """
        self._check_channels(tensor_shape)
        for suffix, value in self._initial_values.items():
            variable = layer.add_weight(
                name + suffix, shape=value.shape, initializer=tf.keras.initializers.Constant(value), trainable=False
            )
            self.add_quantizer_variable(suffix, variable, VariableGroup.QPARAMS)

    def __call__(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns `inputs`, a float32 tensor, quantized and dequantized; `training` makes no difference."""
        return ops.fake_quant(
            inputs,
            self.get_quantizer_variable(MIN_VARIABLE),
            self.get_quantizer_variable(MAX_VARIABLE),
            num_bits=self._num_bits,
            axis=self._axis,
        )

    def snap_range(self) -> None:
        """Moves the variables to the nearest range that can be exported as it is.

        They are on one from the start. Variables that were set from elsewhere, as by a checkpoint of MCT's, may not
        be; the range then moves by less than one step of its grid (by more where min and max do not fit threshold).
        """
        for name, value in self._follow_from(self._read_variables()).items():
            self.get_quantizer_variable(name).assign(value)

    def _exported_range(self):
        """The variables as arguments of an inferable quantizer.

        They must already be such that export leaves them alone. Moving them here would export what was not trained,
        and moving the variables would change the model that is being exported.
        """
        stored = self._read_variables()
        for name, value in self._follow_from(stored).items():
            if not np.array_equal(value, stored[name]):
                self._fail(
                    f"variable {name}",
                    "a value that export leaves unchanged (snap_range() moves it to the nearest one)",
                    stored[name],
                )
        if self._method is QuantizationMethod.UNIFORM:
            return {"min_range": _floats(stored[MIN_VARIABLE]), "max_range": _floats(stored[MAX_VARIABLE])}
        return {"threshold": _floats(stored[THRESHOLD_VARIABLE])}

    def _read_variables(self):
        return {name: self.get_quantizer_variable(name).numpy() for name in self._initial_values}

    def _follow_from(self, values):
        """The values of all variables: from the threshold, or from min and max, among `values`."""
        if self._method is QuantizationMethod.UNIFORM:
            lower, upper = values[MIN_VARIABLE], values[MAX_VARIABLE]
            if not np.all(np.isfinite(lower) & np.isfinite(upper) & (lower < upper)):
                self._fail(f"{RANGE_MIN} and {RANGE_MAX}", "finite, with min less than max", f"{lower} and {upper}")
            lower, upper = exportable_uniform_range(lower, upper, self._num_bits)
            derived = {}
        else:
            threshold = values[THRESHOLD_VARIABLE]
            if self._method is QuantizationMethod.POWER_OF_TWO:
                threshold = power_of_two_threshold(threshold, self.quantization_config.min_threshold)
            if not np.all(np.isfinite(threshold) & (threshold > 0)):
                self._fail(THRESHOLD, "positive and finite", threshold)
            lower, upper = symmetric_range(threshold, self._num_bits, self._signed)
            derived = {THRESHOLD_VARIABLE: threshold}
        step = (upper - lower) / np.float32(2**self._num_bits - 1)
        if not np.all(np.isfinite(step) & (step >= np.finfo(np.float32).tiny)):
            self._fail("the quantization step", "a normal float32 number", step)
        return {**derived, MIN_VARIABLE: lower, MAX_VARIABLE: upper}

    def _read_parameter(self, params, key):
        """The float32 array, of shape [] or [channels], that the config gives under `key`."""
        if key not in params:
            self._fail("the quantization params", f"a dict with the key {key!r}", f"keys {sorted(params)}")
        value = np.asarray(params[key], np.float32)
        if value.size != max(value.shape, default=1) or value.size == 0:
            self._fail(key, "a number or one number per channel", f"shape {value.shape}")
        if self._axis is None and value.size != 1:
            self._fail(key, "one number per tensor", f"shape {value.shape}")
        return value.reshape(() if self._axis is None else (-1,))

    def _check_channels(self, tensor_shape):
        if self._axis is None:
            return
        shape = tuple(tensor_shape)
        if not -len(shape) <= self._axis < len(shape):
            self._fail("weights_channels_axis", f"an axis of a weight of shape {shape}", self._axis)
        given = self._initial_values[MIN_VARIABLE].size
        if given != shape[self._axis]:
            self._fail(
                "the quantization params", f"for {shape[self._axis]} channels, axis {self._axis} of {shape}", given
            )

    def _fail(self, argument, requirement, value):
        raise ValueError(f"{type(self).__name__}: {argument} must be {requirement}, got {value}")


@mark_quantizer(
    quantization_target=QuantizationTarget.Weights, quantization_method=_METHODS, identifier=TrainingMethod.STE
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
        config = quantization_config
        self._set_up(
            config.weights_quantization_method,
            config.weights_n_bits,
            config.weights_quantization_params,
            signed=True,
            axis=config.weights_channels_axis if config.weights_per_channel_threshold else None,
        )
        self._rank = None

    def initialize_quantization(self, tensor_shape, name, layer):
        """Creates the variables for a weight of this shape."""
        super().initialize_quantization(tensor_shape, name, layer)
        self._rank = len(tensor_shape)

    def convert2inferable(self):
        """Returns the Weights{Symmetric, POT, Uniform}InferableQuantizer of the same output, bit for bit.

        Raises:
            KeyError: The layer is not built.
            ValueError: The variables were set to values that export would change; see `snap_range`.
        """
        per_channel = self._axis is not None
        return _WEIGHTS_INFERABLE[self._method](
            num_bits=self._num_bits,
            per_channel=per_channel,
            **self._exported_range(),
            channel_axis=self._axis % self._rank if per_channel else None,
            input_rank=self._rank,
        )


@mark_quantizer(
    quantization_target=QuantizationTarget.Activation, quantization_method=_METHODS, identifier=TrainingMethod.STE
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
        config = quantization_config
        method, params = config.activation_quantization_method, config.activation_quantization_params
        if method is not QuantizationMethod.UNIFORM and not isinstance(params.get(SIGNED), (bool, np.bool_)):
            self._fail(SIGNED, "True or False", params.get(SIGNED))
        self._set_up(method, config.activation_n_bits, params, signed=bool(params.get(SIGNED)), axis=None)

    def convert2inferable(self):
        """Returns the Activation{Symmetric, POT, Uniform}InferableQuantizer of the same output, bit for bit.

        Raises:
            KeyError: The layer is not built.
            ValueError: The variables were set to values that export would change; see `snap_range`.
        """
        signed = {} if self._method is QuantizationMethod.UNIFORM else {"signed": self._signed}
        return _ACTIVATION_INFERABLE[self._method](num_bits=self._num_bits, **self._exported_range(), **signed)


def _floats(values):
    """Python floats: NumPy's would make mct-quantizers compute in float32 until its config is saved and loaded."""
    return [float(value) for value in values.ravel()]
