"""What LSQ quantizers export: steps and integers that the inferable quantizer makes again, and zero as zero."""

import numpy as np
import pytest
import tensorflow as tf
from grid import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from mct_quantizers import QuantizationMethod
from mct_quantizers.common.quant_utils import adjust_range_to_include_zero
from models import build, weights_config

from qatfast.quantizers import LSQWeightsQuantizer
from qatfast.quantizers.ranges import exportable_grid, exportable_threshold, symmetric_range

UNIFORM = QuantizationMethod.UNIFORM
bits = st.integers(2, 16)
thresholds = st.integers(-12, 12).flatmap(lambda e: st.floats(1.0, 2.0, width=32).map(lambda m: m * 2.0**e))


@given(bits, st.booleans(), thresholds)
def test_an_exported_threshold_is_within_half_a_float32_number_of_its_step(n_bits, signed, threshold):
    step = np.float32(threshold / 2 ** (n_bits - signed))
    exported = exportable_threshold(step, n_bits, signed)
    assert abs(exported - float(step) * 2.0 ** (n_bits - signed)) <= 0.5 * np.spacing(np.float32(threshold))
    lower, upper = symmetric_range(exported, n_bits, signed)
    actual = (upper - lower) / np.float32(2**n_bits - 1)
    assert abs(float(actual) - float(step)) <= np.spacing(step)


def test_most_thresholds_export_with_exactly_their_step():
    step = np.random.default_rng(0).uniform(1, 2, 10_000).astype(np.float32) / np.float32(128)
    lower, upper = symmetric_range(exportable_threshold(step, 8, True), 8, True)
    assert np.mean((upper - lower) / np.float32(255) == step) > 0.95


def random_ranges(count, rng):
    """Ends of ranges across zero and on either side of it, over many magnitudes."""
    low, high = -np.exp(rng.normal(size=count) * 2), np.exp(rng.normal(size=count) * 2)
    side = rng.random(count)
    low, high = np.where(side < 0.05, 0.1 * high, low), np.where(side > 0.95, 0.1 * low, high)
    return low.astype(np.float32), high.astype(np.float32)


@pytest.mark.parametrize("n_bits", [2, 4, 8, 16])
def test_zero_stays_zero_and_the_integers_stay_for_any_uniform_range_in_training_and_export(n_bits):
    count, largest = 10_000, 2**n_bits - 1
    low, high = random_ranges(count, np.random.default_rng(n_bits))
    quantizer = LSQWeightsQuantizer(weights_config(UNIFORM, n_bits, axis=0, range_min=low, range_max=high))
    build(quantizer, (count, 4))
    far = np.float32(4e4) * (high - low)
    x = np.stack([0 * far, -0.0 * far, -far, far], axis=1)
    inferable = quantizer.convert2inferable()
    # From the formula in double: the zero point is that of the range, whatever rounds the step.
    step = (np.maximum(high, 0) - np.minimum(low, 0).astype(np.float64)) / largest
    place = np.minimum(low, 0) / step
    certain = np.abs(place - np.floor(place) - 0.5) > 1e-6 * largest
    for y in (quantizer(tf.constant(x)).numpy(), inferable(tf.constant(x)).numpy()):
        assert_same_bits(y[:, :2], np.zeros((count, 2), np.float32))
        lowest, highest = (np.rint(y[:, i] / step) for i in (2, 3))
        np.testing.assert_array_equal(highest - lowest, largest)
        np.testing.assert_array_equal(lowest[certain], np.rint(place)[certain])
        assert certain.mean() > 0.8
    trained, exported = quantizer(tf.constant(x)).numpy(), inferable(tf.constant(x)).numpy()
    np.testing.assert_array_equal(np.rint(trained[:, 2] / step), np.rint(exported[:, 2] / step))
    # Where the ends are not the same, the next float32 numbers to the steps are exported.
    assert np.mean((trained == exported).all(axis=1)) > 0.95
    np.testing.assert_allclose(exported, trained, rtol=2.0**-22)


@given(bits, st.data())
def test_an_exported_grid_begins_at_its_integer_and_survives_reloading(n_bits, data):
    largest = 2**n_bits - 1
    step, lowest = np.float32(data.draw(thresholds)), data.draw(st.integers(-largest, 0))
    lower, upper = exportable_grid(step, lowest, n_bits)
    for _ in range(4):
        again = adjust_range_to_include_zero(lower, upper, n_bits)
        np.testing.assert_array_equal(again, (lower, upper))
        lower, upper = again
    width = np.float32(upper) - np.float32(lower)
    exported = width / np.float32(largest)
    assert abs(float(exported) - float(step)) <= np.spacing(step)
    assert np.rint(lower / exported) == lowest and np.rint(upper / exported) == lowest + largest


def test_a_grid_beyond_float32_does_not_export():
    with pytest.raises(ValueError, match="^the grid must be representable in float32 with 2 bits, got "):
        exportable_grid(np.float32(2e38), 0, 2)


@pytest.mark.parametrize(("n_bits", "share"), [(2, 0.99), (4, 0.96), (8, 0.96), (16, 0.96)])
def test_most_trained_ranges_export_with_exactly_their_step(n_bits, share):
    low, high = random_ranges(10_000, np.random.default_rng(n_bits))
    largest = np.float32(2**n_bits - 1)
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    step = (high - low) / largest
    lower, upper = (end.astype(np.float32) for end in exportable_grid(step, np.rint(low / step), n_bits))
    assert np.mean((upper - lower) / largest == step) > share
