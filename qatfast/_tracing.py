"""What is particular to code that is traced into a graph: XLA, graph optimizers, and how long a gradient is kept."""

import functools
import weakref

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops
from tensorflow.python.eager import record
from tensorflow.python.framework.ops import gradient_registry

__all__ = ["as_runtime_value", "custom_gradient", "is_traced_for_xla"]

# The attribute of a graph that keeps the gradient functions of its custom gradients.
_GRADIENTS = "_qatfast_gradients"


def is_traced_for_xla() -> bool:
    """Returns whether XLA will compile what is being traced."""
    return not tf.executing_eagerly() and tf.__internal__.get_enclosing_xla_context() is not None


def as_runtime_value(value):
    """Hides `value` from graph optimizers, which would divide by a constant by multiplying with its inverse.

    A placeholder with a default is what TensorFlow's may not fold, and a barrier is what XLA may not look through.
    """
    value = tf.stop_gradient(value)
    if is_traced_for_xla():
        # A barrier has no gradient, so none may reach it either.
        return tf.stop_gradient(gen_xla_ops.xla_optimization_barrier([value])[0])
    return tf.raw_ops.PlaceholderWithDefault(input=value, shape=value.shape)


def custom_gradient(function):
    """Returns `tf.custom_gradient(function)`, with two faults mended that it has in a graph.

    TensorFlow registers the gradient function of every traced call under a name of its own, for ever. It refers to
    tensors of the graph, and so keeps the whole graph with its constants. Here the graph keeps the function, the
    registry only a weak reference to the graph, and the name is forgotten with it.

    Accumulators of forward mode take the derivative of what `function` computes for that of the result. Here they do
    not see what it computes.

    Args:
        function: A function of tensors that returns one tensor and its gradient function.
    """
    decorated = tf.custom_gradient(function)

    @functools.wraps(function)
    def call(*tensors):
        if tf.executing_eagerly():
            return decorated(*tensors)
        with record.stop_recording():
            y = decorated(*tensors)
        gradient = _tie_to_graph(y.graph, y.op.get_attr("_gradient_op_type").decode())
        others = [None] * len(tensors)  # the registered function is that of an identity of y and of all inputs
        record.record_operation(
            function.__name__, [y], list(tensors), lambda grad_y: gradient(None, grad_y, *others)[1:]
        )
        return y

    return call


def _tie_to_graph(graph, name):
    """Moves the registered gradient function of this name from TensorFlow's registry to the graph, and returns it."""
    entry = gradient_registry._registry[name]
    gradient = entry["type"]
    if not hasattr(graph, _GRADIENTS):
        setattr(graph, _GRADIENTS, {})
    getattr(graph, _GRADIENTS)[name] = gradient
    reference = weakref.ref(graph)
    entry["type"] = lambda op, *gradients: getattr(reference(), _GRADIENTS)[name](op, *gradients)
    weakref.finalize(graph, gradient_registry._registry.pop, name, None)
    return gradient
