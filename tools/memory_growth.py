"""What a process keeps of a trace, of a quantized model, and of a save and a load: allocated KiB per repetition.

    python tools/memory_growth.py [--json FILE]

Beside each stands the same of TensorFlow's own op, or of the float model: what they keep is not ours to let go.
"""

import argparse
import ctypes
import gc
import json
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
WARM_UP, TRACES, MODELS = 8, 50, 15
layers = tf.keras.layers


class _MallocInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33 and newer."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def allocated_kib():
    """Memory that is allocated and not freed: resident memory moves with what the heap keeps for reuse."""
    gc.collect()
    mallinfo2 = ctypes.CDLL("libc.so.6").mallinfo2
    mallinfo2.restype = _MallocInfo
    info = mallinfo2()
    return (info.uordblks + info.hblkhd) / 1024


def growth(function, repetitions):
    """KiB that each repetition leaves behind, once everything that is kept for good is there."""
    for _ in range(WARM_UP):
        function()
    before = allocated_kib()
    for _ in range(repetitions):
        function()
    return round((allocated_kib() - before) / repetitions, 1)


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
    model = float_model()
    quantized = qatfast.quantize_model(model, data)

    def save_and_load(model, load):
        with tempfile.TemporaryDirectory() as folder:
            model.save(f"{folder}/model.keras")
            load(f"{folder}/model.keras")

    rows["float model, cloned"] = growth(lambda: tf.keras.models.clone_model(model), MODELS)
    rows["quantize_model"] = growth(lambda: qatfast.quantize_model(model, data), MODELS)
    rows["float model, saved and loaded"] = growth(lambda: save_and_load(model, tf.keras.models.load_model), MODELS)
    rows["quantized model, saved and loaded"] = growth(lambda: save_and_load(quantized, qatfast.load_model), MODELS)
    for name, kib in rows.items():
        print(f"{kib:10.1f} KiB  {name}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"tensorflow": tf.__version__, "kib": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
