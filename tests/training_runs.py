"""A training run in a process of its own, as tests of determinism, resumption and distribution need it.

    python training_runs.py FOLDER [options]

Quantizes a classifier of digits with one training method throughout, trains it, and writes to
FOLDER: losses.jsonl, a line per epoch that ended, over all the runs there were; and at the end of the last epoch
weights.npz, every weight of the model, on every replica where there are several.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

TIMEOUT = 600  # seconds, for a run that hangs
IMAGES, BATCH_SIZE = 320, 32
STEPS_PER_EPOCH = IMAGES // BATCH_SIZE


def start(folder, *options, **environment):
    """Starts a run."""
    folder.mkdir(exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            [sys.executable, __file__, str(folder), *map(str, options)],
            env={**os.environ, **environment}, cwd=folder, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def run(folder, *options, status=0, **environment):
    """Runs to the end, which is that of `status`."""
    process = start(folder, *options, **environment)
    assert process.wait(timeout=TIMEOUT) == status, (folder / "log.txt").read_text()[-5000:]


def losses(folder):
    """Losses by epoch; of an epoch that was run again, the last."""
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    found = {line["epoch"]: line["loss"] for line in lines}
    return [found[epoch] for epoch in sorted(found)]


def weights(folder):
    """The weights at the end, a dict of arrays."""
    import numpy as np

    with np.load(folder / "weights.npz") as file:
        return dict(file)


def make_strategy(name):
    """The distribution strategy, which must come before anything runs."""
    import tensorflow as tf

    if name == "mirrored":
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    if name == "workers":
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()


def train(arguments):
    """Trains, and writes what there is to compare."""
    import qatfast  # before anything uses tf.keras

    # isort: split
    import numpy as np
    import tensorflow as tf
    from models import digits, digits_net

    tf.keras.backend.set_floatx(arguments.floatx)
    tf.keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    strategy = make_strategy(arguments.strategy)
    folder = arguments.folder

    class Watch(tf.keras.callbacks.Callback):
        """Notes losses, and kills the process when its step comes."""

        steps = 0

        def on_train_batch_end(self, batch, logs=None):
            self.steps += 1
            if self.steps == arguments.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        def on_epoch_end(self, epoch, logs=None):
            with (folder / "losses.jsonl").open("a") as file:
                file.write(json.dumps({"epoch": epoch, "loss": logs["loss"]}) + "\n")

    data, digit = digits(IMAGES)
    data = data.astype(arguments.floatx)
    method = qatfast.TrainingMethod[arguments.method]
    config = qatfast.QATConfig(weight_training_method=method, activation_training_method=method)
    with strategy.scope():
        model = qatfast.quantize_model(digits_net(arguments.strategy == "none"), data[:64], config)
        loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(tf.keras.optimizers.SGD(0.02, momentum=0.9), loss)
    dataset = tf.data.Dataset.from_tensor_slices((data, digit)).batch(BATCH_SIZE, drop_remainder=True)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    backup = [tf.keras.callbacks.BackupAndRestore(str(arguments.backup))] if arguments.backup else []
    model.fit(dataset.with_options(options), epochs=arguments.epochs, verbose=0, callbacks=[Watch(), *backup])
    named = {f"{index} {variable.name}": variable for index, variable in enumerate(model.variables)}
    # How Keras names what the optimizer keeps differs where it was made before `fit`, for a backup that is restored.
    named |= {f"{index} optimizer": variable for index, variable in enumerate(model.optimizer.variables)}
    values = {}
    for name, variable in named.items():
        held = variable if isinstance(variable, tf.Variable) else getattr(variable, "value", variable)  # Keras 3's
        for replica, value in enumerate(getattr(held, "values", [held])):
            values[f"{name} {replica}".replace("/", "|")] = value.numpy()
    np.savez(folder / "weights.npz", **values)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", default="LSQ")
    parser.add_argument("--strategy", choices=["none", "single", "mirrored", "workers"], default="none")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--floatx", default="float32", help="type of the data and the weights")
    parser.add_argument("--backup", type=Path, help="folder of BackupAndRestore, which workers share")
    parser.add_argument("--kill-at", type=int, help="step of this process after which it kills itself")
    train(parser.parse_args())
