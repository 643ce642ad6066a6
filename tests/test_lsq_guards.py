"""The guards of `lsq_symmetric` and `lsq_uniform`: ranges that are too narrow, inverted or collapsed, and come back."""

import functools

import lsq_oracle
import numpy as np
import pytest
import tensorflow as tf
from grid import assert_same_bits

DATA = np.random.default_rng(0).normal(size=2000).astype(np.float32)


def descend(quantize, parameters, x, steps=150, rate=0.2):
    """Gradient descent of mean((quantize(x) - x)^2); returns the losses. Losses and gradients are all finite."""

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(quantize(x, *parameters) - x))
        gradients = tape.gradient(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.assign_sub(rate * gradient)
        return loss, *gradients

    every = np.asarray([step() for _ in range(steps)], np.float64)
    assert np.isfinite(every).all()
    return every[:, 0]


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("start", [0.0, -0.5, 1e-30])
def test_a_guarded_threshold_grows_again_when_the_data_asks_for_it(lsq_symmetric, start, power_of_two):
    threshold = tf.Variable(start)
    quantize = functools.partial(lsq_symmetric, num_bits=4, min_threshold=0.01, power_of_two=power_of_two)
    losses = descend(quantize, [threshold], DATA)
    assert threshold > 1.0
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(
    ("start", "x"),
    [
        ((1.0, -1.0), DATA),  # inverted, about zero
        ((0.0, 0.0), DATA),
        ((-0.0, -1e-38), DATA),
        ((0.3, 0.3), np.abs(DATA)),  # collapsed, above zero
        ((0.3, -0.1), np.abs(DATA)),  # inverted, above zero
        ((-0.3, -0.3), -np.abs(DATA)),
        ((0.1, -0.3), -np.abs(DATA)),
    ],
)
@pytest.mark.parametrize("exact_zero", [False, True])
def test_a_guarded_range_widens_again_when_the_data_asks_for_it(lsq_uniform, start, x, exact_zero):
    ends = [tf.Variable(end) for end in start]
    quantize = functools.partial(lsq_uniform, num_bits=4, min_width=0.01, exact_zero=exact_zero)
    losses = descend(quantize, ends, x)
    low, high = lsq_oracle.range_with_zero(*lsq_oracle.effective_range(*(end.numpy() for end in ends), 0.01), 4)
    assert (low < -1.0 or x.min() >= 0) and (high > 1.0 or x.max() <= 0)
    assert losses[-1] < 0.1 * losses[0]


def test_a_guard_does_nothing_where_it_is_not_needed(lsq_symmetric, lsq_uniform):
    x, threshold, _ = lsq_oracle.draw_symmetric_case(0, (9, 31), axis=0)
    assert_same_bits(lsq_symmetric(x, threshold, axis=0, min_threshold=1e-6), lsq_symmetric(x, threshold, axis=0))
    x, min, max, _ = lsq_oracle.draw_uniform_case(0, (9, 31), axis=0)
    assert_same_bits(lsq_uniform(x, min, max, axis=0, min_width=1e-6), lsq_uniform(x, min, max, axis=0))


def test_a_guarded_range_is_as_wide_as_the_guard_about_its_middle(lsq_uniform):
    infinite = np.float32([-np.inf, np.inf])
    for min, max in ((0.25, -0.25), (0.0, 0.0), (3e38, -3e38)):  # [-1.5, 1.5], moved until zero is on the grid
        np.testing.assert_array_equal(lsq_uniform(infinite, min, max, num_bits=2, min_width=3.0), [-2.0, 1.0])
    in_graph = tf.function(lambda: lsq_uniform(infinite, 3.2e38, 3.2e38, num_bits=2, min_width=3.0))
    for y in (in_graph(), lsq_uniform(infinite, 3.2e38, 3.2e38, num_bits=2, min_width=3.0)):
        np.testing.assert_allclose(y, [0.0, 3.2e38], rtol=1e-6)
