"""A training step of MCT's own QAT models, random weights: in float, with its quantizers, and with ours in their place.

One model per training method goes through MCT's init, with the default target platform; `qatfast.mct.accelerate` puts
our quantizers in. So both train the same variables, and their losses must agree. Needs MCT, so TensorFlow 2.15.
"""

import functools
import logging

import pytest
import tensorflow as tf
from cases import MODELS
from harness import run_in_turns

from qatfast.benchmark.training import LOSS_TOLERANCE, SECONDS_PER_STEP, TrainingStep, random_batch
from qatfast.flow.select import adapter_of_tf_keras

METHODS = ("STE", "LSQ")
XLA_TOLERANCE = 0.1  # it rounds convolutions otherwise, which fifty quantized layers make more of


_step = functools.partial(TrainingStep, adapter_of_tf_keras())


def make_realistic(model, batch):
    """Gives a new model activations that do not vanish, which would be quantized to zeros.

    BatchNormalization, which MCT folds into kernels, takes the batch's statistics for the moving ones; a softmax over
    1,000 classes goes.
    """
    model.layers[-1].activation = tf.keras.activations.linear
    norms = [layer for layer in model.layers if isinstance(layer, tf.keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(batch, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def mct_model(model, batch, method):
    """`model` after MCT's init, with MCT's quantizers of this training method."""
    import model_compression_toolkit as mct
    from model_compression_toolkit.trainable_infrastructure import TrainingMethod

    logging.getLogger("Model-Compression-Toolkit").setLevel(logging.ERROR)
    config = mct.qat.QATConfig(TrainingMethod[method], TrainingMethod[method])
    return mct.qat.keras_quantization_aware_training_init_experimental(model, lambda: [batch], qat_config=config)[0]


def traced_steps(model, batch, compiled):
    """Steps in graph mode and, if asked for, compiled by XLA, by what follows the name."""
    return {
        "": _step(model, batch),
        **({", XLA": _step(model, batch, xla=True)} if compiled else {}),
    }


@pytest.mark.parametrize("name", MODELS)
def test_mct_training_step(benchmark, name, settings):
    if name not in settings.models:
        pytest.skip("not among --model")
    if tuple(map(int, tf.__version__.split(".")[:2])) > (2, 15):
        pytest.skip("MCT stops at TensorFlow 2.15")
    pytest.importorskip("model_compression_toolkit")
    import qatfast.mct

    build, batch_size = MODELS[name]
    tf.keras.utils.set_random_seed(0)
    model = build()
    batch = random_batch(adapter_of_tf_keras(), model, batch_size)
    make_realistic(model, batch)
    compiled = not settings.quick
    steps = {f"float{mode}": step for mode, step in traced_steps(model, batch, compiled).items()}
    for method in METHODS:
        quantized = mct_model(model, batch, method)
        of_method = {f"MCT {method}{mode}": step for mode, step in traced_steps(quantized, batch, compiled).items()}
        qatfast.mct.accelerate(quantized)
        of_method |= {f"ours {method}{mode}": step for mode, step in traced_steps(quantized, batch, compiled).items()}
        losses = {step_name: step.first_losses() for step_name, step in of_method.items()}
        stock = losses[f"MCT {method}"]
        assert min(stock) > 0
        for step_name, found in losses.items():
            tolerance = XLA_TOLERANCE if "XLA" in step_name else LOSS_TOLERANCE
            assert found == pytest.approx(stock, rel=tolerance), step_name
        steps |= of_method
    benchmark.group = "MCT training step"
    run_in_turns(
        benchmark,
        steps,
        settings,
        main="ours STE",
        seconds_per_run=SECONDS_PER_STEP,
        suite="MCT training step",
        case=name,
        shape=batch[0].shape,
        num_bits=8,
    )
    tf.keras.backend.clear_session()
