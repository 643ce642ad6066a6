"""The configurations: what they take, and what they say about what they do not."""

import dataclasses
import inspect
from enum import Enum

import pytest
from mct_quantizers import QuantizationMethod
from models import activation_config, weights_config

import qatfast
from qatfast.config import TrainableQuantizerCandidateConfig


class MyMethod(Enum):
    MINE = 1


def arguments(cls):
    return list(inspect.signature(cls).parameters)


def test_quantizer_configs_have_the_fields_of_mct_in_its_order():
    assert arguments(TrainableQuantizerCandidateConfig) == ["n_bits", "quantization_params"]
    assert arguments(qatfast.TrainableQuantizerActivationConfig) == [
        "activation_quantization_method",
        "activation_n_bits",
        "activation_quantization_params",
        "enable_activation_quantization",
        "min_threshold",
        "activation_quantization_candidates",
    ]
    assert arguments(qatfast.TrainableQuantizerWeightsConfig) == [
        "weights_quantization_method",
        "weights_n_bits",
        "weights_quantization_params",
        "enable_weights_quantization",
        "weights_channels_axis",
        "weights_per_channel_threshold",
        "min_threshold",
        "weights_quantization_candidates",
    ]


def test_qat_config_starts_with_the_fields_of_mct():
    assert arguments(qatfast.QATConfig)[:4] == [
        "weight_training_method",
        "activation_training_method",
        "weight_quantizer_params_override",
        "activation_quantizer_params_override",
    ]


def test_qat_config_defaults_to_8_bits_symmetric_ste_per_channel():
    config = qatfast.QATConfig()
    assert config.weight_training_method is config.activation_training_method is qatfast.TrainingMethod.STE
    assert config.weight_n_bits == config.activation_n_bits == 8
    assert config.weight_quantization_method is config.activation_quantization_method is QuantizationMethod.SYMMETRIC
    assert config.weight_per_channel and config.quantize_input and config.min_threshold == 2**-16


def test_a_member_of_a_users_own_enum_serves_as_training_method():
    assert qatfast.QATConfig(weight_training_method=MyMethod.MINE).weight_training_method is MyMethod.MINE


@pytest.mark.parametrize(
    ("argument", "value", "requirement"),
    [
        ("weight_training_method", "STE", "a TrainingMethod or a member of your own Enum"),
        ("activation_training_method", None, "a TrainingMethod or a member of your own Enum"),
        ("weight_quantizer_params_override", [1], "a dict or None"),
        ("activation_quantizer_params_override", "x", "a dict or None"),
        ("weight_n_bits", 0, "an integer from 1 to 32"),
        ("activation_n_bits", True, "an integer from 1 to 32"),
        ("activation_n_bits", 4.0, "an integer from 1 to 32"),
        ("weight_quantization_method", QuantizationMethod.LUT_POT_QUANTIZER, "SYMMETRIC, POWER_OF_TWO, UNIFORM"),
        ("weight_per_channel", 1, "a bool"),
        ("quantize_input", None, "a bool"),
        ("weight_calibration_method", "mse", "a CalibrationMethod"),
        ("min_threshold", 0, "a positive number"),
        ("min_threshold", float("inf"), "a positive number"),
        ("float_layers", "conv", "a sequence of layer names"),
        ("float_layers", [1], "a sequence of layer names"),
    ],
)
def test_qat_config_names_the_argument_it_refuses(argument, value, requirement):
    with pytest.raises(ValueError, match=f"^QATConfig: {argument} must be .*{requirement}, got "):
        qatfast.QATConfig(**{argument: value})


@pytest.mark.parametrize(
    ("argument", "value", "requirement"),
    [
        ("weights_quantization_method", "SYMMETRIC", "a QuantizationMethod"),
        ("weights_n_bits", 33, "an integer from 1 to 32"),
        ("weights_quantization_params", None, "a dict"),
        ("enable_weights_quantization", 1, "a bool"),
        ("weights_per_channel_threshold", "yes", "a bool"),
        ("weights_channels_axis", 1.0, "an integer"),
        ("min_threshold", -1.0, "a positive number"),
        ("weights_quantization_candidates", [4], "None or a list of TrainableQuantizerCandidateConfig"),
    ],
)
def test_weights_config_names_the_argument_it_refuses(argument, value, requirement):
    with pytest.raises(ValueError, match=f"^TrainableQuantizerWeightsConfig: {argument} must be {requirement}"):
        dataclasses.replace(weights_config(), **{argument: value})


def test_weights_config_needs_an_axis_per_channel():
    with pytest.raises(ValueError, match="weights_channels_axis must be an integer .*, got None"):
        dataclasses.replace(weights_config(), weights_per_channel_threshold=True)


@pytest.mark.parametrize(
    ("argument", "value", "requirement"),
    [
        ("activation_quantization_method", 2, "a QuantizationMethod"),
        ("activation_n_bits", -4, "an integer from 1 to 32"),
        ("activation_quantization_params", [], "a dict"),
        ("enable_activation_quantization", None, "a bool"),
        ("min_threshold", "small", "a positive number"),
        ("activation_quantization_candidates", 4, "None or a list of TrainableQuantizerCandidateConfig"),
    ],
)
def test_activation_config_names_the_argument_it_refuses(argument, value, requirement):
    with pytest.raises(ValueError, match=f"^TrainableQuantizerActivationConfig: {argument} must be {requirement}"):
        dataclasses.replace(activation_config(), **{argument: value})


def test_candidate_config_names_the_argument_it_refuses():
    with pytest.raises(ValueError, match="^TrainableQuantizerCandidateConfig: n_bits must be an integer"):
        TrainableQuantizerCandidateConfig("4", {})
    with pytest.raises(ValueError, match="^TrainableQuantizerCandidateConfig: quantization_params must be a dict"):
        TrainableQuantizerCandidateConfig(4, None)
