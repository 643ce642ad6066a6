"""A training step of MobileNetV2 and of ResNet-50, random weights: in float, on the stock op, on formulas, and on ours.

Graph mode and XLA are timed in turns. Under XLA our ops are plain TensorFlow.
"""

import pytest
import tensorflow as tf
from cases import MODELS
from harness import run_in_turns

from qatfast import TrainingMethod
from qatfast.benchmark.training import SECONDS_PER_STEP, checked_steps, quantized_models, random_batch, variants
from qatfast.flow.select import adapter_of_tf_keras

COMPILED = ["mobilenet_v2"]  # by XLA, without --full: compiling a quantized step takes 20 s


@pytest.mark.parametrize("name", MODELS)
def test_training_step(benchmark, name, settings):
    if name not in settings.models:
        pytest.skip("not among --model")
    build, batch_size = MODELS[name]
    tf.keras.utils.set_random_seed(0)
    model = build()
    batch = random_batch(adapter_of_tf_keras(), model, batch_size)
    methods = [TrainingMethod.STE, TrainingMethod.LSQ]
    wanted = variants(methods)
    if settings.full:
        wanted += variants(methods, xla=True)
    elif name in COMPILED and not settings.quick:
        wanted += variants([TrainingMethod.STE], xla=True)
    quantized = quantized_models(
        model, methods, batch, weight_n_bits=settings.num_bits, activation_n_bits=settings.num_bits
    )
    steps = checked_steps(adapter_of_tf_keras(), model, quantized, batch, wanted)
    benchmark.group = "training step"
    run_in_turns(
        benchmark,
        steps,
        settings,
        main="ours STE",
        seconds_per_run=SECONDS_PER_STEP,
        suite="training step",
        case=name,
        shape=batch[0].shape,
        num_bits=settings.num_bits,
    )
    tf.keras.backend.clear_session()
