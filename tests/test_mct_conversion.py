"""`qatfast.mct.accelerate` and `restore`, and files that go between stock MCT and qatfast."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("model_compression_toolkit")
if tuple(map(int, tf.__version__.split(".")[:2])) > (2, 15):
    pytest.skip("MCT stops at TensorFlow 2.15", allow_module_level=True)

import model_compression_toolkit as mct  # noqa: E402
from mct_models import METHODS, OURS, STOCK, init, multi_output_net, platform, quantizers  # noqa: E402
from models import SAVE_FORMATS, conv_net, dense_net, images, labels  # noqa: E402

import qatfast.mct  # noqa: E402
from qatfast.mct.quantizers import QUANTIZERS  # noqa: E402


def compiled(model):
    model.compile(tf.keras.optimizers.SGD(0.002, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def train(model):
    return model.fit(images(64, 1), labels(64), batch_size=8, epochs=2, shuffle=False, verbose=0).history["loss"]


def kinds(model):
    return {type(quantizer) for quantizer in quantizers(model)}


@pytest.mark.parametrize("name", ["STE", "LSQ"])
def test_a_half_trained_model_goes_on_as_it_would_have(name):
    losses = []
    for change in (lambda model: model, qatfast.mct.accelerate):
        model = compiled(init(conv_net(), STOCK[name]))
        train(model)
        variables, optimizer = model.variables, model.optimizer
        slots = [variable.numpy() for variable in optimizer.variables]
        changed = change(model)
        assert changed is model and model.optimizer is optimizer
        assert all(mine is theirs for mine, theirs in zip(model.variables, variables, strict=True))
        for mine, theirs in zip(optimizer.variables, slots, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        losses.append(train(model))
    assert kinds(model) <= set(QUANTIZERS.values())
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


@pytest.mark.parametrize("name", ["STE", "LSQ"])
@pytest.mark.parametrize("method", METHODS)
def test_restore_undoes_accelerate(name, method):
    model = init(multi_output_net(), STOCK[name], platform(method, method))
    inputs = [images(4), images(4, 1)]
    expected, before = model(inputs), kinds(model)
    assert qatfast.mct.restore(qatfast.mct.accelerate(model)) is model
    assert kinds(model) == before
    for got, wanted in zip(model(inputs), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    mct.qat.keras_quantization_aware_training_finalize_experimental(model)


def test_what_was_traced_is_traced_anew():
    model = compiled(init(conv_net(), STOCK.STE))
    train(model), model.predict(images(), verbose=0), model.evaluate(images(), labels(), verbose=0)
    qatfast.mct.accelerate(model)
    train(model), model.predict(images(), verbose=0), model.evaluate(images(), labels(), verbose=0)
    step = model.make_train_function().get_concrete_function(iter(tf.data.Dataset.from_tensors((images(), labels()))))
    ops = {node.op for node in step.graph.as_graph_def().node}
    ops |= {node.op for function in step.graph.as_graph_def().library.function for node in function.node_def}
    assert "QatfastFakeQuant" in ops and "FakeQuantWithMinMaxVars" not in ops


@pytest.mark.parametrize("suffix", SAVE_FORMATS)
@pytest.mark.parametrize("name", ["STE", "LSQ"])
def test_a_stock_file_is_loaded_and_accelerated(name, suffix, tmp_path):
    # MCT cannot save the Conv2DTranspose of conv_net in a SavedModel.
    stock = init(dense_net(), STOCK[name])
    stock.compile("sgd", "mse")
    x, y = np.random.default_rng(0).random((64, 6)), np.ones((64, 3))
    stock.fit(x, y, verbose=0)
    path = str(tmp_path / f"stock{suffix}")
    stock.save(path)
    loaded = qatfast.mct.accelerate(mct.keras_load_quantized_model(path))
    np.testing.assert_array_equal(loaded(x), stock(x))
    losses = [model.fit(x, y, shuffle=False, verbose=0).history["loss"] for model in (loaded, stock)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["STE", "LSQ"])
def test_weights_go_both_ways(name, method, tmp_path):
    models = [compiled(init(conv_net(), methods[name], platform(method, method))) for methods in (STOCK, OURS)]
    for source, destination in (models, models[::-1]):
        for suffix in (".h5", ".weights", ".keras"):
            train(source)
            path = str(tmp_path / f"{id(source)}{suffix}")
            source.save(path) if suffix == ".keras" else source.save_weights(path)
            loading = destination.load_weights(path)
            if suffix == ".weights":
                loading.expect_partial()
            np.testing.assert_array_equal(destination(images()), source(images()))


WITHOUT_QATFAST = """
import sys
import numpy as np
import model_compression_toolkit as mct
model = mct.keras_load_quantized_model(sys.argv[1])
images = np.load(sys.argv[2])
np.save(sys.argv[3], model(images))
model.fit(images, np.arange(len(images)) % 4, verbose=0)
mct.qat.keras_quantization_aware_training_finalize_experimental(model)
assert "qatfast" not in sys.modules
"""


@pytest.mark.parametrize("suffix", SAVE_FORMATS)
@pytest.mark.parametrize("name", ["STE", "LSQ"])
def test_a_colleague_without_qatfast_loads_what_was_restored(name, suffix, tmp_path):
    model = compiled(init(conv_net(), OURS[name]))
    train(model)
    expected = model(images())
    path, inputs, outputs = (str(tmp_path / file) for file in (f"model{suffix}", "inputs.npy", "outputs.npy"))
    qatfast.mct.restore(model).save(path)
    np.save(inputs, images())
    subprocess.run([sys.executable, "-c", WITHOUT_QATFAST, path, inputs, outputs], check=True, cwd=os.sep)
    np.testing.assert_array_equal(np.load(outputs), expected)


def test_restore_says_what_the_stock_quantizers_do_not_do():
    mended = {"guard_range": True, "gradient_scale": qatfast.mct.GradientScale.ELEMENTS}
    model = qatfast.mct.accelerate(init(conv_net(), STOCK.LSQ), mended, mended)
    assert all(quantizer.guard_range for quantizer in quantizers(model))
    with pytest.warns(UserWarning, match="train as without gradient_scale=.*ELEMENTS.*, guard_range=True"):
        qatfast.mct.restore(model)


def test_a_frozen_range_is_not_restored_and_nothing_is_changed():
    model = init(conv_net(), OURS.LSQ, override={"freeze_quant_params": True})
    with pytest.raises(ValueError, match="restore: freeze_quant_params of Qatfast.* must be False"):
        qatfast.mct.restore(model)
    assert kinds(model) <= set(QUANTIZERS.values())


def test_accelerate_checks_what_it_gets():
    stock = init(conv_net(), STOCK.LSQ)
    before = kinds(stock)
    with pytest.raises(TypeError, match="accelerate: model must be a tf.keras.Model, got str"):
        qatfast.mct.accelerate("model")
    with pytest.raises(ValueError, match="accelerate: model must have MCT's trainable quantizers.* with no quantizer"):
        qatfast.mct.accelerate(conv_net())
    with pytest.raises(ValueError, match=r"must be among \['freeze_quant_params'.*got \['nothing'\]"):
        qatfast.mct.accelerate(stock, {"nothing": 1})
    with pytest.raises(ValueError, match="freeze_quant_params must be False where .* are trained, got True"):
        qatfast.mct.accelerate(stock, {"freeze_quant_params": True})
    assert kinds(stock) == before


def test_accelerating_twice_changes_nothing_more():
    model = qatfast.mct.accelerate(init(conv_net(), STOCK.STE))
    first = quantizers(model)
    assert all(mine is theirs for mine, theirs in zip(quantizers(qatfast.mct.accelerate(model)), first, strict=True))


def test_a_model_without_trained_kernels_is_warned_of():
    model = init(conv_net(), STOCK.STE, platform(enable_weights_quantization=False))
    with pytest.warns(UserWarning, match="no kernel that trains"):
        qatfast.mct.accelerate(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="qatfast")
        qatfast.mct.accelerate(init(conv_net(), STOCK.STE))
