"""Training steps of one Keras model: in float, and quantized with everything that computes the same ops.

The quantized steps train one model of `qatfast.quantize_model` per method, with the same variables: only the ops that
its quantizers call differ, and so the losses must agree. The learning rate is 0 while steps are timed, so that no step
sees other weights than the others; the optimizer does all of its work.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from qatfast.benchmark.implementations import FORMULAS, OURS, STOCK, Implementation, computed_by
from qatfast.benchmark.memory import check_fits
from qatfast.config import QATConfig, TrainingMethod
from qatfast.flow.adapter import KerasAdapter
from qatfast.flow.quantization import quantize_model

CHECKED_LEARNING_RATE = 1e-3
BYTES_PER_ELEMENT = 16  # at least, of a batch: float64 noise, the array, and the tensor made of it
LOSS_TOLERANCE = 1e-2  # relative: an element at a tie or at the border of its range may move by a step
SECONDS_PER_STEP = 3.0  # for all rounds of one step together

FLOAT = "float"


class Variant(NamedTuple):
    """A training step to time: in float (no method), or of quantizers of `method` that call `implementation`."""

    method: TrainingMethod | None
    implementation: Implementation | None
    xla: bool

    @property
    def name(self) -> str:
        """'float', 'stock STE', 'ours LSQ', 'ours STE, XLA' and the like."""
        name = FLOAT if self.method is None else f"{self.implementation.name} {self.method.name}"
        return f"{name}, XLA" if self.xla else name


def variants(methods: Sequence[TrainingMethod], xla: bool = False) -> list[Variant]:
    """What there is to compare with: the stock op for STE, the formulas for LSQ."""
    other = {TrainingMethod.STE: STOCK, TrainingMethod.LSQ: FORMULAS}
    quantized = [Variant(method, which, xla) for method in methods for which in (other[method], OURS)]
    return [Variant(None, None, xla), *quantized]


class TrainingStep:
    """A traced function that trains a model for one step of plain gradient descent; calling it returns the loss.

    The loss is the mean square of the model's outputs: it needs no labels, and hardly any time.

    Args:
        keras: The model's Keras.
        model: A Keras model.
        batch: Its inputs.
        implementation: What its quantizers call instead of qatfast's ops; None to leave them alone.
        xla: Whether XLA compiles the whole step.
    """

    def __init__(
        self,
        keras: KerasAdapter,
        model,
        batch: list,
        implementation: Implementation | None = None,
        xla: bool = False,
    ):
        self._batch = [tf.constant(array) for array in batch]
        variables = model.trainable_variables
        optimizer = keras.api.optimizers.SGD(0.0)
        optimizer.build(variables)
        self._learning_rate = optimizer.learning_rate

        @tf.function(jit_compile=xla)
        def step(batch):
            with tf.GradientTape() as tape:
                outputs = tf.nest.flatten(model(batch if len(batch) > 1 else batch[0], training=True))
                loss = tf.add_n([tf.reduce_mean(tf.square(tf.cast(output, tf.float32))) for output in outputs])
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return loss

        if implementation is None:
            step.get_concrete_function(self._batch)
        else:
            with computed_by(implementation):
                step.get_concrete_function(self._batch)
        self._step = step
        self._variables = model.variables

    def __call__(self) -> float:
        """Trains one step."""
        return float(self._step(self._batch))

    def first_losses(self) -> list[float]:
        """The losses before and after one step with a learning rate; all variables come back as they were."""
        before = [variable.numpy() for variable in self._variables]
        self._learning_rate.assign(CHECKED_LEARNING_RATE)
        losses = [self(), self()]
        self._learning_rate.assign(0.0)
        for variable, value in zip(self._variables, before, strict=True):
            variable.assign(value)
        return losses


def quantized_models(model, methods: Sequence[TrainingMethod], batch: list, **config) -> dict:
    """Quantizes a float model once per method, calibrated on `batch`; `config` are fields of `QATConfig`."""
    return {
        method: quantize_model(
            model, [batch], QATConfig(weight_training_method=method, activation_training_method=method, **config)
        )
        for method in methods
    }


def checked_steps(
    keras: KerasAdapter, model, quantized: dict, batch: list, wanted: Sequence[Variant]
) -> dict[str, Callable]:  # fmt: skip
    """Returns the steps to time, by name, all traced.

    Raises:
        ValueError: Steps of one method have other losses, before or after a step, than the first of them.
    """
    steps, losses = {}, {}
    for variant in wanted:
        trained = model if variant.method is None else quantized[variant.method]
        step = TrainingStep(keras, trained, batch, variant.implementation, variant.xla)
        found = step.first_losses()
        first = losses.setdefault(variant.method, found)
        if not np.allclose(found, first, rtol=LOSS_TOLERANCE, atol=0):
            raise ValueError(f"{variant.name}: the first losses must be near {first}, got {found}")
        steps[variant.name] = step
    return steps


def random_batch(
    keras: KerasAdapter, model, batch_size: int, shapes: Sequence[tuple[int, ...]] | None = None
) -> list:  # fmt: skip
    """One array per input: normal noise, or 0 and 1 for an input of integers.

    Args:
        keras: The model's Keras.
        model: The model.
        batch_size: For inputs that leave it open.
        shapes: The inputs' shapes without the batch, in the model's order; None to take the model's own.

    Raises:
        ValueError: A shape is missing, or does not fit the model or in memory; or an input is not of numbers.
    """
    names, inputs = keras.input_names(model), model.inputs
    if shapes and len(shapes) != len(inputs):
        raise ValueError(f"there must be one input shape for each of {', '.join(map(repr, names))}, got {len(shapes)}")
    generator, batch = np.random.default_rng(0), []
    for index, (name, tensor) in enumerate(zip(names, inputs, strict=True)):
        known, dtype = tf.TensorShape(tensor.shape)[1:], tf.as_dtype(tensor.dtype)
        shape = tuple(shapes[index]) if shapes else tuple(known)
        if None in shape:
            raise ValueError(f"the shape of input {name!r} is open, {shape}: give it, without the batch")
        if not known.is_compatible_with(shape):
            raise ValueError(f"the shape of input {name!r} must fit {tuple(known)}, got {shape}")
        if not (dtype.is_floating or dtype.is_integer):
            raise ValueError(f"input {name!r} must be of real numbers, got {dtype.name}")
        size = (tensor.shape[0] or batch_size, *shape)
        check_fits(f"the batch of input {name!r}", size, math.prod(size), BYTES_PER_ELEMENT)
        noise = generator.standard_normal(size) if dtype.is_floating else generator.integers(0, 2, size)
        batch.append(noise.astype(dtype.as_numpy_dtype))
    return batch
