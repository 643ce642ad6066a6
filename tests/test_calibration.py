"""How ranges are chosen: histograms, min-max and mean squared error."""

import numpy as np
import pytest
from models import METHODS

from qatfast import CalibrationMethod, QATConfig
from qatfast.calibration import Histogram, activation_params, weight_params

SYMMETRIC, POWER_OF_TWO, UNIFORM = METHODS
MIN_MAX, MSE = CalibrationMethod


def histogram_of(*arrays):
    histogram = Histogram()
    for array in arrays:
        histogram.add(np.asarray(array, np.float32))
    return histogram


def test_a_histogram_keeps_exact_ends_and_counts_everything():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(scale=scale, size=(7, 11)) for scale in (1e-3, 1.0, 50.0, 0.1)]
    histogram = histogram_of(*arrays, np.zeros((0, 3)))
    everything = np.concatenate([array.astype(np.float32).ravel() for array in arrays])
    assert (histogram.min, histogram.max) == (everything.min(), everything.max())
    assert histogram.counts.sum() == everything.size
    assert histogram.limit / 2 <= np.abs(everything).max() <= histogram.limit


def test_a_histogram_does_not_depend_on_the_order_of_the_data():
    small, large = np.linspace(-0.5, 0.5, 1000), np.linspace(-100, 3, 500)
    first, second = histogram_of(small, large), histogram_of(large, small)
    np.testing.assert_array_equal(first.counts, second.counts)
    assert first.limit == second.limit == 128.0


@pytest.mark.parametrize(
    ("method", "values", "expected"),
    [
        (SYMMETRIC, [0.0, 3.0], {"threshold": 3.0, "is_signed": False}),
        (SYMMETRIC, [-5.0, 3.0], {"threshold": 5.0, "is_signed": True}),
        (POWER_OF_TWO, [0.0, 3.0], {"threshold": 4.0, "is_signed": False}),
        (POWER_OF_TWO, [-4.0, 3.0], {"threshold": 4.0, "is_signed": True}),
        (UNIFORM, [-1.0, 3.0], {"range_min": -1.0, "range_max": 3.0}),
        (UNIFORM, [1.0, 3.0], {"range_min": 0.0, "range_max": 3.0}),
        (SYMMETRIC, [0.0, 0.0], {"threshold": 2**-16, "is_signed": False}),
        (POWER_OF_TWO, [0.0, 0.0], {"threshold": 2**-16, "is_signed": False}),
        (UNIFORM, [0.0, 0.0], {"range_min": 0.0, "range_max": 2**-16}),
    ],
)
@pytest.mark.parametrize("calibration_method", CalibrationMethod)
def test_activations_get_their_range_and_dead_ones_the_smallest(method, values, expected, calibration_method):
    # At 8 bits two values at the ends of the range have the least error there: both calibrations agree.
    config = QATConfig(activation_quantization_method=method, activation_calibration_method=MIN_MAX)
    params = activation_params(histogram_of(values), config)
    assert params == expected
    if values[1] == 0.0:
        config = QATConfig(activation_quantization_method=method, activation_calibration_method=calibration_method)
        assert activation_params(histogram_of(values), config) == expected


def quantization_error(x, low, step, levels):
    integers = np.clip(np.round(x / step), np.round(low / step), np.round(low / step) + levels - 1)
    return np.mean((x - integers * step) ** 2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_bits", [2, 4])
def test_least_squares_has_less_error_than_min_max_on_data_with_outliers(method, n_bits):
    values = np.random.default_rng(1).standard_t(3, size=20000)
    errors = {}
    for calibration_method in CalibrationMethod:
        config = QATConfig(
            activation_quantization_method=method,
            activation_n_bits=n_bits,
            activation_calibration_method=calibration_method,
        )
        params = activation_params(histogram_of(values), config)
        low = params.get("range_min", -params.get("threshold", 0.0))
        width = params["range_max"] - low if method is UNIFORM else 2 * params["threshold"]
        step = width / (2**n_bits - (method is UNIFORM))
        errors[calibration_method] = quantization_error(values, low, step, 2**n_bits)
    assert errors[MSE] < 0.5 * errors[MIN_MAX]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("axis", [0, 2])
def test_kernels_get_a_range_per_channel_of_the_kernels_rank(method, axis):
    kernel = np.random.default_rng(2).normal(size=(3, 2, 5)).astype(np.float32)
    params = weight_params(kernel, axis, QATConfig(weight_quantization_method=method))
    others = tuple({0, 1, 2} - {axis})
    expected_shape = tuple(kernel.shape[i] if i == axis else 1 for i in range(3))
    for value in params.values():
        assert value.shape == expected_shape and value.dtype == np.float32
    if method is SYMMETRIC:
        np.testing.assert_array_equal(params["threshold"].ravel(), np.abs(kernel).max(axis=others))
    if method is UNIFORM:
        np.testing.assert_array_equal(params["range_min"].ravel(), kernel.min(axis=others))


def test_kernels_get_one_range_per_tensor_if_so_configured():
    kernel = np.array([[1.0, -3.0]], np.float32)
    assert weight_params(kernel, 1, QATConfig(weight_per_channel=False)) == {"threshold": 3.0}


@pytest.mark.parametrize("calibration_method", CalibrationMethod)
@pytest.mark.parametrize("method", METHODS)
def test_a_dead_channel_gets_the_smallest_threshold(method, calibration_method):
    kernel = np.stack([np.zeros(9), np.linspace(-1, 1, 9)], axis=1).astype(np.float32)
    config = QATConfig(
        weight_quantization_method=method, weight_calibration_method=calibration_method, min_threshold=0.125
    )
    params = weight_params(kernel, 1, config)
    key = "range_max" if method is UNIFORM else "threshold"
    assert params[key].ravel()[0] == 0.125
    assert params[key].ravel()[1] > 0.25


def test_least_squares_chooses_for_every_channel_by_itself():
    rng = np.random.default_rng(3)
    kernel = rng.standard_t(3, size=(4000, 3)).astype(np.float32) * np.array([1.0, 10.0, 0.01], np.float32)
    config = QATConfig(weight_calibration_method=MSE, weight_n_bits=3)
    together = weight_params(kernel, 1, config)["threshold"]
    for channel in range(3):
        alone = weight_params(kernel[:, channel : channel + 1], 1, config)["threshold"]
        np.testing.assert_array_equal(together[:, channel], alone[:, 0])
    assert np.all(together < np.abs(kernel).max(axis=0))
