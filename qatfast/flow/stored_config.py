"""The configs that a file of a Keras model holds, read without making anything of them.

Keras has three formats: a .keras file is a zip archive with a config.json; an HDF5 file has the config in an attribute;
a SavedModel folder has one config per layer in keras_metadata.pb.
"""

import io
import json
import os
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import h5py
import tensorflow as tf
from mct_quantizers.common.constants import ACTIVATION_HOLDER_QUANTIZER, WEIGHTS_QUANTIZERS

from qatfast.flow.select import adapter_of_version, tf_keras_version

__all__ = ["StoredModel", "StoredQuantizer", "read_stored", "stored_objects", "stored_quantizers"]


class StoredModel(NamedTuple):
    """What a file or folder holds of a model: the Keras that saved it, 2 or 3, and its configs as JSON data.

    `scales_loss` is whether there is the state of an optimizer that scales the loss, as far as the format tells.
    """

    keras: int
    configs: list
    scales_loss: bool = False


class StoredQuantizer(NamedTuple):
    """A quantizer as a config names it: its class, the name that Keras registered it under, and the full name."""

    class_name: str
    registered_name: str
    full_name: str


def read_stored(path: str, compile: bool = True) -> StoredModel:
    """Returns what there is in a file or folder, and makes nothing of it.

    Args:
        path: The file or folder.
        compile: Whether to include how the models were compiled, with the loss and the optimizer.

    Raises:
        ValueError: It is no model that Keras saved. The message says what it is instead, and goes after the path.
    """
    stored, compilation = _read_saved_model(path) if tf.io.gfile.isdir(path) else _read_file(path)
    if not compile:  # that key alone: elsewhere Keras makes use of the other format's whatever it is told
        for config in filter(lambda item: isinstance(item, dict), stored.configs):
            config.pop(compilation, None)
    return stored


def stored_objects(configs: list) -> Iterator[tuple[dict, str]]:
    """Yields every dict in JSON data, and the name of the layer that it belongs to."""
    pending = [(configs, "")]
    while pending:
        value, layer = pending.pop()
        if isinstance(value, list):
            pending.extend((item, layer) for item in value)
        elif isinstance(value, dict):
            config = value.get("config")
            layer = config["name"] if isinstance(config, dict) and isinstance(config.get("name"), str) else layer
            yield value, layer
            pending.extend((item, layer) for item in value.values())


def stored_quantizers(configs: list) -> list[StoredQuantizer]:
    """Returns the quantizers of all wrappers and holders in JSON data."""
    found = {}
    for value, _ in stored_objects(configs):
        wrapped = value.get(WEIGHTS_QUANTIZERS)
        held = [*(wrapped.values() if isinstance(wrapped, dict) else ()), value.get(ACTIVATION_HOLDER_QUANTIZER)]
        for quantizer in filter(lambda item: isinstance(item, dict) and isinstance(item.get("class_name"), str), held):
            name, config = quantizer["class_name"], quantizer.get("config")
            full_name = config.get("class") if isinstance(config, dict) else None
            full_name = str(full_name or f"{quantizer.get('module')}.{name}")
            found[StoredQuantizer(name, str(quantizer.get("registered_name") or name), full_name)] = None
    return list(found)


def _read_file(path):
    """(the StoredModel, the key in its configs of how a model was compiled)."""
    # TensorFlow's files may be of another machine, but cannot be told to seek before their start, as zipfile does.
    with open(path, "rb") if os.path.exists(path) else tf.io.gfile.GFile(path, "rb") as file:
        if not file.read(1):
            raise ValueError("an empty file")
        if zipfile.is_zipfile(file):
            if not path.endswith(".keras"):
                raise ValueError("a zip archive whose name does not end in .keras, as Keras asks")
            return _read_archive(file)
        return _read_hdf5(file)


def _read_archive(file):
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if "config.json" not in names:
                raise ValueError(f"a zip archive without config.json, with {names[:5]}")
            metadata = json.loads(archive.read("metadata.json")) if "metadata.json" in names else {}
            config = json.loads(archive.read("config.json"))
            scales_loss = _scales_loss(archive) if "model.weights.h5" in names else False
            return StoredModel(_keras_of(metadata.get("keras_version")), [config], scales_loss), "compile_config"
    except (zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(f"a damaged zip archive ({error})") from error


def _read_hdf5(file):
    try:
        with h5py.File(file, "r") as group:
            keras = _keras_of(group.attrs.get("keras_version"))
            stored = {key: group.attrs[key] for key in ("model_config", "training_config") if key in group.attrs}
            if "model_config" not in stored:
                raise ValueError("an HDF5 file without a model's config: of weights alone (save_weights), or of others")
    except OSError as error:
        raise ValueError(
            f"neither a zip archive nor an HDF5 file: damaged, or of another kind ({_first_line(error)})"
        ) from error
    # The training's under its name, as in a SavedModel.
    model, *training = (json.loads(text) for text in stored.values())
    configs = [model, *({"training_config": config} for config in training)]
    return StoredModel(keras, configs), "training_config"


def _read_saved_model(path):
    if not any(tf.io.gfile.exists(os.path.join(path, f"saved_model.{suffix}")) for suffix in ("pb", "pbtxt")):
        raise ValueError("a folder without saved_model.pb: no SavedModel")
    metadata_path = os.path.join(path, "keras_metadata.pb")
    if tf.io.gfile.exists(metadata_path):
        stored = adapter_of_version(2).saved_metadata()
        with tf.io.gfile.GFile(metadata_path, "rb") as file:
            stored.ParseFromString(file.read())
        texts = [node.metadata for node in stored.nodes]
    else:  # before TensorFlow 2.5
        graph = tf.__internal__.saved_model.parse_saved_model(path).meta_graphs[0].object_graph_def
        texts = [node.user_object.metadata for node in graph.nodes if node.user_object.metadata]
    if not texts:
        raise ValueError(
            "a SavedModel without metadata of Keras: not saved as a Keras model, though perhaps exported as one by "
            "model.export(), for inference with tf.saved_model.load()"
        )
    return StoredModel(2, [json.loads(text) for text in texts]), "training_config"


def _scales_loss(archive):
    """Whether there are the weights of an optimizer in another, which is what scaling the loss takes."""
    with h5py.File(io.BytesIO(archive.read("model.weights.h5")), "r") as weights:
        return any("inner_optimizer" in name for name in weights.get("optimizer", ()))


def _keras_of(version: Any) -> int:
    """2 or 3: tf-keras, which is Keras 2, counts as TensorFlow does, from 2.16; if nothing is said, tf.keras'."""
    version = version.decode() if isinstance(version, bytes) else version
    major = version.split(".")[0] if isinstance(version, str) else ""
    if not major.isdigit():
        return tf_keras_version()
    return 3 if int(major) >= 3 else 2


def _first_line(error):
    return str(error).split("\n", 1)[0]
