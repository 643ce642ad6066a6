"""`fake_quant` of both backends against TensorFlow's own ops."""

import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf
from grid import LAYOUTS, along_axis, assert_same_bits, assert_sums_close, draw_inputs, draw_ranges, number_of_channels
from hypothesis import given
from hypothesis import strategies as st

import qatfast


def stock_fake_quant(x, min, max, *, num_bits=8, narrow_range=False, axis=None, include_zero=False):
    """The same through TensorFlow's ops: channels moved to the last axis, the range adjusted as MCT does."""
    if include_zero:
        min, max = adjust_range_to_include_zero(np.asarray(min), np.asarray(max), num_bits, narrow_range)
    attributes = {"num_bits": num_bits, "narrow_range": narrow_range}
    if axis is None:
        return tf.quantization.fake_quant_with_min_max_vars(x, min, max, **attributes)
    order = [i for i in range(len(x.shape)) if i != axis % len(x.shape)] + [axis % len(x.shape)]
    y = tf.quantization.fake_quant_with_min_max_vars_per_channel(tf.transpose(x, order), min, max, **attributes)
    return tf.transpose(y, np.argsort(order))


def adjust_range_to_include_zero(min, max, num_bits, narrow_range=False):
    """The float32 formula of MCT, for ranges that are not (0, 0)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = (max - min) / np.float32(2**num_bits - 1 - int(narrow_range))
        on_grid = scale * np.round(min / scale)
        low = np.where(min > 0, np.float32(0), np.where(max < 0, min, on_grid))
        high = np.where(max < 0, np.float32(0), np.where(min > 0, max, max - min + on_grid))
    is_zero = (min == 0) & (max == 0)
    return np.where(is_zero, np.float32(0), low), np.where(is_zero, np.float32(0), high)


def forward_and_gradients(function, x, min, max, grad_y, **attributes):
    """y, grad_x, grad_min and grad_max as NumPy arrays."""
    x, min, max = (tf.constant(value) for value in (x, min, max))
    with tf.GradientTape() as tape:
        tape.watch([x, min, max])
        y = function(x, min, max, **attributes)
    gradients = tape.gradient(y, [x, min, max], tf.constant(grad_y))
    return [value.numpy() for value in (y, *gradients)]


def exact_range_gradients(x, grad_x, grad_y, is_zero, axis):
    """Sums in float64 of the gradients that did not pass. Zero is on the grid, so below means negative."""
    passed = np.logical_or(grad_x != 0, is_zero)
    others = None if axis is None else tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    blocked = np.where(np.isnan(x) | passed, 0, grad_y).astype(np.float64)
    below, above = np.where(x < 0, blocked, 0), np.where(x > 0, blocked, 0)
    return np.sum(below, axis=others), np.sum(above, axis=others), np.sum(np.abs(blocked), axis=others)


def draw_case(seed, shape, axis, num_bits):
    rng = np.random.default_rng(seed)
    min, max = draw_ranges(rng, number_of_channels(shape, axis))
    x = draw_inputs(rng, shape, min, max, num_bits, axis)
    grad_y = np.asarray(rng.normal(size=shape) + 3 * rng.choice([-1, 1], size=shape), np.float32)
    return x, min, max, grad_y


def check_against_stock(function, x, min, max, grad_y, **attributes):
    axis = attributes.get("axis")
    y, grad_x, grad_min, grad_max = forward_and_gradients(function, x, min, max, grad_y, **attributes)
    if x.size == 0:
        assert y.shape == x.shape and grad_x.shape == x.shape
        np.testing.assert_array_equal(grad_min, np.zeros_like(min))
        np.testing.assert_array_equal(grad_max, np.zeros_like(max))
        return
    x_tensor = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x_tensor)
        stock_y = stock_fake_quant(x_tensor, min, max, **attributes)
    stock_grad_x = tape.gradient(stock_y, x_tensor, tf.constant(grad_y)).numpy()
    assert_same_bits(y, stock_y)
    np.testing.assert_array_equal(grad_x, stock_grad_x)
    if not attributes.get("include_zero"):
        is_zero = along_axis((min == 0) & (max == 0), x.ndim, axis)
        below, above, magnitude = exact_range_gradients(x, stock_grad_x, grad_y, is_zero, axis)
        assert_sums_close(grad_min, below, magnitude)
        assert_sums_close(grad_max, above, magnitude)


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
def test_equals_the_stock_op_bit_for_bit(fake_quant, shape, axis, num_bits):
    for seed, narrow_range in enumerate([False, True]):
        case = draw_case(seed, shape, axis, num_bits)
        check_against_stock(fake_quant, *case, num_bits=num_bits, narrow_range=narrow_range, axis=axis)


@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
def test_include_zero_equals_mct_adjustment_then_stock_op(fake_quant, shape, axis):
    for num_bits in (2, 8):
        case = draw_case(num_bits, shape, axis, num_bits)
        check_against_stock(fake_quant, *case, num_bits=num_bits, axis=axis, include_zero=True)


@st.composite
def cases(draw):
    """A shape of any rank, an axis or none, ranges over many magnitudes, and attributes."""
    shape = tuple(draw(st.lists(st.integers(0, 9), max_size=4)))
    if shape and draw(st.booleans()):
        shape = (*shape[:-1], draw(st.integers(60, 70) | st.integers(2044, 2052)))
    axis = draw(st.none() | st.integers(-len(shape), len(shape) - 1)) if shape else None
    attributes = {
        "num_bits": draw(st.integers(2, 16)),
        "narrow_range": draw(st.booleans()),
        "include_zero": draw(st.booleans()),
        "axis": axis,
    }
    x, min, max, grad_y = draw_case(draw(st.integers(0, 2**32 - 1)), shape, axis, attributes["num_bits"])
    magnitude = np.float32(2.0 ** draw(st.integers(-60, 60)))
    with np.errstate(over="ignore"):
        return (x * magnitude, min * magnitude, max * magnitude, grad_y), attributes


@given(cases())
def test_any_native_case_equals_the_stock_op(case):
    tensors, attributes = case
    check_against_stock(qatfast.ops.fake_quant, *tensors, **attributes)


@given(cases())
def test_any_native_case_equals_the_reference(case):
    (x, min, max, grad_y), attributes = case
    native = forward_and_gradients(qatfast.ops.fake_quant, x, min, max, grad_y, **attributes)
    reference = forward_and_gradients(qatfast.reference.fake_quant, x, min, max, grad_y, **attributes)
    assert_same_bits(native[0], reference[0])
    np.testing.assert_array_equal(native[1], reference[1])
    magnitude = np.abs(grad_y).sum(dtype=np.float64)
    for actual, expected in zip(native[2:], reference[2:], strict=True):
        assert_sums_close(actual, expected.astype(np.float64), magnitude)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_include_zero_gradients_follow_the_chain_rule_of_mct(fake_quant, axis):
    x, min, max, grad_y = draw_case(5, (40, 40), axis, 4)

    def composed(x, min, max, **attributes):
        # MCT's adjustment in differentiable TensorFlow, then the op on the adjusted range.
        scale = (max - min) / 15.0
        on_grid = scale * tf.stop_gradient(tf.round(min / tf.where(scale > 0, scale, 1.0)))
        low = tf.where(min > 0, tf.zeros_like(min), tf.where(max < 0, min, on_grid))
        high = tf.where(max < 0, tf.zeros_like(max), tf.where(min > 0, max, max - min + on_grid))
        return fake_quant(x, low, high, **attributes)

    actual = forward_and_gradients(fake_quant, x, min, max, grad_y, num_bits=4, axis=axis, include_zero=True)
    expected = forward_and_gradients(composed, x, min, max, grad_y, num_bits=4, axis=axis)
    some_zero = (min == 0) & (max == 0)
    for got, wanted in zip(actual[2:], expected[2:], strict=True):
        np.testing.assert_allclose(got[~some_zero], wanted[~some_zero], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 7), None), ((9, 31), 1), ((2, 3, 65), 1)])
def test_graph_mode_equals_eager_mode(fake_quant, shape, axis, jit):
    case = draw_case(1, shape, axis, 8)
    in_graph = tf.function(lambda x, min, max: fake_quant(x, min, max, axis=axis), jit_compile=jit)
    eager = forward_and_gradients(fake_quant, *case, axis=axis)
    for actual, expected in zip(forward_and_gradients(in_graph, *case), eager, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6) if jit else assert_same_bits(actual, expected)


def test_constant_ranges_in_a_graph_are_not_folded_into_other_numbers(fake_quant):
    x = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    for num_bits in (3, 8, 13):
        in_graph = tf.function(lambda x, bits=num_bits: fake_quant(x, -1.3, 2.1, num_bits=bits))
        assert_same_bits(in_graph(x), stock_fake_quant(x, -1.3, 2.1, num_bits=num_bits))


@pytest.mark.parametrize("spec_shape", [None, [None, None], [None, 31], [9, None]])
def test_unknown_static_shapes_give_the_same_results(fake_quant, spec_shape):
    case = draw_case(2, (9, 31), -1, 8)
    specs = [tf.TensorSpec(shape, tf.float32) for shape in (spec_shape, [None], [None])]

    @tf.function(input_signature=[*specs, specs[0]])
    def run(x, min, max, grad_y):
        with tf.GradientTape() as tape:
            tape.watch([x, min, max])
            y = fake_quant(x, min, max, axis=-1)
        return (y, *tape.gradient(y, [x, min, max], grad_y))

    for actual, expected in zip(run(*case), forward_and_gradients(fake_quant, *case, axis=-1), strict=True):
        assert_same_bits(actual, expected)


def test_nan_stays_nan_with_zero_gradient(fake_quant):
    x = np.float32([np.nan, 0.1, np.nan])
    y, grad_x, grad_min, grad_max = forward_and_gradients(fake_quant, x, np.float32(-1), np.float32(1), np.ones_like(x))
    np.testing.assert_array_equal(np.isnan(y), [True, False, True])
    np.testing.assert_array_equal(grad_x, [0, 1, 0])
    assert grad_min == 0 and grad_max == 0


def test_infinities_go_to_the_ends_of_the_range(fake_quant):
    y = fake_quant(np.float32([-np.inf, np.inf]), -1.0, 1.0, num_bits=2, include_zero=True)
    ends = fake_quant(np.float32([-100.0, 100.0]), -1.0, 1.0, num_bits=2, include_zero=True)
    assert_same_bits(y, ends)


@pytest.mark.parametrize("axis", [None, 0])
def test_zero_range_gives_zeros_and_passes_the_whole_gradient(fake_quant, axis):
    x = np.float32([[1.0, np.nan, -np.inf, 0.0]])
    zero = np.zeros([] if axis is None else [1], np.float32)
    grad_y = np.float32([[1, 2, 3, 4]])
    y, grad_x, grad_min, grad_max = forward_and_gradients(fake_quant, x, zero, zero, grad_y, axis=axis)
    assert_same_bits(y, np.zeros_like(x))
    np.testing.assert_array_equal(grad_x, grad_y)
    np.testing.assert_array_equal([grad_min, grad_max], [zero, zero])


def test_a_blocked_infinite_gradient_is_zero(fake_quant):
    x, grad_y = np.float32([5.0, 0.0]), np.float32([np.inf, np.inf])
    _, grad_x, _, _ = forward_and_gradients(fake_quant, x, np.float32(-1), np.float32(1), grad_y)
    np.testing.assert_array_equal(grad_x, [0, np.inf])


@pytest.mark.parametrize("include_zero", [False, True])
@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("axis", [None, 1])
def test_gradients_of_gradients_are_the_transposed_gradients(fake_quant, axis, in_graph, include_zero):
    x, min, max, grad_y = draw_case(3, (20, 30), axis, 4)
    weights = [
        np.random.default_rng(i).normal(size=np.shape(v)).astype(np.float32) for i, v in enumerate([x, min, max])
    ]

    def run(x, min, max, grad_y):
        with tf.GradientTape() as outer:
            outer.watch(grad_y)
            with tf.GradientTape() as inner:
                inner.watch([x, min, max])
                y = fake_quant(x, min, max, num_bits=4, axis=axis, include_zero=include_zero)
            gradients = inner.gradient(y, [x, min, max], grad_y)
            total = tf.add_n([tf.reduce_sum(w * g) for w, g in zip(weights, gradients, strict=True)])
        return outer.gradient(total, grad_y)

    second = (tf.function(run) if in_graph else run)(*(tf.constant(v) for v in (x, min, max, grad_y)))
    # The gradients are linear in grad_y: total = <grad_y, second>.
    first = forward_and_gradients(fake_quant, x, min, max, grad_y, num_bits=4, axis=axis, include_zero=include_zero)
    total = sum(np.sum(w * g, dtype=np.float64) for w, g in zip(weights, first[1:], strict=True))
    np.testing.assert_allclose(np.sum(grad_y * second.numpy(), dtype=np.float64), total, rtol=1e-4)


def test_second_gradient_to_x_alone_is_the_mask(fake_quant):
    x = tf.constant([-5.0, 0.2, 5.0])
    grad_y = tf.constant([1.0, 1.0, 1.0])
    with tf.GradientTape() as outer:
        outer.watch(grad_y)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = fake_quant(x, -1.0, 1.0)
        grad_x = inner.gradient(y, x, grad_y)
    np.testing.assert_array_equal(outer.gradient(grad_x, grad_y), [0, 1, 0])


def test_range_gradients_are_not_computed_unless_asked_for_in_eager_mode(monkeypatch):
    calls = []
    native = qatfast.ops._native.qatfast_fake_quant_grad_with_range
    monkeypatch.setattr(
        qatfast.ops._native, "qatfast_fake_quant_grad_with_range", lambda *a, **k: calls.append(1) or native(*a, **k)
    )
    x, min = tf.constant([3.0]), tf.Variable(-1.0)
    for trainable in (False, True):
        max = tf.Variable(1.0, trainable=trainable)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            if trainable:
                tape.watch(max)
            y = qatfast.ops.fake_quant(x, min, max)
        tape.gradient(y, [x, max] if trainable else [x])
        assert len(calls) == int(trainable)


def test_range_gradients_are_not_run_unless_asked_for_in_a_graph():
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [3])
        min, max = tf.constant(-1.0), tf.constant(1.0)
        y = qatfast.ops.fake_quant(x, min, max)
        grad_x, grad_max = tf.gradients(y, [x, max])
        for fetch, expected, sums_run in ((grad_x, [0, 1, 0], False), (grad_max, 1, True)):
            metadata = tf.compat.v1.RunMetadata()
            options = tf.compat.v1.RunOptions(trace_level=tf.compat.v1.RunOptions.FULL_TRACE)
            with tf.compat.v1.Session(graph=graph) as session:
                result = session.run(fetch, {x: [-3.0, 0.0, 3.0]}, options=options, run_metadata=metadata)
                np.testing.assert_array_equal(result, expected)
            labels = [node.timeline_label for device in metadata.step_stats.dev_stats for node in device.node_stats]
            assert any("QatfastFakeQuantGradWithRange" in label for label in labels) == sums_run


@pytest.mark.parametrize("as_what", [float, np.float32, tf.constant, tf.Variable])
def test_ranges_may_be_numbers_arrays_tensors_or_variables(fake_quant, as_what):
    x = np.float32([-2.0, 0.3, 2.0])
    assert_same_bits(fake_quant(x, as_what(-1.0), as_what(1.0)), stock_fake_quant(x, -1.0, 1.0))


ERRORS = [
    ({"num_bits": 1}, ValueError, "fake_quant: num_bits must be an integer from 2 to 16, got 1"),
    ({"num_bits": 17}, ValueError, "fake_quant: num_bits must be an integer from 2 to 16, got 17"),
    ({"num_bits": 8.0}, ValueError, "fake_quant: num_bits must be an integer from 2 to 16, got 8.0"),
    ({"axis": "last"}, ValueError, "fake_quant: axis must be None (per tensor) or an integer, got 'last'"),
    ({"axis": 2}, ValueError, "fake_quant: axis must be in [-2, 2) for x of shape (3, 4), got 2"),
    ({"axis": -3}, ValueError, "fake_quant: axis must be in [-2, 2) for x of shape (3, 4), got -3"),
    ({"min": [-1.0]}, ValueError, "fake_quant: min must be a scalar when axis is None, got shape (1,)"),
    ({"max": [1.0]}, ValueError, "fake_quant: max must be a scalar when axis is None, got shape (1,)"),
    (
        {"axis": 1, "min": [-1.0] * 3, "max": [1.0] * 4},
        ValueError,
        "fake_quant: min must be of shape (4,) for axis 1 of x of shape (3, 4), got shape (3,)",
    ),
    (
        {"axis": 1, "min": [-1.0] * 4, "max": 1.0},
        ValueError,
        "fake_quant: max must be of shape (4,) for axis 1 of x of shape (3, 4), got shape ()",
    ),
    (
        {"x": np.zeros((3, 4), np.int32)},
        TypeError,
        "fake_quant: x must be float32, float16, bfloat16, float64, got int32",
    ),
    ({"min": tf.constant(-1.0, tf.float64)}, TypeError, "fake_quant: min must be float32, got float64"),
]


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize(("change", "error", "message"), ERRORS)
def test_bad_arguments_are_named_when_the_op_is_called(fake_quant, change, error, message, in_graph):
    arguments = {"x": np.zeros((3, 4), np.float32), "min": -1.0, "max": 1.0, **change}
    call = tf.function(lambda: fake_quant(**arguments)) if in_graph else (lambda: fake_quant(**arguments))
    with pytest.raises(error) as raised:
        call()
    assert message in str(raised.value)


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("include_zero", [False, True])
@pytest.mark.parametrize(
    ("min", "max"),
    [(1.0, -1.0), (np.nan, 1.0), (-1.0, np.nan), (-np.inf, 1.0), (0.0, np.inf), (-3e38, 3e38), (0.0, 2e-38)],
)
def test_ranges_that_cannot_be_quantized_to_are_refused(fake_quant, min, max, include_zero, in_graph):
    call = lambda x, min, max: fake_quant(x, min, max, include_zero=include_zero)  # noqa: E731
    call = tf.function(call) if in_graph else call
    with pytest.raises(tf.errors.InvalidArgumentError, match="min and max must be finite and min less than max"):
        call(tf.zeros([2]), tf.constant(min, tf.float32), tf.constant(max, tf.float32))


def test_an_empty_range_is_refused_unless_zero_stretches_it(fake_quant):
    with pytest.raises(tf.errors.InvalidArgumentError, match="min and max must be finite and min less than max"):
        fake_quant([1.0], 1.0, 1.0)
    np.testing.assert_array_equal(fake_quant([1.0, 5.0, -1.0], 1.0, 1.0, include_zero=True), [1.0, 1.0, 0.0])


def test_shapes_that_are_known_only_at_run_time_are_checked_then(fake_quant):
    specs = [tf.TensorSpec(None, tf.float32), tf.TensorSpec(None, tf.float32), tf.TensorSpec(None, tf.float32)]
    run = tf.function(lambda x, min, max: fake_quant(x, min, max, axis=1), input_signature=specs)
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError)):
        run(tf.zeros([3, 4]), tf.fill([3], -1.0), tf.fill([3], 1.0))


@pytest.mark.parametrize("name", ["fake_quant", "lsq_symmetric", "lsq_uniform"])
def test_an_eager_tape_keeps_the_mask_and_lets_x_go(name):
    parameters = [1.0] if name == "lsq_symmetric" else [-1.0, 1.0]
    with tf.GradientTape() as tape:
        start = tf.constant([0.25, 3.0])
        tape.watch(start)
        x = start * 2.0
        kept = weakref.ref(x)
        y = getattr(qatfast.ops, name)(x, *parameters)
        del x
        gc.collect()
        assert kept() is None
    np.testing.assert_array_equal(tape.gradient(y, start), [2.0, 0.0])


def test_forward_mode_differentiation_gives_the_mask(fake_quant):
    x = tf.constant([-5.0, 0.2, 5.0])
    with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
        y = fake_quant(x, -1.0, 1.0)
    np.testing.assert_array_equal(accumulator.jvp(y), [0, 1, 0])
