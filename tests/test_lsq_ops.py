"""`lsq_symmetric` and `lsq_uniform` of both backends against their formulas in NumPy."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import lsq_oracle
import numpy as np
import pytest
import tensorflow as tf
from grid import LAYOUTS, assert_same_bits, assert_sums_close, draw_thresholds, forward_and_gradients
from hypothesis import given
from hypothesis import strategies as st

import qatfast

# What of a grid's attributes go together in one test of a layout: signed or not, power of two or not, guarded or not.
SYMMETRIC_ATTRIBUTES = [
    {"signed": True, "grad_scale": 0.37},
    {"signed": False, "grad_scale": 1.0, "min_threshold": 0.6},
    {"signed": True, "grad_scale": 1.7, "power_of_two": True, "min_threshold": 0.3},
    {"signed": False, "grad_scale": 0.01, "power_of_two": True},
]
UNIFORM_ATTRIBUTES = [
    {"grad_scale": 1.0},
    {"grad_scale": 0.37, "min_width": 2.0},
    {"grad_scale": 1.0, "exact_zero": True},
    {"grad_scale": 0.01, "min_width": 2.0, "exact_zero": True},
]


def check_against_oracle(function, oracle, case, **attributes):
    *inputs, grad_y = case
    y, grad_x, *gradients = forward_and_gradients(function, *inputs, grad_y=grad_y, **attributes)
    expected_y, expected_grad_x, *expected = oracle(*inputs, grad_y, **attributes)
    assert_same_bits(y, expected_y)
    assert_same_bits(grad_x, expected_grad_x)
    for gradient, sums in zip(gradients, expected, strict=True):
        assert_sums_close(gradient, sums.value, sums.magnitude, of_products=True)


@pytest.mark.parametrize("num_bits", [2, 4, 8, 16])
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
def test_symmetric_equals_its_formula_bit_for_bit(lsq_symmetric, shape, axis, num_bits):
    for seed, attributes in enumerate(SYMMETRIC_ATTRIBUTES):
        attributes = {"num_bits": num_bits, "axis": axis, **attributes}
        case = lsq_oracle.draw_symmetric_case(seed, shape, **attributes)
        check_against_oracle(lsq_symmetric, lsq_oracle.lsq_symmetric, case, **attributes)


@pytest.mark.parametrize("num_bits", [2, 4, 8, 16])
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
def test_uniform_equals_its_formula_bit_for_bit(lsq_uniform, shape, axis, num_bits):
    for seed, attributes in enumerate(UNIFORM_ATTRIBUTES):
        attributes = {"num_bits": num_bits, "axis": axis, **attributes}
        case = lsq_oracle.draw_uniform_case(seed, shape, **attributes)
        check_against_oracle(lsq_uniform, lsq_oracle.lsq_uniform, case, **attributes)


def test_a_gradient_scale_moves_the_last_bit_of_some_steps(lsq_symmetric):
    # Why forward depends on grad_scale at all: MCT's (step - s * step) + s * step is not always step.
    threshold = draw_thresholds(np.random.default_rng(0), (1000,))
    x = np.full((1000, 1), -np.inf, np.float32)
    ends, scaled_ends = (lsq_symmetric(x, threshold, axis=0, grad_scale=s).numpy() for s in (1.0, 0.37))
    moved = ends != scaled_ends
    assert 0.05 < moved.mean() < 0.5
    np.testing.assert_allclose(ends, scaled_ends, rtol=2.0**-22)
    np.testing.assert_array_equal(moved[:, 0], lsq_oracle.scaled_step(threshold, 0.37) != threshold)


@pytest.mark.parametrize("grad_scale", [1.0, 0.37])
def test_power_of_two_quantizes_with_the_next_power_of_two(lsq_symmetric, grad_scale):
    powers = np.float32(2.0) ** np.arange(-60, 60, dtype=np.float32)
    x = np.random.default_rng(0).normal(size=(len(powers), 50)).astype(np.float32) * powers[:, None]
    call = functools.partial(lsq_symmetric, num_bits=4, axis=0)
    above = np.nextafter(powers, np.float32(np.inf))
    below = np.nextafter(powers, np.float32(0))
    for threshold, effective in ((powers, powers), (above, 2 * powers), (below, powers), (1.5 * powers, 2 * powers)):
        assert_same_bits(call(x, threshold, power_of_two=True, grad_scale=grad_scale), call(x, effective))


def test_power_of_two_passes_the_gradient_straight_through_the_ceiling_of_the_logarithm(lsq_symmetric):
    x, threshold, grad_y = lsq_oracle.draw_symmetric_case(3, (40, 50), num_bits=4, axis=0)
    effective = lsq_oracle.effective_threshold(threshold, True, 0.0)
    run = functools.partial(forward_and_gradients, lsq_symmetric, grad_y=grad_y, num_bits=4, axis=0, grad_scale=0.37)
    *_, grad_threshold = run(x, threshold, power_of_two=True)
    # With t = 2^ceil(log2(threshold)) and the ceiling's derivative taken as 1: the gradient with respect to either
    # logarithm is the same.
    y, grad_x, grad_effective = forward_and_gradients(
        lambda *inputs, **attributes: lsq_symmetric(*inputs, power_of_two=True, **attributes),
        x, effective, grad_y=grad_y, num_bits=4, axis=0, grad_scale=0.37,
    )  # fmt: skip
    np.testing.assert_allclose(grad_threshold * threshold, grad_effective * effective, rtol=1e-6)


def test_a_range_on_one_side_of_zero_is_stretched_to_zero(lsq_uniform):
    x = np.float32([-5.0, 0.0, 0.6, 5.0])
    np.testing.assert_array_equal(lsq_uniform(x, 1.0, 3.0, num_bits=2), [0.0, 0.0, 1.0, 3.0])
    np.testing.assert_array_equal(lsq_uniform(x, 3.0, 3.0, num_bits=2), [0.0, 0.0, 1.0, 3.0])
    np.testing.assert_array_equal(lsq_uniform(-x, -3.0, -1.0, num_bits=2), [0.0, 0.0, -1.0, -3.0])


class Lsq(NamedTuple):
    """One of the two functions of a backend, what draws a case for it, and arguments that it takes."""

    name: str
    function: Callable
    draw_case: Callable
    parameters: dict


LSQ = {
    "lsq_symmetric": (lsq_oracle.draw_symmetric_case, {"threshold": 1.0}),
    "lsq_uniform": (lsq_oracle.draw_uniform_case, {"min": -1.0, "max": 1.0}),
}


@pytest.fixture(params=[*LSQ, "lsq_uniform exact_zero"])
def lsq(request, backend):
    name, *flags = request.param.split()
    return Lsq(name, functools.partial(backend(name), **dict.fromkeys(flags, True)), *LSQ[name])


@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 7), None), ((9, 31), 1), ((2, 3, 65), 1)])
def test_graph_mode_equals_eager_mode(lsq, shape, axis):
    *inputs, grad_y = lsq.draw_case(1, shape, axis=axis)
    attributes = {"axis": axis, "grad_scale": 0.37}
    in_graph = tf.function(lambda *inputs: lsq.function(*inputs, **attributes))
    eager = forward_and_gradients(lsq.function, *inputs, grad_y=grad_y, **attributes)
    for actual, expected in zip(forward_and_gradients(in_graph, *inputs, grad_y=grad_y), eager, strict=True):
        assert_same_bits(actual, expected)


@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 7), None), ((9, 31), 1)])
@pytest.mark.parametrize("guarded", [False, True])
def test_compiled_by_xla_equals_eager_mode_to_rounding(lsq, shape, axis, guarded):
    attributes = {"axis": axis, "grad_scale": 0.37}
    if guarded:
        uniform = {"min_width": 3.0, "exact_zero": True}
        attributes |= {"power_of_two": True, "min_threshold": 0.5} if "symmetric" in lsq.name else uniform
    _, *parameters, grad_y = lsq.draw_case(1, shape, axis=axis)
    # XLA contracts multiply and add, which moves what lies on a tie by a step: none does here.
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    in_graph = tf.function(lambda *inputs: lsq.function(*inputs, **attributes), jit_compile=True)
    eager = forward_and_gradients(lsq.function, x, *parameters, grad_y=grad_y, **attributes)
    compiled = forward_and_gradients(in_graph, x, *parameters, grad_y=grad_y)
    for actual, expected in zip(compiled, eager, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("constant_x", [False, True])
def test_constants_in_a_graph_are_not_folded_into_other_numbers(backend, constant_x):
    x = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    for num_bits, grad_scale in ((3, 1.0), (8, 0.37), (13, 0.37)):
        attributes = {"num_bits": num_bits, "grad_scale": grad_scale}
        for name, oracle, parameters in (
            ("lsq_symmetric", lsq_oracle.lsq_symmetric, (1.3,)),
            ("lsq_uniform", lsq_oracle.lsq_uniform, (-1.3, 2.1)),
            ("lsq_uniform", functools.partial(lsq_oracle.lsq_uniform, exact_zero=True), (-1.3, 2.1)),
        ):
            exact_zero = getattr(oracle, "keywords", {})
            call = functools.partial(backend(name), **attributes, **exact_zero)
            if constant_x:
                y = tf.function(lambda call=call, parameters=parameters: call(x, *parameters))()
            else:
                y = tf.function(lambda x, call=call, parameters=parameters: call(x, *parameters))(x)
            assert_same_bits(y, oracle(x, *np.asarray(parameters, np.float32), x, **attributes)[0])


@pytest.mark.parametrize("spec_shape", [None, [None, None], [None, 31], [9, None]])
def test_unknown_static_shapes_give_the_same_results(lsq, spec_shape):
    *inputs, grad_y = lsq.draw_case(2, (9, 31), axis=-1)
    specs = [tf.TensorSpec(spec_shape, tf.float32), *(tf.TensorSpec([None], tf.float32) for _ in inputs[1:])]

    @tf.function(input_signature=[specs[0], *specs])
    def run(grad_y, *inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = lsq.function(*inputs, axis=-1)
        return (y, *tape.gradient(y, inputs, grad_y))

    eager = forward_and_gradients(lsq.function, *inputs, grad_y=grad_y, axis=-1)
    for actual, expected in zip(run(grad_y, *inputs), eager, strict=True):
        assert_same_bits(actual, expected)


def test_nan_stays_nan_with_zero_gradient(lsq):
    x = np.float32([np.nan, 0.1, np.nan])
    run = functools.partial(forward_and_gradients, lsq.function)
    y, grad_x, *gradients = run(x, *lsq.parameters.values(), grad_y=np.float32([np.inf, 1, 1]))
    np.testing.assert_array_equal(np.isnan(y), [True, False, True])
    np.testing.assert_array_equal(grad_x, [0, 1, 0])
    *_, expected = run(x[1:2], *lsq.parameters.values(), grad_y=np.ones([1], np.float32))
    np.testing.assert_array_equal(gradients[-1], expected)


def test_infinities_and_what_overflows_go_to_the_ends_of_the_grid(lsq_symmetric, lsq_uniform):
    x = np.float32([-np.inf, -3e38, 3e38, np.inf])
    np.testing.assert_array_equal(lsq_symmetric(x, 0.5, num_bits=2), [-0.5, -0.5, 0.25, 0.25])
    np.testing.assert_array_equal(lsq_symmetric(x, 0.5, num_bits=2, signed=False), [0.0, 0.0, 0.375, 0.375])
    np.testing.assert_array_equal(lsq_uniform(x, -0.25, 0.5, num_bits=2), [-0.25, -0.25, 0.5, 0.5])


def test_what_rounds_to_an_end_of_the_grid_is_inside_it(lsq_symmetric, lsq_uniform):
    # In steps of 0.25: -1.125 is a tie that goes to the even -4, the lowest; 0.875 one that goes to 4, beyond the end.
    x, ones = np.float32([-1.125, -1.13, 0.87, 0.875]), np.ones(4, np.float32)
    _, grad_x, _ = forward_and_gradients(lsq_symmetric, x, 1.0, grad_y=ones, num_bits=3)
    np.testing.assert_array_equal(grad_x, [1, 0, 1, 0])
    _, grad_x, _, _ = forward_and_gradients(lsq_uniform, x, -1.0, 0.75, grad_y=ones, num_bits=3)
    np.testing.assert_array_equal(grad_x, [1, 0, 1, 0])


def test_a_blocked_infinite_gradient_is_zero(lsq):
    x, grad_y = np.float32([5.0, 0.0]), np.float32([np.inf, np.inf])
    _, grad_x, *_ = forward_and_gradients(lsq.function, x, *lsq.parameters.values(), grad_y=grad_y)
    np.testing.assert_array_equal(grad_x, [0, np.inf])


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("axis", [None, 1])
def test_gradients_of_gradients_are_the_transposed_gradients(lsq, axis, in_graph):
    *inputs, grad_y = lsq.draw_case(3, (20, 30), num_bits=4, axis=axis)
    function = functools.partial(lsq.function, num_bits=4, axis=axis, grad_scale=0.37)
    weights = [np.random.default_rng(i).normal(size=np.shape(v)).astype(np.float32) for i, v in enumerate(inputs)]

    def run(grad_y, *inputs):
        with tf.GradientTape() as outer:
            outer.watch(grad_y)
            with tf.GradientTape() as inner:
                inner.watch(inputs)
                y = function(*inputs)
            gradients = inner.gradient(y, inputs, grad_y)
            total = tf.add_n([tf.reduce_sum(w * g) for w, g in zip(weights, gradients, strict=True)])
        return outer.gradient(total, grad_y)

    second = (tf.function(run) if in_graph else run)(*(tf.constant(v) for v in (grad_y, *inputs)))
    # The gradients are linear in grad_y: total = <grad_y, second>.
    _, *first = forward_and_gradients(function, *inputs, grad_y=grad_y)
    products = [w.astype(np.float64) * g for w, g in zip(weights, first, strict=True)]
    total, magnitude = sum(np.sum(p) for p in products), sum(np.sum(np.abs(p)) for p in products)
    np.testing.assert_allclose(np.sum(grad_y * second.numpy(), dtype=np.float64), total, atol=1e-5 * magnitude)


def test_second_gradient_to_x_alone_is_the_mask(lsq):
    x, grad_y = tf.constant([-5.0, 0.2, np.nan]), tf.constant([1.0, 1.0, 1.0])
    with tf.GradientTape() as outer:
        outer.watch(grad_y)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = lsq.function(x, *lsq.parameters.values())
        grad_x = inner.gradient(y, x, grad_y)
    np.testing.assert_array_equal(outer.gradient(grad_x, grad_y), [0, 1, 0])


def test_second_gradients_take_x_and_the_parameters_as_constants(lsq):
    inputs = [tf.constant(value) for value in ([-5.0, 0.2, 0.33], *lsq.parameters.values())]
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(inputs)
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            y = lsq.function(*inputs, num_bits=3)
        gradients = inner.gradient(y, inputs)
    for gradient in gradients:
        assert outer.gradient(gradient, inputs) == [None] * len(inputs)


@st.composite
def shapes_and_axes(draw):
    """A shape of any rank, and an axis or none."""
    shape = tuple(draw(st.lists(st.integers(0, 9), max_size=4)))
    if shape and draw(st.booleans()):
        shape = (*shape[:-1], draw(st.integers(60, 70) | st.integers(2044, 2052)))
    return shape, draw(st.none() | st.integers(-len(shape), len(shape) - 1)) if shape else None


@st.composite
def cases(draw, draw_case, draw_attributes):
    """Tensors over many magnitudes, and attributes."""
    shape, axis = draw(shapes_and_axes())
    attributes = {
        "num_bits": draw(st.integers(2, 16)),
        "axis": axis,
        "grad_scale": draw(st.sampled_from([1.0, 0.37]) | st.floats(1e-3, 2.0)),
        **{name: draw(values) for name, values in draw_attributes.items()},
    }
    *inputs, grad_y = draw_case(draw(st.integers(0, 2**32 - 1)), shape, **attributes)
    exponent = draw(st.integers(-60, 60))
    for guard in {"min_threshold", "min_width"} & set(attributes):
        attributes[guard] *= 2.0**exponent
    with np.errstate(over="ignore"):
        return (*(value * np.float32(2.0**exponent) for value in inputs), grad_y), attributes


GUARDS = st.just(0.0) | st.floats(2.0**-10, 10.0, width=32)
SYMMETRIC_CASES = cases(
    lsq_oracle.draw_symmetric_case, {"signed": st.booleans(), "power_of_two": st.booleans(), "min_threshold": GUARDS}
)
UNIFORM_CASES = cases(lsq_oracle.draw_uniform_case, {"min_width": GUARDS, "exact_zero": st.booleans()})


def check_native_against_reference(native, reference, case, **attributes):
    *inputs, grad_y = case
    actual = forward_and_gradients(native, *inputs, grad_y=grad_y, **attributes)
    expected = forward_and_gradients(reference, *inputs, grad_y=grad_y, **attributes)
    assert_same_bits(actual[0], expected[0])
    assert_same_bits(actual[1], expected[1])
    # Of no term is more than grad_y added to a sum, but for thresholds under a power of two: up to twice that.
    magnitude = 2 * np.abs(grad_y).sum(dtype=np.float64)
    for gradient, expected_gradient in zip(actual[2:], expected[2:], strict=True):
        assert_sums_close(gradient, expected_gradient.astype(np.float64), magnitude)


@given(SYMMETRIC_CASES)
def test_any_native_symmetric_case_equals_the_reference(native, case):
    case, attributes = case
    check_native_against_reference(native("lsq_symmetric"), qatfast.reference.lsq_symmetric, case, **attributes)


@given(UNIFORM_CASES)
def test_any_native_uniform_case_equals_the_reference(native, case):
    case, attributes = case
    check_native_against_reference(native("lsq_uniform"), qatfast.reference.lsq_uniform, case, **attributes)


@given(SYMMETRIC_CASES)
def test_any_symmetric_case_of_the_reference_equals_its_formula(case):
    case, attributes = case
    check_against_oracle(qatfast.reference.lsq_symmetric, lsq_oracle.lsq_symmetric, case, **attributes)


@given(UNIFORM_CASES)
def test_any_uniform_case_of_the_reference_equals_its_formula(case):
    case, attributes = case
    check_against_oracle(qatfast.reference.lsq_uniform, lsq_oracle.lsq_uniform, case, **attributes)
