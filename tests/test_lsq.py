"""The LSQ quantizers: what they hand to the op, what guards their variables, and what they export."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf
from grid import along_axis, assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from models import KERAS, METHODS, activation_config, build, variable_names, weights_config

from qatfast import GradientScale
from qatfast.config import RANGE_MAX, RANGE_MIN, SIGNED, THRESHOLD
from qatfast.quantizers import LSQActivationQuantizer, LSQWeightsQuantizer, VariableGroup

SYMMETRIC, POWER_OF_TWO, UNIFORM = METHODS
VARIABLES = {SYMMETRIC: ["ptq_threshold_tensor"], POWER_OF_TWO: ["ptq_threshold_tensor"], UNIFORM: ["min", "max"]}
FLOOR = 2.0**-16

few = settings(max_examples=min(200, settings.default.max_examples))
bits = st.integers(2, 16)
methods = st.sampled_from(METHODS)
finite = st.floats(-(2.0**60), 2.0**60, width=32)
thresholds = st.integers(-12, 12).flatmap(lambda e: st.floats(1.0, 2.0, width=32).map(lambda m: m * 2.0**e))


def capture_calls(monkeypatch):
    """Every call of an LSQ op from here on: (name, keyword arguments)."""
    calls = []
    for name in ("lsq_symmetric", "lsq_uniform"):
        monkeypatch.setattr(f"qatfast.ops.{name}", lambda x, *_, op=name, **kwargs: calls.append((op, kwargs)) or x)
    return calls


def assign(quantizer, *values):
    for name, value in zip(quantizer.quantizer_parameters, values, strict=True):
        quantizer.get_quantizer_variable(name).assign(np.broadcast_to(np.float32(value), quantizer_shape(quantizer)))


def quantizer_shape(quantizer):
    return next(iter(quantizer.quantizer_parameters.values())).shape


def exported_step(inferable, rank=0, axis=None):
    """The float32 step that TensorFlow's op divides by, shaped to broadcast against a tensor of `rank`."""
    ends = (np.asarray(end, np.float64).astype(np.float32) for end in (inferable.min_range, inferable.max_range))
    lower, upper = ends
    return along_axis((upper - lower) / np.float32(2**inferable.num_bits - 1), rank, axis)


def assert_exports_but_next_to_ties(quantizer, x, axis=None):
    """Training and export differ by a step at most, and only next to the middle of two grid values.

    TensorFlow's op shifts x to the range's lower end before it divides, so that it loses the last bits of x: a few
    units of 2^-24 of the range, which is 2^num_bits steps. Elsewhere what exports with its step makes the same bits.
    """
    x = np.asarray(x, np.float32)
    inferable = quantizer.convert2inferable()
    trained, exported = quantizer(x).numpy(), inferable(tf.constant(x)).numpy()
    step = exported_step(inferable, x.ndim, axis)
    steps_apart = (exported.astype(np.float64) - trained) / step
    same = np.rint(steps_apart) == 0
    assert np.all(np.abs(steps_apart) < 1.5)
    rounding = 2.0 ** (inferable.num_bits - 20)  # some float32 numbers of the range, in steps
    assert np.all(np.abs(steps_apart[same]) <= rounding)
    place = x.astype(np.float64) / step
    assert np.all(np.abs(place - np.floor(place) - 0.5)[~same] <= rounding)
    # One step up or down is on the grid: training makes its own step of it.
    up, down = (quantizer(np.broadcast_to(one, x.shape)).numpy() == one for one in (step, -step))
    same_step = up | down
    assert_same_bits(exported[same_step & same], trained[same_step & same])
    assert same_step.all() or method_of(inferable) is not POWER_OF_TWO


def method_of(inferable):
    return type(inferable).quantization_method[0]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_variables_have_the_names_and_order_of_mct_and_train_unless_frozen(method, frozen):
    layer = build(LSQWeightsQuantizer(weights_config(method), frozen), (3, 3))
    names = [f"kernel{name}" for name in VARIABLES[method]]
    assert variable_names(layer.weights) == names
    assert variable_names(layer.trainable_weights) == ([] if frozen else names)


def test_the_variables_start_at_what_is_calibrated_and_are_quantization_parameters():
    quantizer = LSQActivationQuantizer(activation_config(UNIFORM))
    build(quantizer)
    assert [float(v) for v in quantizer.get_trainable_variables(VariableGroup.QPARAMS)] == [
        np.float32(-0.7),
        np.float32(1.3),
    ]


def test_a_power_of_two_starts_in_the_middle_of_its_octave():
    # From the power of two itself, the least gradient upward would double the threshold.
    quantizer = LSQWeightsQuantizer(weights_config(POWER_OF_TWO, axis=0, threshold=[0.9, 2.0, 2.1]))
    build(quantizer, (3, 2))
    variable = quantizer.get_quantizer_variable("ptq_threshold_tensor")
    np.testing.assert_array_equal(variable, np.float32([1.0, 2.0, 4.0]) * np.float32(math.sqrt(0.5)))
    assert quantizer.convert2inferable().threshold == [1.0, 2.0, 4.0]


def test_a_symmetric_quantizer_is_one_op_per_call(monkeypatch):
    calls = capture_calls(monkeypatch)
    for method in (SYMMETRIC, POWER_OF_TWO):
        quantizer = LSQWeightsQuantizer(weights_config(method, 3, axis=1, threshold=np.ones(5)))
        build(quantizer, (2, 5))
        quantizer(tf.zeros((2, 5)), True)
    shared = {"num_bits": 3, "signed": True, "grad_scale": 1 / math.sqrt(5 * 3), "axis": 1, "min_threshold": FLOOR}
    assert calls == [("lsq_symmetric", {**shared, "power_of_two": power_of_two}) for power_of_two in (False, True)]


def test_a_uniform_quantizer_is_one_op_per_call(monkeypatch):
    calls = capture_calls(monkeypatch)
    quantizer = LSQActivationQuantizer(activation_config(UNIFORM, 3))
    build(quantizer)
    quantizer(tf.zeros((2, 5)), True)
    arguments = {"num_bits": 3, "grad_scale": 1 / math.sqrt(5 * 7), "axis": None, "min_width": FLOOR}
    assert calls == [("lsq_uniform", arguments | {"exact_zero": True})]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_range_learns_unless_it_is_frozen(method, frozen):
    quantizer = LSQWeightsQuantizer(weights_config(method), frozen)
    layer = build(quantizer, (2, 3))
    x = tf.constant([[-2.0, -0.5, 0.1], [0.5, 0.9, 2.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = quantizer(x, True)
    of_x, *of_variables = tape.gradient(y, [x, *layer.weights])
    assert set(np.unique(of_x)) == {0.0, 1.0}
    assert all((gradient is None) if frozen else np.all(gradient != 0) for gradient in of_variables)


@pytest.mark.parametrize(
    ("gradient_scale", "axis", "expected"),
    [
        (GradientScale.CHANNELS, None, 1 / math.sqrt(7)),
        (GradientScale.CHANNELS, 3, 1 / math.sqrt(7 * 16)),
        (GradientScale.ELEMENTS, None, 1 / math.sqrt(7 * 3 * 3 * 8 * 16)),
        (GradientScale.ELEMENTS, 3, 1 / math.sqrt(7 * 3 * 3 * 8)),
    ],
)
def test_the_gradient_scale_of_a_weight(monkeypatch, gradient_scale, axis, expected):
    calls = capture_calls(monkeypatch)
    threshold = 1.0 if axis is None else np.ones(16)
    quantizer = LSQWeightsQuantizer(weights_config(axis=axis, threshold=threshold), gradient_scale=gradient_scale)
    build(quantizer, tf.TensorShape((3, 3, 8, 16)))
    quantizer(tf.zeros((3, 3, 8, 16)))
    assert calls[0][1]["grad_scale"] == expected


@pytest.mark.parametrize(
    ("gradient_scale", "method", "shape", "expected"),
    [
        (GradientScale.CHANNELS, SYMMETRIC, (2, 6, 5, 3), 1 / math.sqrt(7 * 3)),
        (GradientScale.CHANNELS, SYMMETRIC, (None, None, None, 3), 1 / math.sqrt(7 * 3)),
        (GradientScale.CHANNELS, UNIFORM, (2, 6, 5, 3), 1 / math.sqrt(15 * 3)),
        (GradientScale.ELEMENTS, SYMMETRIC, (2, 6, 5, 3), 1 / math.sqrt(7 * 6 * 5 * 3)),
        (GradientScale.ELEMENTS, UNIFORM, (None, 6, 5, 3), 1 / math.sqrt(15 * 6 * 5 * 3)),
    ],
)
def test_the_gradient_scale_of_an_activation(monkeypatch, gradient_scale, method, shape, expected):
    calls = capture_calls(monkeypatch)
    quantizer = LSQActivationQuantizer(activation_config(method), gradient_scale=gradient_scale)
    build(quantizer)
    tf.function(quantizer).get_concrete_function(tf.TensorSpec(shape), True)
    assert calls[0][1]["grad_scale"] == expected


@pytest.mark.parametrize(
    ("gradient_scale", "shape", "where"),
    [
        (GradientScale.ELEMENTS, (None, None, 3), "all axes but the first"),
        (GradientScale.ELEMENTS, None, "all axes but the first"),
        (GradientScale.CHANNELS, (4, None), "the last axis"),
        (GradientScale.CHANNELS, (), "the last axis"),
    ],
)
def test_an_activation_of_unknown_size_is_an_error(gradient_scale, shape, where):
    quantizer = LSQActivationQuantizer(activation_config(), gradient_scale=gradient_scale)
    build(quantizer)
    message = f"shape of an activation under {gradient_scale} must be known statically on {where}, got "
    with pytest.raises(ValueError, match=message):
        tf.function(quantizer).get_concrete_function(tf.TensorSpec(shape), True)


def test_a_gradient_scale_that_is_none_is_refused():
    with pytest.raises(
        ValueError, match="^LSQWeightsQuantizer: gradient_scale must be a GradientScale, got 'elements'"
    ):
        LSQWeightsQuantizer(weights_config(), gradient_scale="elements")


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match="^LSQWeightsQuantizer: threshold must be positive and finite, got 0.0"):
        LSQWeightsQuantizer(weights_config(threshold=0.0))
    with pytest.raises(ValueError, match="^LSQActivationQuantizer: range_min and range_max must be finite, with min"):
        LSQActivationQuantizer(activation_config(UNIFORM, range_min=1.0, range_max=1.0))
    with pytest.raises(ValueError, match="must be for 3 channels, axis 1 of .2, 3., got 4"):
        build(LSQWeightsQuantizer(weights_config(axis=1, threshold=np.ones(4))), (2, 3))


@pytest.mark.parametrize("cls", [LSQWeightsQuantizer, LSQActivationQuantizer])
def test_saving_keeps_every_argument(cls):
    config = weights_config() if cls is LSQWeightsQuantizer else activation_config()
    quantizer = cls(config, freeze_quant_params=True, gradient_scale=GradientScale.ELEMENTS)
    loaded = cls.from_config(json.loads(json.dumps(quantizer.get_config())))
    assert type(loaded) is cls
    assert loaded.freeze_quant_params is True and loaded.gradient_scale is GradientScale.ELEMENTS


@few
@given(bits, thresholds | finite)
def test_a_power_of_two_threshold_is_one_whatever_the_variable(n_bits, threshold):
    quantizer = LSQActivationQuantizer(activation_config(POWER_OF_TWO, n_bits))
    build(quantizer)
    assign(quantizer, threshold)
    lowest = -float(quantizer(tf.constant([-(2.0**100)]))[0])
    assert lowest == max(FLOOR, 2.0 ** math.ceil(math.log2(max(threshold, FLOOR))))
    assert quantizer.convert2inferable().threshold == [lowest]


@few
@given(st.data(), methods, bits, st.booleans())
def test_whatever_the_variables_the_grid_is_sound_and_exports(data, method, n_bits, signed):
    signed = {} if method is UNIFORM else {SIGNED: signed, THRESHOLD: 1.0}
    start = {RANGE_MIN: -1.0, RANGE_MAX: 1.0} if method is UNIFORM else signed
    quantizer = LSQActivationQuantizer(activation_config(method, n_bits, **start))
    build(quantizer)
    values = [data.draw(finite) for _ in VARIABLES[method]]
    assign(quantizer, *values)
    largest = max(map(abs, values)) + 1
    x = tf.constant(np.linspace(-largest, largest, 101, dtype=np.float32)[:, np.newaxis])
    y = quantizer(x).numpy()
    assert np.all(np.isfinite(y)) and np.all(np.diff(y[:, 0]) >= 0)
    assert y[-1] - y[0] >= 0.99 * FLOOR * (1 - 2.0**-n_bits)
    assert_exports_but_next_to_ties(quantizer, x)
    for variable, value in zip(quantizer.quantizer_parameters.values(), values, strict=True):
        assert variable.numpy() == np.float32(value)


def test_a_range_that_inverts_or_collapses_is_as_wide_as_the_floor():
    quantizer = LSQWeightsQuantizer(weights_config(UNIFORM, 2, axis=0, range_min=-np.ones(3), range_max=np.ones(3)))
    build(quantizer, (3, 5))
    quantizer.get_quantizer_variable("min").assign([0.5 * FLOOR, 0.0, -1.0])
    quantizer.get_quantizer_variable("max").assign([-0.5 * FLOOR, 0.0, -2.0])
    x = tf.constant(np.tile(np.linspace(-3, 3, 5, dtype=np.float32), (3, 1)))
    y = quantizer(x).numpy()
    np.testing.assert_allclose(y[:, 0], [-FLOOR / 2, -FLOOR / 2, -1.5], rtol=0.5)
    np.testing.assert_allclose(y[:2, -1] - y[:2, 0], FLOOR, rtol=1e-6)
    np.testing.assert_allclose(y[2, -1], 0.0, atol=1e-6)
    assert_exports_but_next_to_ties(quantizer, x, axis=0)


@pytest.mark.parametrize("method", METHODS)
def test_variables_that_are_not_finite_do_not_export(method):
    quantizer = LSQActivationQuantizer(activation_config(method))
    build(quantizer)
    name = VARIABLES[method][-1]
    quantizer.get_quantizer_variable(name).assign(np.nan)
    with pytest.raises(ValueError, match=f"^LSQActivationQuantizer: variable {name} must be finite, got nan"):
        quantizer.convert2inferable()


def test_export_before_the_layer_is_built_is_an_error():
    with pytest.raises(KeyError, match="no quantizer variable 'ptq_threshold_tensor'.*is the layer built"):
        LSQWeightsQuantizer(weights_config()).convert2inferable()


@few
@given(st.data(), methods, bits, st.integers(0, 2))
def test_per_channel_export_is_training_but_next_to_ties(data, method, n_bits, axis):
    shape = (5, 4, 6)
    given = np.array([data.draw(thresholds) for _ in range(shape[axis])])
    share = data.draw(st.floats(0.01, 1.0))
    params = {RANGE_MIN: -given * share, RANGE_MAX: given} if method is UNIFORM else {THRESHOLD: given}
    quantizer = LSQWeightsQuantizer(weights_config(method, n_bits, axis, **params))
    build(quantizer, shape)
    size = math.prod(shape) // shape[axis]
    rows = np.linspace(-1.3 * given, 1.3 * given, size, axis=1)
    x = np.moveaxis(rows.reshape(-1, *shape[:axis], *shape[axis + 1 :]), 0, axis)
    x *= np.random.default_rng(data.draw(bits)).normal(1, 0.01, shape)
    assert_exports_but_next_to_ties(quantizer, x, axis)


def test_a_loaded_inferable_quantizer_equals_the_exported_one():
    for method in METHODS:
        quantizer = LSQActivationQuantizer(activation_config(method, 6))
        build(quantizer)
        x = tf.constant(np.linspace(-2, 2, 1001, dtype=np.float32)[:, np.newaxis])
        quantizer(x)
        exported = quantizer.convert2inferable()
        expected = exported(x)
        for _ in range(3):
            exported = type(exported).from_config(json.loads(json.dumps(exported.get_config())))
            assert_same_bits(exported(x), expected)


@pytest.mark.parametrize("method", METHODS)
def test_an_activation_quantizer_works_in_the_holder_of_mct_quantizers(method):
    quantizer = LSQActivationQuantizer(activation_config(method))
    holder = KERAS.holder(quantizer)
    x = tf.constant(np.linspace(-2, 2, 41, dtype=np.float32)[:, np.newaxis])
    y = holder(x, training=True)
    assert len(np.unique(y)) <= 16
    assert len(holder.trainable_weights) == len(VARIABLES[method])
    assert_exports_but_next_to_ties(quantizer, x)


@pytest.fixture(scope="module")
def mct_quantizer():
    """Makes MCT's quantizer of the same config, where MCT is installed (it stops at TensorFlow 2.15)."""
    infrastructure = pytest.importorskip("model_compression_toolkit.trainable_infrastructure")
    from model_compression_toolkit.qat.keras.quantizer import lsq as weights
    from model_compression_toolkit.trainable_infrastructure.keras.activation_quantizers import lsq as activation

    classes = {
        (LSQWeightsQuantizer, SYMMETRIC): weights.symmetric_lsq.LSQWeightQATQuantizer,
        (LSQWeightsQuantizer, UNIFORM): weights.uniform_lsq.LSQUniformWeightQATQuantizer,
        (LSQActivationQuantizer, SYMMETRIC): activation.symmetric_lsq.LSQSymmetricActivationTrainableQuantizer,
        (LSQActivationQuantizer, UNIFORM): activation.uniform_lsq.LSQUniformActivationTrainableQuantizer,
    }

    def make(cls, method, config):
        mct_config = getattr(infrastructure, type(config).__name__)
        return classes[cls, method](mct_config(**vars(config)))

    return make


@pytest.mark.parametrize("method", [SYMMETRIC, UNIFORM])
@pytest.mark.parametrize("cls", [LSQWeightsQuantizer, LSQActivationQuantizer])
def test_a_quantizer_is_that_of_mct_in_variables_output_and_gradients(mct_quantizer, cls, method):
    # The uniform one is not: zero is exactly on its grid, and all of the range's gradient is scaled, where MCT scales
    # only what comes through the step. That of qatfast.mct is.
    rng = np.random.default_rng(0)
    config = activation_config(method, 4)
    if cls is LSQWeightsQuantizer:
        ends = rng.uniform(0.1, 1, (2, 1, 1, 1, 6)).astype(np.float32)
        params = {RANGE_MIN: -ends[0], RANGE_MAX: ends[1]} if method is UNIFORM else {THRESHOLD: ends[0]}
        config = weights_config(method, 4, 3, **params)
    x = tf.constant(rng.normal(0, 0.6, (3, 3, 5, 6)).astype(np.float32))
    results = []
    for quantizer in (cls(config), mct_quantizer(cls, method, config)):
        layer = build(quantizer, x.shape)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = quantizer(x, True)
            loss = tf.reduce_sum(tf.sin(y))
        gradients = tape.gradient(loss, [x, *layer.trainable_weights])
        results.append(([variable.name for variable in layer.weights], y, gradients))
    (our_names, our_y, ours), (mct_names, mct_y, theirs) = results
    assert our_names == mct_names
    if method is UNIFORM:
        np.testing.assert_allclose(our_y, mct_y, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4, atol=1e-6)
        return
    assert_same_bits(our_y, mct_y)
    for our_gradient, mct_gradient in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our_gradient, mct_gradient, rtol=1e-4, atol=1e-6)
