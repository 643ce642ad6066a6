"""What `lsq_symmetric` and `lsq_uniform` take, and what they refuse, when called and when run."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from grid import assert_same_bits

PARAMETERS = {"lsq_symmetric": {"threshold": 1.0}, "lsq_uniform": {"min": -1.0, "max": 1.0}}


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("as_what", [float, np.float64, np.float32, tf.constant, tf.Variable])
def test_parameters_may_be_numbers_arrays_tensors_or_variables(backend, name, as_what):
    x = np.float32([-2.0, 0.3, 2.0])
    expected = backend(name)(x, *(tf.constant(value) for value in PARAMETERS[name].values()))
    assert_same_bits(backend(name)(x, *(as_what(value) for value in PARAMETERS[name].values())), expected)


ERRORS = [
    ({"num_bits": 1}, ValueError, "num_bits must be an integer from 2 to 16, got 1"),
    ({"num_bits": 8.0}, ValueError, "num_bits must be an integer from 2 to 16, got 8.0"),
    ({"axis": "last"}, ValueError, "axis must be None (per tensor) or an integer, got 'last'"),
    ({"grad_scale": 0.0}, ValueError, "grad_scale must be a positive finite number, got 0.0"),
    ({"grad_scale": -1}, ValueError, "grad_scale must be a positive finite number, got -1"),
    ({"grad_scale": np.inf}, ValueError, "grad_scale must be a positive finite number, got inf"),
    ({"grad_scale": "MCT"}, ValueError, "grad_scale must be a positive finite number, got 'MCT'"),
    ({"x": np.zeros((3, 4), np.int32)}, TypeError, "x must be float32, float16, bfloat16, float64, got int32"),
]
SYMMETRIC_ERRORS = [
    *ERRORS,
    ({"signed": 1}, ValueError, "signed must be True or False, got 1"),
    ({"power_of_two": None}, ValueError, "power_of_two must be True or False, got None"),
    ({"min_threshold": -0.1}, ValueError, "min_threshold must be a finite number >= 0, got -0.1"),
    ({"min_threshold": np.nan}, ValueError, "min_threshold must be a finite number >= 0, got nan"),
    ({"threshold": [1.0]}, ValueError, "threshold must be a scalar when axis is None, got shape (1,)"),
    ({"threshold": tf.constant(1.0, tf.float16)}, TypeError, "threshold must be float32, got float16"),
    (
        {"threshold": tf.Variable(1.0), "x": np.zeros((3, 4))},
        TypeError,
        "threshold must be float64 for a float64 x, got float32",
    ),
    (
        {"axis": 1, "threshold": [1.0] * 3},
        ValueError,
        "threshold must be of shape (4,) for axis 1 of x of shape (3, 4), got shape (3,)",
    ),
]
UNIFORM_ERRORS = [
    *ERRORS,
    ({"min_width": -0.1}, ValueError, "min_width must be a finite number >= 0, got -0.1"),
    ({"min_width": True}, ValueError, "min_width must be a finite number >= 0, got True"),
    ({"exact_zero": 1}, ValueError, "exact_zero must be True or False, got 1"),
    ({"axis": 2}, ValueError, "axis must be in [-2, 2) for x of shape (3, 4), got 2"),
    ({"max": [1.0]}, ValueError, "max must be a scalar when axis is None, got shape (1,)"),
    ({"min": tf.constant(-1.0, tf.float64)}, TypeError, "min must be float32, got float64"),
]


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [("lsq_symmetric", *row) for row in SYMMETRIC_ERRORS] + [("lsq_uniform", *row) for row in UNIFORM_ERRORS],
)
def test_bad_arguments_are_named_when_the_op_is_called(backend, name, change, error, message, in_graph):
    arguments = {"x": np.zeros((3, 4), np.float32), **PARAMETERS[name], **change}
    call = functools.partial(backend(name), **arguments)
    with pytest.raises(error) as raised:
        (tf.function(lambda: call()) if in_graph else call)()
    assert f"{name}: {message}" in str(raised.value)


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("threshold", [0.0, -0.0, -1.0, np.nan, np.inf, -np.inf, 1e-40, 5e-37])
def test_thresholds_that_cannot_be_quantized_to_are_refused(lsq_symmetric, threshold, axis, power_of_two, in_graph):
    call = lambda x, threshold: lsq_symmetric(x, threshold, axis=axis, power_of_two=power_of_two)  # noqa: E731
    call = tf.function(call) if in_graph else call
    threshold = np.float32(threshold) if axis is None else np.float32([1.0, threshold, 1.0])
    with pytest.raises(tf.errors.InvalidArgumentError, match="threshold must be positive, finite and such that"):
        call(tf.zeros([3]), tf.constant(threshold))


@pytest.mark.parametrize("min_threshold", [0.0, 0.5])
def test_a_guard_does_not_hide_thresholds_that_are_not_numbers(lsq_symmetric, min_threshold):
    for threshold in (np.nan, np.inf, 2e38):
        with pytest.raises(tf.errors.InvalidArgumentError, match="threshold must be positive, finite and such that"):
            lsq_symmetric([1.0], threshold, power_of_two=True, min_threshold=min_threshold)


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("min_width", [0.0, 0.5])
@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize(
    ("min", "max"),
    [(np.nan, 1.0), (-1.0, np.nan), (-np.inf, 1.0), (0.0, np.inf), (np.inf, 0.0), (np.inf, -np.inf), (-3e38, 3e38)],
)
def test_ranges_that_are_not_finite_are_refused(lsq_uniform, min, max, axis, min_width, in_graph):
    call = lambda x, min, max: lsq_uniform(x, min, max, axis=axis, min_width=min_width)  # noqa: E731
    call = tf.function(call) if in_graph else call
    ends = np.float32([min, max]) if axis is None else np.float32([[-1.0, min, -1.0], [1.0, max, 1.0]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="min and max must be finite and min less than max"):
        call(tf.zeros([3]), tf.constant(ends[0]), tf.constant(ends[1]))


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize(("min", "max"), [(1.0, -1.0), (2.0, 1.0), (-1.0, -2.0), (0.0, 0.0), (0.0, 2e-38)])
def test_empty_and_inverted_ranges_are_refused_without_a_guard(lsq_uniform, min, max, in_graph):
    call = tf.function(lsq_uniform) if in_graph else lsq_uniform
    with pytest.raises(tf.errors.InvalidArgumentError, match="min and max must be finite and min less than max"):
        call(tf.zeros([2]), tf.constant(min), tf.constant(max))
    assert np.isfinite(lsq_uniform(tf.zeros([2]), min, max, min_width=0.5)).all()
