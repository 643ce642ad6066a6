"""Models in files: loading that says what is wrong and runs no code of the file, saving that is never half done."""

import contextlib
import os
import re
import warnings

import tensorflow as tf

from qatfast.flow.replacement import longest_name, recover, replacing
from qatfast.flow.select import adapter_of, adapter_of_version
from qatfast.flow.stored_code import StoredCodeError, find_code
from qatfast.flow.stored_config import read_stored, stored_quantizers
from qatfast.quantizers.base import classes_by_name

__all__ = ["load_model", "save_model"]

_IN_SAVED_MODELS = re.compile(
    r"(saved_model\.pb|keras_metadata\.pb|fingerprint\.pb|debug/saved_model_debug_info\.pb|"
    r"variables/variables\.(index|data-\d+-of-\d+))"
)


def load_model(
    path: str | os.PathLike, custom_objects: dict | None = None, compile: bool = True, safe_mode: bool = True
):  # fmt: skip
    """Loads a QAT model or a finalized model, of the Keras that saved it.

    From a .keras or .h5 file, or of Keras 2 from a SavedModel folder. Quantizers of your own are found if their classes
    are defined: import their module first.

    The optimizer of a .keras file scales the loss if it did when it was saved, whatever the global policy is. An .h5
    file of Keras 2 has no state of such an optimizer.

    Args:
        path: The file or folder.
        custom_objects: Further classes and functions by name, as for `tf.keras.models.load_model`.
        compile: Whether to compile the model as it was when it was saved, with the optimizer's state.
        safe_mode: Whether to refuse a file that holds Python code (a Lambda layer's lambda, in any of the formats),
            names functions that are no operations on tensors, or holds raw operations of TensorFlow as layers, before
            anything of it runs. Of other modules' classes and functions a file may name those that are registered with
            Keras or in `custom_objects`, and nothing is imported. What it does not forbid: a SavedModel holds
            TensorFlow graphs, which run as they are and can read and write files.

    Returns:
        The model; its outputs equal those of the model that was saved.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        ValueError: It is no model that Keras saved, or a damaged one; it holds code and `safe_mode` is set; or a
            class that it names is not defined: the message says which module to import.
    """
    path = _as_text("load_model", path)
    if not tf.io.gfile.exists(path):
        raise FileNotFoundError(f"load_model: path must be a file or a folder that exists, got {path!r}")
    with _naming(path):
        stored = read_stored(path, compile)
    keras = adapter_of_version(stored.keras)
    objects = {**keras.custom_objects(), **(custom_objects or {})}
    objects.update(_registered_quantizers(keras, path, stored.configs, objects))
    if safe_mode and (code := find_code(keras, stored.configs, objects)):
        raise StoredCodeError(
            f"load_model: path must be a model without code of its own, got {path!r} with {', '.join(code)}. Nothing "
            "of it was run; safe_mode=False runs it: only if you trust whoever made the file"
        )
    # Whether `compile` scales the loss is for the model's policy to say, which files do not have.
    scaling = keras.policy_scope("mixed_float16") if stored.scales_loss else contextlib.nullcontext()
    with _naming(path), scaling:
        model = keras.load(path, objects, compile, safe_mode)
    if compile and getattr(model, "optimizer", None) is not None:  # which Keras 3 has of compiled models only
        _warn_of_unscaled_loss(keras, model)
    return model


def save_model(model, path: str | os.PathLike, overwrite: bool = True, **options) -> None:
    """Saves a model such that there is a whole one at `path` at every moment, the earlier one or the new.

    It is written to a hidden folder beside `path`, '.<name>.<...>.partial', synced to the disk, and then put in its
    place by a rename, with the permissions of the earlier one. If the process is killed before that, the earlier model
    is untouched; the folder that is left behind goes with the next save to the same path. An earlier SavedModel folder
    changes places with the new one in one step where the system can do that (Linux, on most file systems). Where it
    cannot, a kill between two renames leaves nothing at `path`, and both models whole in the '.partial' folder; the
    next save first puts the earlier one back.

    Args:
        model: Any Keras model.
        path: A local file that ends in .keras, .h5 or .hdf5; for a Keras 2 model any other name makes a SavedModel
            folder, as in Keras. Folders above it are made if need be. A symbolic link stays, and what it leads to is
            replaced.
        overwrite: Whether to replace what is there.
        **options: As for `tf.keras.Model.save`: `include_optimizer` for .h5 and SavedModel; `signatures`, `options` and
            `save_traces` for SavedModel.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: `path` is empty, of another machine, as 'gs://...', or has too long a name; or the model's Keras
            would save it in this format such that it does not load again.
        FileExistsError: There is something at `path`, and `overwrite` is False; or a file where a folder is to be, or a
            folder where a file is to be; or a folder that holds files that are not of a SavedModel, or that is the
            current one or one above it. Nothing is written then.
        OSError: It cannot be written there. What Keras raises comes through, too. The earlier model is untouched.
    """
    keras = adapter_of("save_model", model)
    path = _as_text("save_model", path)
    if not path or "\0" in path:
        raise ValueError(f"save_model: path must be the name of a file or a folder, got {path!r}")
    if "://" in path:
        raise ValueError(f"save_model: path must be a local one, as what it does rests on renaming, got {path!r}")
    target = os.path.realpath(path)
    recover(target)
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(f"save_model: path must not exist with overwrite=False, got {path!r}")
    if (length := len(os.fsencode(os.path.basename(target)))) > (longest := longest_name(target)):
        raise ValueError(f"save_model: path must have a name of at most {longest} bytes, got {length} in {path!r}")
    if target.endswith(keras.file_suffixes):
        _check_file(path, target)
        keras.check_format(model, os.path.splitext(target)[1])
    elif keras.saves_folders:
        _check_folder(keras, path, target)
    else:
        raise ValueError(
            f"save_model: path must end in one of {', '.join(keras.file_suffixes)} for a {keras.name} model, got "
            f"{path!r}; model.export(path) makes a SavedModel, for inference"
        )
    with replacing(target) as partial:
        keras.save(model, partial, options)


def _check_file(path, target):
    """Raises if a file cannot take the place of what is at `target`, which the user calls `path`."""
    if os.path.lexists(target) and not os.path.isfile(target):
        raise FileExistsError(
            f"save_model: path must not be a folder, nor a device, if its name ends in {target[target.rindex('.') :]}, "
            f"got {path!r}"
        )


def _check_folder(keras, path, target):
    """Raises if a SavedModel cannot take the place of what is at `target`, or something would be lost by that."""
    if not os.path.isdir(target):
        if os.path.lexists(target):
            raise FileExistsError(
                f"save_model: path must end in one of {', '.join(keras.file_suffixes)} to replace a file, as any "
                f"other name makes a folder, got {path!r}"
            )
        return
    with contextlib.suppress(FileNotFoundError):  # where the current folder is no more
        if os.path.commonpath([target, os.path.realpath(os.getcwd())]) == target:
            raise FileExistsError(
                f"save_model: path must not be the current folder, nor one above it, as it is replaced, got {path!r}"
            )
    if others := _other_files(target):
        raise FileExistsError(
            f"save_model: path must not be a folder that holds other files than a SavedModel's, got {path!r} with "
            f"{', '.join(sorted(others)[:5])}"
        )


def _other_files(folder):
    """Names of what is in a folder and is not of the SavedModel there; all, if there is none."""
    if not os.path.isfile(os.path.join(folder, "saved_model.pb")):
        return os.listdir(folder)
    found = []
    for above, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(above, name))]
        found += [os.path.relpath(os.path.join(above, name), folder) for name in files + links]
    found = [name for name in found if not _IN_SAVED_MODELS.fullmatch(name)]
    return set(found) - _named_assets(folder) if found else []


def _named_assets(folder):
    try:
        graphs = tf.__internal__.saved_model.parse_saved_model(folder).meta_graphs
    except OSError:  # a damaged one names nothing
        return set()
    return {f"assets/{asset.filename}" for graph in graphs for asset in graph.asset_file_def}


def _as_text(function, path):
    try:
        return os.fsdecode(path)
    except TypeError:
        raise TypeError(f"{function}: path must be a string or a path, got {path!r}") from None


@contextlib.contextmanager
def _naming(path):
    """Puts the path, and a sentence, before whatever Keras raises on files of another kind."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        cause = " ".join(str(error).split())
        cause = cause if len(cause) <= 500 else f"{cause[:500]}..."
        raise ValueError(f"load_model: path must be a model that Keras saved, got {path!r}: {kind}{cause}") from error


def _registered_quantizers(keras, path, configs, objects):
    """The classes of all quantizers in a file, by the names that Keras registered them under.

    Keras itself takes a quantizer that it does not find for its name, or in a SavedModel for a layer without a class.
    """
    known = classes_by_name() | objects
    found, missing = {}, []
    for class_name, registered_name, full_name in stored_quantizers(configs):
        classes = (keras.registered(name, known) for name in (registered_name, class_name))
        cls = next(filter(None, classes), None)
        if cls is None:
            missing.append(full_name)
        else:
            found[registered_name] = cls
    if missing:
        modules = ", ".join(dict.fromkeys(name.rpartition(".")[0].split(".<locals>")[0] for name in missing))
        raise ValueError(
            f"load_model: the quantizers of a model must be defined before it is loaded, got {path!r} with "
            f"{', '.join(missing)}: import {modules} first, or pass the class in custom_objects"
        )
    return found


def _warn_of_unscaled_loss(keras, model):
    half = [
        layer.name for layer in model.layers if layer.dtype_policy.name == "mixed_float16" and layer.trainable_weights
    ]
    if half and not keras.scales_loss(model.optimizer):
        warnings.warn(
            f"load_model: the optimizer of {model.name!r} does not scale the loss, although layers {half} compute in "
            "float16. If it did when it was saved, load it under the global policy mixed_float16.",
            stacklevel=3,
        )
