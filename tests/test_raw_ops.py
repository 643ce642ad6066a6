"""The op library itself: schemas, shape functions, and the checks that stand when nobody calls through Python."""

import numpy as np
import pytest
import tensorflow as tf

import qatfast

RAW = qatfast.ops._native


@pytest.mark.parametrize("name", ["fake_quant", "fake_quant_grad", "fake_quant_grad_with_range"])
def test_documentation_has_the_formula_and_every_argument(name):
    text = getattr(RAW, f"qatfast_{name}").__doc__
    for word in ("nudged_min", "NaN", "min:", "max:", "num_bits:") + ("grad_y:", "grad_x") * name.startswith(
        "fake_quant_"
    ):
        assert word in text


def in_graph(op, *shapes, **attributes):
    """Traces `op` on inputs of static shapes: what its shape function says."""
    traced = []
    specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    tf.function(lambda *inputs: traced.append(op(*inputs, **attributes))).get_concrete_function(*specs)
    return traced[0]


def test_shapes_are_inferred():
    per_channel = {"per_channel": True, "axis": 1}
    assert in_graph(RAW.qatfast_fake_quant, [3, None], [None], [None], **per_channel).shape.as_list() == [3, None]
    gradients = in_graph(RAW.qatfast_fake_quant_grad_with_range, [3, None], [None, 4], [None], [None], **per_channel)
    assert gradients.grad_x.shape == [3, 4]
    assert in_graph(RAW.qatfast_fake_quant_grad, None, [3, 4], [], []).shape == [3, 4]


SHAPE_ERRORS = [
    (([3, 4], [1], []), {}, r"QatfastFakeQuant: min must be of shape \[\] for x of shape \[3,4\], got \[1\]"),
    (([3, 4], [], [4]), {}, r"QatfastFakeQuant: max must be of shape \[\] for x of shape \[3,4\], got \[4\]"),
    (
        ([3, 4], [4], [3]),
        {"per_channel": True, "axis": 1},
        r"QatfastFakeQuant: max must be of shape \[4\] for x of shape \[3,4\], got \[3\]",
    ),
    (
        ([3, 4], [4], [4]),
        {"per_channel": True, "axis": 2},
        r"QatfastFakeQuant: axis must be in \[-2, 2\) for x of shape \[3,4\], got 2",
    ),
    (([3, 4], [], []), {"num_bits": 1}, "QatfastFakeQuant: num_bits must be from 2 to 16, got 1"),
]


@pytest.mark.parametrize(("shapes", "attributes", "message"), SHAPE_ERRORS)
def test_wrong_shapes_are_caught_when_the_graph_is_built(shapes, attributes, message):
    with pytest.raises(ValueError, match=message):
        in_graph(RAW.qatfast_fake_quant, *shapes, **attributes)


@pytest.mark.parametrize(("shapes", "attributes", "message"), SHAPE_ERRORS)
def test_wrong_shapes_are_caught_when_the_op_runs(shapes, attributes, message):
    tensors = [tf.zeros(shape) for shape in shapes]
    with pytest.raises(tf.errors.InvalidArgumentError, match=message.split(" for x of shape")[0]):
        RAW.qatfast_fake_quant(*tensors, **attributes)


@pytest.mark.parametrize("op", [RAW.qatfast_fake_quant_grad, RAW.qatfast_fake_quant_grad_with_range])
def test_gradient_of_another_shape_than_x_is_refused(op):
    with pytest.raises(ValueError, match="grad_y must be of the shape of x"):
        in_graph(op, [4], [3], [], [])
    with pytest.raises(tf.errors.InvalidArgumentError, match="grad_y must be of the shape of x"):
        op(tf.zeros([4]), tf.zeros([3]), -1.0, 1.0)


def test_the_channel_with_the_bad_range_is_named():
    low, high = np.full(5, -1, np.float32), np.float32([1, 1, 1, -2, 1])
    with pytest.raises(tf.errors.InvalidArgumentError, match="got min -1 and max -2 in channel 3"):
        RAW.qatfast_fake_quant(tf.zeros([2, 5]), low, high, per_channel=True)
