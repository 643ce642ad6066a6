"""The raw ops of the op library by family, and their gradients, which are registered with TensorFlow.

TensorFlow finds a registered gradient by the op's name, wherever the op is: in a graph, on a tape, in forward mode, in
a saved model. What it needs it reads from the op, so that it refers to no graph.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from qatfast import _library
from qatfast.reference import learned_step, straight_through

__all__ = ["FAKE_QUANT", "LSQ_SYMMETRIC", "LSQ_UNIFORM", "Family", "native"]

# The module of raw ops; None where QATFAST_BACKEND=reference asks for plain TensorFlow.
native = _library.load_ops() if _library.backend() == "native" else None


class Family(NamedTuple):
    """The raw ops of one family, by the names of their Python functions, and its formulas in plain TensorFlow.

    `jvp` takes the tangents of x and of the parameters, then x, the parameters, and the attributes by name.
    """

    name: str
    forward: str
    backward: str  # the gradients to x and to every parameter
    backward_to_x: str | None  # the gradient to x alone, where that is less work
    attributes: tuple[str, ...]
    reference: Callable
    jvp: Callable


FAKE_QUANT = Family(
    "fake_quant",
    "qatfast_fake_quant",
    "qatfast_fake_quant_grad_with_range",
    "qatfast_fake_quant_grad",
    ("num_bits", "narrow_range", "include_zero"),
    straight_through.fake_quant,
    straight_through.fake_quant_jvp,
)
LSQ_SYMMETRIC = Family(
    "lsq_symmetric",
    "qatfast_lsq_symmetric",
    "qatfast_lsq_symmetric_grad",
    None,
    ("num_bits", "signed", "grad_scale", "power_of_two", "min_threshold"),
    learned_step.lsq_symmetric,
    learned_step.lsq_symmetric_jvp,
)
LSQ_UNIFORM = Family(
    "lsq_uniform",
    "qatfast_lsq_uniform",
    "qatfast_lsq_uniform_grad",
    None,
    ("num_bits", "grad_scale", "min_width", "exact_zero"),
    learned_step.lsq_uniform,
    learned_step.lsq_uniform_jvp,
)


def gradients(family: Family, parameters_wanted: bool | None, grad_y, x, parameters, mask, attributes) -> list:
    """Returns the gradients to x and to every parameter.

    Args:
        family: The op's family.
        parameters_wanted: Whether somebody reads a gradient to a parameter. If so, one kernel computes all gradients;
            if not, those to parameters are None. None where nobody can tell, in a graph: the gradient to x then comes
            from a kernel of its own, if there is one. An op that nobody reads does not run, and what it alone refers
            to is not kept.
        grad_y: The gradient to the op's output: a tensor, or IndexedSlices, as of an output that `tf.gather` reads.
        x: The op's input.
        parameters: The op's parameters.
        mask: What the forward op saved; None if it saved nothing.
        attributes: The op's attributes: those of the family, per_channel and axis.
    """
    inputs = (tf.convert_to_tensor(grad_y), x, *parameters)
    results = [None] * (1 + len(parameters))
    if parameters_wanted is not False:
        results = list(getattr(native, family.backward)(*inputs, **attributes))
    if parameters_wanted:
        return results
    if mask is not None:
        results[0] = native.qatfast_straight_through_grad(inputs[0], mask)
    elif family.backward_to_x is not None:
        results[0] = getattr(native, family.backward_to_x)(*inputs, **attributes)
    elif results[0] is None:
        results[0] = getattr(native, family.backward)(*inputs, **attributes)[0]
    return results


def _differentiate_forward(family, op, grad_y, _):
    """The gradient of a forward op."""
    x, *parameters = op.inputs
    # A tape tells which gradients nobody reads; an op of a graph does not.
    skipped = getattr(op, "skip_input_indices", None)
    parameters_wanted = None if skipped is None else any(i not in skipped for i in range(1, len(op.inputs)))
    mask = op.outputs[1] if op.get_attr("save_mask") else None
    return gradients(family, parameters_wanted, grad_y, x, parameters, mask, _attributes(family, op))


def _differentiate_backward(family, op, *upstream):
    """The gradient of the op of all gradients, which is linear in grad_y: the transpose, that is the JVP."""
    _, x, *parameters = op.inputs
    attributes = {name: op.get_attr(name) for name in family.attributes}
    axis = op.get_attr("axis") if op.get_attr("per_channel") else None
    tangents = [tf.convert_to_tensor(gradient) for gradient in upstream]
    return [family.jvp(*tangents, x, *parameters, axis=axis, **attributes), *[None] * (1 + len(parameters))]


def _differentiate_backward_to_x(family, op, upstream):
    """The gradient of the op of the gradient to x, which is linear in grad_y by a diagonal matrix: itself."""
    _, x, *parameters = op.inputs
    run = getattr(native, family.backward_to_x)
    grad = run(tf.convert_to_tensor(upstream), x, *parameters, **_attributes(family, op))
    return [grad, *[None] * (1 + len(parameters))]


def _differentiate_straight_through(op, upstream):
    """The gradient of the masked gradient; see `_differentiate_backward_to_x`."""
    return native.qatfast_straight_through_grad(tf.convert_to_tensor(upstream), op.inputs[1]), None


def _attributes(family, op):
    return {name: op.get_attr(name) for name in (*family.attributes, "per_channel", "axis")}


def _register(function_name, gradient, *arguments):
    """Registers the gradient of a raw op, given by the name of its Python function."""
    op_type = "".join(word.capitalize() for word in function_name.split("_"))
    tf.RegisterGradient(op_type)(lambda op, *upstream: gradient(*arguments, op, *upstream))


if native is not None:
    for _family in (FAKE_QUANT, LSQ_SYMMETRIC, LSQ_UNIFORM):
        _register(_family.forward, _differentiate_forward, _family)
        _register(_family.backward, _differentiate_backward, _family)
        if _family.backward_to_x is not None:
            _register(_family.backward_to_x, _differentiate_backward_to_x, _family)
    _register("qatfast_straight_through_grad", _differentiate_straight_through)
