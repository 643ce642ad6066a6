"""Files made to run code when they are loaded: in all formats they are refused, and nothing of them runs."""

import base64
import json
import marshal
import shutil
import sys
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf
from models import IS_KERAS_3, KERAS, SAVE_FORMATS, layers

import qatfast
from qatfast.flow.stored_code import StoredCodeError, find_code

PACKAGE = layers.Layer.__module__.split(".")[0]
DATA_UTILS = "file_utils" if IS_KERAS_3 else "data_utils"  # which imports os
FUNCTIONAL = f"{PACKAGE}.src.{'models' if IS_KERAS_3 else 'engine'}.functional"
HOLDER = "KerasActivationQuantizationHolder"


def op(function, **names):
    return {"class_name": "TFOpLambda", "config": {"function": function}, **names}


def lambda_layer(**function):
    config = {"function": function, "function_type": "function", "module": None, "output_shape": None}
    config |= {"output_shape_type": "raw", "output_shape_module": None, "arguments": {}}
    return {"class_name": "Lambda", "module": "keras.layers", "registered_name": None, "config": config}


def activation(**function):
    config = {"activation": {"class_name": "function", "config": "run", "registered_name": "run", **function}}
    return {"class_name": "Activation", "module": "keras.layers", "registered_name": None, "config": config}


def foreign_layer():
    return {"class_name": "TFSMLayer", "module": "keras.layers", "registered_name": None}


def wrapped_layer(layer):
    config = {"layer": layer | {"config": layer["config"] | {"name": "inner", "trainable": True, "dtype": "float32"}}}
    return {"class_name": "TimeDistributed", "module": "keras.layers", "registered_name": None, "config": config}


def bytecode(mark):
    """The config of a lambda that makes a file, as Keras writes it."""
    code = compile(f"lambda x: open({str(mark)!r}, 'w') and x", "<lambda>", "eval").co_consts[0]
    stored = base64.b64encode(marshal.dumps(code)).decode()
    return {"code": stored, "defaults": None, "closure": None}


def text(value):
    return base64.b64encode(str(value).encode()).decode()


def debugging(mark):
    urls = {"tensor_name": {"s": text("n:0")}, "debug_urls": {"list": {"s": [text(f"file://{mark}")]}}}
    node = {"name": "n", "op": "DebugIdentity", "input": ["a"], "attr": {"T": {"type": "DT_FLOAT"}, **urls}}
    config = {"node_def": node, "constants": {}}
    return {"class_name": "TensorFlowOpLayer", "module": f"{PACKAGE}.src.engine.base_layer", "config": config}


# What takes the place of a layer in a stored model, and the constant that it is called with, if any.
MAKE = "io.gfile.makedirs"
CORE = f"{PACKAGE}.src.layers.core"
# By layers that call functions of TensorFlow, or hold one of its graphs' nodes.
ATTACKS_OF_KERAS_2 = {
    "the holder's name": lambda mark: (op(MAKE, class_name=HOLDER, registered_name=HOLDER), str(mark)),
    "another class name": lambda mark: (op(MAKE, class_name="Any", registered_name="TFOpLambda"), str(mark)),
    "a qualified name": lambda mark: (op(MAKE, class_name="tf_op_layer.TFOpLambda", module=CORE), str(mark)),
    "a raw op": lambda mark: (op("raw_ops.WriteFile"), str(mark)),
    "an operation of a graph": lambda mark: (debugging(mark), None),
}
ATTACKS_OF_KERAS_3 = {
    "a SavedModel beside it": lambda mark: (
        {**foreign_layer(), "config": {"filepath": str(mark.with_name("saved_model"))}},
        None,
    ),
    "a SavedModel beside it in another layer": lambda mark: (
        wrapped_layer({**foreign_layer(), "config": {"filepath": str(mark.with_name("saved_model"))}}),
        None,
    ),
    "a lambda": lambda mark: (activation(class_name="__lambda__", config=bytecode(mark)), None),
    "a lambda as a Lambda layer's": lambda mark: (
        lambda_layer(class_name="__lambda__", config=bytecode(mark)),
        None,
    ),
    "a function of Keras that loads a model": lambda mark: (
        activation(module="keras.saving", config="load_model", registered_name="load_model"),
        None,
    ),
}
ATTACKS = {
    "a module of a module": lambda mark: (
        lambda_layer(class_name="function", module=f"{PACKAGE}.src.utils.{DATA_UTILS}", config="os.system"),
        f"touch {mark}",
    ),
    "a function of Keras' utilities": lambda mark: (
        lambda_layer(class_name="function", module="keras.utils", config="get_file"),
        str(mark),
    ),
    "a function of a module beside it": lambda mark: (activation(module="beside.evil"), None),
    "a class of a module beside it": lambda mark: (
        {"class_name": "Evil", "module": "beside.evil", "registered_name": None, "config": {}},
        None,
    ),
    **(ATTACKS_OF_KERAS_3 if IS_KERAS_3 else ATTACKS_OF_KERAS_2),
}


def replace_layer(layer, attack, constant):
    """Puts an attack in the place of a layer, of which it keeps the name."""
    replacement = json.loads(json.dumps(attack))
    replacement["config"] |= {"name": "attacked", "trainable": True, "dtype": "float32"}
    layer.update(replacement)
    layer.pop("build_config", None)
    if constant is not None:
        layer["inbound_nodes"] = [["_CONSTANT_VALUE", -1, constant, {}]]


def layer_of(config):
    return next(layer for layer in config["config"]["layers"] if layer["config"]["name"] == "attacked")


def edit(path, attack, constant):
    """Rewrites the config of a saved model, of any format."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            contents = {name: archive.read(name) for name in archive.namelist()}
        config = json.loads(contents["config.json"])
        replace_layer(layer_of(config), attack, constant)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (contents | {"config.json": json.dumps(config)}).items():
                archive.writestr(name, content)
    elif path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            replace_layer(layer_of(config), attack, constant)
            file.attrs["model_config"] = json.dumps(config)
    else:
        stored = KERAS.saved_metadata()
        stored.ParseFromString((path / "keras_metadata.pb").read_bytes())
        for node in stored.nodes:
            metadata = json.loads(node.metadata)
            if metadata.get("class_name") == "Functional":
                replace_layer(layer_of(metadata), attack, constant)
            elif metadata.get("name") == "attacked":
                replace_layer(metadata, attack, None)
                metadata["must_restore_from_config"] = True
            node.metadata = json.dumps(metadata)
        (path / "keras_metadata.pb").write_bytes(stored.SerializeToString())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    x = tf.keras.Input((2,))
    model = tf.keras.Model(x, layers.Activation("linear", name="attacked")(layers.Dense(2)(x)))
    folder = tmp_path_factory.mktemp("saved")
    for suffix in SAVE_FORMATS:
        model.save(folder / f"model{suffix}")
    return folder


@pytest.mark.parametrize("suffix", SAVE_FORMATS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_attack_runs(attack, suffix, saved, tmp_path, monkeypatch):
    mark, path = tmp_path / "mark", tmp_path / f"model{suffix}"
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    source = saved / path.name
    shutil.copytree(source, path) if source.is_dir() else shutil.copy(source, path)
    edit(path, *ATTACKS[attack](mark))
    with pytest.raises(StoredCodeError, match="^load_model: path must be a model without code of its own"):
        qatfast.load_model(path).predict([[1.0, 2.0]], verbose=0)
    assert not mark.exists() and "beside.evil" not in sys.modules


def test_what_another_format_calls_the_compilation_is_read_whatever_compile_is(saved, tmp_path):
    path = shutil.copy(saved / "model.h5", tmp_path / "model.h5")
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config |= {"module": "keras", "registered_name": "Functional"}
        config["compile_config"] = {"loss": {"class_name": "Evil", "module": "beside.evil", "config": {}}}
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(StoredCodeError, match="beside.evil"):
        qatfast.load_model(path, compile=False)


@pytest.mark.keras2_only(reason="its holder stands for Keras' layer that calls functions, too")
def test_the_holder_refuses_a_function_that_is_no_operation_whoever_loads_it():
    from qatfast.flow.keras2_layers import _Holder

    with pytest.raises(ValueError, match=f"^{HOLDER}: function must be an operation on tensors, got 'load_op_library'"):
        _Holder.from_config({"name": "holder", "function": "load_op_library"})


@pytest.mark.parametrize("reference", [
    {"class_name": "function", "module": "builtins", "config": "eval"},
    {"class_name": "function", "module": "tensorflow", "config": "load_library"},
    {"class_name": "function", "module": "tensorflow", "config": "none", "registered_name": "load_library"},
    {"class_name": "function", "module": "beside", "config": 5},
    {"class_name": 5, "module": "beside", "config": {}},
    {"class_name": "__typespec__", "spec_name": 5, "module": "beside", "config": []},
    {"class_name": "function", "module": "keras.models", "config": "load_model"},
    {"class_name": "function", "module": "keras.layers", "config": "deserialize"},
    {"class_name": "function", "module": "qatfast", "config": "save_model"},
    {"class_name": "function", "module": "qatfast.flow.replacement", "config": "replacing"},
    {"class_name": "Path", "module": "qatfast.flow.files", "config": {}, "registered_name": "os"},
    {"class_name": "Random", "module": "random", "config": {}, "registered_name": "Random"},
    {"class_name": "TestCase", "module": "keras_evil", "config": {}, "registered_name": None},
    {"class_name": "__typespec__", "spec_name": "Popen", "module": "subprocess", "config": [], "registered_name": None},
], ids=lambda reference: f"{reference['module']} {reference['config'] or reference['class_name']}")  # fmt: skip
def test_names_that_are_no_part_of_models_are_found(reference):
    (finding,) = find_code(KERAS, [{"config": {"name": "layer", "activation": reference}}])
    assert reference["module"] in finding and "'layer'" in finding


@pytest.mark.parametrize("config", [
    {"class_name": "function", "module": "builtins", "config": "relu", "registered_name": "relu"},
    {"class_name": "function", "module": "builtins", "config": "not_known", "registered_name": "function"},
    {"class_name": "function", "module": "keras.losses", "config": "mean_squared_error"},
    {"class_name": "Functional", "module": FUNCTIONAL, "config": {}},
    {"class_name": "L2", "module": "keras.regularizers", "config": {}},
    {"class_name": "Dense", "module": "keras.layers", "config": {"kernel_type": "lambda", "module": "random"}},
], ids=lambda config: config["class_name"])  # fmt: skip
def test_parts_of_models_are_no_code(config):
    assert find_code(KERAS, [config]) == []


class MyDense(layers.Dense):
    """A layer that nobody registered."""


class MyLoss(tf.keras.losses.Loss):
    """A loss that nobody registered."""

    def call(self, y_true, y_pred):
        return tf.reduce_mean((y_true - y_pred) ** 2, -1)


@tf.keras.utils.register_keras_serializable("tests")
class RegisteredDense(layers.Dense):
    """A layer that Keras knows."""


@tf.keras.utils.register_keras_serializable("tests")
def registered_activation(x):
    return 2 * x


def test_classes_and_functions_that_are_registered_or_passed_load(tmp_path):
    x = tf.keras.Input((4,))
    data = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    for suffix in SAVE_FORMATS:
        path = tmp_path / f"model{suffix}"
        # Keras itself reads functions of one's own from .keras files alone.
        y = RegisteredDense(3, activation=registered_activation if suffix == ".keras" else None)(x)
        model = tf.keras.Model(x, MyDense(5, "relu", kernel_regularizer="l2")(y))
        model.compile("sgd", MyLoss())
        model.save(path)
        for objects, compile in (({"MyDense": MyDense, "MyLoss": MyLoss}, True), ({"MyDense": MyDense}, False)):
            loaded = qatfast.load_model(path, custom_objects=objects, compile=compile)
            np.testing.assert_array_equal(loaded(data), model(data))
    with pytest.raises(
        StoredCodeError, match="MyDense.*neither a part of Keras' models nor registered nor in custom_objects"
    ):
        qatfast.load_model(tmp_path / "model.keras")
