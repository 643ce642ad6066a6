"""How to write quantizers of your own: straight-through estimation on TensorFlow's stock ops, as Sony's MCT has it.

A training method is a member of an Enum, and a quantizer is a class marked with it. Import this module, then ask for
`QATConfig(weight_training_method=MyTrainingMethod.STOCK, activation_training_method=MyTrainingMethod.STOCK)`:
`quantize_model`, training, saving, `load_model` and `finalize_model` do the rest. `mnist_qat.py` measures qatfast's own
quantizers against these.
"""

from enum import Enum

import numpy as np
import tensorflow as tf
from mct_quantizers import QuantizationMethod, QuantizationTarget, keras_quantizers, mark_quantizer

import qatfast


class MyTrainingMethod(Enum):
    """A user's own training methods."""

    STOCK = "STOCK"


class _StockQuantizer(qatfast.BaseKerasQATTrainableQuantizer):
    """What both quantizers share: the variables. The threshold is exported, min and max are what the op reads."""

    def _add_range(self, layer, name, threshold, num_bits, signed):
        threshold = np.asarray(threshold, np.float32)
        scale = threshold / np.float32(2 ** (num_bits - signed))
        range_min, range_max = -threshold if signed else np.zeros_like(threshold), threshold - scale
        self.quantizer_parameters = {
            suffix: layer.add_weight(
                f"{name}_{suffix}",
                shape=value.shape,
                initializer=tf.keras.initializers.Constant(value),
                trainable=False,
            )
            for suffix, value in {"threshold": threshold, "min": range_min, "max": range_max}.items()
        }

    def _exported_threshold(self):
        return self.get_quantizer_variable("threshold").numpy().astype(float).ravel().tolist()


@mark_quantizer(
    quantization_target=QuantizationTarget.Weights,
    quantization_method=[QuantizationMethod.SYMMETRIC],
    identifier=MyTrainingMethod.STOCK,
)
class StockWeightsQuantizer(_StockQuantizer):
    """Quantizes a weight per tensor, or per channel on any axis: the stock op knows the last one only.

    Args:
        quantization_config: A `qatfast.TrainableQuantizerWeightsConfig`; its params hold 'threshold'.
    """

    def __init__(self, quantization_config: qatfast.TrainableQuantizerWeightsConfig):
        super().__init__(quantization_config)
        self._num_bits = quantization_config.weights_n_bits
        self._per_channel = quantization_config.weights_per_channel_threshold
        self._rank = None
        self._permutation = None

    def initialize_quantization(self, tensor_shape, name, layer):
        """Creates the range's variables, and finds the transpose that moves the channels to the last axis."""
        config = self.quantization_config
        threshold = config.weights_quantization_params["threshold"]
        self._rank = len(tensor_shape)
        if self._per_channel:
            threshold = np.reshape(threshold, -1)
            axes = list(range(self._rank))
            axes[config.weights_channels_axis], axes[-1] = axes[-1], axes[config.weights_channels_axis]
            self._permutation = axes if axes != sorted(axes) else None
        self._add_range(layer, name, threshold, self._num_bits, signed=True)

    def __call__(self, inputs, training: bool = False):
        """Returns `inputs` quantized and dequantized."""
        op = tf.quantization.fake_quant_with_min_max_vars
        if self._per_channel:
            op = tf.quantization.fake_quant_with_min_max_vars_per_channel
        if self._permutation:  # two axes change places, so the same transpose leads back
            inputs = tf.transpose(inputs, self._permutation)
        range_min, range_max = self.get_quantizer_variable("min"), self.get_quantizer_variable("max")
        outputs = op(inputs, range_min, range_max, num_bits=self._num_bits)
        return tf.transpose(outputs, self._permutation) if self._permutation else outputs

    def convert2inferable(self):
        """Returns the quantizer of mct-quantizers with the same threshold."""
        return keras_quantizers.WeightsSymmetricInferableQuantizer(
            num_bits=self._num_bits,
            threshold=self._exported_threshold(),
            per_channel=self._per_channel,
            channel_axis=self.quantization_config.weights_channels_axis if self._per_channel else None,
            input_rank=self._rank,
        )


@mark_quantizer(
    quantization_target=QuantizationTarget.Activation,
    quantization_method=[QuantizationMethod.SYMMETRIC],
    identifier=MyTrainingMethod.STOCK,
)
class StockActivationQuantizer(_StockQuantizer):
    """Quantizes an activation per tensor, signed or not.

    Args:
        quantization_config: A `qatfast.TrainableQuantizerActivationConfig`; its params hold 'threshold' and
            'is_signed'.
    """

    def __init__(self, quantization_config: qatfast.TrainableQuantizerActivationConfig):
        super().__init__(quantization_config)
        self._num_bits = quantization_config.activation_n_bits
        self._signed = quantization_config.activation_quantization_params["is_signed"]

    def initialize_quantization(self, tensor_shape, name, layer):
        """Creates the range's variables."""
        threshold = self.quantization_config.activation_quantization_params["threshold"]
        self._add_range(layer, name, threshold, self._num_bits, self._signed)

    def __call__(self, inputs, training: bool = False):
        """Returns `inputs` quantized and dequantized."""
        range_min, range_max = self.get_quantizer_variable("min"), self.get_quantizer_variable("max")
        return tf.quantization.fake_quant_with_min_max_vars(inputs, range_min, range_max, num_bits=self._num_bits)

    def convert2inferable(self):
        """Returns the quantizer of mct-quantizers with the same threshold."""
        return keras_quantizers.ActivationSymmetricInferableQuantizer(
            num_bits=self._num_bits, threshold=self._exported_threshold(), signed=self._signed
        )
