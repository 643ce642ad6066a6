"""The kernels on NumPy arrays: threads, instruction sets, views, errors. Needs no TensorFlow: see `make sanitize`."""

import ml_dtypes
import numpy as np
import pytest
from grid import LAYOUTS, assert_same_bits
from kernel_cases import CASES, LARGE_LAYOUTS, _core, backward, draw_case, forward

X = np.zeros((3, 4), np.float32)
LOW, HIGH = np.float32(-1), np.float32(1)


def assert_all_same_bits(actual, expected):
    for got, wanted in zip(actual, expected, strict=True):
        assert_same_bits(got, wanted)


@pytest.mark.parametrize(("op", "dtype", "shape", "axis"), CASES)
def test_any_instruction_set_and_number_of_threads_gives_the_same_bits(op, dtype, shape, axis):
    grad_y, x, parameters = draw_case(op, dtype, shape, axis)
    expected = forward(_core, op, x, parameters, axis=axis, isa="portable", save_mask=True)
    expected_gradients = backward(_core, op, grad_y, x, parameters, axis=axis, isa="portable")
    for isa in _core.cpu_features():
        for num_threads in (1, 2, 7):
            run = {"isa": isa, "num_threads": num_threads}
            assert_all_same_bits(forward(_core, op, x, parameters, axis=axis, save_mask=True, **run), expected)
            assert_same_bits(forward(_core, op, x, parameters, axis=axis, **run), expected[0])
            assert_all_same_bits(backward(_core, op, grad_y, x, parameters, axis=axis, **run), expected_gradients)
            assert_same_bits(_core.straight_through_grad(grad_y, expected[1], **run), expected_gradients[0])


@pytest.mark.parametrize(("shape", "axis"), LAYOUTS + LARGE_LAYOUTS)
def test_gradient_to_x_alone_is_that_of_the_pass_with_sums(shape, axis):
    grad_y, x, parameters = draw_case("fake_quant", np.float32, shape, axis)
    expected = backward(_core, "fake_quant", grad_y, x, parameters, axis=axis)[0]
    for isa in _core.cpu_features():
        gradients = backward(_core, "fake_quant", grad_y, x, parameters, axis=axis, isa=isa, with_range=False)
        assert_same_bits(gradients[0], expected)
        assert gradients[1:] == (None, None)


@pytest.mark.parametrize(("op", "dtype", "shape", "axis"), CASES)
def test_the_mask_is_where_the_gradient_passes_a_bit_per_element_in_order(op, dtype, shape, axis):
    grad_y, x, parameters = draw_case(op, dtype, shape, axis)
    ones = np.ones_like(grad_y)
    _, mask = forward(_core, op, x, parameters, axis=axis, save_mask=True, num_threads=2)
    passes = backward(_core, op, ones, x, parameters, axis=axis)[0] == ones
    np.testing.assert_array_equal(mask, np.packbits(passes.ravel(), bitorder="little"))


ATTRIBUTES = [
    ("fake_quant", {"include_zero": True}),
    ("fake_quant", {"num_bits": 4, "narrow_range": True}),
    ("lsq_symmetric", {"signed": False, "num_bits": 3}),
    ("lsq_symmetric", {"power_of_two": True, "min_threshold": 0.3}),
    ("lsq_uniform", {"min_width": 0.5}),
    ("lsq_uniform", {"exact_zero": True, "min_width": 0.5}),
]


@pytest.mark.parametrize("inner", [1, 3, 8])
@pytest.mark.parametrize(("function", "attributes"), ATTRIBUTES)
def test_channels_that_come_once_are_quantized_as_those_that_come_twice(function, attributes, inner):
    grad_y, x, parameters = draw_case(function, np.float32, (2003, inner), 0)
    once, twice = {"axis": 0, **attributes}, {"axis": 1, **attributes}
    both = np.stack([x, x])
    y = getattr(_core, function)(x, *parameters, **once)
    assert_same_bits(np.stack([y, y]), getattr(_core, function)(both, *parameters, **twice))
    grad_x, *gradients = getattr(_core, f"{function}_grad")(grad_y, x, *parameters, **once)
    expected, *of_both = getattr(_core, f"{function}_grad")(np.stack([grad_y, grad_y]), both, *parameters, **twice)
    assert_same_bits(np.stack([grad_x, grad_x]), expected)
    for gradient, doubled in zip(gradients, of_both, strict=True):
        np.testing.assert_allclose(2 * gradient, doubled, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", ["fake_quant", "lsq_symmetric", "lsq_uniform"])
@pytest.mark.parametrize("inner", [1, 8])
def test_the_first_channel_that_cannot_be_quantized_with_is_named(function, inner):
    _, x, parameters = draw_case(function, np.float32, (2003, inner), 0)
    for end in parameters:
        end[1301] = np.nan
        end[1777] = -np.inf
    with pytest.raises(ValueError, match=f"^{function}: .*nan.* channel 1301"):
        getattr(_core, function)(x, *parameters, axis=0)
    with pytest.raises(ValueError, match=f"^{function}_grad: .*nan.* channel 1301"):
        getattr(_core, f"{function}_grad")(x, x, *parameters, axis=0)


@pytest.mark.parametrize("offset", [0, 1, 5, 16])
@pytest.mark.parametrize(("op", "dtype", "shape", "axis"), CASES)
def test_writing_around_the_caches_gives_the_same_bits_in_place_and_no_further(op, dtype, shape, axis, offset):
    grad_y, x, parameters = draw_case(op, dtype, shape, axis)
    memory = np.full(x.size + 40, 7, dtype)
    here = slice(offset, offset + x.size)
    run = {"out": memory[here].reshape(shape), "num_threads": 2, "stream": True}
    expected, mask = forward(_core, op, x, parameters, axis=axis, stream=False, save_mask=True)
    assert_all_same_bits(forward(_core, op, x, parameters, axis=axis, save_mask=True, **run), (expected, mask))
    expected = backward(_core, op, grad_y, x, parameters, axis=axis, stream=False)
    assert_all_same_bits(backward(_core, op, grad_y, x, parameters, axis=axis, **run), expected)
    memory[here] = 0
    assert_same_bits(_core.straight_through_grad(grad_y, mask, **run), expected[0])
    assert (np.delete(memory, here) == 7).all()


@pytest.mark.parametrize("offset", range(17))
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 511, 512, 513, 2049])
def test_unaligned_views_are_read_and_written_in_place_and_no_further(offset, length):
    for dtype in (np.float32, np.float16):
        grad_y, x, parameters = draw_case("fake_quant", dtype, (length,), None)
        x_view, grad_view, out = (np.full(length + 40, 7, dtype) for _ in range(3))
        here = slice(offset, offset + length)
        x_view[here], grad_view[here] = x, grad_y
        expected = forward(_core, "fake_quant", x, parameters)
        assert_same_bits(forward(_core, "fake_quant", x_view[here], parameters, out=out[here]), expected)
        expected = backward(_core, "fake_quant", grad_y, x, parameters)[0]
        run = {"out": grad_view[here]}
        assert_same_bits(backward(_core, "fake_quant", grad_view[here], x_view[here], parameters, **run)[0], expected)
        for array in (out, grad_view):
            assert (np.delete(array, here) == 7).all()


@pytest.mark.parametrize(("op", "dtype", "shape", "axis"), CASES)
def test_output_may_be_an_input(op, dtype, shape, axis):
    grad_y, x, parameters = draw_case(op, dtype, shape, axis)
    expected = backward(_core, op, grad_y, x, parameters, axis=axis)
    y, mask = forward(_core, op, x, parameters, axis=axis, save_mask=True)
    by_mask = grad_y.copy()
    assert_same_bits(_core.straight_through_grad(by_mask, mask, out=by_mask), expected[0])
    assert_all_same_bits(backward(_core, op, grad_y, x, parameters, axis=axis, out=grad_y), expected)
    assert_all_same_bits(forward(_core, op, x, parameters, axis=axis, save_mask=True, out=x), (y, mask))
    assert_same_bits(x, y)


def half_values(dtype):
    """Every number of a 16-bit type, and next to it the halfway points at which rounding to it is decided."""
    numbers = np.arange(2**16, dtype=np.uint16).view(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        return numbers, numbers.astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("isa", _core.cpu_features())
def test_every_16_bit_number_is_widened_and_narrowed_as_by_numpy(dtype, isa):
    # A step of 1 over a wide range rounds to integers: exact in float32, so narrowing back is what is tested.
    numbers, wide = half_values(dtype)
    for scale in (1.0, 2.0**-20):
        y = _core.lsq_symmetric(numbers, np.float32(2.0**15 * scale), num_bits=16, isa=isa)
        expected = _core.lsq_symmetric(wide, np.float32(2.0**15 * scale), num_bits=16, isa=isa)
        with np.errstate(over="ignore"):
            assert_same_bits(y, expected.astype(dtype))


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
    ({"x": X.astype(np.int32)}, "fake_quant: x must be of dtype float32, float16, bfloat16 or float64, got int32"),
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
    (
        {"max": np.float32(-2)},
        "fake_quant: min and max must be finite and min less than max (or both 0), with a step that is a "
        "normal number, got min -1",
    ),
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


def test_bad_lsq_attributes_are_named():
    with pytest.raises(ValueError, match="lsq_symmetric: grad_scale must be positive and finite, got -1"):
        _core.lsq_symmetric(X, HIGH, grad_scale=-1.0)
    with pytest.raises(ValueError, match="lsq_uniform: min_width must be finite and not negative, got nan"):
        _core.lsq_uniform(X, LOW, HIGH, min_width=np.nan)


def test_bad_memcpy_arguments_are_named():
    with pytest.raises(ValueError, match="memcpy: destination must be 48 bytes long, got 16"):
        _core.memcpy(np.zeros(4, np.float32), X)
    with pytest.raises(ValueError, match="memcpy: destination and source must be arrays of numbers, got object"):
        _core.memcpy(np.array([None]), np.array([None]))
    with pytest.raises(ValueError, match="memcpy: destination and source must be C-contiguous"):
        _core.memcpy(np.zeros((4, 3), np.float32), X.T)
    with pytest.raises(ValueError, match="memcpy: num_threads must be at least 1, got 0"):
        _core.memcpy(X.copy(), X, num_threads=0)
