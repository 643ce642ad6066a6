"""What the quantizers of this package share: a threshold or a range from a config, kept in variables, and exported."""

from abc import abstractmethod

import numpy as np
import tensorflow as tf
from mct_quantizers import QuantizationMethod, QuantizationTarget
from mct_quantizers.keras import quantizers as inferable

from qatfast.config import RANGE_MAX, RANGE_MIN, SIGNED, THRESHOLD
from qatfast.quantizers.base import BaseKerasQATTrainableQuantizer, VariableGroup
from qatfast.quantizers.ranges import power_of_two_threshold

__all__ = ["MAX_VARIABLE", "METHODS", "MIN_VARIABLE", "THRESHOLD_VARIABLE", "RangeQuantizer", "floats"]

# MCT's variable names, so that checkpoints interchange.
THRESHOLD_VARIABLE = "ptq_threshold_tensor"
MIN_VARIABLE = "min"
MAX_VARIABLE = "max"
_SYMMETRIC_KEYS = {THRESHOLD_VARIABLE: THRESHOLD}
_UNIFORM_KEYS = {MIN_VARIABLE: RANGE_MIN, MAX_VARIABLE: RANGE_MAX}

METHODS = [QuantizationMethod.SYMMETRIC, QuantizationMethod.POWER_OF_TWO, QuantizationMethod.UNIFORM]
_INFERABLE = {
    QuantizationTarget.Weights: {
        QuantizationMethod.SYMMETRIC: inferable.WeightsSymmetricInferableQuantizer,
        QuantizationMethod.POWER_OF_TWO: inferable.WeightsPOTInferableQuantizer,
        QuantizationMethod.UNIFORM: inferable.WeightsUniformInferableQuantizer,
    },
    QuantizationTarget.Activation: {
        QuantizationMethod.SYMMETRIC: inferable.ActivationSymmetricInferableQuantizer,
        QuantizationMethod.POWER_OF_TWO: inferable.ActivationPOTInferableQuantizer,
        QuantizationMethod.UNIFORM: inferable.ActivationUniformInferableQuantizer,
    },
}


class RangeQuantizer(BaseKerasQATTrainableQuantizer):
    """A quantizer to the 2^num_bits numbers below a threshold or between min and max.

    A weight is quantized per tensor or per channel on any axis, and signed. An activation is quantized per tensor. A
    subclass says with which values its variables start, computes with them, and says which range it exports.

    Args:
        quantization_config: Its params hold 'threshold' ('is_signed' too for an activation), or 'range_min' and
            'range_max' for the uniform method.
        freeze_quant_params: Whether the variables stay as they are where a subclass trains them.

    Raises:
        ValueError: The config asks for what there is not: fewer than 2 or more than 16 bits, a threshold that is not
            positive, a range that is empty, parameters missing or of a wrong shape.
    """

    # Whether the variables are trained unless they are frozen.
    trains_range = False

    def __init__(self, quantization_config, freeze_quant_params):
        super().__init__(quantization_config, freeze_quant_params)
        config = quantization_config
        if self._is_for_weights:
            self._method, self._num_bits = config.weights_quantization_method, config.weights_n_bits
            self._axis = config.weights_channels_axis if config.weights_per_channel_threshold else None
            params, signed = config.weights_quantization_params, True
        else:
            self._method, self._num_bits = config.activation_quantization_method, config.activation_n_bits
            self._axis = None
            params = config.activation_quantization_params
            signed = params.get(SIGNED)
        if not 2 <= self._num_bits <= 16:
            self._fail("the number of bits", "an integer from 2 to 16", self._num_bits)
        if not self._is_uniform and not isinstance(signed, (bool, np.bool_)):
            self._fail(SIGNED, "True or False", signed)
        self._signed = bool(signed) and not self._is_uniform
        self._rank = None
        self._initial_values = self._make_initial_values(self._read_parameters(params))

    def initialize_quantization(self, tensor_shape, name, layer):
        """Creates the variables: [channels] per channel, else scalars.

        They are float32, or float64 in a layer that is, and mixed precision does not cast them: the ops compute with
        them in their own type.

        Raises:
            ValueError: The parameters' number of channels is not the weight's.
        """
        self._check_channels(tensor_shape)
        self._rank = None if tensor_shape is None else len(tensor_shape)
        for suffix, value in self._initial_values.items():
            variable = layer.add_weight(
                name + suffix,
                shape=value.shape,
                dtype=tf.float64 if layer.dtype == "float64" else tf.float32,
                initializer=tf.keras.initializers.Constant(value),
                trainable=self.trains_range and not self.freeze_quant_params,
                experimental_autocast=False,
            )
            self.add_quantizer_variable(suffix, variable, VariableGroup.QPARAMS)

    def use_variables(self, variables: dict, rank: int | None) -> None:
        """Goes on with variables of another quantizer, in place of `initialize_quantization`.

        Args:
            variables: By name, as this quantizer would have created them.
            rank: Number of the weight's axes; None for an activation.
        """
        self._rank = rank
        for name, variable in variables.items():
            self.add_quantizer_variable(name, variable, VariableGroup.QPARAMS)

    def convert2inferable(self):
        """Returns the {Weights, Activation}{Symmetric, POT, Uniform}InferableQuantizer that computes as this one."""
        arguments = {"num_bits": self._num_bits, **self._exported_range()}
        if self._is_for_weights:
            per_channel = self._axis is not None
            arguments["per_channel"] = per_channel
            arguments["channel_axis"] = self._axis % self._rank if per_channel else None
            arguments["input_rank"] = self._rank
        elif not self._is_uniform:
            arguments["signed"] = self._signed
        return _INFERABLE[type(self).quantization_target][self._method](**arguments)

    def _make_initial_values(self, given):
        """The initial values of all variables, by name and in order, made of those that the config gives."""
        if self._is_uniform:
            lower, upper = given[MIN_VARIABLE], given[MAX_VARIABLE]
            if not np.all(np.isfinite(lower) & np.isfinite(upper) & (lower < upper)):
                self._fail(f"{RANGE_MIN} and {RANGE_MAX}", "finite, with min less than max", f"{lower} and {upper}")
            return {MIN_VARIABLE: lower, MAX_VARIABLE: upper}
        threshold = given[THRESHOLD_VARIABLE]
        if self._is_power_of_two:
            threshold = power_of_two_threshold(threshold, self.quantization_config.min_threshold)
        if not np.all(np.isfinite(threshold) & (threshold > 0)):
            self._fail(THRESHOLD, "positive and finite", threshold)
        return {THRESHOLD_VARIABLE: threshold}

    @abstractmethod
    def _exported_range(self):
        """The threshold, or min_range and max_range, of the inferable quantizer: lists of Python floats."""

    @property
    def _is_for_weights(self):
        return type(self).quantization_target is QuantizationTarget.Weights

    @property
    def _is_uniform(self):
        return self._method is QuantizationMethod.UNIFORM

    @property
    def _is_power_of_two(self):
        return self._method is QuantizationMethod.POWER_OF_TWO

    def _read_variables(self):
        return {name: self.get_quantizer_variable(name).numpy() for name in self._initial_values}

    def _read_parameters(self, params):
        """The config's params by the variables' names: float32 arrays of shape [] or [channels]."""
        keys = (
            {MIN_VARIABLE: RANGE_MIN, MAX_VARIABLE: RANGE_MAX} if self._is_uniform else {THRESHOLD_VARIABLE: THRESHOLD}
        )
        given = {name: self._read_parameter(params, key) for name, key in keys.items()}
        if self._is_uniform and given[MIN_VARIABLE].shape != given[MAX_VARIABLE].shape:
            self._fail(
                RANGE_MAX,
                f"of {RANGE_MIN}'s shape {given[MIN_VARIABLE].shape}",
                f"shape {given[MAX_VARIABLE].shape}",
            )
        return given

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
        if self._steps != shape[self._axis]:
            self._fail(
                "the quantization params",
                f"for {shape[self._axis]} channels, axis {self._axis} of {shape}",
                self._steps,
            )

    @property
    def _steps(self):
        """The number of thresholds or ranges: of channels, or 1."""
        return next(iter(self._initial_values.values())).size

    def _fail(self, argument, requirement, value):
        raise ValueError(f"{type(self).__name__}: {argument} must be {requirement}, got {value}")


def floats(values) -> list[float]:
    """Python floats: NumPy's would make mct-quantizers compute in float32 until its config is saved and loaded."""
    return [float(value) for value in np.ravel(values)]
