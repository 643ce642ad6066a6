"""The interface to write a quantizer on: checks, variables, saving, and the look-up of classes."""

import json
from enum import Enum

import numpy as np
import pytest
import tensorflow as tf
from mct_quantizers import QuantizationMethod, QuantizationTarget, mark_quantizer
from models import activation_config, weights_config

import qatfast
from qatfast.config import TrainableQuantizerCandidateConfig
from qatfast.quantizers import (
    LSQActivationQuantizer,
    LSQWeightsQuantizer,
    STEActivationQuantizer,
    STEWeightsQuantizer,
    VariableGroup,
    get_quantizer_class,
)
from qatfast.quantizers.serialization import from_json, to_json


class MyMethod(Enum):
    SCALED = "scaled"
    ARGUMENTS = "arguments"
    TWICE = "twice"
    REDEFINED = "redefined"
    PARENT = "parent"


class Rounding(Enum):
    UP = 1


def mark(identifier, target=QuantizationTarget.Weights, methods=(QuantizationMethod.SYMMETRIC,)):
    return mark_quantizer(quantization_target=target, quantization_method=list(methods), identifier=identifier)


class Passing(qatfast.BaseKerasQATTrainableQuantizer):
    """Quantizes nothing; what the tests' quantizers have in common."""

    def initialize_quantization(self, tensor_shape, name, layer):
        pass

    def __call__(self, inputs, training):
        return inputs

    def convert2inferable(self):
        return None


@mark(MyMethod.SCALED)
class Scaled(Passing):
    def __init__(self, quantization_config, freeze_quant_params=False, scale=1.0):
        super().__init__(quantization_config, freeze_quant_params)
        self.scale = scale


@mark(MyMethod.ARGUMENTS)
class PassesArgumentsOn(Scaled):
    def __init__(self, *args, offsets=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.offsets = offsets


def through_json(quantizer):
    return type(quantizer).from_config(json.loads(json.dumps(quantizer.get_config())))


def test_an_undecorated_class_is_refused():
    class Undecorated(Passing):
        pass

    with pytest.raises(
        TypeError, match="^Undecorated: class must be decorated with @mark_quantizer, got no decoration"
    ):
        Undecorated(weights_config())


def test_an_undecorated_subclass_does_not_pass_for_its_parent():
    class Child(Scaled):
        pass

    with pytest.raises(TypeError, match="^Child: class must be decorated .*, got only that of its parent Scaled"):
        Child(weights_config())
    assert get_quantizer_class(QuantizationTarget.Weights, QuantizationMethod.SYMMETRIC, MyMethod.SCALED) is Scaled


@pytest.mark.parametrize(
    ("target", "methods", "message"),
    [
        (None, [QuantizationMethod.SYMMETRIC], "quantization_target must be a QuantizationTarget, got None"),
        (QuantizationTarget.Weights, ["SYMMETRIC"], "quantization_method must be a list of QuantizationMethod, got"),
    ],
)
def test_a_class_marked_wrongly_is_refused(target, methods, message):
    @mark(MyMethod.PARENT, target, methods)
    class Marked(Passing):
        pass

    with pytest.raises(TypeError, match=f"^Marked: {message}"):
        Marked(weights_config())


def test_a_quantizer_without_an_export_cannot_be_made():
    @mark(MyMethod.PARENT)
    class Incomplete(qatfast.BaseKerasQATTrainableQuantizer):
        def initialize_quantization(self, tensor_shape, name, layer):
            pass

        def __call__(self, inputs):
            return inputs

    with pytest.raises(TypeError, match="convert2inferable"):
        Incomplete(weights_config())


@pytest.mark.parametrize(
    ("cls", "config", "message"),
    [
        (
            STEWeightsQuantizer,
            activation_config(),
            "quantization_config must be a TrainableQuantizerWeightsConfig, got TrainableQuantizerActivationConfig",
        ),
        (
            STEActivationQuantizer,
            None,
            "quantization_config must be a TrainableQuantizerActivationConfig, got NoneType",
        ),
        (
            Scaled,
            weights_config(QuantizationMethod.UNIFORM),
            "weights_quantization_method must be SYMMETRIC, got <QuantizationMethod.UNIFORM",
        ),
        (
            Scaled,
            qatfast.TrainableQuantizerWeightsConfig(QuantizationMethod.SYMMETRIC, 4, {}, False, 0, True, 1.0),
            "enable_weights_quantization must be True .*, got False",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_class_is_refused(cls, config, message):
    with pytest.raises(ValueError, match=f"^{cls.__name__}: {message}"):
        cls(config)


def test_variables_are_kept_by_name_and_group():
    quantizer = Scaled(weights_config())
    weight, scale = tf.Variable(1.0), tf.Variable(2.0)
    quantizer.add_quantizer_variable("weight", weight)
    quantizer.add_quantizer_variable("scale", scale, VariableGroup.QPARAMS)
    quantizer.add_quantizer_variable("fixed", tf.Variable(3.0, trainable=False), VariableGroup.QPARAMS)
    assert quantizer.get_quantizer_variable("scale") is scale
    assert [v is weight for v in quantizer.get_trainable_variables(VariableGroup.WEIGHTS)] == [True]
    assert [v is scale for v in quantizer.get_trainable_variables(VariableGroup.QPARAMS)] == [True]


def test_a_plain_dict_of_variables_belongs_to_the_quantization_parameters():
    quantizer = Scaled(weights_config())
    scale = tf.Variable(2.0)
    quantizer.quantizer_parameters = {"scale": scale}
    assert quantizer.get_quantizer_variable("scale") is scale
    assert quantizer.get_trainable_variables(VariableGroup.QPARAMS)[0] is scale
    assert quantizer.get_trainable_variables(VariableGroup.WEIGHTS) == []


def test_an_unknown_variable_is_an_error_that_lists_what_there_is():
    quantizer = Scaled(weights_config())
    quantizer.quantizer_parameters = {"scale": tf.Variable(2.0)}
    with pytest.raises(KeyError, match="Scaled: no quantizer variable 'offset', only: scale"):
        quantizer.get_quantizer_variable("offset")


def test_frozen_quantization_parameters_must_not_be_trainable():
    quantizer = Scaled(weights_config(), freeze_quant_params=True)
    quantizer.quantizer_parameters = {"scale": tf.Variable(2.0, name="scale")}
    with pytest.raises(ValueError, match="created with trainable=False when freeze_quant_params is set.*scale"):
        quantizer.get_trainable_variables(VariableGroup.QPARAMS)


def test_saving_keeps_the_whole_quantization_config():
    params = {
        "threshold": np.array([[0.1], [np.float32(1) / 3]], np.float32),
        "range": (np.float64(0.1), 2, None, True, "text"),
        "rounding": Rounding.UP,
        "by_channel": {0: 1.5, 1: float("inf")},
        "counts": np.arange(3, dtype=np.int16),
        "scalar": np.float32(0.1),
    }
    candidates = [TrainableQuantizerCandidateConfig(8, {"threshold": np.zeros((0, 2))})]
    config = qatfast.TrainableQuantizerWeightsConfig(
        QuantizationMethod.SYMMETRIC, 3, params, True, -2, True, 0.25, candidates
    )
    loaded = through_json(Scaled(config)).quantization_config
    for field in ("weights_quantization_method", "weights_n_bits", "weights_channels_axis", "min_threshold"):
        assert getattr(loaded, field) == getattr(config, field)
    assert loaded.weights_per_channel_threshold is True and loaded.enable_weights_quantization is True
    restored = loaded.weights_quantization_params
    assert list(restored) == list(params)
    for key in ("threshold", "counts", "scalar"):
        assert restored[key].dtype == params[key].dtype and type(restored[key]) is type(params[key])
        np.testing.assert_array_equal(restored[key], params[key])
    assert restored["range"] == params["range"] and restored["by_channel"] == params["by_channel"]
    assert restored["rounding"] is Rounding.UP
    (candidate,) = loaded.weights_quantization_candidates
    assert candidate.n_bits == 8 and candidate.quantization_params["threshold"].shape == (0, 2)


def test_saving_keeps_every_constructor_argument():
    quantizer = PassesArgumentsOn(weights_config(), freeze_quant_params=True, scale=2.5, offsets=(1, Rounding.UP))
    loaded = through_json(quantizer)
    assert (loaded.scale, loaded.offsets, loaded.freeze_quant_params) == (2.5, (1, Rounding.UP), True)


def test_an_argument_without_an_attribute_of_its_name_is_an_error():
    @mark(MyMethod.PARENT)
    class Forgetful(Passing):
        def __init__(self, quantization_config, scale=1.0):
            super().__init__(quantization_config)
            self._scale = scale

    with pytest.raises(AttributeError, match="^Forgetful: constructor argument scale must be kept in an attribute"):
        Forgetful(weights_config()).get_config()


def test_a_value_that_json_cannot_hold_is_an_error_that_names_the_argument():
    with pytest.raises(TypeError, match="^Scaled: scale must be made of numbers, .*, got <object"):
        Scaled(weights_config(), scale=object()).get_config()
    with pytest.raises(TypeError, match="^Scaled: quantization_config.weights_quantization_params.'threshold'. must"):
        Scaled(weights_config(threshold=tf.constant(1.0))).get_config()


def test_an_enum_that_is_not_defined_is_an_error_at_loading():
    data = to_json(Rounding.UP, "x") | {"module": "elsewhere"}
    with pytest.raises(ValueError, match="the Enum elsewhere.Rounding is not defined: import it"):
        from_json(data)


def test_loading_prefers_the_class_that_was_saved_over_another_of_its_name():
    saved = STEWeightsQuantizer(weights_config()).get_config()

    @mark(MyMethod.PARENT)
    class STEWeightsImpostor(Passing):
        pass

    assert type(STEWeightsImpostor.from_config(saved)) is STEWeightsQuantizer


@pytest.mark.parametrize("method", [m for m in QuantizationMethod if "LUT" not in m.name])
def test_the_stock_quantizers_are_found(method):
    ste, lsq = qatfast.TrainingMethod
    assert get_quantizer_class(QuantizationTarget.Weights, method, ste) is STEWeightsQuantizer
    assert get_quantizer_class(QuantizationTarget.Activation, method, ste) is STEActivationQuantizer
    assert get_quantizer_class(QuantizationTarget.Weights, method, lsq) is LSQWeightsQuantizer
    assert get_quantizer_class(QuantizationTarget.Activation, method, lsq) is LSQActivationQuantizer


def test_looking_up_what_there_is_not_lists_what_there_is():
    with pytest.raises(ValueError, match="no quantizer is marked with target Activation, method SYMMETRIC") as error:
        get_quantizer_class(QuantizationTarget.Activation, QuantizationMethod.SYMMETRIC, MyMethod.SCALED)
    assert "Scaled (Weights; SYMMETRIC; <MyMethod.SCALED: 'scaled'>)" in str(error.value)


def test_two_classes_of_the_same_marks_are_an_error_that_names_both():
    @mark(MyMethod.TWICE)
    class First(Passing):
        pass

    @mark(MyMethod.TWICE)
    class Second(Passing):
        pass

    with pytest.raises(ValueError, match="2 quantizers are marked with target Weights.*First.*Second"):
        get_quantizer_class(QuantizationTarget.Weights, QuantizationMethod.SYMMETRIC, MyMethod.TWICE)


def test_a_class_that_is_defined_again_replaces_the_older_one():
    def define():
        @mark(MyMethod.REDEFINED)
        class Redefined(Passing):
            pass

        return Redefined

    older, newer = define(), define()
    found = get_quantizer_class(QuantizationTarget.Weights, QuantizationMethod.SYMMETRIC, MyMethod.REDEFINED)
    assert found is newer is not older
    assert type(older.from_config(newer(weights_config()).get_config())).__name__ == "Redefined"


def test_only_subclasses_of_the_given_base_are_searched():
    method = QuantizationMethod.SYMMETRIC
    with pytest.raises(ValueError, match="no quantizer is marked"):
        get_quantizer_class(QuantizationTarget.Weights, method, qatfast.TrainingMethod.STE, base=Scaled)
    found = get_quantizer_class(QuantizationTarget.Weights, method, MyMethod.ARGUMENTS, base=Scaled)
    assert found is PassesArgumentsOn


ARRAY = {"qatfast_type": "array", "dtype": "float32", "shape": [2], "value": [1.0, 2.0]}
ENUM = {"qatfast_type": "enum", "module": Rounding.__module__, "class": "Rounding", "name": "UP"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            ARRAY | {"dtype": "S100000000"},
            "dtype of an array must be bool, or one of integers or floats, got 'S1000",
        ),
        (ARRAY | {"dtype": "object"}, "dtype of an array must be bool, .*, got 'object'"),
        (ARRAY | {"dtype": "complex64"}, "dtype of an array must be bool, .*, got 'complex64'"),
        (ARRAY | {"dtype": "f4,f4"}, "dtype of an array must be bool, .*, got 'f4,f4'"),
        (ARRAY | {"dtype": ["float32"]}, "dtype of an array must be bool"),
        (ARRAY | {"shape": [3]}, r"as many numbers as its shape has, got shape \[3\] and 2 numbers"),
        (ARRAY | {"shape": [10**15]}, "as many numbers as its shape has"),
        (ARRAY | {"shape": [-2]}, "as many numbers as its shape has"),
        (ARRAY | {"shape": 2}, "as many numbers as its shape has"),
        (ARRAY | {"value": ["1", "2"]}, "got shape .* and no list of numbers"),
        (ARRAY | {"value": "12"}, "got shape .* and no list of numbers"),
        (ARRAY | {"dtype": "int8", "value": [1, 1000]}, "value of an array of int8 must be integers of that type, got"),
        (
            ARRAY | {"dtype": "int8", "value": [1, float("nan")]},
            "value of an array of int8 must be integers of that type, got",
        ),
        (
            {"qatfast_type": "array", "dtype": "int8"},
            r"array must have the keys \['dtype', 'shape', 'value'\], got \['dt",
        ),
        ({"qatfast_type": "pickle", "value": "x"}, "qatfast_type must be among .*'array'.*, got 'pickle'"),
        ({"qatfast_type": None}, "qatfast_type must be among .*, got None"),
        ({"qatfast_type": ["array"]}, "qatfast_type must be among"),
        (ENUM | {"module": "os"}, "the Enum os.Rounding is not defined: import it"),
        (ENUM | {"name": "DOWN"}, r"a member of .*Rounding must be among \['UP'\], got 'DOWN'"),
        (ENUM | {"name": "__class__"}, "a member of .*Rounding must be among"),
        ({"qatfast_type": "config", "class": "Popen", "fields": {}}, "class of a config must be among .*, got 'Popen'"),
        (
            {"qatfast_type": "config", "class": "TrainableQuantizerCandidateConfig", "fields": {"x": 1}},
            r"fields of a TrainableQuantizerCandidateConfig must be .*, got \['x'\]",
        ),
        ({"qatfast_type": "tuple", "value": "abc"}, "value of a tuple must be a list, got 'abc'"),
        ({"qatfast_type": "dict", "items": [[1, 2, 3]]}, "items of a dict must be a list of pairs"),
        ({"qatfast_type": "dict", "items": [[[1], 2]]}, "keys of a dict must be hashable"),
    ],
)
def test_data_that_no_quantizer_wrote_is_an_error_that_names_the_argument(data, message):
    with pytest.raises(ValueError, match=f"^Scaled: scale.*: .*{message}"):
        from_json({"inner": [data]}, "Scaled: scale")
    config = through_json(Scaled(weights_config())).get_config() | {"scale": data}
    with pytest.raises(ValueError, match=f"^Scaled: scale: .*{message}"):
        Scaled.from_config(config)


def test_a_config_without_a_quantization_config_is_an_error():
    with pytest.raises(ValueError, match="^Scaled: config must be a dict with the key 'quantization_config', got {}"):
        Scaled.from_config({})
