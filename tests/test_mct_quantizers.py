"""The quantizers of `qatfast.mct`, each against the stock one that it stands for."""

import numpy as np
import pytest
import tensorflow as tf
from grid import assert_same_bits
from mct_quantizers import QuantizationMethod, QuantizationTarget

pytest.importorskip("model_compression_toolkit")
if tuple(map(int, tf.__version__.split(".")[:2])) > (2, 15):
    pytest.skip("MCT stops at TensorFlow 2.15", allow_module_level=True)

from mct_models import METHODS, activation_config, make, stock_class, weights_config  # noqa: E402

from qatfast.mct import GradientScale  # noqa: E402
from qatfast.mct.quantizers import QUANTIZERS  # noqa: E402

SHAPE = (3, 3, 5, 7)
UNIFORM = QuantizationMethod.UNIFORM


def pair(target, method, identifier, axis=-1, config_arguments=None, **arguments):
    """A stock quantizer and ours, of the same config."""
    stock = stock_class(target, method, identifier)
    if target is QuantizationTarget.Weights:
        config = weights_config(method, SHAPE, axis, **(config_arguments or {}))
    else:
        config = activation_config(method, **(config_arguments or {}))
    shape = SHAPE if target is QuantizationTarget.Weights else None
    return make(stock, config, shape), make(QUANTIZERS[stock], config, shape, **arguments)


def fails_in_mct(target, axis, method, identifier):
    """MCT's uniform LSQ of a weight cannot be made per tensor: 'float' object has no attribute 'size'."""
    return (target, axis, method, identifier) == (QuantizationTarget.Weights, None, UNIFORM, "LSQ")


def run(quantizer, x, grad_y):
    """y, and the gradients to x and to the quantizer's variables."""
    variables = [item["var"] for item in quantizer.quantizer_parameters.values()]
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = quantizer(x, True)
    return [y, *tape.gradient(y, [x, *[v for v in variables if v.trainable]], output_gradients=grad_y)]


def draw(seed=0, shape=SHAPE):
    rng = np.random.default_rng(seed)
    return [tf.constant(rng.normal(size=shape).astype(np.float32)) for _ in range(2)]


CASES = [
    *[(QuantizationTarget.Weights, axis) for axis in (None, 0, 2, 3)],
    (QuantizationTarget.Activation, None),
]


@pytest.mark.parametrize(("target", "axis"), CASES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("identifier", ["STE", "LSQ"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantizers_equal_the_stock_ones(target, axis, method, identifier, bits):
    if fails_in_mct(target, axis, method, identifier):
        pytest.skip("MCT cannot make it")
    for seed in range(4):
        config = {"bits": bits, "seed": seed}
        if target is QuantizationTarget.Activation:
            config["signed"] = seed % 2 == 0
        stock, ours = pair(target, method, identifier, axis, config)
        x, grad_y = draw(seed)
        expected, actual = run(stock, x, grad_y), run(ours, x, grad_y)
        assert_same_bits(actual[0], expected[0])
        # Where nothing passes, the stock STE's gradient is grad_y * 0, which may be -0.
        np.testing.assert_allclose(actual[1], expected[1], rtol=1e-6 if identifier == "LSQ" else 0)
        assert len(actual) == len(expected)
        for got, wanted in zip(actual[2:], expected[2:], strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("target", "axis"), CASES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("identifier", ["STE", "LSQ"])
def test_variables_and_exports_are_the_stock_ones(target, axis, method, identifier):
    if fails_in_mct(target, axis, method, identifier):
        pytest.skip("MCT cannot make it")
    stock, ours = pair(target, method, identifier, axis)
    assert list(ours.quantizer_parameters) == list(stock.quantizer_parameters)
    for mine, theirs in zip(ours.owner.weights, stock.owner.weights, strict=True):
        assert (mine.name, mine.shape, mine.dtype, mine.trainable) == (
            theirs.name, theirs.shape, theirs.dtype, theirs.trainable,
        )  # fmt: skip
        assert_same_bits(mine, theirs)
    exported, expected = ours.convert2inferable(), stock.convert2inferable()
    assert type(exported) is type(expected)
    assert str(exported.get_config()) == str(expected.get_config())


@pytest.mark.parametrize("identifier", ["STE", "LSQ"])
def test_in_a_graph_they_equal_what_the_stock_ones_compute_eagerly(identifier):
    # The stock uniform quantizers differ from themselves there: TensorFlow's graph optimizer turns their division by
    # 2^bits - 1 into a multiplication.
    for method in METHODS:
        for target, axis in CASES:
            if fails_in_mct(target, axis, method, identifier):
                continue
            stock, ours = pair(target, method, identifier, axis)
            x, grad_y = draw()
            expected = run(stock, x, grad_y)
            actual = tf.function(lambda x, grad_y, ours=ours: run(ours, x, grad_y))(x, grad_y)
            assert_same_bits(actual[0], expected[0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("identifier", ["STE", "LSQ"])
@pytest.mark.parametrize("target", [QuantizationTarget.Weights, QuantizationTarget.Activation])
def test_configs_and_arguments_survive_saving(target, method, identifier):
    arguments = {"freeze_quant_params": True}
    if identifier == "LSQ":
        arguments |= {"gradient_scale": GradientScale.ELEMENTS, "guard_range": True, "power_of_two_in_loop": True}
    else:
        arguments |= {"exact_export": True}
    _, ours = pair(target, method, identifier, **arguments)
    stored = tf.keras.utils.serialize_keras_object(ours)
    again = type(ours).from_config(stored["config"])
    assert type(again) is type(ours)
    for name, value in arguments.items():
        assert getattr(again, name) == value
    assert str(vars(again.quantization_config)) == str(vars(ours.quantization_config))


def test_a_uniform_weight_is_learned_per_tensor_though_mct_cannot_make_its_own():
    config = weights_config(UNIFORM, SHAPE, None)
    with pytest.raises(AttributeError, match="size"):
        stock_class(QuantizationTarget.Weights, UNIFORM, "LSQ")(config)
    ours = make(QUANTIZERS[stock_class(QuantizationTarget.Weights, UNIFORM, "LSQ")], config, SHAPE)
    y, _, grad_min, grad_max = run(ours, *draw())
    assert len(np.unique(y)) > 100 and grad_min.shape == grad_max.shape == ()
    assert ours.convert2inferable().per_channel is False


def test_frozen_ranges_do_not_train():
    for method in METHODS:
        for target in (QuantizationTarget.Weights, QuantizationTarget.Activation):
            _, ours = pair(target, method, "LSQ", freeze_quant_params=True)
            assert not ours.owner.trainable_weights
            x, grad_y = draw()
            assert len(run(ours, x, grad_y)) == 2


def test_the_gradient_scale_of_the_paper_counts_elements():
    x, grad_y = draw()
    for target, counts in (
        (QuantizationTarget.Weights, (7, 3 * 3 * 5)),
        (QuantizationTarget.Activation, (7, 3 * 5 * 7)),
    ):
        _, channels = pair(target, QuantizationMethod.SYMMETRIC, "LSQ")
        _, elements = pair(target, QuantizationMethod.SYMMETRIC, "LSQ", gradient_scale=GradientScale.ELEMENTS)
        ratio = run(elements, x, grad_y)[2] / run(channels, x, grad_y)[2]
        np.testing.assert_allclose(ratio, np.sqrt(counts[0] / counts[1]), rtol=1e-3)


def test_an_activation_of_unknown_channels_is_an_error_that_says_so():
    _, ours = pair(QuantizationTarget.Activation, QuantizationMethod.SYMMETRIC, "LSQ")
    run_unknown = tf.function(lambda x: ours(x, True), input_signature=[tf.TensorSpec([None, None])])
    with pytest.raises(ValueError, match="known statically on the last axis, got"):
        run_unknown.get_concrete_function()


@pytest.mark.parametrize("target", [QuantizationTarget.Weights, QuantizationTarget.Activation])
@pytest.mark.parametrize("guard", [False, True])
def test_thresholds_that_are_not_positive_train_on_and_are_exported(target, guard):
    config = {"min_threshold": 0.25}
    _, ours = pair(target, QuantizationMethod.SYMMETRIC, "LSQ", -1, config, guard_range=guard)
    (threshold,) = ours.owner.weights
    threshold.assign(threshold - 10)
    assert np.all(threshold < 0)
    x, grad_y = draw()
    y, grad_x, grad_threshold = run(ours, x, grad_y)
    assert np.isfinite(y).all() and np.isfinite(grad_x).all() and np.any(grad_threshold != 0)
    counted = 0.25 if guard else 2.0**-100
    assert np.max(np.abs(y)) == counted
    np.testing.assert_array_equal(ours.convert2inferable().get_config()["threshold"], counted)


@pytest.mark.parametrize("guard", [False, True])
def test_ranges_that_are_upside_down_train_on_and_are_exported(guard):
    for target in (QuantizationTarget.Weights, QuantizationTarget.Activation):
        for middle in (-3.0, 0.0, 0.5):
            config = {"min_threshold": 0.25}
            _, ours = pair(target, UNIFORM, "LSQ", -1, config, guard_range=guard)
            low, high = ours.owner.weights
            low.assign(np.full(low.shape, middle + 0.1))
            high.assign(np.full(low.shape, middle - 0.1))
            x, grad_y = draw()
            y, *gradients = run(ours, x, grad_y)
            assert np.isfinite(y).all() and all(np.isfinite(gradient).all() for gradient in gradients)
            exported = ours.convert2inferable()
            exported.initialize_quantization(tf.TensorShape(SHAPE), None, None)
            if middle or guard:
                # One step, where rounding to the grid takes another formula.
                step = max(abs(middle), 0.25) / 255 * 1.01
                assert np.max(np.abs(exported(x) - y)) <= step


@pytest.mark.parametrize("target", [QuantizationTarget.Weights, QuantizationTarget.Activation])
def test_powers_of_two_in_the_loop_are_what_is_exported(target):
    method = QuantizationMethod.POWER_OF_TWO
    stock, ours = pair(target, method, "LSQ", power_of_two_in_loop=True)
    x, grad_y = draw()
    assert_same_bits(run(ours, x, grad_y)[0], run(stock, x, grad_y)[0])  # the same threshold to start with
    for quantizer in (stock, ours):
        (threshold,) = quantizer.owner.weights
        threshold.assign(np.full(threshold.shape, 1.3))
    steps = {
        quantizer: np.unique(np.abs(np.asarray(quantizer(x, True)))[np.abs(quantizer(x, True)) > 0]).min()
        for quantizer in (stock, ours)
    }
    assert steps[ours] == 2 / 128 and steps[stock] == pytest.approx(1.3 / 128)
    exported = ours.convert2inferable()
    np.testing.assert_array_equal(exported.get_config()["threshold"], 2.0)


@pytest.mark.parametrize(("target", "axis"), CASES)
@pytest.mark.parametrize("method", METHODS)
def test_an_exact_export_computes_what_was_trained(target, axis, method):
    x, grad_y = draw()
    for seed in range(8):
        _, ours = pair(target, method, "STE", axis, {"seed": seed}, exact_export=True)
        exported = ours.convert2inferable()
        again = type(exported).from_config(exported.get_config())
        for quantizer in (exported, again):
            quantizer.initialize_quantization(tf.TensorShape(SHAPE), None, None)
            assert_same_bits(quantizer(x), run(ours, x, grad_y)[0])


@pytest.mark.parametrize(
    ("identifier", "argument", "value", "requirement"),
    [
        ("LSQ", "gradient_scale", "elements", "a GradientScale"),
        ("LSQ", "guard_range", None, "a bool"),
        ("LSQ", "freeze_quant_params", "yes", "a bool"),
        ("STE", "exact_export", 1.0, "a bool"),
    ],
)
def test_arguments_of_another_type_are_errors(identifier, argument, value, requirement):
    for target in (QuantizationTarget.Weights, QuantizationTarget.Activation):
        with pytest.raises(ValueError, match=f"Qatfast.*: {argument} must be {requirement}, got {value!r}"):
            pair(target, UNIFORM, identifier, **{argument: value})


def test_every_stock_quantizer_has_ours_of_another_name_and_identifier():
    assert len(QUANTIZERS) == 8
    for stock, ours in QUANTIZERS.items():
        assert ours.__name__ == f"Qatfast{stock.__name__}"
        assert ours.quantization_target is stock.quantization_target
        assert ours.quantization_method == stock.quantization_method
        assert ours.identifier.name == stock.identifier.name and ours.identifier is not stock.identifier
