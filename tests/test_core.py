"""The kernels on NumPy arrays: threads, instruction sets, views, errors."""

import numpy as np
import pytest
from grid import LAYOUTS, assert_same_bits, draw_inputs, draw_ranges, number_of_channels

import qatfast
from qatfast import _core

# Large enough for several blocks of work in each regime of the kernels, which the grid of shapes is not.
LARGE_LAYOUTS = [
    ((300_001,), None),
    ((5, 70_001), 0),
    ((3, 2, 50_000), 1),
    ((700, 600), 1),
    ((400, 300, 3), 1),
    ((90, 3001), 1),
]


X = np.zeros((3, 4), np.float32)
LOW, HIGH = np.float32(-1), np.float32(1)


def draw_case(shape, axis, seed=0):
    rng = np.random.default_rng(seed)
    min, max = (np.asarray(end, np.float32) for end in draw_ranges(rng, number_of_channels(shape, axis)))
    x = draw_inputs(rng, shape, min, max, 8, axis)
    return rng.normal(size=shape).astype(np.float32), x, min, max


@pytest.mark.parametrize(("shape", "axis"), LAYOUTS + LARGE_LAYOUTS)
def test_any_instruction_set_and_number_of_threads_gives_the_same_bits(shape, axis):
    grad_y, x, min, max = draw_case(shape, axis)
    expected_y = _core.fake_quant(x, min, max, axis=axis, isa="portable")
    expected = _core.fake_quant_grad(grad_y, x, min, max, axis=axis, isa="portable")
    for isa in _core.cpu_features():
        for num_threads in (1, 2, 7):
            run = {"axis": axis, "isa": isa, "num_threads": num_threads}
            assert_same_bits(_core.fake_quant(x, min, max, **run), expected_y)
            for actual, wanted in zip(_core.fake_quant_grad(grad_y, x, min, max, **run), expected, strict=True):
                assert_same_bits(actual, wanted)
            grad_x, no_grad_min, no_grad_max = _core.fake_quant_grad(grad_y, x, min, max, with_range=False, **run)
            assert_same_bits(grad_x, expected[0])
            assert no_grad_min is None and no_grad_max is None


@pytest.mark.parametrize(("shape", "axis"), LAYOUTS + LARGE_LAYOUTS)
def test_equals_the_tensorflow_op(shape, axis):
    _, x, min, max = draw_case(shape, axis)
    assert_same_bits(_core.fake_quant(x, min, max, axis=axis), qatfast.ops.fake_quant(x, min, max, axis=axis))


@pytest.mark.parametrize("offset", [0, 1, 5, 16])
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS + LARGE_LAYOUTS)
def test_writing_around_the_caches_gives_the_same_bits_in_place_and_no_further(shape, axis, offset):
    grad_y, x, min, max = draw_case(shape, axis)
    memory = np.full(x.size + 40, 7, np.float32)
    here = slice(offset, offset + x.size)
    run = {"axis": axis, "out": memory[here].reshape(shape), "num_threads": 2, "stream": True}
    assert_same_bits(_core.fake_quant(x, min, max, **run), _core.fake_quant(x, min, max, axis=axis, stream=False))
    expected = _core.fake_quant_grad(grad_y, x, min, max, axis=axis, stream=False)
    for actual, wanted in zip(_core.fake_quant_grad(grad_y, x, min, max, **run), expected, strict=True):
        assert_same_bits(actual, wanted)
    assert (np.delete(memory, here) == 7).all()


@pytest.mark.parametrize("offset", range(17))
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 2047, 2048, 2049])
def test_unaligned_views_are_read_and_written_in_place_and_no_further(offset, length):
    grad_y, x, min, max = draw_case((length,), None)
    x_view, grad_view, out = (np.full(length + 40, 7, np.float32) for _ in range(3))
    here = slice(offset, offset + length)
    x_view[here], grad_view[here] = x, grad_y
    assert_same_bits(_core.fake_quant(x_view[here], min, max, out=out[here]), _core.fake_quant(x, min, max))
    expected = _core.fake_quant_grad(grad_y, x, min, max)[0]
    assert_same_bits(_core.fake_quant_grad(grad_view[here], x_view[here], min, max, out=grad_view[here])[0], expected)
    for array in (out, grad_view):
        assert (np.delete(array, here) == 7).all()


@pytest.mark.parametrize(("shape", "axis"), LAYOUTS + LARGE_LAYOUTS)
def test_output_may_be_an_input(shape, axis):
    grad_y, x, min, max = draw_case(shape, axis)
    expected = _core.fake_quant_grad(grad_y, x, min, max, axis=axis)
    for actual, wanted in zip(_core.fake_quant_grad(grad_y, x, min, max, axis=axis, out=grad_y), expected, strict=True):
        assert_same_bits(actual, wanted)
    y = _core.fake_quant(x, min, max, axis=axis)
    assert_same_bits(_core.fake_quant(x, min, max, axis=axis, out=x), y)
    assert_same_bits(x, y)


def test_an_output_that_overlaps_an_input_elsewhere_is_refused():
    memory = np.zeros(10, np.float32)
    with pytest.raises(ValueError, match="fake_quant: out must be x itself or apart from it"):
        _core.fake_quant(memory[:9], LOW, HIGH, out=memory[1:])
    with pytest.raises(ValueError, match="fake_quant_grad: out must be grad_y itself or apart from it"):
        _core.fake_quant_grad(memory[:9], np.zeros(9, np.float32), LOW, HIGH, out=memory[1:])


def test_memcpy_copies_on_any_number_of_threads():
    source = np.arange(100_003, dtype=np.float32)
    for num_threads in (1, 2, 7):
        destination = np.zeros_like(source)
        _core.memcpy(destination, source, num_threads=num_threads)
        np.testing.assert_array_equal(destination, source)


ERRORS = [
    ({"x": X.astype(np.float64)}, "fake_quant: x must be of dtype float32, got float64"),
    ({"x": X.T}, "fake_quant: x must be C-contiguous and aligned to its elements, got strides (4, 16)"),
    ({"min": np.zeros((), np.float64)}, "fake_quant: min must be of dtype float32, got float64"),
    ({"min": "low"}, "fake_quant: min must be a number or an array, got 'low'"),
    ({"max": np.zeros(2, np.float32)}, "fake_quant: max must be of shape (), got (2,)"),
    ({"axis": 1}, "fake_quant: min must be of shape (4,), got ()"),
    ({"axis": 2}, "fake_quant: axis must be an axis of x, of shape (3, 4), got 2"),
    ({"num_bits": 17}, "fake_quant: num_bits must be from 2 to 16, got 17"),
    ({"num_threads": 0}, "fake_quant: num_threads must be at least 1, got 0"),
    ({"isa": "avx9"}, "fake_quant: isa must be an instruction set of cpu_features(), got avx9"),
    ({"out": np.zeros(12, np.float32)}, "fake_quant: out must be of shape (3, 4), got (12,)"),
    ({"max": np.float32(-2)}, "fake_quant: min and max must be finite and min less than max (or both 0), got min -1"),
]


@pytest.mark.parametrize(("change", "message"), ERRORS)
def test_bad_arguments_are_named(change, message):
    arguments = {"x": X, "min": LOW, "max": HIGH} | change
    with pytest.raises(ValueError) as raised:
        _core.fake_quant(**arguments)
    assert str(raised.value).startswith(message)


def test_bad_gradient_arguments_are_named():
    with pytest.raises(ValueError, match=r"fake_quant_grad: grad_y must be of shape \(3, 4\), got \(4, 3\)"):
        _core.fake_quant_grad(np.zeros((4, 3), np.float32), X, LOW, HIGH)
    read_only = X.copy()
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="fake_quant_grad: out must be writeable, got a read-only array"):
        _core.fake_quant_grad(X, X, LOW, HIGH, out=read_only)


def test_bad_memcpy_arguments_are_named():
    with pytest.raises(ValueError, match="memcpy: destination must be 48 bytes long, got 16"):
        _core.memcpy(np.zeros(4, np.float32), X)
    with pytest.raises(ValueError, match="memcpy: destination and source must be arrays of numbers, got object"):
        _core.memcpy(np.array([None]), np.array([None]))
    with pytest.raises(ValueError, match="memcpy: destination and source must be C-contiguous"):
        _core.memcpy(np.zeros((4, 3), np.float32), X.T)
    with pytest.raises(ValueError, match="memcpy: num_threads must be at least 1, got 0"):
        _core.memcpy(X.copy(), X, num_threads=0)
