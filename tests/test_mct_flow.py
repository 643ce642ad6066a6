"""MCT's whole flow with qatfast's training methods: init, training, files, finalize, exporters."""

import copy
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from mct_quantizers import QuantizationMethod

pytest.importorskip("model_compression_toolkit")
if tuple(map(int, tf.__version__.split(".")[:2])) > (2, 15):
    pytest.skip("MCT stops at TensorFlow 2.15", allow_module_level=True)

import model_compression_toolkit as mct  # noqa: E402
from mct_models import METHODS, NETS, OURS, STOCK, init, multi_output_net, platform, quantizers  # noqa: E402
from model_compression_toolkit.target_platform_capabilities.tpc_models.imx500_tpc.v1_0.tpc import (  # noqa: E402
    get_tpc,
)
from models import SAVE_FORMATS, conv_net  # noqa: E402

import qatfast  # noqa: E402
from qatfast.mct import accelerate  # noqa: E402
from qatfast.mct.quantizers import QUANTIZERS  # noqa: E402

STEPS = 50


def batches(model, count, batch_size=8, seed=1):
    """Inputs, and labels between 0 and 1 for every output."""
    rng = np.random.default_rng(seed)
    size = count * batch_size
    inputs = [rng.normal(size=(size, *tensor.shape[1:])).astype(np.float32) for tensor in model.inputs]
    outputs = [rng.random(size=(size, *tensor.shape[1:])).astype(np.float32) for tensor in model.outputs]
    return inputs, outputs


def fit(model, steps=STEPS, optimizer="adam", **compile_options):
    """Trains without shuffling; returns the mean loss after every step."""
    losses = []
    record = tf.keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: losses.append(logs["loss"]))
    model.compile(optimizer, "mse", **compile_options)
    inputs, outputs = batches(model, 10)
    model.fit(inputs, outputs, batch_size=8, epochs=steps // 10, shuffle=False, verbose=0, callbacks=[record])
    return losses


def outputs_of(model):
    return [np.asarray(output) for output in tf.nest.flatten(model(batches(model, 1, seed=2)[0]))]


def trained(build, method, tpc=None, optimizer="adam"):
    model = init(build(), method, tpc)
    return model, fit(model, optimizer=optimizer)


@pytest.fixture
def no_constant_folding():
    """The stock uniform quantizers then compute in a graph as they do eagerly.

    Else TensorFlow makes a multiplication with the inverse of their division by 2^bits - 1, which moves some ranges by
    a last bit.
    """
    tf.config.optimizer.set_experimental_options({"constant_folding": False})
    yield
    tf.config.optimizer.set_experimental_options({"constant_folding": True})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("net", NETS)
def test_ste_trains_for_50_steps_as_stock_does(net, method, no_constant_folding):
    tpc = platform(method, method, bits=4)
    stock, stock_losses = trained(NETS[net], STOCK.STE, tpc)
    ours, losses = trained(NETS[net], OURS.STE, tpc)
    assert {type(quantizer) for quantizer in quantizers(ours)} <= set(QUANTIZERS.values())
    assert losses == stock_losses
    for mine, theirs in zip(ours.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("net", NETS)
def test_lsq_trains_for_50_steps_as_stock_does(net, method, no_constant_folding):
    # Plain gradient descent: Adam makes a whole step of a difference between gradients that are zero but for rounding.
    tpc = platform(method, method)
    _, stock_losses = trained(NETS[net], STOCK.LSQ, tpc, "sgd")
    _, losses = trained(NETS[net], OURS.LSQ, tpc, "sgd")
    np.testing.assert_allclose(losses, stock_losses, rtol=1e-5)


@pytest.mark.parametrize("name", ["STE", "LSQ"])
def test_under_tensorflow_s_default_optimizations_the_loss_curves_stay_close(name):
    for method in METHODS:
        tpc = platform(method, method)
        _, stock_losses = trained(conv_net, STOCK[name], tpc)
        _, losses = trained(conv_net, OURS[name], tpc)
        np.testing.assert_allclose(losses, stock_losses, rtol=1e-2)
        if name == "STE" and method is not QuantizationMethod.UNIFORM:
            assert losses == stock_losses


@pytest.mark.parametrize("suffix", SAVE_FORMATS)
def test_mct_loads_what_save_model_saves(suffix, tmp_path):
    model, _ = trained(conv_net, OURS.LSQ)
    path = str(tmp_path / f"model{suffix}")
    for _ in range(2):  # a new one, and one in the place of another
        qatfast.save_model(model, path)
        np.testing.assert_array_equal(outputs_of(mct.keras_load_quantized_model(path)), outputs_of(model))


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("net", NETS)
def test_from_init_to_the_exporters(net, method, tmp_path):
    model, losses = trained(NETS[net], method)
    assert np.isfinite(losses).all() and losses[-1] != losses[0]
    expected = outputs_of(model)
    for suffix in SAVE_FORMATS:
        path = str(tmp_path / f"model{suffix}")
        model.save(path)
        loaded = mct.keras_load_quantized_model(path)
        for got, wanted in zip(outputs_of(loaded), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
        fit(loaded, 10)
    finalized = mct.qat.keras_quantization_aware_training_finalize_experimental(model)
    kinds = {type(quantizer) for quantizer in quantizers(finalized)}
    assert not kinds & set(QUANTIZERS.values()) and all("Inferable" in kind.__name__ for kind in kinds)
    exported = str(tmp_path / "exported")
    for suffix, form, quantization in (
        (".keras", "KERAS", "MCTQ"),
        (".keras", "KERAS", "FAKELY_QUANT"),
        (".tflite", "TFLITE", "FAKELY_QUANT"),
    ):
        mct.exporter.keras_export_model(
            finalized,
            f"{exported}-{quantization}{suffix}",
            serialization_format=mct.exporter.KerasExportSerializationFormat[form],
            quantization_format=mct.exporter.QuantizationFormat[quantization],
        )
    again = mct.keras_load_quantized_model(f"{exported}-MCTQ.keras")
    for got, wanted in zip(outputs_of(again), outputs_of(finalized), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    interpreter = tf.lite.Interpreter(f"{exported}-FAKELY_QUANT.tflite")
    assert len(interpreter.get_output_details()) == len(finalized.outputs)


def test_exports_equal_those_of_stock():
    for method in METHODS:
        tpc = platform(method, method)
        for name in ("STE", "LSQ"):
            models = [init(conv_net(), methods[name], tpc) for methods in (STOCK, OURS)]
            finalized = [mct.qat.keras_quantization_aware_training_finalize_experimental(model) for model in models]
            for got, wanted in zip(outputs_of(finalized[1]), outputs_of(finalized[0]), strict=True):
                np.testing.assert_array_equal(got, wanted)


@pytest.mark.filterwarnings("ignore:.*PuLP:DeprecationWarning")  # 2026-11: MCT's solver
@pytest.mark.parametrize("suffix", SAVE_FORMATS)
def test_a_model_of_a_mixed_precision_search_saves_and_loads(suffix, tmp_path):
    core_config = mct.core.CoreConfig(
        mixed_precision_config=mct.core.MixedPrecisionQuantizationConfig(
            num_of_images=4, use_hessian_based_scores=False
        )
    )
    budget = mct.core.ResourceUtilization(weights_memory=conv_net().count_params() * 0.6)
    model = init(conv_net(), OURS.LSQ, get_tpc(), core_config, target_resource_utilization=budget)
    candidates = [
        getattr(quantizer.quantization_config, "weights_bits_candidates", None) for quantizer in quantizers(model)
    ]
    assert any(len(found) > 1 for found in candidates if found)
    fit(model, 10)
    path = str(tmp_path / f"model{suffix}")
    model.save(path)
    loaded = mct.keras_load_quantized_model(path)
    for got, wanted in zip(outputs_of(loaded), outputs_of(model), strict=True):
        np.testing.assert_array_equal(got, wanted)
    for mine, theirs in zip(quantizers(loaded), quantizers(model), strict=True):
        for field, value in vars(theirs.quantization_config).items():
            again = getattr(mine.quantization_config, field)
            if field.endswith("candidates") and value:
                assert [str(vars(candidate)) for candidate in again] == [str(vars(candidate)) for candidate in value]
            else:
                assert str(again) == str(value)


def test_overrides_reach_the_quantizers_and_survive_saving(tmp_path):
    model = init(conv_net(), OURS.LSQ, override={"freeze_quant_params": True, "guard_range": True})
    assert not [variable.name for variable in model.trainable_variables if "threshold" in variable.name]
    model.save(str(tmp_path / "model.keras"))
    loaded = mct.keras_load_quantized_model(str(tmp_path / "model.keras"))
    assert all(quantizer.freeze_quant_params and quantizer.guard_range for quantizer in quantizers(loaded))
    assert not [variable.name for variable in loaded.trainable_variables if "threshold" in variable.name]


@pytest.mark.parametrize("name", ["STE", "LSQ"])
def test_weights_of_tensorflow_s_format_are_restored_whatever_the_layers_are_called(name, tmp_path):
    stock, source, target = (init(multi_output_net(), method) for method in (STOCK[name], OURS[name], OURS[name]))
    for model in (stock, source):
        for variable in model.weights:
            if variable.dtype == tf.float32:
                variable.assign(variable * 1.5)
        # MCT has Keras name the holders: they differ from model to model.
        assert {layer.name for layer in model.layers} != {layer.name for layer in target.layers}
        model.save_weights(tmp_path / "weights")
        target.load_weights(tmp_path / "weights").assert_existing_objects_matched()
        for now, then in zip(target.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(now, then)
    accelerated = accelerate(init(multi_output_net(), STOCK[name]))
    callback = tf.keras.callbacks.ModelCheckpoint(tmp_path / "epoch", save_weights_only=True)
    source.compile("adam", "mse")
    source.fit(*batches(source, 1), verbose=0, callbacks=[callback])
    accelerated.load_weights(tmp_path / "epoch").assert_existing_objects_matched()
    for got, wanted in zip(outputs_of(accelerated), outputs_of(source), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", ["STE", "LSQ"])
def test_models_are_cloned_and_copied(name):
    model = init(conv_net(), OURS[name])
    for twin in (copy.deepcopy(model), tf.keras.models.clone_model(model)):
        assert [type(quantizer) for quantizer in quantizers(twin)] == [type(item) for item in quantizers(model)]
        twin.set_weights(model.get_weights())
        for got, wanted in zip(outputs_of(twin), outputs_of(model), strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", ["STE", "LSQ"])
def test_compiled_by_xla_it_trains_as_without(name):
    plain = fit(init(conv_net(), OURS[name]), 20)
    for methods in (OURS, STOCK):
        # XLA rounds otherwise, and what lies on a tie goes to the other side.
        compiled = fit(init(conv_net(), methods[name]), 20, jit_compile=True)
        np.testing.assert_allclose(compiled, plain, rtol=1e-2)


def test_stock_quantizers_are_found_and_saved_as_before(tmp_path):
    model, _ = trained(conv_net, STOCK.LSQ)
    assert {type(quantizer) for quantizer in quantizers(model)} <= set(QUANTIZERS)
    model.save(str(tmp_path / "model.keras"))
    loaded = mct.keras_load_quantized_model(str(tmp_path / "model.keras"))
    assert {type(quantizer) for quantizer in quantizers(loaded)} <= set(QUANTIZERS)


def test_one_warning_where_no_quantized_kernel_trains():
    float_kernels = init(multi_output_net(), OURS.STE, platform(enable_weights_quantization=False))
    with pytest.warns(UserWarning, match="quantizes activations, but no kernel that trains") as caught:
        fit(float_kernels, 10)
    assert len({str(warning.message) for warning in caught}) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="qatfast")
        fit(init(multi_output_net(), OURS.STE), 10)
        outputs_of(init(multi_output_net(), OURS.STE, platform(enable_weights_quantization=False)))


def test_the_quantizer_of_the_docs_trains_and_is_exported():
    page = (Path(__file__).parent.parent / "docs" / "mct.md").read_text()
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class LearnedThreshold" in block
    ]
    names = {"__name__": "docs"}
    exec(code, names)
    config = mct.qat.QATConfig(names["Mine"].LEARNED, OURS.STE)
    model = init(conv_net(), None, config=config)
    assert names["LearnedThreshold"] in {type(quantizer) for quantizer in quantizers(model)}
    fit(model, 10)
    expected = outputs_of(model)
    finalized = mct.qat.keras_quantization_aware_training_finalize_experimental(model)
    for got, wanted in zip(outputs_of(finalized), expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=0.05)


def test_the_example_trains_2_bit_kernels(tmp_path):
    example = Path(__file__).parent.parent / "examples" / "mct_qat.py"
    run = subprocess.run(
        [sys.executable, str(example), "--output", str(tmp_path)], check=True, capture_output=True, text=True
    )
    float_model, quantized, trained, exported = (float(line.split()[-1]) for line in run.stdout.splitlines())
    assert float_model > 0.9 and trained > max(quantized, 0.9) and abs(exported - trained) <= 0.005
