"""What a process keeps of a trace, of a quantized model, and of a save and a load: resident KiB per repetition.

    python tools/memory_growth.py [--json FILE]

Beside each stands the same of TensorFlow's own op, or of the float model: what they keep is not ours to let go.
"""

import argparse
import gc
import json
import resource
import tempfile
import warnings
from pathlib import Path

import numpy as np
import tensorflow as tf

import qatfast

OPS = {
    "stock fake_quant": (tf.quantization.fake_quant_with_min_max_vars, (-1.0, 1.0)),
    "fake_quant": (qatfast.ops.fake_quant, (-1.0, 1.0)),
    "lsq_symmetric": (qatfast.ops.lsq_symmetric, (1.0,)),
    "lsq_uniform": (qatfast.ops.lsq_uniform, (-1.0, 1.0)),
    "reference fake_quant": (qatfast.reference.fake_quant, (-1.0, 1.0)),
}
WARM_UP, TRACES, MODELS = 30, 300, 40
layers = tf.keras.layers


def resident_kib():
    """Resident memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1024


def growth(function, repetitions):
    """KiB that each repetition leaves behind, once everything that is kept for good is there."""
    for _ in range(WARM_UP if repetitions == TRACES else 5):
        function()
    gc.collect()
    before = resident_kib()
    for _ in range(repetitions):
        function()
    gc.collect()
    return round((resident_kib() - before) / repetitions, 1)


def trace(function, parameters, constant):
    """A new `tf.function` of an output and all of its gradients, run once."""

    @tf.function
    def run(x, *parameters):
        with tf.GradientTape() as tape:
            tape.watch([x, *parameters])
            y = function(x + tf.constant(constant)[0], *parameters)
        return tape.gradient(y, [x, *parameters])

    run(tf.zeros([3]), *map(tf.constant, parameters))


def float_model():
    """Five layers."""
    stack = [layers.Conv2D(4, 3), layers.ReLU(), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(3)]
    return tf.keras.Sequential([tf.keras.Input((8, 8, 3)), *stack])


def main():
    """Measures, and prints a line for each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = {}
    for name, (function, parameters) in OPS.items():
        for size, constant in (
            ("", np.zeros(1, np.float32)),
            (" with a constant of 1 MB", np.zeros(2**18, np.float32)),
        ):
            rows[f"trace of {name}{size}"] = growth(lambda: trace(function, parameters, constant), TRACES)  # noqa: B023
    data = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    quantized = qatfast.quantize_model(float_model(), data)

    def save_and_load(model, load):
        with tempfile.TemporaryDirectory() as folder:
            model.save(f"{folder}/model.keras")
            load(f"{folder}/model.keras")

    rows["float model, cloned and run"] = growth(
        lambda: tf.keras.models.clone_model(float_model()).predict_on_batch(data), MODELS
    )
    rows["quantize_model"] = growth(lambda: qatfast.quantize_model(float_model(), data).predict_on_batch(data), MODELS)
    rows["float model, saved and loaded"] = growth(
        lambda: save_and_load(float_model(), tf.keras.models.load_model), MODELS
    )
    rows["quantized model, saved and loaded"] = growth(lambda: save_and_load(quantized, qatfast.load_model), MODELS)
    for name, kib in rows.items():
        print(f"{kib:10.1f} KiB  {name}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"tensorflow": tf.__version__, "kib": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
