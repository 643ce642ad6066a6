"""Measures, in a process of its own, the peak memory of training through a chain of quantized activations.

`python memory_chain.py NAME` prints a JSON object: the bytes per element and layer that forward keeps for backward.

Each layer adds a number, which needs nothing for its gradient, and quantizes. A long and a short chain run on the same
tensor: what their peaks differ by, per layer and element, is what a layer keeps. All that both need cancels out, as do
TensorFlow and Python.
"""

import argparse
import json
import os
from pathlib import Path

# TensorFlow's allocator for oneDNN keeps what is freed, and glibc's keeps what is smaller than anything freed before.
# With these two settings, both read at the start of a process, memory goes back to the system when it is freed, and
# the peak is that of what is alive.
ENVIRONMENT = {"TF_ENABLE_ONEDNN_OPTS": "0", "MALLOC_MMAP_THRESHOLD_": str(2**16)}

SHORT, LONG = 4, 20


def chain(name, layers):
    """A graph of forward and backward, of any number of elements; nothing large comes out of it."""
    import tensorflow as tf

    from qatfast.benchmark.implementations import FORMULAS, OURS, STOCK
    from qatfast.benchmark.op_case import BOTH, OpCase

    which, op = name.split()
    quantize = getattr({"ours": OURS, "stock": STOCK, "formulas": FORMULAS}[which], op)
    case = OpCase(op, (1,))
    parameters = [tf.Variable(parameter) for parameter in case.parameters(tf.float32)]

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def train(x):
        sources = [x, *parameters][case.sources(BOTH)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            y = x
            for _ in range(layers):
                y = quantize(y + 0.01, *parameters, **case.attributes)
            loss = tf.reduce_mean(tf.square(y))
        return tf.add_n([tf.reduce_sum(gradient) for gradient in tape.gradient(loss, sources)])

    return train


def peak_kibibytes():
    """The largest resident memory that this process had so far."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def main():
    """Measures the variant that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="which implementation of which op: 'ours fake_quant'")
    parser.add_argument("--elements", type=int, default=2**22)
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        parser.error(f"the environment must have {ENVIRONMENT}")
    import tensorflow as tf

    chains = {layers: chain(arguments.name, layers) for layers in (SHORT, LONG)}
    small, large = tf.zeros([1000]), tf.random.normal([arguments.elements])
    peaks = {}
    for train in [*chains.values(), *chains.values()]:  # traced, and everything made that is made once
        train(small)
    before = peak_kibibytes()
    for layers, train in chains.items():  # the short one first, as peaks only rise
        train(large).numpy()
        peaks[layers] = 1024 * (peak_kibibytes() - before)
    kept = (peaks[LONG] - peaks[SHORT]) / ((LONG - SHORT) * arguments.elements)
    print(json.dumps({"bytes_per_element": kept, "peak_bytes": {str(key): value for key, value in peaks.items()}}))


if __name__ == "__main__":
    main()
