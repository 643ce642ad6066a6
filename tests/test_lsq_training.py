"""Models that train with LSQ: that they learn, survive any learning rate, are saved, and export what they trained."""

import numpy as np
import pytest
import tensorflow as tf
from mct_quantizers.keras.quantizers import ActivationPOTInferableQuantizer
from models import (
    IS_KERAS_3,
    KERAS,
    METHODS,
    SAVE_FORMATS,
    computed_kernel,
    conv_net,
    dense_net,
    digits,
    digits_net,
    exported,
    images,
    kernel_of,
    load_exported,
    train,
    variable_names,
)

import qatfast
from qatfast import GradientScale, TrainingMethod
from qatfast.quantizers import LSQWeightsQuantizer

SYMMETRIC, POWER_OF_TWO, UNIFORM = METHODS
ROWS = np.random.default_rng(5).normal(size=(32, 6)).astype(np.float32)
LOSS = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
OPTIMIZERS = {"SGD": lambda: tf.keras.optimizers.SGD(1e3), "Adam": lambda: tf.keras.optimizers.Adam(10.0)}


def lsq(method, bits=4, **kwargs):
    """A config for LSQ everywhere."""
    kwargs = {
        "weight_n_bits": bits,
        "activation_n_bits": bits,
        "weight_quantization_method": method,
        "activation_quantization_method": method,
        **kwargs,
    }
    return qatfast.QATConfig(
        weight_training_method=TrainingMethod.LSQ,
        activation_training_method=TrainingMethod.LSQ,
        **kwargs,
    )


def quantizers(model):
    """Every quantizer of the model, with the Keras tensor or the kernel that it reads."""
    for layer in model.layers:
        if isinstance(layer, KERAS.holder):
            yield layer.activation_holder_quantizer, layer.input
        yield from ((quantizer, kernel) for kernel, quantizer in KERAS.quantized_weights(layer))


def grid_ends(quantizer, read):
    """Lowest and highest numbers of a quantizer's grid, one per channel, as training computes them now."""
    shape = [size or 1 for size in read.shape]
    return [np.unique(quantizer(tf.fill(shape, end))) for end in (-1e30, 1e30)]


def ranges(model):
    """(min, max) of the uniform quantizers, as arrays, in the order of their layers."""
    values = [
        variable.numpy()
        for variable in model.trainable_weights
        if variable_names([variable])[0].endswith(("min", "max"))
    ]
    return list(zip(values[::2], values[1::2], strict=True))


@pytest.fixture(scope="module")
def trained_digits():
    """The images, their digits, and a float model that knows them."""
    data, digit = digits(1000)
    model = digits_net()
    model.compile(tf.keras.optimizers.Adam(5e-3), LOSS)
    model.fit(data, digit, batch_size=64, epochs=4, verbose=0)
    return data, digit, model


@pytest.fixture(scope="module", params=METHODS, ids=lambda method: method.name)
def learned(request, trained_digits):
    """A model trained with LSQ at few bits, and its loss and accuracy before and after."""
    data, digit, float_model = trained_digits
    config = lsq(request.param, 2, activation_n_bits=8, weight_calibration_method=qatfast.CalibrationMethod.MSE)
    model = qatfast.quantize_model(float_model, data[:256], config)
    model.compile(tf.keras.optimizers.Adam(2e-3), LOSS, metrics=["accuracy"])
    before = model.evaluate(data, digit, verbose=0)
    tf.keras.utils.set_random_seed(0)
    model.fit(data, digit, batch_size=64, epochs=2, verbose=0)
    return model, before, model.evaluate(data, digit, verbose=0)


def test_training_wins_back_what_quantization_cost(learned):
    _, (loss_before, accuracy_before), (loss_after, accuracy_after) = learned
    assert loss_after < loss_before - 0.05
    assert accuracy_after > accuracy_before


def test_on_real_data_few_activations_export_differently_and_by_a_step_at_most(
    learned, trained_digits, record_property
):
    model, _, _ = learned
    data, _, _ = trained_digits
    holders = [layer for layer in model.layers if isinstance(layer, KERAS.holder)]
    activations = tf.keras.Model(model.input, [holder.input for holder in holders])(data)
    moved, bits_differ, elements = 0, 0, 0
    for holder, x in zip(holders, activations, strict=True):
        quantizer = holder.activation_holder_quantizer
        inferable = quantizer.convert2inferable()
        trained, exported = quantizer(x).numpy(), inferable(x).numpy()
        apart = (
            np.abs(exported - trained.astype(np.float64))
            * (2**8 - 1)
            / (inferable.max_range[0] - inferable.min_range[0])
        )
        assert apart.max() < 1.01
        moved += np.sum(apart > 0.5)
        bits_differ += np.sum(trained != exported)
        elements += trained.size
        if isinstance(inferable, ActivationPOTInferableQuantizer):
            np.testing.assert_array_equal(exported[apart < 0.5], trained[apart < 0.5])
    record_property("activations a step apart", f"{moved} of {elements}")
    record_property("activations of other bits", f"{bits_differ} of {elements}")
    print(f"{type(inferable).__name__}: {moved} of {elements} a step apart, {bits_differ} of other bits")
    assert moved <= 1e-4 * elements


def test_kernels_export_as_they_were_quantized(learned):
    model, _, _ = learned
    exported = qatfast.finalize_model(model)
    for name in ("conv_0", "conv_1", "logits"):
        kernel, quantizer = kernel_of(model.get_layer(name))
        trained = quantizer(kernel).numpy()
        np.testing.assert_allclose(
            computed_kernel(exported.get_layer(name)), trained, rtol=2**-21, atol=2**-21 * np.abs(trained).max()
        )
        if IS_KERAS_3:
            np.testing.assert_array_equal(exported.get_layer(name).kernel, trained)
        else:
            assert np.mean(kernel_of(exported.get_layer(name))[0].numpy() == kernel.numpy()) > 0.99


@pytest.mark.parametrize("method", METHODS)
def test_a_kernel_of_ties_exports_as_it_was_quantized(method):
    model = dense_net()
    kernel = np.linspace(-4, 4, 17, dtype=np.float32)[:15].reshape(5, 3)  # halves, of a step of 1
    model.get_layer("head").kernel.assign(kernel)
    config = lsq(method, 4, weight_per_channel=False)
    quantized = qatfast.quantize_model(model, ROWS, config)
    kernel, quantizer = kernel_of(quantized.get_layer("head"))
    values = [-8.0, 7.0] if method is UNIFORM else [8.0]
    for variable, value in zip(quantizer.quantizer_parameters.values(), values, strict=True):
        variable.assign(value)
    trained = quantizer(kernel).numpy()
    np.testing.assert_array_equal(trained, np.round(kernel))
    inferable = quantizer.convert2inferable()
    assert np.any(inferable(tf.convert_to_tensor(kernel)) != trained)  # it needs help
    is_tie = kernel.numpy() != trained
    for layer in (exported(quantized.get_layer("head")), qatfast.finalize_model(quantized).get_layer("head")):
        np.testing.assert_array_equal(computed_kernel(layer), trained)
        if not IS_KERAS_3:  # whose kernel is what was computed
            np.testing.assert_array_equal(kernel_of(layer)[0].numpy()[~is_tie], kernel.numpy()[~is_tie])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_absurd_learning_rates_do_not_break_the_grids(method, optimizer):
    model = qatfast.quantize_model(dense_net(), ROWS, lsq(method))
    model.compile(OPTIMIZERS[optimizer](), LOSS)
    thresholds = [variable for variable in model.trainable_weights if "ptq_threshold" in variable.name]
    rng = np.random.default_rng(0)
    broken = False
    for _ in range(10):
        model.train_on_batch(rng.permutation(ROWS)[:8], rng.integers(0, 3, 8))
        broken |= any(np.any(variable <= 0) for variable in thresholds)
        broken |= any(np.any(low >= high) for low, high in ranges(model))
        for quantizer, read in quantizers(model):
            lowest, highest = grid_ends(quantizer, read)
            width = np.max(highest) - np.max(lowest)
            assert width > 2.0**-18
            assert np.all(lowest <= 1e-6 * width) and np.all(highest >= -1e-6 * width)  # but for rounding
            if method is POWER_OF_TWO:
                assert np.all(np.frexp(lowest[lowest < 0])[0] == -0.5)
    assert broken  # the guards were needed
    assert all(np.isfinite(value).all() for value in model.get_weights())
    exported = qatfast.finalize_model(model)
    np.testing.assert_allclose(exported(ROWS), model(ROWS), rtol=1e-4, atol=1e-4)


def test_a_deep_net_survives_absurd_learning_rates():
    model = qatfast.quantize_model(conv_net(), images(), lsq(UNIFORM))
    model.compile(OPTIMIZERS["SGD"](), "sparse_categorical_crossentropy")
    model.fit(images(), np.arange(8) % 4, epochs=5, verbose=0)
    assert all(np.isfinite(value).all() for value in model.get_weights())
    assert np.all(np.isfinite(qatfast.finalize_model(model)(images())))


@pytest.mark.parametrize(("method", "per_channel"), [*((method, True) for method in METHODS), (UNIFORM, False)])
def test_every_kind_of_layer_trains_and_exports(tmp_path, method, per_channel):
    model = train(qatfast.quantize_model(conv_net(), images(), lsq(method, weight_per_channel=per_channel)))
    exported = qatfast.finalize_model(model)
    exported.save(tmp_path / "exported.keras")
    loaded = load_exported(tmp_path / "exported.keras")
    assert "qatfast" not in loaded.to_json()
    np.testing.assert_array_equal(loaded(images()), exported(images()))
    # A tie that goes the other way moves the output by what one step of four bits weighs.
    np.testing.assert_allclose(exported(images()), model(images()), atol=0.05)


@pytest.mark.parametrize("suffix", SAVE_FORMATS)
def test_a_saved_model_trains_on_where_its_ranges_are_not_frozen(tmp_path, suffix):
    frozen = {"freeze_quant_params": True, "gradient_scale": GradientScale.ELEMENTS}
    config = lsq(UNIFORM, weight_quantizer_params_override=frozen, activation_quantization_method=SYMMETRIC)
    model = qatfast.quantize_model(dense_net(), ROWS, config)
    model.compile(tf.keras.optimizers.Adam(0.01), LOSS)
    model.fit(ROWS, np.arange(32) % 3, verbose=0)
    model.save(tmp_path / f"model{suffix}")
    loaded = qatfast.load_model(tmp_path / f"model{suffix}")
    np.testing.assert_array_equal(loaded(ROWS), model(ROWS))
    for now, before in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(now, before)
    found = [quantizer for quantizer, _ in quantizers(loaded)]
    before = [[variable.numpy() for variable in quantizer.quantizer_parameters.values()] for quantizer in found]
    loaded.fit(ROWS, np.arange(32) % 3, verbose=0)
    for quantizer, values in zip(found, before, strict=True):
        for_weights = isinstance(quantizer, LSQWeightsQuantizer)
        assert quantizer.freeze_quant_params is for_weights
        assert quantizer.gradient_scale is (GradientScale.ELEMENTS if for_weights else GradientScale.CHANNELS)
        for variable, value in zip(quantizer.quantizer_parameters.values(), values, strict=True):
            assert np.all(variable.numpy() == value) == for_weights


def test_gradients_scaled_by_elements_are_smaller():
    norms = []
    for scale in GradientScale:
        override = {"gradient_scale": scale}
        config = lsq(
            SYMMETRIC, weight_quantizer_params_override=override, activation_quantizer_params_override=override
        )
        model = qatfast.quantize_model(conv_net(), images(), config)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(images()) ** 2)
        threshold = model.get_layer("relu_activation_holder_quantizer").trainable_weights[0]
        norms.append(float(tape.gradient(loss, threshold)))
    np.testing.assert_allclose(norms[0] / norms[1], 8.0, rtol=1e-5)  # sqrt(8 * 8 * 4 features / 4 channels)
