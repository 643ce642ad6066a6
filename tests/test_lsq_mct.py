"""`lsq_symmetric` and `lsq_uniform` of both backends against MCT's functions, where MCT is installed."""

import lsq_oracle
import numpy as np
import pytest
import tensorflow as tf
from grid import LAYOUTS, along_axis, assert_same_bits, forward_and_gradients

mct = pytest.importorskip("model_compression_toolkit.trainable_infrastructure.keras.quantizer_utils")


def check_against_mct(function, mct_function, case, mct_attributes, **attributes):
    """Forward to the last bit. MCT sums its gradients in float32, of terms that it does not subtract first."""
    *inputs, grad_y = case
    axis, rank = attributes["axis"], inputs[0].ndim
    columns = [along_axis(value, rank, axis) for value in inputs[1:]]
    y, grad_x, *gradients = forward_and_gradients(function, *inputs, grad_y=grad_y, **attributes)
    mct_y, mct_grad_x, *mct_gradients = forward_and_gradients(
        mct_function, inputs[0], *columns, grad_y=grad_y, num_bits=attributes["num_bits"], **mct_attributes
    )
    assert_same_bits(y, mct_y)
    np.testing.assert_allclose(grad_x, mct_grad_x, rtol=1e-6)
    others = None if axis is None else tuple(i for i in range(rank) if i != axis % rank)
    noise = 2.0**-20 * np.abs(grad_y).sum(axis=others)  # of terms that are each about grad_y at most
    for gradient, mct_gradient in zip(gradients, mct_gradients, strict=True):
        assert (np.abs(gradient - mct_gradient.reshape(gradient.shape)) <= noise).all()


def finite_and_not_overflowing(x):
    return np.where(np.isfinite(x) & (np.abs(x) < 1e30), x, np.float32(0.7))


@pytest.mark.parametrize(("shape", "axis"), [layout for layout in LAYOUTS if 0 not in layout[0]])
def test_symmetric_equals_mct(lsq_symmetric, shape, axis):
    for seed, (num_bits, signed, grad_scale) in enumerate(
        [(2, True, 0.37), (4, False, 1.7), (8, True, 1.0), (8, True, 1 / np.sqrt(127 * 64)), (16, True, 0.37)]
    ):
        attributes = {"num_bits": num_bits, "signed": signed, "axis": axis, "grad_scale": grad_scale}
        x, *others = lsq_oracle.draw_symmetric_case(seed, shape, **attributes)
        n = 2 ** (num_bits - signed)
        mct_attributes = {"sign": signed, "min_int": -n * signed, "max_int": n - 1, "scale_factor": grad_scale}
        case = (finite_and_not_overflowing(x), *others)
        check_against_mct(lsq_symmetric, mct.symmetric_lsq_quantizer, case, mct_attributes, **attributes)


@pytest.mark.parametrize(("shape", "axis"), [layout for layout in LAYOUTS if 0 not in layout[0]])
def test_uniform_equals_mct(lsq_uniform, shape, axis):
    for seed, (num_bits, grad_scale) in enumerate(
        [(2, 0.37), (4, 1.7), (8, 1.0), (8, 1 / np.sqrt(255 * 64)), (16, 0.37)]
    ):
        attributes = {"num_bits": num_bits, "axis": axis, "grad_scale": grad_scale}
        x, *others = lsq_oracle.draw_uniform_case(seed, shape, **attributes)
        mct_attributes = {"min_int": 0, "max_int": 2**num_bits - 1, "scale_factor": grad_scale}
        case = (finite_and_not_overflowing(x), *others)
        check_against_mct(lsq_uniform, mct.uniform_lsq_quantizer, case, mct_attributes, **attributes)


@pytest.mark.parametrize("num_bits", [2, 8, 16])
def test_zero_misses_the_uniform_grid_of_mct_and_ours_by_the_same_bits_unless_it_is_asked_for(lsq_uniform, num_bits):
    rng = np.random.default_rng(num_bits)
    low, high = -np.exp(rng.normal(size=20_000) * 2), np.exp(rng.normal(size=20_000) * 2)
    ends = low.astype(np.float32), high.astype(np.float32)
    zeros = np.zeros((20_000, 1), np.float32)
    columns = [end[:, None] for end in ends]
    theirs = mct.uniform_lsq_quantizer(zeros, *columns, num_bits, 0, 2**num_bits - 1, 1.0)
    assert_same_bits(lsq_uniform(zeros, *ends, num_bits=num_bits, axis=0), theirs)
    assert 0.002 < np.mean(theirs != 0) < 0.05
    exact = lsq_uniform(zeros, *ends, num_bits=num_bits, axis=0, exact_zero=True)
    assert_same_bits(exact, zeros)


def test_infinities_are_nan_in_mct_alone(lsq_symmetric):
    x = tf.constant([np.inf, -np.inf])
    assert np.isnan(mct.symmetric_lsq_quantizer(x, 1.0, 8, True, -128, 127, 1.0)).all()
    np.testing.assert_array_equal(lsq_symmetric(x, 1.0), [127 / 128, -1.0])
