"""Takes models of keras.applications through the whole flow, and prints a table of what came of it.

    python tools/check_applications.py [--models MobileNetV2 ...] [--methods STE LSQ]

Random weights, small inputs, the moving statistics of BatchNormalization adapted to the data, no dropout, whose random
state Keras 3 keeps in no file. Each model is quantized,
trained a step, saved, reloaded in a fresh process and trained a step there and here, finalized, and the finalized model
reloaded where qatfast and mct-quantizers cannot be imported. All differences are the largest absolute ones of outputs,
beside the largest output. The Keras is what tf.keras is. The exit status is 1 if a difference is not 0.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

MODELS = ("MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "ResNet50", "DenseNet121", "ConvNeXtTiny")
SIZE, BATCH, CLASSES = 64, 4, 10
COLUMNS = (
    "model", "method", "kernels quantized", "activations quantized", "reloaded", "a step after reload", "finalized",
    "finalized, without qatfast", "largest output", "seconds",
)  # fmt: skip
# Stands in for packages that must not be there.
BLOCK = """
import sys
for name in ("qatfast", "mct_quantizers"):
    sys.modules[name] = None
"""


def batch(seed):
    """Images as keras.applications take them: float32 from 0 to 255."""
    return np.random.default_rng(seed).uniform(0, 255, (BATCH, SIZE, SIZE, 3)).astype(np.float32)


def make(name):
    """A model with moving statistics of its data, and logits."""
    import tensorflow as tf

    tf.keras.utils.set_random_seed(0)
    options = {"include_top": False, "pooling": "avg"}
    body = getattr(tf.keras.applications, name)(weights=None, input_shape=(SIZE, SIZE, 3), **options)
    model = tf.keras.Model(body.input, tf.keras.layers.Dense(CLASSES, name="logits")(body.output), name=name)
    for layer in model.layers:
        if isinstance(layer, tf.keras.layers.Dropout):
            layer.rate = 0.0
    norms = [layer for layer in model.layers if isinstance(layer, tf.keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(batch(0), training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    return model


def step(model):
    """Trains one step, and returns the outputs before and after."""
    before = model.predict_on_batch(batch(2))
    model.train_on_batch(batch(1), np.arange(BATCH) % CLASSES)
    return before, model.predict_on_batch(batch(2))


def in_fresh_process(code, *arguments):
    """Runs Python code on arguments, in the same environment."""
    folder = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, env=environment, cwd=folder)


RELOAD = """
import sys, numpy as np, qatfast, tensorflow as tf, check_applications
tf.config.experimental.enable_op_determinism()
np.savez(sys.argv[2], *check_applications.step(qatfast.load_model(sys.argv[1])))
"""
RELOAD_FINAL = (
    BLOCK
    + """
import numpy as np, tensorflow as tf, check_applications
np.savez(sys.argv[2], tf.keras.models.load_model(sys.argv[1]).predict_on_batch(check_applications.batch(2)))
"""
)


def check(name, method, folder):
    """The cells of a model's row, and whether all differences are 0."""
    import tensorflow as tf

    import qatfast
    from qatfast.flow.select import adapter_of

    began = time.perf_counter()
    training_method = qatfast.TrainingMethod[method]
    config = qatfast.QATConfig(weight_training_method=training_method, activation_training_method=training_method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that read float
        model = qatfast.quantize_model(make(name), batch(0), config)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf.keras.optimizers.SGD(1e-3, momentum=0.9), loss)
    step(model)
    keras = adapter_of("check", model)
    wrapped = sum(bool(keras.quantized_weights(layer)) for layer in model.layers)
    held = sum(isinstance(layer, keras.holder) for layer in model.layers)

    qatfast.save_model(model, folder / "qat.keras")
    in_fresh_process(RELOAD, folder / "qat.keras", folder / "reloaded.npz")
    before, after = step(model)
    with np.load(folder / "reloaded.npz") as reloaded:
        differences = [np.abs(reloaded["arr_0"] - before).max(), np.abs(reloaded["arr_1"] - after).max()]
    final = qatfast.finalize_model(model)
    differences.append(np.abs(final.predict_on_batch(batch(2)) - after).max())
    qatfast.save_model(final, folder / "final.keras")
    if keras.name == "Keras 3":
        in_fresh_process(RELOAD_FINAL, folder / "final.keras", folder / "final.npz")
        with np.load(folder / "final.npz") as reloaded:
            differences.append(np.abs(reloaded["arr_0"] - after).max())
    cells = [f"{difference:.3g}" for difference in differences] + ["–"] * (4 - len(differences))
    seconds = time.perf_counter() - began
    row = [name, method, wrapped, held, *cells, f"{np.abs(after).max():.3g}", f"{seconds:.0f}"]
    return row, not any(differences)


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, help="names of functions in keras.applications")
    parser.add_argument("--methods", nargs="+", default=("STE", "LSQ"))
    arguments = parser.parse_args()
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    print(f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS), sep="\n", flush=True)
    all_exact = True
    for name in arguments.models:
        for method in arguments.methods:
            with tempfile.TemporaryDirectory() as folder:
                row, is_exact = check(name, method, Path(folder))
            all_exact &= is_exact
            print(f"| {' | '.join(map(str, row))} |", flush=True)
    return 0 if all_exact else 1


if __name__ == "__main__":
    sys.exit(main())
