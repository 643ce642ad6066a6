"""MCT's trainable quantizers, computed by qatfast's ops.

Each is a subclass of the stock quantizer whose name it bears after "Qatfast": configuration, variables and export are
the stock one's, so that weights files interchange and exported models are the same. What differs is how it computes,
that its arguments survive saving, and the arguments themselves, which mend what is wrong with the stock quantizers
where that changes what is exported (docs/mct.md):

- freeze_quant_params: the learned range stays as it is (without effect on STE's, which is fixed).
- exact_export (STE): the range is moved to one that export leaves alone, and the exported model computes what was
  trained, bit for bit.
- gradient_scale (LSQ): what the gradient to the range is scaled by, a `GradientScale`.
- guard_range (LSQ): a threshold, or the width of a range, counts as the config's `min_threshold` at least. Without it
  only what is not positive is guarded, and counts as 2^-100: MCT goes on with a negative step and cannot export it.
- power_of_two_in_loop (LSQ): training rounds the threshold up to a power of two, as export does.

MCT takes a quantizer by its `identifier`, here a member of qatfast's own `TrainingMethod`, and reads the annotation of
its constructor's first argument: no `from __future__ import annotations` in this file.
"""

import copy
import inspect
import math
import weakref

import numpy as np
import tensorflow as tf
from mct_quantizers import KerasQuantizationWrapper, QuantizationMethod, QuantizationTarget, mark_quantizer
from model_compression_toolkit.qat.keras.quantizer.lsq.symmetric_lsq import LSQWeightQATQuantizer
from model_compression_toolkit.qat.keras.quantizer.lsq.uniform_lsq import LSQUniformWeightQATQuantizer
from model_compression_toolkit.qat.keras.quantizer.ste_rounding.symmetric_ste import STEWeightQATQuantizer
from model_compression_toolkit.qat.keras.quantizer.ste_rounding.uniform_ste import STEUniformWeightQATQuantizer
from model_compression_toolkit.trainable_infrastructure import (
    TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig,
)
from model_compression_toolkit.trainable_infrastructure.common.base_trainable_quantizer import VAR, VariableGroup
from model_compression_toolkit.trainable_infrastructure.keras.activation_quantizers import (
    LSQSymmetricActivationTrainableQuantizer,
    LSQUniformActivationTrainableQuantizer,
    STESymmetricActivationTrainableQuantizer,
    STEUniformActivationTrainableQuantizer,
)
from model_compression_toolkit.trainable_infrastructure.keras.quantize_wrapper import KerasTrainableQuantizationWrapper
from tensorflow.python.eager import record

from qatfast import ops
from qatfast._keras import register_for_saving
from qatfast.config import GradientScale, TrainingMethod
from qatfast.flow.keras2_layers import call_through_wrapper_only
from qatfast.mct.configs import config_from_json, config_to_json, own_config
from qatfast.mct.trained_kernels import connected_layers, warn_unless_a_kernel_trains
from qatfast.quantizers import STEActivationQuantizer, STEWeightsQuantizer
from qatfast.quantizers.gradient_scale import activation_gradient_scale, weight_gradient_scale
from qatfast.quantizers.range_quantizer import MAX_VARIABLE, MIN_VARIABLE, THRESHOLD_VARIABLE
from qatfast.quantizers.ranges import power_of_two_threshold
from qatfast.quantizers.restoration import restore_under_any_layer_name
from qatfast.quantizers.serialization import from_json, to_json

__all__ = ["QUANTIZERS"]

# Far below every threshold that means anything, and far above the smallest of which a step can be computed.
_SMALLEST_RANGE = 2.0**-100
_SYMMETRIC = [QuantizationMethod.POWER_OF_TWO, QuantizationMethod.SYMMETRIC]
_UNIFORM = [QuantizationMethod.UNIFORM]


class _QatfastQuantizer:
    """What all quantizers share: saving, and going on with the variables of a stock quantizer.

    Comes before MCT's class in the order of inheritance.
    """

    def get_config(self):
        """Returns the quantization config and all further constructor arguments as JSON data."""
        cls = type(self)
        config = {"quantization_config": config_to_json(self.quantization_config, cls.__name__)}
        for name in list(inspect.signature(cls).parameters)[1:]:
            config[name] = to_json(getattr(self, name), f"{cls.__name__}: {name}")
        return config

    @classmethod
    def from_config(cls, config):
        """Returns the quantizer that `get_config` described."""
        arguments = {name: from_json(value, f"{cls.__name__}: {name}") for name, value in config.items()}
        config_class = next(iter(inspect.signature(cls).parameters.values())).annotation
        return cls(config_from_json(config_class, arguments.pop("quantization_config")), **arguments)

    def initialize_quantization(self, tensor_shape, name, layer):
        """Creates the stock quantizer's variables."""
        self._create_variables(tensor_shape, name, layer)
        self._start(tensor_shape, layer)

    def take_over(self, stock, tensor_shape, layer):
        """Goes on with the variables of a stock quantizer of the same built layer.

        Raises:
            ValueError: A variable is trained though `freeze_quant_params` asks that it is not.
        """
        self.quantizer_parameters = dict(stock.quantizer_parameters)
        trained = [variable.name for variable in self._variables().values() if variable.trainable]
        if self.freeze_quant_params and trained:
            self._fail("freeze_quant_params", f"False where {trained} exist already, and are trained", True)
        self._start(tensor_shape, layer)

    def _create_variables(self, tensor_shape, name, layer):
        super().initialize_quantization(tensor_shape, name, layer)

    def _start(self, tensor_shape, layer):
        """Called once the variables are there."""
        self._tensor_shape = tensor_shape  # of a weight; None for an activation

    def _keep(self, **arguments):
        for name, value in arguments.items():
            kind = GradientScale if name == "gradient_scale" else bool
            if not isinstance(value, kind):
                self._fail(name, f"a {kind.__name__}", value)
            setattr(self, name, value)

    def _variables(self):
        return {name: item[VAR] for name, item in self.quantizer_parameters.items()}

    def _fail(self, argument, requirement, value):
        raise ValueError(f"{type(self).__name__}: {argument} must be {requirement}, got {value!r}")


class _Weights(_QatfastQuantizer):
    """A quantizer of a weight."""

    @property
    def _axis(self):
        return self.channel_axis if self.per_channel else None

    def _start(self, tensor_shape, layer):
        super()._start(tensor_shape, layer)
        if isinstance(layer, KerasQuantizationWrapper):
            call_through_wrapper_only(layer.layer)  # else MCT cannot save a Conv2DTranspose in a SavedModel


class _Activation(_QatfastQuantizer):
    """A quantizer of an activation. At its first step of training it looks whether any quantized kernel trains."""

    _axis = None

    def _start(self, tensor_shape, layer):
        super()._start(tensor_shape, layer)
        self._layer = weakref.ref(layer)
        self._has_looked = False
        restore_under_any_layer_name(layer, f"{layer.name}/out_")

    def __call__(self, inputs: tf.Tensor, training: bool):
        """Returns `inputs` quantized and dequantized."""
        # Where no tape is open nothing trains: Keras may be building the model, which is not whole then.
        if training and not self._has_looked and record.could_possibly_record():
            self._has_looked = True
            layers = connected_layers(self._layer())
            if any(isinstance(layer, tf.keras.layers.InputLayer) for layer in layers):  # a Functional model's
                warn_unless_a_kernel_trains(layers)
        return super().__call__(inputs, training)


class _Ste(_QatfastQuantizer):
    """A fixed range."""

    def __call__(self, inputs: tf.Tensor, training: bool):
        """Returns `inputs` quantized and dequantized."""
        is_uniform = THRESHOLD_VARIABLE not in self.quantizer_parameters
        return ops.fake_quant(
            inputs,
            self.get_quantizer_variable(MIN_VARIABLE),
            self.get_quantizer_variable(MAX_VARIABLE),
            num_bits=self.num_bits,
            axis=self._axis,
            include_zero=is_uniform and not self.exact_export,
        )

    def convert2inferable(self):
        """Returns the stock quantizer's inferable quantizer; with `exact_export` the one that computes as this does."""
        return self._exact_quantizer().convert2inferable() if self.exact_export else super().convert2inferable()

    def _start(self, tensor_shape, layer):
        super()._start(tensor_shape, layer)
        if self.exact_export:
            self._exact_quantizer().snap_range()

    def _exact_quantizer(self):
        """Qatfast's own quantizer, on the variables of this one."""
        is_weight = isinstance(self, _Weights)
        exact = (STEWeightsQuantizer if is_weight else STEActivationQuantizer)(own_config(self.quantization_config))
        exact.use_variables(self._variables(), len(self._tensor_shape) if is_weight else None)
        return exact


class _Lsq(_QatfastQuantizer):
    """A learned range."""

    def convert2inferable(self):
        """Returns the stock quantizer's inferable quantizer, of the variables as training counts them."""
        counted = copy.copy(self)
        counted.quantizer_parameters = {
            name: {**self.quantizer_parameters[name], VAR: tf.constant(value)}
            for name, value in self._counted_values().items()
        }
        return super(_Lsq, counted).convert2inferable()

    def _create_variables(self, tensor_shape, name, layer):
        for suffix, value in self._initial_values().items():
            variable = layer.add_weight(
                name + suffix,
                shape=np.shape(value),
                initializer=tf.keras.initializers.Constant(value),
                trainable=not self.freeze_quant_params,
            )
            self.add_quantizer_variable(suffix, variable, VariableGroup.QPARAMS)

    @property
    def _smallest_range(self):
        return self.quantization_config.min_threshold if self.guard_range else _SMALLEST_RANGE


class _LsqSymmetric(_Lsq):
    """A learned threshold."""

    def __call__(self, inputs: tf.Tensor, training: bool):
        """Returns `inputs` quantized and dequantized."""
        return ops.lsq_symmetric(
            inputs,
            self.get_quantizer_variable(THRESHOLD_VARIABLE),
            num_bits=self.num_bits,
            signed=self.min_int < 0,
            grad_scale=self._grad_scale(inputs),
            axis=self._axis,
            power_of_two=self._rounds_in_loop,
            min_threshold=self._smallest_range,
        )

    @property
    def _rounds_in_loop(self):
        return self.power_of_two and self.power_of_two_in_loop

    def _initial_values(self):
        if self._rounds_in_loop:  # the middle of the octave that is rounded up: see quantizers/lsq.py
            return {THRESHOLD_VARIABLE: self.threshold_values * math.sqrt(0.5)}
        return {THRESHOLD_VARIABLE: self.threshold_values}

    def _counted_values(self):
        threshold = self.get_quantizer_variable(THRESHOLD_VARIABLE).numpy()
        if self._rounds_in_loop:
            return {THRESHOLD_VARIABLE: power_of_two_threshold(threshold, self._smallest_range)}
        return {THRESHOLD_VARIABLE: np.maximum(threshold, np.float32(self._smallest_range))}


class _LsqUniform(_Lsq):
    """Learned ends of a range."""

    def __call__(self, inputs: tf.Tensor, training: bool):
        """Returns `inputs` quantized and dequantized."""
        return ops.lsq_uniform(
            inputs,
            self.get_quantizer_variable(MIN_VARIABLE),
            self.get_quantizer_variable(MAX_VARIABLE),
            num_bits=self.num_bits,
            grad_scale=self._grad_scale(inputs),
            axis=self._axis,
            min_width=self._smallest_range,
        )

    def _initial_values(self):
        if isinstance(self, _Weights):
            return {MIN_VARIABLE: self.min_values, MAX_VARIABLE: self.max_values}
        return {MIN_VARIABLE: self.min_range, MAX_VARIABLE: self.max_range}

    def _counted_values(self):
        lower, upper = (self.get_quantizer_variable(name).numpy() for name in (MIN_VARIABLE, MAX_VARIABLE))
        narrow = upper - lower < np.float32(self._smallest_range)
        middle, half = np.float32(0.5) * lower + np.float32(0.5) * upper, np.float32(0.5 * self._smallest_range)
        # A range on one side of zero is stretched to it, which MCT leaves to the inferable quantizer.
        return {
            MIN_VARIABLE: np.where(narrow, np.minimum(middle - half, 0), lower),
            MAX_VARIABLE: np.where(narrow, np.maximum(middle + half, 0), upper),
        }


class _SteWeights(_Ste, _Weights):
    def __init__(
        self,
        quantization_config: TrainableQuantizerWeightsConfig,
        freeze_quant_params: bool = False,
        exact_export: bool = False,
    ):
        super().__init__(quantization_config)
        self._keep(freeze_quant_params=freeze_quant_params, exact_export=exact_export)


class _SteActivation(_Activation, _Ste):
    def __init__(
        self,
        quantization_config: TrainableQuantizerActivationConfig,
        freeze_quant_params: bool = False,
        exact_export: bool = False,
    ):
        super().__init__(quantization_config)
        self._keep(freeze_quant_params=freeze_quant_params, exact_export=exact_export)


class _LsqWeights(_Weights):
    def __init__(
        self,
        quantization_config: TrainableQuantizerWeightsConfig,
        freeze_quant_params: bool = False,
        gradient_scale: GradientScale = GradientScale.CHANNELS,
        guard_range: bool = False,
        power_of_two_in_loop: bool = False,
    ):
        try:
            super().__init__(quantization_config)
        except AttributeError:
            # Per tensor, MCT's uniform quantizer fails in its last line, whose attribute is not used here.
            if quantization_config.weights_per_channel_threshold:
                raise
        self._keep(
            freeze_quant_params=freeze_quant_params,
            gradient_scale=gradient_scale,
            guard_range=guard_range,
            power_of_two_in_loop=power_of_two_in_loop,
        )

    def _grad_scale(self, inputs):
        num_steps = math.prod(next(iter(self._variables().values())).shape)
        return weight_gradient_scale(self.gradient_scale, self.max_int, tuple(self._tensor_shape), num_steps)


class _LsqActivation(_Activation):
    def __init__(
        self,
        quantization_config: TrainableQuantizerActivationConfig,
        freeze_quant_params: bool = False,
        gradient_scale: GradientScale = GradientScale.CHANNELS,
        guard_range: bool = False,
        power_of_two_in_loop: bool = False,
    ):
        super().__init__(quantization_config)
        self._keep(
            freeze_quant_params=freeze_quant_params,
            gradient_scale=gradient_scale,
            guard_range=guard_range,
            power_of_two_in_loop=power_of_two_in_loop,
        )

    def _grad_scale(self, inputs):
        return activation_gradient_scale(type(self).__name__, self.gradient_scale, self.max_int, inputs.shape)


@mark_quantizer(
    quantization_target=QuantizationTarget.Weights, quantization_method=_SYMMETRIC, identifier=TrainingMethod.STE
)
class QatfastSTEWeightQATQuantizer(_SteWeights, STEWeightQATQuantizer):
    """A weight below a fixed threshold."""


@mark_quantizer(
    quantization_target=QuantizationTarget.Weights, quantization_method=_UNIFORM, identifier=TrainingMethod.STE
)
class QatfastSTEUniformWeightQATQuantizer(_SteWeights, STEUniformWeightQATQuantizer):
    """A weight in a fixed range."""


@mark_quantizer(
    quantization_target=QuantizationTarget.Weights, quantization_method=_SYMMETRIC, identifier=TrainingMethod.LSQ
)
class QatfastLSQWeightQATQuantizer(_LsqSymmetric, _LsqWeights, LSQWeightQATQuantizer):
    """A weight below a learned threshold."""


@mark_quantizer(
    quantization_target=QuantizationTarget.Weights, quantization_method=_UNIFORM, identifier=TrainingMethod.LSQ
)
class QatfastLSQUniformWeightQATQuantizer(_LsqUniform, _LsqWeights, LSQUniformWeightQATQuantizer):
    """A weight in a learned range."""


@mark_quantizer(
    quantization_target=QuantizationTarget.Activation, quantization_method=_SYMMETRIC, identifier=TrainingMethod.STE
)
class QatfastSTESymmetricActivationTrainableQuantizer(_SteActivation, STESymmetricActivationTrainableQuantizer):
    """An activation below a fixed threshold."""


@mark_quantizer(
    quantization_target=QuantizationTarget.Activation, quantization_method=_UNIFORM, identifier=TrainingMethod.STE
)
class QatfastSTEUniformActivationTrainableQuantizer(_SteActivation, STEUniformActivationTrainableQuantizer):
    """An activation in a fixed range."""


@mark_quantizer(
    quantization_target=QuantizationTarget.Activation, quantization_method=_SYMMETRIC, identifier=TrainingMethod.LSQ
)
class QatfastLSQSymmetricActivationTrainableQuantizer(
    _LsqActivation, _LsqSymmetric, LSQSymmetricActivationTrainableQuantizer
):
    """An activation below a learned threshold."""


@mark_quantizer(
    quantization_target=QuantizationTarget.Activation, quantization_method=_UNIFORM, identifier=TrainingMethod.LSQ
)
class QatfastLSQUniformActivationTrainableQuantizer(
    _LsqActivation, _LsqUniform, LSQUniformActivationTrainableQuantizer
):
    """An activation in a learned range."""


# By the stock class.
QUANTIZERS = {
    cls.__bases__[-1]: cls
    for cls in (
        QatfastSTEWeightQATQuantizer,
        QatfastSTEUniformWeightQATQuantizer,
        QatfastLSQWeightQATQuantizer,
        QatfastLSQUniformWeightQATQuantizer,
        QatfastSTESymmetricActivationTrainableQuantizer,
        QatfastSTEUniformActivationTrainableQuantizer,
        QatfastLSQSymmetricActivationTrainableQuantizer,
        QatfastLSQUniformActivationTrainableQuantizer,
    )
}

for _cls in QUANTIZERS.values():
    register_for_saving(_cls, _cls.__module__)
# As qatfast.wrapper does for the layers of mct-quantizers: what MCT's models are copied with.
tf.keras.utils.get_custom_objects().setdefault("KerasTrainableQuantizationWrapper", KerasTrainableQuantizationWrapper)
