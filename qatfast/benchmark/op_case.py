"""One op on one tensor: its inputs, and functions that run it forward, backward, or both."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from qatfast.benchmark.implementations import Implementation

OPS = ("fake_quant", "lsq_symmetric", "lsq_uniform")
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward_and_backward"
BOTH_WITH_RANGE = "forward_and_backward_with_range"
DIRECTIONS = (FORWARD, BACKWARD, BOTH, BOTH_WITH_RANGE)
GRAPH, XLA, FUSED = "graph", "XLA", "XLA fused"

MAX_RANK = 32  # NumPy's, before version 2
DISTINCT_VALUES = 2**22 - 3  # drawing more takes longer than what is to be timed; odd, so that rows of a matrix differ


@dataclasses.dataclass(frozen=True)
class OpCase:
    """An op, the tensor that it quantizes, and how.

    Args:
        op: A name in `OPS`.
        shape: Of x.
        axis: The channel axis, or None per tensor.
        num_bits: From 2 to 16.
        name: What the tensor is, for people.

    Raises:
        ValueError: An argument is not what it must be.
    """

    op: str
    shape: tuple[int, ...]
    axis: int | None = None
    num_bits: int = 8
    name: str = ""

    def __post_init__(self):
        """Checks what the op itself would not, or too late."""
        if self.op not in OPS:
            raise ValueError(f"op must be one of {', '.join(OPS)}, got {self.op!r}")
        if not 2 <= self.num_bits <= 16:
            raise ValueError(f"num_bits must be an integer from 2 to 16, got {self.num_bits}")
        if not self.shape or not all(size > 0 for size in self.shape):
            raise ValueError(f"shape must be of positive sizes, got {self.shape}")
        if len(self.shape) > MAX_RANK:
            raise ValueError(f"shape must have at most {MAX_RANK} axes, got {len(self.shape)}")
        if self.axis is not None and not -len(self.shape) <= self.axis < len(self.shape):
            raise ValueError(f"axis must be one of shape {self.shape}, or None per tensor, got {self.axis}")

    @property
    def channels(self) -> int:
        """Number of ranges."""
        return 1 if self.axis is None else self.shape[self.axis]

    @property
    def attributes(self) -> dict:
        """Keyword arguments of the op."""
        attributes = {"num_bits": self.num_bits, "axis": self.axis}
        if self.op == "fake_quant":
            return attributes
        return {**attributes, "grad_scale": 1 / math.sqrt((2 ** (self.num_bits - 1) - 1) * self.channels)}  # MCT's

    def parameters(self, dtype: tf.DType) -> list[tf.Tensor]:
        """Threshold, or min and max: 1.5 to 2.5 from zero, so that some of a normal distribution is out of range."""
        generator = np.random.default_rng(1)
        size = () if self.axis is None else (self.channels,)
        ends = [sign * (1.5 + generator.random(size)) for sign in (-1, 1)]
        of_x = tf.float64 if dtype == tf.float64 else tf.float32
        return [tf.constant(end, of_x) for end in (ends[1:] if self.op == "lsq_symmetric" else ends)]

    def sources(self, direction: str) -> slice:
        """Which of (x, *parameters) `direction` computes gradients to: straight-through leaves the range alone."""
        return slice(1) if self.op == "fake_quant" and direction != BOTH_WITH_RANGE else slice(None)

    @property
    def sum_magnitude(self) -> float:
        """The order of the absolute values that one parameter's gradient adds up."""
        return math.prod(self.shape) / self.channels * self.attributes.get("grad_scale", 1.0)


class Run(NamedTuple):
    """A traced function with its arguments: a call returns what the direction computes, in a tuple."""

    function: Callable
    arguments: tuple

    def __call__(self) -> tuple:
        """Runs it."""
        return self.function(*self.arguments)

    def empty(self) -> "Run":
        """A run that is called with the same arguments and computes nothing."""
        return Run(tf.function(lambda *arguments: tf.zeros([])), self.arguments)


def make_run(
    case: OpCase, implementation: Implementation, direction: str, dtype: tf.DType = tf.float32, mode: str = GRAPH
) -> Run:  # fmt: skip
    """Returns a run of `implementation`.

    Args:
        case: The op and its tensor.
        implementation: Whose op.
        direction: A name in `DIRECTIONS`.
        dtype: Of x.
        mode: GRAPH; XLA, where forward and backward are compiled each, as in training another layer lies between them,
            and backward computes from x what it needs; or FUSED, where XLA may make one pass of both.

    Raises:
        ValueError: The implementation has no such op.
    """
    op = getattr(implementation, case.op)
    if op is None:
        raise ValueError(f"{implementation.name} has no {case.op}")
    x, grad_y = normal(case.shape, dtype, 0), normal(case.shape, dtype, 2)
    quantize = functools.partial(op, **case.attributes)
    arguments = (x, *case.parameters(dtype))
    sources = case.sources(direction)

    def train(grad_y, *arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments[sources])
            y = quantize(*arguments)
        return tape.gradient(y, arguments[sources], y if grad_y is None else grad_y)

    if direction == FORWARD:
        return Run(tf.function(lambda *arguments: (quantize(*arguments),), jit_compile=mode != GRAPH), arguments)
    if direction == BACKWARD:
        if mode == GRAPH:
            return _backward(train, grad_y, arguments)
        return Run(tf.function(train, jit_compile=True), (grad_y, *arguments))
    # y stands in for the gradient that comes from above, so that backward waits for forward as in training.
    if mode == XLA:
        forward = tf.function(quantize, jit_compile=True)
        backward = tf.function(train, jit_compile=True)
        return Run(tf.function(lambda *arguments: backward(forward(*arguments), *arguments)), arguments)
    return Run(tf.function(functools.partial(train, None), jit_compile=mode == FUSED), arguments)


def _backward(train, grad_y, arguments):
    """The backward part of a training graph alone.

    What forward keeps for backward (x, or a mask) is computed once, here, and fed. What backward derives from the
    parameters alone is computed by each run, as in training.
    """
    signature = [tf.TensorSpec(value.shape, value.dtype) for value in (grad_y, *arguments)]
    graph = tf.compat.v1.wrap_function(train, signature)
    grad_y_input, x_input, *parameter_inputs = graph.inputs
    kept = _kept_for_backward(graph.outputs, grad_y_input, x_input)
    forward = graph.prune(feeds=[x_input, *parameter_inputs], fetches=kept)
    backward = graph.prune(feeds=[grad_y_input, *kept, *parameter_inputs], fetches=graph.outputs)
    feeds = (grad_y, *forward(*arguments), *arguments[1:])
    return Run(tf.function(lambda *feeds: tuple(backward(*feeds))), feeds)


def _kept_for_backward(outputs, grad_y, x):
    """The tensors that depend on x and not on grad_y, and that ops behind `outputs` read that do depend on grad_y."""
    of_x, of_grad_y = (_dependents(source) for source in (x, grad_y))
    kept, visited, pending = {}, set(), list(outputs)
    while pending:
        value = pending.pop()
        if value.op in of_x and value.op not in of_grad_y:
            kept[value.ref()] = value
        elif value.op not in visited:
            visited.add(value.op)
            pending.extend(value.op.inputs)
    return list(kept.values())


def _dependents(source):
    """The ops of the graph that read `source`, directly or not, and the one that makes it."""
    found = {source.op}
    for op in source.graph.get_operations():  # a graph lists its ops in an order in which they can run
        if any(value.op in found for value in op.inputs):
            found.add(op)
    return found


@functools.lru_cache(maxsize=6)
def normal(shape: tuple[int, ...], dtype: tf.DType, seed: int) -> tf.Tensor:
    """A tensor of the standard normal distribution, the same numbers, rounded, in every dtype; they repeat if many."""
    count = min(math.prod(shape), DISTINCT_VALUES)
    values = np.random.default_rng(seed).standard_normal(count, np.float32)
    return tf.cast(tf.constant(np.resize(values, shape)), dtype)
