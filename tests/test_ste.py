"""The straight-through-estimator quantizers: what is trained is what is exported, bit for bit."""

import json

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from mct_quantizers import QuantizationMethod
from models import KERAS, METHODS, activation_config, build, variable_names, weights_config

from qatfast.config import RANGE_MAX, RANGE_MIN, SIGNED, THRESHOLD
from qatfast.quantizers import STEActivationQuantizer, STEWeightsQuantizer, VariableGroup
from qatfast.quantizers.ranges import exportable_uniform_range, power_of_two_threshold, symmetric_range

magnitudes = st.integers(-30, 30).flatmap(lambda e: st.floats(1.0, 2.0, width=32).map(lambda m: m * 2.0**e))
bits = st.integers(2, 16)
methods = st.sampled_from(METHODS)


def reload(inferable):
    """The quantizer that comes back from its config as JSON, as from a saved model."""
    return type(inferable).from_config(json.loads(json.dumps(inferable.get_config())))


def assert_same_bits(actual, expected):
    np.testing.assert_array_equal(np.asarray(actual).view(np.uint32), np.asarray(expected).view(np.uint32))


def assert_export_equals_training(quantizer, x):
    trained = quantizer(x)
    exported = quantizer.convert2inferable()
    for _ in range(3):
        assert_same_bits(exported(x), trained)
        exported = reload(exported)


def around(low, high, count):
    """Values in, at the ends of, and outside of [low, high]."""
    inside = np.linspace(1.5 * low - 0.5 * high, 1.5 * high - 0.5 * low, count - 4)
    return np.concatenate([inside, [low, high, 0.0, -0.0]]).astype(np.float32)


@st.composite
def uniform_ranges(draw):
    """(min, max) across zero, on one side of it, or ending in it; of like or of very different size."""
    a, b = draw(magnitudes), draw(magnitudes)
    if draw(st.booleans()):
        b = a * draw(st.floats(0.01, 100.0))
    return draw(st.sampled_from([(-a, b), (-a, 0.0), (0.0, b), (min(a, b), a + b), (-a - b, -min(a, b))]))


@st.composite
def params_of(draw, method, signed=None):
    if method is QuantizationMethod.UNIFORM:
        low, high = draw(uniform_ranges())
        return {RANGE_MIN: low, RANGE_MAX: high}
    return {THRESHOLD: draw(magnitudes), **({} if signed is None else {SIGNED: signed})}


@given(st.data(), methods, bits, st.booleans())
def test_exported_activation_quantizer_equals_trained(data, method, n_bits, signed):
    quantizer = STEActivationQuantizer(activation_config(method, n_bits, **data.draw(params_of(method, signed))))
    build(quantizer)
    low, high = (float(quantizer.get_quantizer_variable(name)) for name in ("min", "max"))
    assert_export_equals_training(quantizer, tf.constant(around(low, high, 101)))


@given(st.data(), methods, bits)
def test_exported_per_tensor_weights_quantizer_equals_trained(data, method, n_bits):
    quantizer = STEWeightsQuantizer(weights_config(method, n_bits, **data.draw(params_of(method))))
    build(quantizer, (7, 9))
    low, high = (float(quantizer.get_quantizer_variable(name)) for name in ("min", "max"))
    assert_export_equals_training(quantizer, tf.constant(around(low, high, 63).reshape(7, 9)))


@given(st.data(), methods, bits, st.integers(1, 4), st.booleans(), st.booleans())
def test_exported_per_channel_weights_quantizer_equals_trained_on_any_axis(
    data, method, n_bits, rank, negative, keep_dims
):
    axis = data.draw(st.integers(0, rank - 1))
    shape = [3, 2, 5, 4][:rank]
    channels = [data.draw(params_of(method)) for _ in range(shape[axis])]
    params = {key: np.array([channel[key] for channel in channels], np.float32) for key in channels[0]}
    if keep_dims:
        kept = [1] * rank
        kept[axis] = -1
        params = {key: value.reshape(kept) for key, value in params.items()}
    quantizer = STEWeightsQuantizer(weights_config(method, n_bits, axis - rank * negative, **params))
    build(quantizer, shape)
    low, high = (quantizer.get_quantizer_variable(name).numpy() for name in ("min", "max"))
    size = int(np.prod(shape)) // shape[axis]
    rows = np.stack([around(a, b, size + 4)[:size] for a, b in zip(low, high, strict=True)])
    others = [shape[i] for i in range(rank) if i != axis]
    assert_export_equals_training(quantizer, tf.constant(np.moveaxis(rows.reshape([-1, *others]), 0, axis)))


@given(bits, uniform_ranges())
def test_a_uniform_range_holds_zero_and_moves_by_less_than_a_step(n_bits, given_range):
    low, high = (np.array(end, np.float32) for end in given_range)
    snapped_low, snapped_high = exportable_uniform_range(low, high, n_bits)
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    step = (high - low) / (2**n_bits - 1)
    assert snapped_low <= 0 <= snapped_high
    assert abs(snapped_low - low) <= 0.51 * step and abs(snapped_high - high) <= 0.51 * step


@given(bits, uniform_ranges())
def test_an_exportable_range_is_its_own_exportable_range(n_bits, given_range):
    snapped = exportable_uniform_range(*(np.array(end, np.float32) for end in given_range), n_bits)
    assert_same_bits(exportable_uniform_range(*snapped, n_bits), snapped)


def test_a_negative_range_that_float64_rounding_moves_becomes_exportable():
    # max - min + scale * round(min / scale) is 2^-54 here, and for all float32 numbers near: it must get away.
    low, high = exportable_uniform_range(np.float32(-0.496561), np.float32(0.0), 7)
    quantizer = STEActivationQuantizer(
        activation_config(QuantizationMethod.UNIFORM, 7, range_min=-0.496561, range_max=0.0)
    )
    build(quantizer)
    assert high == 0.0 and low == np.float32(quantizer.get_quantizer_variable("min"))
    assert_export_equals_training(quantizer, tf.constant(around(-0.5, 0.0, 301)))


def test_symmetric_range_is_one_step_short_of_the_threshold_above():
    low, high = symmetric_range(np.float32(1.0), 4, signed=True)
    assert (low, high) == (-1.0, 0.875)
    low, high = symmetric_range(np.float32(1.0), 4, signed=False)
    assert (low, high) == (0.0, 0.9375)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(1.0, 1.0), (1.0000001, 2.0), (0.9999999, 1.0), (0.0, 2**-16), (3e-7, 2**-16), (2.0**100, 2.0**100)],
)
def test_power_of_two_threshold_is_the_next_power_of_two(threshold, expected):
    assert power_of_two_threshold(np.float32(threshold), 2**-16) == np.float32(expected)


def test_variables_have_the_names_and_order_of_mct_and_do_not_train():
    layer = build(STEWeightsQuantizer(weights_config()), (3, 3))
    assert variable_names(layer.weights) == ["kernelptq_threshold_tensor", "kernelmin", "kernelmax"]
    assert layer.trainable_weights == []
    layer = build(STEWeightsQuantizer(weights_config(QuantizationMethod.UNIFORM)), (3, 3))
    assert variable_names(layer.weights) == ["kernelmin", "kernelmax"]


def test_the_variables_belong_to_the_quantization_parameters():
    quantizer = STEActivationQuantizer(activation_config())
    build(quantizer)
    assert list(quantizer.quantizer_parameters) == ["ptq_threshold_tensor", "min", "max"]
    assert quantizer.get_trainable_variables(VariableGroup.QPARAMS) == []


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_the_gradient_passes_in_range_and_stops_outside(axis):
    threshold = 1.0 if axis is None else np.ones(2, np.float32)
    quantizer = STEWeightsQuantizer(weights_config(axis=axis, threshold=threshold))
    build(quantizer, (2, 2))
    x = tf.constant([[-2.0, -0.5], [0.5, 2.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = quantizer(x, True)
    np.testing.assert_array_equal(tape.gradient(y, x), [[0.0, 1.0], [1.0, 0.0]])


def test_a_quantizer_is_one_op_per_call(monkeypatch):
    calls = []
    monkeypatch.setattr("qatfast.ops.fake_quant", lambda x, *args, **kwargs: calls.append(kwargs) or x)
    quantizer = STEWeightsQuantizer(weights_config(axis=0, n_bits=3, threshold=np.ones(2)))
    build(quantizer, (2, 2))
    quantizer(tf.zeros((2, 2)), True)
    assert calls == [{"num_bits": 3, "axis": 0}]


@pytest.mark.parametrize("method", METHODS)
def test_an_activation_quantizer_works_in_the_holder_of_mct_quantizers(method):
    quantizer = STEActivationQuantizer(activation_config(method))
    holder = KERAS.holder(quantizer)
    x = tf.constant(np.linspace(-2, 2, 41, dtype=np.float32))
    y = holder(x, training=True)
    assert len(np.unique(y)) <= 16
    assert_same_bits(quantizer.convert2inferable()(x), y)


@pytest.mark.parametrize("n_bits", [1, 17])
def test_bits_out_of_range_are_refused(n_bits):
    with pytest.raises(ValueError, match=f"number of bits must be an integer from 2 to 16, got {n_bits}"):
        STEWeightsQuantizer(weights_config(n_bits=n_bits))


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        (METHODS[0], {"range_min": 0.0}, r"must be a dict with the key 'threshold', got keys \['range_min'\]"),
        (METHODS[2], {"range_min": 0.0}, "must be a dict with the key 'range_max'"),
        (METHODS[0], {"threshold": -1.0}, "threshold must be positive and finite, got -1.0"),
        (METHODS[0], {"threshold": 0.0}, "threshold must be positive and finite, got 0.0"),
        (METHODS[0], {"threshold": np.nan}, "threshold must be positive and finite, got nan"),
        (METHODS[0], {"threshold": 1e-38}, "the quantization step must be a normal float32 number"),
        (METHODS[2], {"range_min": 1.0, "range_max": 1.0}, "range_min and range_max must be finite, with min less"),
        (METHODS[2], {"range_min": -np.inf, "range_max": 1.0}, "range_min and range_max must be finite"),
        (METHODS[0], {"threshold": [1.0, 2.0]}, r"threshold must be one number per tensor, got shape \(2,\)"),
        (METHODS[0], {"threshold": np.ones((2, 2))}, "threshold must be a number or one number per channel"),
    ],
)
def test_bad_parameters_are_refused(method, params, message):
    with pytest.raises(ValueError, match=f"^STEWeightsQuantizer: .*{message}"):
        STEWeightsQuantizer(weights_config(method, **params))


def test_ends_of_different_shape_are_refused():
    config = weights_config(METHODS[2], axis=0, range_min=np.zeros(2), range_max=np.ones(3))
    with pytest.raises(ValueError, match=r"range_max must be of range_min's shape \(2,\), got shape \(3,\)"):
        STEWeightsQuantizer(config)


def test_signed_must_be_given_for_a_symmetric_activation():
    with pytest.raises(ValueError, match="is_signed must be True or False, got None"):
        STEActivationQuantizer(activation_config(threshold=1.0))


def test_a_wrong_number_of_channels_is_refused_when_the_layer_is_built():
    quantizer = STEWeightsQuantizer(weights_config(axis=1, threshold=np.ones(4)))
    with pytest.raises(ValueError, match=r"must be for 3 channels, axis 1 of \(2, 3\), got 4"):
        build(quantizer, (2, 3))
    quantizer = STEWeightsQuantizer(weights_config(axis=2, threshold=np.ones(3)))
    with pytest.raises(ValueError, match=r"weights_channels_axis must be an axis of a weight of shape \(2, 3\), got 2"):
        build(quantizer, (2, 3))


def test_export_before_the_layer_is_built_is_an_error():
    with pytest.raises(KeyError, match="no quantizer variable 'ptq_threshold_tensor'.*is the layer built"):
        STEWeightsQuantizer(weights_config()).convert2inferable()


@pytest.mark.parametrize(
    ("method", "variable", "value"),
    [(METHODS[0], "max", 0.5), (METHODS[1], "ptq_threshold_tensor", 1.3), (METHODS[2], "min", -0.71)],
)
def test_variables_set_to_what_export_would_change_are_refused_until_snapped(method, variable, value):
    quantizer = STEActivationQuantizer(activation_config(method))
    build(quantizer)
    quantizer.get_quantizer_variable(variable).assign(value)
    with pytest.raises(ValueError, match=r"variable .* must be a value that export leaves unchanged \(snap_range"):
        quantizer.convert2inferable()
    quantizer.snap_range()
    assert_export_equals_training(quantizer, tf.constant(np.linspace(-2, 2, 101, dtype=np.float32)))
