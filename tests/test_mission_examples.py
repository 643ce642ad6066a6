"""The two quantizers of the mission document, built into models, trained, saved, loaded and exported.

They differ from the document where it leaves a gap (`...`, `custom_quantize`) and in the parameter's shape: the
document's `len(tensor_shape)` is the rank of the weight, and an activation has no shape when its quantizer is built.
"""

from enum import Enum

import numpy as np
import pytest
import tensorflow as tf
from mct_quantizers import QuantizationMethod, QuantizationTarget, mark_quantizer
from mct_quantizers import keras_quantizers as qi
from models import IS_KERAS_3, OPERATION_FORMATS, SAVE_FORMATS, images, labels, layers, load_exported, train

import qatfast
from qatfast import BaseKerasQATTrainableQuantizer

NEW_PARAM = "new_param_name"
NUM_BITS = 8


class MyTrainingMethod(Enum):
    MyTraining = "MyTraining"


def custom_quantize(inputs, new_param):
    """Quantizes between -new_param and new_param; the threshold learns through both ends of the range."""
    return qatfast.ops.fake_quant(inputs, -new_param, new_param, num_bits=NUM_BITS)


@mark_quantizer(
    quantization_target=QuantizationTarget.Weights,
    quantization_method=[QuantizationMethod.SYMMETRIC],
    identifier=MyTrainingMethod.MyTraining,
)
class MyWeightsTrainingQuantizer(BaseKerasQATTrainableQuantizer):
    def __init__(self, quantization_config: qatfast.TrainableQuantizerWeightsConfig):
        super(MyWeightsTrainingQuantizer, self).__init__(quantization_config)  # noqa: UP008
        # Define your new params here:
        self.new_param = 0.5 * np.max(quantization_config.weights_quantization_params["threshold"])

    def initialize_quantization(self, tensor_shape, name, layer):
        # Creating new params for quantizer
        new_param = layer.add_weight(
            NEW_PARAM, shape=(), initializer=tf.keras.initializers.Constant(1.0), trainable=True
        )
        new_param.assign(self.new_param)
        # Save the quantizer parameters for later calculations
        self.quantizer_parameters = {NEW_PARAM: new_param}
        return self.quantizer_parameters

    def __call__(self, inputs):
        # Your quantization logic here
        new_param = self.quantizer_parameters[NEW_PARAM]
        # Custom quantization function you need to implement
        quantized_inputs = custom_quantize(inputs, new_param)
        return quantized_inputs

    def convert2inferable(self):
        end = float(self.quantizer_parameters[NEW_PARAM].numpy())
        return qi.WeightsUniformInferableQuantizer(NUM_BITS, min_range=[-end], max_range=[end], per_channel=False)


@mark_quantizer(
    quantization_target=QuantizationTarget.Activation,
    quantization_method=[QuantizationMethod.SYMMETRIC],
    identifier=MyTrainingMethod.MyTraining,
)
class MyActivationsTrainingQuantizer(BaseKerasQATTrainableQuantizer):
    def __init__(self, quantization_config: qatfast.TrainableQuantizerActivationConfig):
        super(MyActivationsTrainingQuantizer, self).__init__(quantization_config)  # noqa: UP008
        # Define your new params here:
        self.new_param = 0.5 * quantization_config.activation_quantization_params["threshold"]

    def initialize_quantization(self, tensor_shape, name, layer):
        # Creating new params for quantizer
        new_param = layer.add_weight(
            NEW_PARAM, shape=(), initializer=tf.keras.initializers.Constant(1.0), trainable=True
        )
        new_param.assign(self.new_param)
        # Save the quantizer parameters for later calculations
        self.quantizer_parameters = {NEW_PARAM: new_param}
        return self.quantizer_parameters

    def __call__(self, inputs):
        # Your quantization logic here
        new_param = self.quantizer_parameters[NEW_PARAM]
        # Custom quantization function you need to implement
        quantized_inputs = custom_quantize(inputs, new_param)
        return quantized_inputs

    def convert2inferable(self):
        end = float(self.quantizer_parameters[NEW_PARAM].numpy())
        return qi.ActivationUniformInferableQuantizer(NUM_BITS, min_range=[-end], max_range=[end])


def small_net():
    """Two kernels, and two activations that layers read."""
    tf.keras.utils.set_random_seed(3)
    stack = [layers.Conv2D(4, 3, strides=2, activation="relu"), layers.Flatten(), layers.Dense(4, activation="softmax")]
    return tf.keras.Sequential([tf.keras.Input((8, 8, 3)), *stack])


CONFIG = qatfast.QATConfig(
    weight_training_method=MyTrainingMethod.MyTraining, activation_training_method=MyTrainingMethod.MyTraining
)


def predict(model):
    """The model's output, computed eagerly: that traces nothing."""
    return model(images(), training=False).numpy()


def new_params(model):
    return [float(weight) for weight in model.weights if NEW_PARAM in weight.name]


@pytest.fixture(scope="module")
def trained():
    """A model of these quantizers after one epoch, and its parameters before."""
    model = qatfast.quantize_model(small_net(), images(), CONFIG)
    before = new_params(model)
    return train(model), before


def test_the_quantizers_parameters_are_calibrated_and_trained(trained):
    model, before = trained
    after = new_params(model)
    assert len(before) == len(after) == 4
    assert all(value > 0 for value in before)
    assert all(old != new for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("suffix", SAVE_FORMATS)
def test_a_saved_model_loads_computes_the_same_and_trains_on(trained, tmp_path, suffix):
    model, _ = trained
    qatfast.save_model(model, tmp_path / f"qat{suffix}")
    loaded = qatfast.load_model(tmp_path / f"qat{suffix}")
    np.testing.assert_array_equal(predict(loaded), predict(model))
    assert new_params(loaded) == new_params(model)
    np.testing.assert_array_equal(loaded.optimizer.iterations, model.optimizer.iterations)
    loaded.fit(images(), labels(), verbose=0)
    assert new_params(loaded) != new_params(model)


def test_the_exported_model_has_the_exported_quantizers_only(trained):
    finalized = qatfast.finalize_model(trained[0])
    text = finalized.to_json()
    if IS_KERAS_3:
        assert "FakeQuantWithMinMaxVars" in text and "mct_quantizers" not in text
    else:
        assert "WeightsUniformInferableQuantizer" in text and "ActivationUniformInferableQuantizer" in text
    assert "MyWeights" not in text and "MyActivations" not in text and "qatfast" not in text
    # The document's example exports a uniform range, which mct-quantizers moves by up to half a step to hold zero.
    difference = np.abs(predict(finalized) - predict(trained[0]))
    assert difference.max() < 0.05


@pytest.mark.parametrize("suffix", OPERATION_FORMATS)
def test_the_exported_model_loads_with_mct_quantizers_alone(trained, tmp_path, suffix):
    finalized = qatfast.finalize_model(trained[0])
    finalized.save(tmp_path / f"exported{suffix}")
    loaded = load_exported(tmp_path / f"exported{suffix}")
    np.testing.assert_array_equal(predict(loaded), predict(finalized))


def test_a_model_built_by_hand_trains_and_exports():
    weights = qatfast.TrainableQuantizerWeightsConfig(
        QuantizationMethod.SYMMETRIC, NUM_BITS, {"threshold": 1.0}, True, -1, False, 2**-16
    )
    activation = qatfast.TrainableQuantizerActivationConfig(
        QuantizationMethod.SYMMETRIC, NUM_BITS, {"threshold": 4.0, "is_signed": True}, True, 2**-16
    )
    dense = layers.Dense(4, activation="softmax")
    model = tf.keras.Sequential(
        [
            tf.keras.Input((8, 8, 3)),
            qatfast.KerasActivationQuantizationHolder(MyActivationsTrainingQuantizer(activation)),
            layers.Flatten(),
            qatfast.KerasTrainableQuantizationWrapper(dense, {"kernel": MyWeightsTrainingQuantizer(weights)}),
        ]
    )
    train(model)
    finalized = qatfast.finalize_model(model)
    difference = np.abs(predict(finalized) - predict(model))
    assert difference.max() < 0.05
