"""What is measured: tensors, of 64 MiB in float32 where no model's own size stands behind a case, and models."""

import tensorflow as tf

from qatfast.benchmark.op_case import BACKWARD, BOTH, BOTH_WITH_RANGE, FORWARD, OpCase

CASES = {
    "dense per tensor": ((4096, 4096), None),
    "dense, last axis": ((4096, 4096), 1),
    "dense, first axis": ((4096, 4096), 0),
    "middle axis": ((64, 512, 512), 1),
    "large depthwise": ((31, 31, 17408, 1), 2),  # RepLKNet's kernels are 31x31, of fewer channels
    "depthwise": ((3, 3, 1024, 1), 2),
    "conv HWIO": ((3, 3, 512, 512), 3),
    "embedding": ((30522, 768), 0),  # BERT's vocabulary
}
LSQ_CASES = {**CASES, "activation": ((16, 112, 112, 64), None)}  # 12.8 million elements
QUICK = ("dense per tensor", "dense, last axis", "depthwise")
# What builds a model, and the batch size.
MODELS = {
    "mobilenet_v2": (lambda: tf.keras.applications.MobileNetV2(input_shape=(96, 96, 3), weights=None), 16),
    "resnet_50": (lambda: tf.keras.applications.ResNet50(input_shape=(64, 64, 3), weights=None), 8),
}
QUICK_MODELS = ("mobilenet_v2",)
# With gradients to min and max too, which a straight-through quantizer does not ask for.
RANGE_CASES = ("dense per tensor", "dense, last axis")


def op_cases(ops: tuple[str, ...], settings) -> list[tuple[OpCase, str]]:
    """(case, direction) for every measurement of `ops`; all of one tensor come together, and share its numbers."""
    named = CASES if ops == ("fake_quant",) else LSQ_CASES
    if settings.shapes:
        named = {f"{list(shape)}, axis {axis}": (shape, axis) for shape in settings.shapes for axis in settings.axes}
    elif settings.quick:
        named = {name: named[name] for name in QUICK}
    pairs = []
    for name, (shape, axis) in named.items():
        for op in ops:
            directions = [FORWARD, BACKWARD, BOTH]
            if op == "fake_quant" and (settings.shapes or name in RANGE_CASES):
                directions.append(BOTH_WITH_RANGE)
            case = OpCase(op, shape, axis, settings.num_bits, name)
            pairs += [(case, direction) for direction in directions if direction in settings.directions]
    return pairs
