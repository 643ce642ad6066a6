"""The ops on float16, bfloat16 and float64: computed in float32, or float64, and rounded once."""

import fake_quant_oracle
import lsq_oracle
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from grid import (
    PARAMETER_DTYPE,
    assert_same_bits,
    assert_sums_close,
    draw_gradients,
    draw_inputs,
    draw_ranges,
    draw_thresholds,
    forward_and_gradients,
    number_of_channels,
)

HALF_TYPES = [np.float16, ml_dtypes.bfloat16]
ALL_TYPES = [np.float32, *HALF_TYPES, np.float64]
# Per tensor; channels on the last, the first and a middle axis; runs that no vector width divides; nothing.
SOME_LAYOUTS = [
    ((), None),
    ((7,), None),
    ((32769,), None),
    ((0, 3), 1),
    ((4, 1), 1),
    ((9, 31), 1),
    ((31, 9), 0),
    ((3, 3, 6, 2), -2),
    ((2, 3, 65), 1),
    ((5, 2049), 1),
    ((3, 4100), 0),
    ((300, 3, 5), 1),
]
ATTRIBUTES = {
    "fake_quant": [{}, {"narrow_range": True, "include_zero": True}],
    "lsq_symmetric": [
        {"grad_scale": 0.37},
        {"signed": False, "power_of_two": True, "min_threshold": 0.5, "grad_scale": 1.7},
    ],
    "lsq_uniform": [{}, {"grad_scale": 0.37, "min_width": 2.0}, {"grad_scale": 0.37, "exact_zero": True}],
}


def draw_case(name, seed, shape, axis, num_bits, dtype):
    """x, the parameters and grad_y, in their types."""
    rng = np.random.default_rng(seed)
    channels, of_parameters = number_of_channels(shape, axis), PARAMETER_DTYPE[np.dtype(dtype)].type
    if name == "lsq_symmetric":
        parameters = (draw_thresholds(rng, channels, of_parameters),)
        x = draw_inputs(rng, shape, -parameters[0], parameters[0], num_bits, axis, dtype)
    else:
        parameters = draw_ranges(rng, channels, of_parameters, zeros=0.1 if name == "fake_quant" else 0.0)
        x = draw_inputs(rng, shape, *parameters, num_bits, axis, dtype)
    return x, *parameters, draw_gradients(rng, shape, dtype)


ORACLES = {
    "fake_quant": fake_quant_oracle.fake_quant,
    "lsq_symmetric": lsq_oracle.lsq_symmetric,
    "lsq_uniform": lsq_oracle.lsq_uniform,
}


@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize(("shape", "axis"), SOME_LAYOUTS)
@pytest.mark.parametrize("name", ATTRIBUTES)
def test_half_types_equal_float32_rounded_once(backend, name, shape, axis, dtype):
    function = backend(name)
    for num_bits, attributes in zip((4, 8, 16), ATTRIBUTES[name], strict=False):
        *inputs, grad_y = draw_case(name, num_bits, shape, axis, num_bits, dtype)
        attributes = {"num_bits": num_bits, "axis": axis, **attributes}
        y, grad_x, *gradients = forward_and_gradients(function, *inputs, grad_y=grad_y, **attributes)
        inputs[0], wide_grad_y = inputs[0].astype(np.float32), grad_y.astype(np.float32)
        wide = forward_and_gradients(function, *inputs, grad_y=wide_grad_y, **attributes)
        assert_same_bits(y, wide[0].astype(dtype))
        assert_same_bits(grad_x, wide[1].astype(dtype))
        for gradient, expected in zip(gradients, wide[2:], strict=True):
            assert_sums_close(gradient, expected.astype(np.float64), 2 * np.abs(wide_grad_y).sum(dtype=np.float64))


@pytest.mark.parametrize(("shape", "axis"), SOME_LAYOUTS)
@pytest.mark.parametrize("name", ATTRIBUTES)
def test_float64_equals_the_formula_in_float64(backend, name, shape, axis):
    for num_bits in (4, 8, 16):
        for seed, attributes in enumerate(ATTRIBUTES[name]):
            *inputs, grad_y = draw_case(name, seed, shape, axis, num_bits, np.float64)
            attributes = {"num_bits": num_bits, "axis": axis, **attributes}
            y, grad_x, *gradients = forward_and_gradients(backend(name), *inputs, grad_y=grad_y, **attributes)
            expected_y, expected_grad_x, *expected = ORACLES[name](*inputs, grad_y, **attributes)
            assert_same_bits(y, expected_y)
            assert_same_bits(grad_x, expected_grad_x)
            for gradient, sums in zip(gradients, expected, strict=True):
                assert_sums_close(gradient, sums.value, sums.magnitude, of_products=name != "fake_quant")


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("attributes", ATTRIBUTES["fake_quant"])
def test_the_formula_that_judges_float64_is_the_stock_op_in_float32(fake_quant, attributes, axis):
    *inputs, grad_y = draw_case("fake_quant", 0, (60, 70), axis, 8, np.float32)
    y, grad_x, *gradients = forward_and_gradients(fake_quant, *inputs, grad_y=grad_y, axis=axis, **attributes)
    expected_y, expected_grad_x, *expected = fake_quant_oracle.fake_quant(*inputs, grad_y, axis=axis, **attributes)
    assert_same_bits(y, expected_y)
    assert_same_bits(grad_x, expected_grad_x)
    for gradient, sums in zip(gradients, expected, strict=True):
        assert_sums_close(gradient, sums.value, sums.magnitude)


def test_float64_tells_numbers_apart_that_are_one_in_float32(backend):
    x = np.asarray([0.5 - 1e-12, 0.5 + 1e-12])  # about the middle of two numbers of the grid
    np.testing.assert_array_equal(backend("fake_quant")(x, 0.0, 3.0, num_bits=2), [0.0, 1.0])
    np.testing.assert_array_equal(backend("lsq_symmetric")(x, 4.0, num_bits=3), [0.0, 1.0])
    np.testing.assert_array_equal(backend("lsq_uniform")(x, 0.0, 3.0, num_bits=2), [0.0, 1.0])


def test_float16_subnormals_are_quantized_not_flushed(backend):
    smallest = np.float32(2.0**-24)  # of float16; a normal number of float32
    integers = np.arange(-40, 41)
    x = (integers * smallest).astype(np.float16)
    threshold = 16 * smallest  # with 4 bits, a step of two subnormals
    expected = np.clip(np.rint(integers / 2), -8, 7) * 2 * smallest
    y = backend("lsq_symmetric")(x, threshold, num_bits=4)
    assert_same_bits(y, (expected + 0).astype(np.float16))
    y = backend("lsq_uniform")(x, -threshold, 14 * smallest, num_bits=4)
    assert_same_bits(y, (expected + 0).astype(np.float16))
    y = backend("fake_quant")(x, -threshold, 14 * smallest, num_bits=4)
    expected = np.clip(np.floor(integers / 2 + 0.5), -8, 7) * 2 * smallest
    np.testing.assert_array_equal(y, expected.astype(np.float16))


@pytest.mark.parametrize("dtype", ALL_TYPES)
@pytest.mark.parametrize("name", ATTRIBUTES)
def test_nan_and_infinities_are_kept_in_every_type(backend, name, dtype):
    x = np.asarray([np.nan, np.inf, -np.inf], dtype)
    parameters = (1.0,) if name == "lsq_symmetric" else (-1.0, 1.0)
    y = backend(name)(x, *parameters, num_bits=2).numpy()
    assert y.dtype == dtype
    assert np.isnan(y[0]) and np.isfinite(y[1:]).all() and y[1] > 0 > y[2]


@pytest.mark.parametrize("dtype", ALL_TYPES)
@pytest.mark.parametrize("name", ATTRIBUTES)
def test_graph_mode_equals_eager_mode_in_every_type(backend, name, dtype):
    *inputs, grad_y = draw_case(name, 1, (9, 31), 1, 8, dtype)
    in_graph = tf.function(lambda *inputs: backend(name)(*inputs, axis=1))
    eager = forward_and_gradients(backend(name), *inputs, grad_y=grad_y, axis=1)
    for actual, expected in zip(forward_and_gradients(in_graph, *inputs, grad_y=grad_y), eager, strict=True):
        assert_same_bits(actual, expected)


@pytest.mark.parametrize("dtype", [*HALF_TYPES, np.float64])
@pytest.mark.parametrize("name", ATTRIBUTES)
def test_gradients_of_gradients_exist_in_every_type(backend, name, dtype):
    *inputs, grad_y = (tf.constant(value) for value in draw_case(name, 1, (9, 31), 1, 8, dtype))
    with tf.GradientTape() as outer:
        outer.watch(grad_y)
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            y = backend(name)(*inputs, axis=1)
        grad_x, *gradients = inner.gradient(y, inputs, grad_y)
        total = tf.add_n([tf.reduce_sum(tf.cast(g, tf.float64)) for g in gradients])
    second = outer.gradient([grad_x, total], grad_y)
    assert second.dtype == grad_y.dtype and np.isfinite(second.numpy().astype(np.float64)).all()
    # Linear in grad_y: the sum of all gradients is the product of grad_y with the second gradient.
    terms = second.numpy().astype(np.float64) * grad_y.numpy().astype(np.float64)
    rounding = float(ml_dtypes.finfo(dtype).eps) + 1e-6 * (dtype != np.float64)
    expected = grad_x.numpy().astype(np.float64).sum() + float(total)
    np.testing.assert_allclose(terms.sum(), expected, atol=rounding * np.abs(terms).sum())


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_parameters_are_of_the_type_that_is_computed_in(backend, name):
    parameters = (1.0,) if name == "lsq_symmetric" else (-1.0, 1.0)
    for dtype in ALL_TYPES:
        right, wrong = (tf.float64, tf.float32) if dtype == np.float64 else (tf.float32, tf.float64)
        x = np.zeros([2], dtype)
        *_, gradient = forward_and_gradients(
            backend(name), x, *(tf.constant(p, right) for p in parameters), grad_y=np.ones([2], dtype)
        )
        assert gradient.dtype == right.as_numpy_dtype
        with pytest.raises(TypeError, match=f"must be {right.name}.*, got {wrong.name}"):
            backend(name)(x, *(tf.constant(p, wrong) for p in parameters))
