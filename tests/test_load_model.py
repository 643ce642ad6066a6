"""Loading files of all kinds: damaged, foreign, of classes that are not there, and with code in them."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf
from models import IS_KERAS_3, KERAS, OPERATION_FORMATS, SAVE_FORMATS, dense_net, layers

import qatfast
from qatfast.flow.stored_code import find_code
from qatfast.flow.stored_config import read_stored

ROWS = np.random.default_rng(5).normal(size=(16, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Paths of one QAT model in all formats, by suffix."""
    model = qatfast.quantize_model(dense_net(), ROWS)
    folder = tmp_path_factory.mktemp("saved")
    for suffix in SAVE_FORMATS:
        qatfast.save_model(model, folder / f"model{suffix}")
    return {suffix: folder / f"model{suffix}" for suffix in SAVE_FORMATS}


def write(path, content):
    path.write_bytes(content)
    return path


def zipped(path, **files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"{name}.json", text)
    return path


def truncated(path, source, share=2):
    return write(path, source.read_bytes()[: source.stat().st_size // share])


def weights_alone(path):
    dense_net().save_weights(path)
    return path


def plain_module(path):
    tf.saved_model.save(tf.Module(), str(path))
    return path


def other_hdf5(path):
    with h5py.File(path, "w") as file:
        file["values"] = np.zeros(3)
    return path


def of_version(path, version):
    """A file that says which Keras saved it, and no more."""
    if path.suffix == ".keras":
        return zipped(path, config="{}", metadata=json.dumps({"keras_version": version}))
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"], file.attrs["model_config"] = version, "{}"
    return path


def without_variables(path, source):
    shutil.copytree(source, path)
    for name in (path / "variables").iterdir():
        name.unlink()
    return path


FOREIGN = {
    "text.keras": (lambda p, s: write(p, b"this is no model"), "neither a zip archive nor an HDF5 file"),
    "text.h5": (lambda p, s: write(p, b"this is no model"), "neither a zip archive nor an HDF5 file"),
    "empty.keras": (lambda p, s: write(p, b""), "an empty file"),
    "empty.h5": (lambda p, s: write(p, b""), "an empty file"),
    "zip.keras": (lambda p, s: zipped(p, readme="hello"), "a zip archive without config.json"),
    "zip.h5": (lambda p, s: zipped(p, config="{}"), "name does not end in .keras"),
    "nonsense.keras": (lambda p, s: zipped(p, config="[1, 2"), "Expecting"),
    "other_json.keras": (lambda p, s: zipped(p, config="[1, 2]"), ""),
    "other.h5": (lambda p, s: other_hdf5(p), "an HDF5 file without a model's config"),
    "model.weights.h5": (lambda p, s: weights_alone(p), "an HDF5 file without a model's config"),
    "truncated.keras": (lambda p, s: truncated(p, s[".keras"]), "damaged"),
    "truncated.h5": (lambda p, s: truncated(p, s[".h5"]), "damaged"),
    "folder": (lambda p, s: p.mkdir() or p, "a folder without saved_model.pb"),
    "module": (lambda p, s: plain_module(p), "a SavedModel without metadata of Keras"),
    **({"no_variables": (lambda p, s: without_variables(p, s[""]), "")} if KERAS.saves_folders else {}),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # 2026-11: Keras leaves files open where it fails
@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_is_no_model_is_an_error_that_names_it_and_says_what_it_is(name, saved, tmp_path):
    make, cause = FOREIGN[name]
    path = make(tmp_path / name, saved)
    with pytest.raises(ValueError, match="^load_model: path must be a model that Keras saved, got ") as error:
        qatfast.load_model(path)
    assert repr(str(path)) in str(error.value) and cause in str(error.value)
    assert len(str(error.value)) < 1000 and "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_file_of_a_keras_that_cannot_be_used_here_says_what_to_do(suffix, tmp_path):
    if IS_KERAS_3:
        other, error, message = "2.15.0", ImportError, "a Keras 2 model needs tf.keras to be Keras 2, which TensorFlow"
    elif tf.__version__.startswith("2.15"):
        other, error, message = "3.4.1", ImportError, "a Keras 3 model needs TensorFlow 2.16 or newer"
    else:  # both can be used
        other, error, message = "3.4.1", ValueError, "load_model: path must be a model that Keras saved, got "
    with pytest.raises(error, match=message):
        qatfast.load_model(of_version(tmp_path / f"model{suffix}", other))


@pytest.mark.keras3_only(reason="Keras 2 loads SavedModels")
def test_a_saved_model_that_was_exported_is_an_error_that_says_how_it_loads(saved, tmp_path):
    qatfast.load_model(saved[".keras"]).export(tmp_path / "exported", verbose=False)
    with pytest.raises(ValueError, match=r"exported': a SavedModel .* exported as one by model.export"):
        qatfast.load_model(tmp_path / "exported")


def test_a_path_at_which_nothing_is_and_one_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="^load_model: path must be a file or a folder that exists, got"):
        qatfast.load_model(tmp_path / "none.keras")
    with pytest.raises(TypeError, match="^load_model: path must be a string or a path, got None"):
        qatfast.load_model(None)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_damaged_byte_is_never_silent(suffix, saved, tmp_path):
    content = bytearray(saved[suffix].read_bytes())
    expected = qatfast.load_model(saved[suffix])(ROWS)
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(content), 12):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path = write(tmp_path / f"damaged{suffix}", bytes(damaged))
        try:
            found = qatfast.load_model(path)(ROWS)
        except ValueError as error:
            assert str(path) in str(error)
        else:  # Keras writes no checksums of HDF5 files: a number may have changed
            assert found.shape == expected.shape


# Code in files.

LAMBDAS = {
    "a layer": lambda: layers.Lambda(lambda x: 2 * x, name="doubling"),
    "the output's shape": lambda: layers.Lambda(tf.nn.relu, output_shape=lambda shape: shape, name="doubling"),
    "TimeDistributed": lambda: layers.TimeDistributed(layers.Lambda(lambda x: 2 * x), name="doubling"),
    "a nested model": lambda: tf.keras.Sequential(
        [tf.keras.Input((4, 6)), layers.Lambda(lambda x: 2 * x)], name="doubling"
    ),
    "a cell": lambda: layers.RNN(
        tf.nn.RNNCellResidualWrapper(layers.LSTMCell(6), residual_fn=lambda i, o: i + o), name="doubling"
    ),
}
RUN_MARK = "QATFAST_TEST_RAN"


def model_with(layer):
    x = tf.keras.Input((4, 6))
    return tf.keras.Model(x, layers.Dense(3)(layer(x)))


@pytest.mark.filterwarnings("ignore:.*Lambda layer uses it:UserWarning")
@pytest.mark.parametrize("suffix", SAVE_FORMATS)
@pytest.mark.parametrize("where", LAMBDAS)
def test_a_file_with_a_lambda_is_refused_and_loads_if_allowed(where, suffix, tmp_path):
    if where == "a cell" and not hasattr(tf.nn, "RNNCellResidualWrapper"):
        pytest.skip("no such wrapper in this TensorFlow")
    model = model_with(LAMBDAS[where]())
    path = tmp_path / f"model{suffix}"
    model.save(path)
    with pytest.raises(
        ValueError, match="must be a model without code of its own, got .* with a Python lambda"
    ) as error:
        qatfast.load_model(path)
    assert str(path) in str(error.value) and "safe_mode=False runs it" in str(error.value)
    if where == "a cell" and (suffix != ".h5" or IS_KERAS_3):
        return  # Keras cannot load it: its wrapper of a cell has no weights there
    x = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
    np.testing.assert_allclose(qatfast.load_model(path, safe_mode=False)(x), model(x), rtol=1e-6)


@pytest.mark.parametrize("suffix", SAVE_FORMATS)
def test_nothing_of_the_code_in_a_file_runs(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    mark = layers.Lambda(lambda x: [__import__("os").environ.update(QATFAST_TEST_RAN="yes"), 2 * x][1])
    model_with(mark).save(path)
    os.environ.pop(RUN_MARK, None)
    with pytest.raises(ValueError, match="without code of its own"):
        qatfast.load_model(path)
    assert RUN_MARK not in os.environ
    qatfast.load_model(path, safe_mode=False)
    assert os.environ.pop(RUN_MARK) == "yes"


def test_a_quantized_model_with_a_lambda_trains_on_if_allowed(tmp_path):
    model = tf.keras.Sequential([tf.keras.Input((6,)), layers.Lambda(lambda x: 2 * x), layers.Dense(3)])
    quantized = qatfast.quantize_model(model, ROWS)
    for suffix in SAVE_FORMATS:
        qatfast.save_model(quantized, tmp_path / f"model{suffix}")
        loaded = qatfast.load_model(tmp_path / f"model{suffix}", safe_mode=False)
        np.testing.assert_array_equal(loaded(ROWS), quantized(ROWS))
        with pytest.raises(ValueError, match="with a Python lambda in layer 'lambda"):
            qatfast.load_model(tmp_path / f"model{suffix}")


def call_of(function, *constants, class_name="TFOpLambda"):
    inputs = [["_CONSTANT_VALUE", -1, constant, {}] for constant in constants]
    return {"class_name": class_name, "config": {"name": "op", "function": function}, "inbound_nodes": [inputs]}


UNSAFE_IN_KERAS_2 = [  # whose layers call any function of TensorFlow
    call_of("io.gfile.rmtree", "folder"),
    call_of("io.write_file", "file", "content"),
    call_of("load_library", "lib.so"),
    call_of("keras.models.model_from_json", "{}"),
    call_of("keras.utils.get_file", "x", "http://localhost/x", class_name="SlicingOpLambda"),
    {"class_name": "ClassMethod", "config": {"name": "op", "cls_symbol": "keras.Model", "method_name": "from_config"}},
]
UNSAFE = [
    *(
        pytest.param(config, marks=pytest.mark.keras2_only(reason="no layer calls functions of TensorFlow"))
        for config in UNSAFE_IN_KERAS_2
    ),
    {"class_name": "function", "module": "os", "config": "system", "registered_name": "system"},
    {"class_name": "function", "module": "builtins", "config": "exec", "registered_name": "function"},
    {"class_name": "Popen", "module": "subprocess", "config": {}, "registered_name": "Popen"},
    {
        "class_name": "Lambda",
        "config": {"function": "system", "function_type": "function", "module": "os"},
    },
    {"class_name": "Wrapper", "config": {"name": "w", "layer": {"class_name": "__lambda__", "config": {"value": "x"}}}},
    {"qatfast_type": "enum", "class_name": "function", "module": "os", "config": "system"},
    {"class_name": "function", "module": "keras.utils", "config": "get_file", "registered_name": "get_file"},
    {"class_name": "TFSMLayer", "module": "keras.layers", "config": {"filepath": "folder"}, "registered_name": None},
]


@pytest.mark.parametrize("config", UNSAFE, ids=lambda config: str(config.get("config"))[:40])
def test_functions_that_are_no_operations_on_tensors_are_found(config):
    assert len(find_code(KERAS, [{"layers": [{"config": {"layers": [config]}}]}])) == 1


@pytest.mark.keras2_only(reason="no layer calls functions of TensorFlow")
def test_such_a_function_is_not_called(tmp_path):
    victim = tmp_path / "folder"
    victim.mkdir()
    model = tf.keras.Sequential([tf.keras.Input((6,), name="x"), layers.ReLU(name="relu")])
    model = tf.keras.Model(model.inputs, model.outputs)
    for suffix in (".keras", ".h5"):
        model.save(tmp_path / f"model{suffix}")
        (config,) = [c for c in read_stored(str(tmp_path / f"model{suffix}")).configs if "class_name" in c]
        config["config"]["layers"].append({**call_of("io.gfile.rmtree", str(victim)), "name": "op"})
        path = tmp_path / f"unsafe{suffix}"
        shutil.copy(tmp_path / f"model{suffix}", path)
        if suffix == ".h5":
            with h5py.File(path, "r+") as file:
                file.attrs["model_config"] = json.dumps(config)
        else:
            zipped(path, config=json.dumps(config))
        with pytest.raises(ValueError, match=r"with tf.io.gfile.rmtree in layer 'op'"):
            qatfast.load_model(path)
        assert victim.exists()


def everyday_net():
    return everyday_net_of_keras_3() if IS_KERAS_3 else everyday_net_of_keras_2()


def everyday_net_of_keras_3():
    ops = tf.keras.ops
    x = tf.keras.Input((8, 8, 3))
    y = ops.concatenate([x + 1.0, ops.relu(x), x[:, :, :, :1]], -1)
    y = ops.image.resize(ops.clip(y, -1.0, 1.0), (4, 4)) * ops.cast(ops.shape(y)[1], "float32")
    y = layers.Conv2D(2, 3, activation=ops.silu, kernel_regularizer="l2", kernel_constraint="max_norm")(y)
    y = layers.TimeDistributed(layers.Dense(3))(ops.reshape(y, (-1, 4, 2)))
    return tf.keras.Model(x, ops.mean(layers.Dense(3, "softmax")(y), 1, keepdims=True))


def everyday_net_of_keras_2():
    x = tf.keras.Input((8, 8, 3))
    y = tf.concat([x + 1.0, tf.nn.relu(x), x[:, :, :, :1]], -1)
    y = tf.image.resize(tf.clip_by_value(y, -1.0, 1.0), (4, 4)) * tf.cast(tf.shape(y)[1], tf.float32)
    y = layers.Conv2D(2, 3, activation=tf.nn.silu, kernel_regularizer="l2", kernel_constraint="max_norm")(y)
    y = layers.TimeDistributed(layers.Dense(3))(tf.reshape(y, (-1, 4, 2)))
    return tf.keras.Model(x, tf.math.reduce_mean(layers.Dense(3, "softmax")(y), 1, keepdims=True))


@pytest.mark.parametrize("suffix", OPERATION_FORMATS)
def test_models_of_operations_are_no_code(suffix, tmp_path):
    model = everyday_net()
    model.compile(tf.keras.optimizers.Adam(tf.keras.optimizers.schedules.CosineDecay(0.1, 9)), "mse", ["mae"])
    if IS_KERAS_3:  # which warns of a file without the optimizer's state
        model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / f"model{suffix}")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    loaded = qatfast.load_model(tmp_path / f"model{suffix}")
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-6)


@pytest.mark.keras3_only(reason="Keras 2 has no operations that are no layers")
def test_a_quantizer_called_as_an_operation_of_keras_does_not_take_its_place(tmp_path):
    class Clip(qatfast.quantizers.STEActivationQuantizer):
        pass

    x = tf.keras.Input((6,))
    model = tf.keras.Model(x, tf.keras.ops.clip(x, -1.0, 1.0))
    qatfast.save_model(model, tmp_path / "model.keras")
    np.testing.assert_array_equal(qatfast.load_model(tmp_path / "model.keras")(ROWS), ROWS.clip(-1.0, 1.0))


# Quantizers that are not defined.

WRITER = """
import sys
import numpy as np
import qatfast, my_quantizers
import tensorflow as tf

tf.keras.utils.set_random_seed(1)
model = tf.keras.Sequential([tf.keras.Input((6,)), tf.keras.layers.Dense(5, "relu"), tf.keras.layers.Dense(3)])
config = qatfast.QATConfig(
    weight_training_method=my_quantizers.Mine.LEARNED, activation_training_method=my_quantizers.Mine.LEARNED
)
model = qatfast.quantize_model(model, np.ones((4, 6), np.float32), config)
for suffix in sys.argv[2:]:
    qatfast.save_model(model, sys.argv[1] + "/model" + suffix)
"""
MODULE = """
import enum
from mct_quantizers import QuantizationTarget, mark_quantizer
from qatfast.quantizers import STEActivationQuantizer, STEWeightsQuantizer
from qatfast.quantizers.range_quantizer import METHODS


class Mine(enum.Enum):
    LEARNED = "learned"


@mark_quantizer(quantization_target=QuantizationTarget.Weights, quantization_method=METHODS, identifier=Mine.LEARNED)
class MyWeights(STEWeightsQuantizer):
    pass


@mark_quantizer(quantization_target=QuantizationTarget.Activation, quantization_method=METHODS, identifier=Mine.LEARNED)
class MyActivation(STEActivationQuantizer):
    pass
"""


def test_a_quantizer_that_is_not_defined_is_an_error_that_says_what_to_import(tmp_path, monkeypatch):
    (tmp_path / "my_quantizers.py").write_text(MODULE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path), *SAVE_FORMATS], check=True, env=environment, cwd=tmp_path
    )
    paths = [tmp_path / f"model{suffix}" for suffix in SAVE_FORMATS]
    for path in paths:
        with pytest.raises(ValueError, match="^load_model: the quantizers of a model must be defined") as error:
            qatfast.load_model(path)
        for part in (str(path), "my_quantizers.MyWeights", "my_quantizers.MyActivation", "import my_quantizers first"):
            assert part in str(error.value)
    assert "my_quantizers" not in sys.modules
    monkeypatch.syspath_prepend(tmp_path)
    import my_quantizers

    for path in paths:
        loaded = qatfast.load_model(path)
        assert type(loaded.get_layer("dense").weights_quantizers["kernel"]) is my_quantizers.MyWeights
        qatfast.finalize_model(loaded)


def test_a_class_that_was_renamed_is_passed_in_custom_objects(saved, tmp_path):
    def rename(text):
        return text.replace("STEWeightsQuantizer", "FormerWeightsQuantizer").replace("quantizers.ste", "former")

    path = shutil.copy(saved[".h5"], tmp_path / "renamed.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = rename(file.attrs["model_config"])
    path_of_archive = tmp_path / "renamed.keras"
    with zipfile.ZipFile(saved[".keras"]) as source, zipfile.ZipFile(path_of_archive, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, rename(content.decode()) if name == "config.json" else content)
    objects = {"FormerWeightsQuantizer": qatfast.quantizers.STEWeightsQuantizer}
    for renamed in (path, path_of_archive):
        with pytest.raises(ValueError, match="FormerWeightsQuantizer.*import qatfast.former first, or pass the class"):
            qatfast.load_model(renamed)
        loaded = qatfast.load_model(renamed, custom_objects=objects)
        np.testing.assert_array_equal(loaded(ROWS), qatfast.load_model(saved[".h5"])(ROWS))


def test_a_wrapper_says_that_its_quantizer_is_not_defined(saved):
    config = qatfast.load_model(saved[".keras"]).get_layer("hidden").get_config()
    config["weights_quantizer"]["kernel"] |= {"class_name": "Elsewhere", "registered_name": "a>Elsewhere"}
    error, message = TypeError, "must map names to quantizers, got 'Elsewhere' for 'kernel'"
    if IS_KERAS_3:
        error, message = ValueError, "the class of a quantizer must be defined .*, got .*Elsewhere: import qatfast"
    with pytest.raises(error, match=message):
        qatfast.KerasTrainableQuantizationWrapper.from_config(config)


def test_models_load_where_the_registry_of_keras_was_emptied(saved):
    registry = tf.keras.utils.get_custom_objects()
    kept = dict(registry)
    registry.clear()
    try:
        for path in saved.values():
            qatfast.load_model(path)
    finally:
        registry.update(kept)
