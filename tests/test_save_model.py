"""`save_model`: at every moment there is a whole model at the path."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from models import IS_KERAS_3, SAVE_FORMATS, dense_net, layers, train

import qatfast
from qatfast.flow import replacement

ROWS = np.random.default_rng(5).normal(size=(16, 6)).astype(np.float32)


folders_only = pytest.mark.keras2_only(reason="Keras 3 saves no folders")


@pytest.fixture(scope="module")
def qat_model():
    return train(qatfast.quantize_model(dense_net(), ROWS), ROWS, np.arange(16) % 3)


@pytest.fixture(scope="module")
def other_model():
    model = tf.keras.Sequential([tf.keras.Input((6,)), layers.Dense(2)])
    model.compile(
        tf.keras.optimizers.SGD(), tf.keras.losses.MeanSquaredError()
    )  # by a name, Keras 3 loads no loss from .h5
    return model


def assert_holds(path, model):
    np.testing.assert_array_equal(qatfast.load_model(path)(ROWS), model(ROWS))
    assert not list(Path(path).parent.glob(".*")), "something was left behind"


@pytest.mark.parametrize("suffix", [*SAVE_FORMATS, ".hdf5"])
def test_it_saves_and_replaces_as_keras_would(suffix, qat_model, other_model, tmp_path):
    path = tmp_path / "made" / f"model{suffix}"
    assert qatfast.save_model(other_model, path) is None
    assert_holds(path, other_model)
    qatfast.save_model(qat_model, str(path))
    assert_holds(path, qat_model)
    assert qatfast.load_model(path).optimizer.iterations.numpy() == 1
    assert path.stat().st_mode & 0o777 == (0o755 if suffix == "" else 0o644) & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_name_without_a_folder_is_saved_in_the_current_one(qat_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    qatfast.save_model(qat_model, "model.keras")
    assert_holds("model.keras", qat_model)


@pytest.mark.parametrize("suffix", SAVE_FORMATS)
def test_what_fails_leaves_the_earlier_model_and_nothing_else(suffix, qat_model, tmp_path, monkeypatch):
    path = tmp_path / f"model{suffix}"
    qatfast.save_model(qat_model, path)

    def fail(_):
        raise OSError("no space left")

    monkeypatch.setattr(replacement, "_sync_one", fail)  # when all is written
    with pytest.raises(OSError, match="no space left"):
        qatfast.save_model(dense_net(), path)
    assert_holds(path, qat_model)

    class NoConfig(layers.Layer):
        def get_config(self):
            raise NotImplementedError("this layer cannot be saved")

    model = tf.keras.Sequential([tf.keras.Input((6,)), NoConfig(), layers.Dense(2)])
    if suffix:
        with pytest.raises(NotImplementedError, match="cannot be saved"):
            qatfast.save_model(model, path)
        assert_holds(path, qat_model)


@pytest.mark.parametrize("suffix", SAVE_FORMATS)
def test_a_link_stays_and_what_it_leads_to_is_replaced(suffix, qat_model, other_model, tmp_path):
    target, link = tmp_path / "there" / f"model{suffix}", tmp_path / f"link{suffix}"
    qatfast.save_model(other_model, target)
    link.symlink_to(target)
    qatfast.save_model(qat_model, link)
    assert link.is_symlink()
    assert_holds(target, qat_model)


@folders_only
def test_a_folder_with_other_files_is_not_replaced(qat_model, tmp_path):
    path = tmp_path / "model"
    qatfast.save_model(qat_model, path)
    (path / "labels.txt").write_text("cat, dog")
    with pytest.raises(FileExistsError, match="^save_model: path must not be a folder .*model' with labels.txt"):
        qatfast.save_model(qat_model, path)
    assert_holds(path, qat_model)


def test_without_leave_nothing_is_overwritten(qat_model, other_model, tmp_path):
    for suffix in SAVE_FORMATS:
        path = tmp_path / f"model{suffix}"
        qatfast.save_model(other_model, path, overwrite=False)
        with pytest.raises(FileExistsError, match="^save_model: path must not exist with overwrite=False, got '"):
            qatfast.save_model(qat_model, path, overwrite=False)
        assert_holds(path, other_model)


def test_options_reach_keras(qat_model, tmp_path):
    for suffix in {".h5", ""} & set(SAVE_FORMATS):
        path = tmp_path / f"model{suffix}"
        qatfast.save_model(qat_model, path, include_optimizer=False)
        assert getattr(qatfast.load_model(path, compile=False), "optimizer", None) is None
    with pytest.raises(ValueError, match="include_optimizer"):
        qatfast.save_model(qat_model, tmp_path / "model.keras", include_optimizer=False)
    assert not (tmp_path / "model.keras").exists()


def test_the_optimizer_stays_with_a_model_that_was_saved(tmp_path):
    model = train(dense_net(), ROWS, np.arange(16) % 3)
    for suffix in (".h5", ".keras", ".h5"):
        qatfast.save_model(model, tmp_path / f"model{suffix}")
        optimizer = qatfast.load_model(tmp_path / f"model{suffix}").optimizer
        assert optimizer.get_config() == model.optimizer.get_config() and optimizer.iterations.numpy() == 1


def test_arguments_of_another_kind_are_errors(qat_model, tmp_path):
    with pytest.raises(TypeError, match="^save_model: model must be a Keras model, got <class 'str'>"):
        qatfast.save_model("model", tmp_path / "model.keras")
    with pytest.raises(TypeError, match="^save_model: path must be a string or a path, got 3.5"):
        qatfast.save_model(qat_model, 3.5)
    with pytest.raises(ValueError, match="^save_model: path must be a local one, .* got 'gs://bucket/model.keras'"):
        qatfast.save_model(qat_model, "gs://bucket/model.keras")


def test_folders_change_places_in_one_step_here(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.mkdir()
        (path / path.name).touch()
    assert replacement._exchange(str(first), str(second))
    assert (first / "second").exists() and (second / "first").exists()
    with pytest.raises(OSError, match="No such file"):
        replacement._exchange(str(first), str(tmp_path / "none"))


@folders_only
def test_where_folders_cannot_change_places_the_earlier_one_goes_aside(qat_model, other_model, tmp_path, monkeypatch):
    monkeypatch.setattr(replacement, "_exchange", lambda first, second: False)
    path = tmp_path / "model"
    for model in (other_model, qat_model):
        qatfast.save_model(model, path)
        assert_holds(path, model)
    rename = os.rename

    def fail_at_the_second(source, target):
        if Path(source).name == "model" and Path(target) == path:
            raise OSError("gone")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_at_the_second)
    with pytest.raises(OSError, match="gone"):
        qatfast.save_model(other_model, path)
    assert_holds(path, qat_model)


def test_what_others_are_writing_is_left_alone(qat_model, tmp_path):
    path = tmp_path / "model.keras"
    with replacement.replacing(str(path)) as partial:
        qatfast.save_model(qat_model, path)
        assert Path(partial).parent.exists()
        qat_model.save(partial)
    assert_holds(path, qat_model)


SAVER = """
import sys
import numpy as np
import qatfast

model = qatfast.load_model(sys.argv[1])
for variable in model.trainable_weights:
    variable.assign(2 * variable)
np.save(sys.argv[2], model(np.load(sys.argv[3])))
for line in sys.stdin:
    print("saving", flush=True)
    qatfast.save_model(model, line.strip())
    print("saved", flush=True)
"""


def outputs(path, data):
    return qatfast.load_model(path)(data).numpy()


def test_a_kill_at_any_moment_leaves_a_whole_model(tmp_path):
    # A process that is stopped leaves on the disk what one leaves that is killed at that moment, and can go on.
    x = tf.keras.Input((64,))
    model = tf.keras.Model(x, layers.Dense(3)(layers.Dense(3000, "relu")(x)))
    data = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    model = qatfast.quantize_model(model, data)
    sources = {suffix: tmp_path / f"source{suffix}" for suffix in SAVE_FORMATS}
    for path in sources.values():
        qatfast.save_model(model, path)
    np.save(tmp_path / "data.npy", data)
    arguments = [sources[".keras"], tmp_path / "doubled.npy", tmp_path / "data.npy"]
    process = subprocess.Popen(
        [sys.executable, "-c", SAVER, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip

    def start(path):
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "saving\n"
        return time.monotonic()

    moments = random.Random(0)
    snapshots = []
    try:
        for suffix, source in sources.items():
            path = tmp_path / f"kept{suffix}" / f"model{suffix}"
            begin = start(path)  # the first save also traces, for a SavedModel
            assert process.stdout.readline() == "saved\n"
            duration = time.monotonic() - begin
            for count in range(5):
                shutil.rmtree(path.parent)
                path.parent.mkdir()
                copy(source, path)
                start(path)
                time.sleep(moments.uniform(0, duration))
                process.send_signal(signal.SIGSTOP)
                os.waitpid(process.pid, os.WUNTRACED)
                snapshots.append(copy(path.parent, tmp_path / f"stopped_{count}{suffix}") / path.name)
                process.send_signal(signal.SIGCONT)
                assert process.stdout.readline() == "saved\n"
        start(path)
        time.sleep(duration / 3)
    finally:
        process.kill()
        process.communicate()
    doubled = np.load(tmp_path / "doubled.npy")
    found = [outputs(snapshot, data) for snapshot in [*snapshots, path]]
    is_old = [np.array_equal(output, model(data)) for output in found]
    assert all(old or np.array_equal(output, doubled) for old, output in zip(is_old, found, strict=True))
    assert any(is_old) and not np.array_equal(doubled, model(data))
    interrupted = [snapshot for snapshot in snapshots if list(snapshot.parent.glob(".*.partial"))]
    assert interrupted, "no moment was within a save"
    for snapshot in {snapshot.suffix: snapshot for snapshot in interrupted}.values():
        qatfast.save_model(model, snapshot)
        assert not list(snapshot.parent.glob(".*")), "the next save removes what was left behind"


def copy(source, target):
    return Path(shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target))


# What is at the path already.


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_a_path_that_names_nothing_is_an_error(path, qat_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="^save_model: path must be the name of a file or a folder, got "):
        qatfast.save_model(qat_model, path)
    assert os.listdir(tmp_path) == ["thesis.txt"]


@folders_only
@pytest.mark.parametrize("path", [".", "..", "../..", "../../../model", "link"])
def test_the_current_folder_and_those_above_it_are_not_replaced(path, qat_model, tmp_path, monkeypatch):
    below = tmp_path / "model" / "variables" / "deep"
    qatfast.save_model(qat_model, tmp_path / "model")
    below.mkdir()
    (below / "link").symlink_to(tmp_path / "model")
    monkeypatch.chdir(below)
    with pytest.raises(FileExistsError, match="^save_model: path must not be the current folder, nor one above it, .*"):
        qatfast.save_model(qat_model, path)
    assert_holds(tmp_path / "model", qat_model)
    assert Path.cwd() == below and below.exists()


OTHERS = [
    "assets/vocabulary.txt",
    "variables/notes.txt",
    "debug/log.txt",
    "assets.extra/a.txt",
    "labels.txt",
    ".hidden",
]


@folders_only
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("is_model", [True, False])
def test_files_that_are_not_of_a_saved_model_are_not_lost(is_model, other, qat_model, tmp_path):
    path = tmp_path / "model"
    if is_model:
        qatfast.save_model(qat_model, path)
    (path / other).parent.mkdir(parents=True, exist_ok=True)
    (path / other).write_text("mine")
    named = other if is_model else other.split("/")[0]
    with pytest.raises(FileExistsError, match=f"^save_model: path must not be a folder that holds .* {named}$"):
        qatfast.save_model(qat_model, path)
    assert (path / other).read_text() == "mine"


@folders_only
def test_an_empty_folder_is_replaced_and_so_are_assets_that_the_model_names(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "words.txt").write_text("one\ntwo\n")
    words = tf.keras.Input((1,), dtype=tf.string)
    model = tf.keras.Model(words, layers.StringLookup(vocabulary=str(tmp_path / "words.txt"))(words))
    for _ in range(2):
        qatfast.save_model(model, tmp_path / "model")
        assert [path.name for path in (tmp_path / "model" / "assets").iterdir()] == ["words.txt"]


def test_a_file_does_not_replace_a_folder_nor_a_folder_a_file(qat_model, tmp_path):
    (tmp_path / "folder.keras").mkdir()
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe.h5")
    as_folder = "must end in one of .keras, .h5, .hdf5 to replace a file, as any other name makes a folder, got '"
    no_format = "must end in one of .keras, .h5, .hdf5 for a Keras 3 model, got '"
    for name, words in {
        "folder.keras": "must not be a folder, nor a device, if its name ends in .keras, got '",
        "pipe.h5": "must not be a folder, nor a device, if its name ends in .h5, got '",
        "file": no_format if IS_KERAS_3 else as_folder,
    }.items():
        with pytest.raises(
            ValueError if words == no_format else FileExistsError, match=f"^save_model: path {words}"
        ) as error:
            qatfast.save_model(qat_model, tmp_path / name)
        assert ".partial" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.keras", "pipe.h5"]


@pytest.mark.parametrize("suffix", SAVE_FORMATS)
def test_a_name_may_be_as_long_as_the_message_says(suffix, qat_model, tmp_path):
    longest = replacement.longest_name(str(tmp_path / "new" / "model"))
    with pytest.raises(ValueError, match=f"^save_model: path must have a name of at most {longest} bytes, got 2"):
        qatfast.save_model(qat_model, tmp_path / "new" / ("x" * (longest + 1 - len(suffix)) + suffix))
    assert not (tmp_path / "new").exists()
    path = tmp_path / "new" / ("x" * (longest - len(suffix)) + suffix)
    for _ in range(2):
        qatfast.save_model(qat_model, path)
    assert_holds(path, qat_model)


@pytest.mark.parametrize("suffix", SAVE_FORMATS)
def test_permissions_stay(suffix, qat_model, tmp_path):
    path = tmp_path / f"model{suffix}"
    qatfast.save_model(qat_model, path)
    modes = {path: 0o600}
    if path.is_dir():
        modes = {path: 0o700, path / "variables": 0o750, path / "saved_model.pb": 0o640}
    for part, mode in modes.items():
        part.chmod(mode)
    qatfast.save_model(qat_model, path)
    assert {part: part.stat().st_mode & 0o7777 for part in modes} == modes


@pytest.mark.parametrize("suffix", SAVE_FORMATS)
def test_only_what_a_save_to_the_same_path_left_behind_is_removed(suffix, qat_model, tmp_path):
    m = f"m{suffix}"
    stays = [f".{m}.v2.abcdefgh.partial/{m}.v2", f".{m}.notes.partial/a", f".{m}.notebook.partial/a"]
    stays += [f".{m}xabcdefgh.partial/{m}"]
    goes = [f".{m}.abcdefgh.partial/{m}", f".{m}.a_8bcdef.partial/{m}.earlier"]
    for name in (*stays, *goes):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / m).touch() if suffix else (tmp_path / m).mkdir()
    qatfast.save_model(qat_model, tmp_path / m)
    assert all((tmp_path / name).exists() for name in stays)
    assert not any((tmp_path / name).parent.exists() for name in goes)


@folders_only
@pytest.mark.parametrize("name", ["model", "earlier", "model.earlier"])
def test_an_earlier_model_that_a_killed_process_put_aside_comes_back(name, qat_model, other_model, tmp_path):
    path = tmp_path / name
    partial = tmp_path / f".{name}.abcdefgh.partial"
    qatfast.save_model(qat_model, partial / f"{name}.earlier")
    qatfast.save_model(other_model, partial / name)
    with pytest.raises(FileExistsError, match="must not exist with overwrite=False"):
        qatfast.save_model(other_model, path, overwrite=False)
    assert_holds(path, qat_model)


@pytest.mark.parametrize("name", ["model", "earlier"])
def test_an_incomplete_model_of_a_killed_process_does_not_come_back(name, qat_model, tmp_path):
    (tmp_path / f".{name}.abcdefgh.partial" / name).mkdir(parents=True)
    replacement.recover(str(tmp_path / name))
    assert os.listdir(tmp_path) == []
