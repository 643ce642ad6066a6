"""The op library itself: schemas, shape functions, and the checks that stand when nobody calls through Python."""

import numpy as np
import pytest
import tensorflow as tf
from grid import assert_same_bits
from kernel_cases import CASES, _core, draw_case, forward

import qatfast

RAW = qatfast.ops._native


FORWARD = ["fake_quant", "lsq_symmetric", "lsq_uniform"]
BACKWARD = {"fake_quant_grad": 2, "fake_quant_grad_with_range": 2, "lsq_symmetric_grad": 1, "lsq_uniform_grad": 2}


def raw(name):
    return getattr(RAW, f"qatfast_{name}")


@pytest.mark.parametrize("name", [*FORWARD, *BACKWARD, "straight_through_grad"])
def test_documentation_has_the_formula_and_every_argument(name):
    text = raw(name).__doc__
    of_forward = ["mask:", "num_bits:", "x:", "clip(", "y  ", "step" if "lsq" in name else "nudged_min"]
    for word in ["NaN", *(of_forward if name in FORWARD else ["grad_y:", "grad_x "])]:
        assert word in text


def in_graph(op, *shapes, **attributes):
    """Traces `op` on inputs of static shapes: what its shape function says."""
    traced = []
    specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    tf.function(lambda *inputs: traced.append(op(*inputs, **attributes))).get_concrete_function(*specs)
    return traced[0]


def test_shapes_are_inferred():
    per_channel = {"per_channel": True, "axis": 1}
    assert in_graph(RAW.qatfast_fake_quant, [3, None], [None], [None], **per_channel).y.shape.as_list() == [3, None]
    gradients = in_graph(RAW.qatfast_fake_quant_grad_with_range, [3, None], [None, 4], [None], [None], **per_channel)
    assert gradients.grad_x.shape == [3, 4]
    assert in_graph(RAW.qatfast_fake_quant_grad, None, [3, 4], [], []).shape == [3, 4]
    gradients = in_graph(RAW.qatfast_lsq_symmetric_grad, [3, 4], [3, 4], [None], **per_channel)
    assert gradients.grad_threshold.shape.rank == 1
    by_mask = tf.function(RAW.qatfast_straight_through_grad).get_concrete_function(
        tf.zeros([3, 4]), tf.zeros([2], tf.uint8)
    )
    assert by_mask.structured_outputs.shape == [3, 4]


@pytest.mark.parametrize(("shape", "mask_shape"), [([3, 4], [2]), ([0, 3], [0]), ([8], [1]), ([3, None], [None])])
def test_the_mask_has_a_bit_per_element_in_whole_bytes(shape, mask_shape):
    for name in FORWARD:
        parameters = [[]] * (1 if name == "lsq_symmetric" else 2)
        assert in_graph(raw(name), shape, *parameters, save_mask=True).mask.shape.as_list() == mask_shape
        assert in_graph(raw(name), shape, *parameters).mask.shape.as_list() == [0]


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"mask must be of shape \[2\] for grad_y of"):
        RAW.qatfast_straight_through_grad(tf.zeros([3, 4]), tf.zeros([3], tf.uint8))


@pytest.mark.parametrize(("mask", "got"), [([3], r"\[3\]"), ([2, 2], r"\[2,2\]"), ([], r"\[\]")])
def test_a_mask_of_another_shape_is_refused_when_the_graph_is_built(mask, got):
    call = tf.function(lambda grad_y, mask: RAW.qatfast_straight_through_grad(grad_y, mask))
    with pytest.raises(ValueError, match=rf"QatfastStraightThroughGrad: mask must be of shape \[2\] for .*, got {got}"):
        call.get_concrete_function(tf.TensorSpec([3, 4]), tf.TensorSpec(mask, tf.uint8))
    grad_x = call.get_concrete_function(tf.TensorSpec([3, None]), tf.TensorSpec([None], tf.uint8)).structured_outputs
    assert grad_x.shape.as_list() == [3, None]


@pytest.mark.parametrize(("shape", "axis"), [([0, 3, 2**32, 2**31], 1), ([2**31, 0, 2**32, 3], 3)])
def test_an_empty_tensor_may_have_lengths_whose_product_overflows(shape, axis):
    x, high = tf.zeros(shape), tf.ones([3])
    for name, parameters in [("fake_quant_grad_with_range", [-high, high]), ("lsq_symmetric_grad", [high])]:
        grad_x, *sums = raw(name)(x, x, *parameters, per_channel=True, axis=axis)
        assert grad_x.shape == shape
        np.testing.assert_array_equal(sums, np.zeros((len(parameters), 3)))


LSQ_ATTRIBUTE_ERRORS = [
    ({"grad_scale": 0.0}, "grad_scale must be positive and finite, got 0"),
    ({"grad_scale": np.inf}, "grad_scale must be positive and finite, got inf"),
    ({"num_bits": 1}, "num_bits must be from 2 to 16, got 1"),
]


@pytest.mark.parametrize(("attributes", "message"), LSQ_ATTRIBUTE_ERRORS)
def test_bad_attributes_of_lsq_are_named(attributes, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"QatfastLsqSymmetric: {message}"):
        RAW.qatfast_lsq_symmetric(tf.zeros([2]), 1.0, **attributes)
    with pytest.raises(tf.errors.InvalidArgumentError, match="QatfastLsqUniform: min_width must be finite and not neg"):
        RAW.qatfast_lsq_uniform(tf.zeros([2]), -1.0, 1.0, min_width=-1.0)


def test_a_graph_from_before_an_attribute_was_added_runs_as_it_did():
    """As SavedModels hold them: what is not in the file has its default."""
    call = tf.function(lambda x: qatfast.ops.lsq_uniform(x, -1.0, 2.0, grad_scale=0.37))
    graph = call.get_concrete_function(tf.TensorSpec([3])).graph.as_graph_def()
    (node,) = (node for node in graph.node if node.op == "QatfastLsqUniform")
    del node.attr["exact_zero"]
    x = tf.constant([-3.0, 0.1, 5.0])
    imported = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    placeholder = next(op for op in imported.graph.get_operations() if op.type == "Placeholder")
    run = imported.prune(placeholder.outputs[0], imported.graph.get_tensor_by_name(f"{node.name}:0"))
    np.testing.assert_array_equal(run(x), call(x))


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


@pytest.mark.parametrize("name", BACKWARD)
def test_gradient_of_another_shape_than_x_is_refused(name):
    parameters = [1.0, 2.0][: BACKWARD[name]]
    with pytest.raises(ValueError, match="grad_y must be of the shape of x"):
        in_graph(raw(name), [4], [3], *[[] for _ in parameters])
    with pytest.raises(tf.errors.InvalidArgumentError, match="grad_y must be of the shape of x"):
        raw(name)(tf.zeros([4]), tf.zeros([3]), *parameters)


def test_the_channel_with_the_bad_range_is_named():
    low, high = np.full(5, -1, np.float32), np.float32([1, 1, 1, -2, 1])
    with pytest.raises(tf.errors.InvalidArgumentError, match="got min -1 and max -2 in channel 3"):
        RAW.qatfast_fake_quant(tf.zeros([2, 5]), low, high, per_channel=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="the step is a normal number, got -2 in channel 3"):
        RAW.qatfast_lsq_symmetric(tf.zeros([2, 5]), high, per_channel=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="got min -1 and max -2 in channel 3"):
        RAW.qatfast_lsq_uniform(tf.zeros([2, 5]), low, high, per_channel=True)


@pytest.mark.parametrize(("op", "dtype", "shape", "axis"), CASES)
def test_the_ops_are_those_of_the_module_on_arrays(op, dtype, shape, axis):
    _, x, parameters = draw_case(op, dtype, shape, axis)
    expected = forward(qatfast.ops, op, x, parameters, axis=axis)
    assert_same_bits(forward(_core, op, x, parameters, axis=axis), expected)
