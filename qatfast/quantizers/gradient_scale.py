"""By what an LSQ quantizer scales the gradient of its step: 1 / sqrt(count * largest integer)."""

import math

import tensorflow as tf

from qatfast.config import GradientScale

__all__ = ["activation_gradient_scale", "weight_gradient_scale"]


def weight_gradient_scale(counted: GradientScale, largest: int, shape: tuple[int, ...], num_steps: int) -> float:
    """Returns the gradient scale of a weight.

    Args:
        counted: What to count.
        largest: The largest integer of the grid.
        shape: The weight's shape.
        num_steps: Number of its steps: of channels, or 1.
    """
    count = num_steps if counted is GradientScale.CHANNELS else math.prod(shape) // num_steps
    return 1.0 / math.sqrt(count * largest)


def activation_gradient_scale(
    quantizer: str, counted: GradientScale, largest: int, shape: tf.TensorShape
) -> float:  # fmt: skip
    """Returns the gradient scale of an activation.

    Args:
        quantizer: Whose activation, for the error message.
        counted: What to count.
        largest: The largest integer of the grid.
        shape: The activation's static shape.

    Raises:
        ValueError: The shape does not tell what is to be counted.
    """
    axes = "the last axis" if counted is GradientScale.CHANNELS else "all axes but the first"
    features = shape[-1:] if counted is GradientScale.CHANNELS else shape[1:]
    if not shape.rank or not features.is_fully_defined():
        raise ValueError(
            f"{quantizer}: the shape of an activation under {counted} must be known statically on {axes}, got {shape}"
        )
    return 1.0 / math.sqrt(features.num_elements() * largest)
