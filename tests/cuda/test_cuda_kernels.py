"""The CUDA kernels against the CPU kernels, bit for bit, and their sums against an oracle in float64."""

import lsq_oracle
import ml_dtypes
import numpy as np
import pytest
from device import DeviceArray
from grid import assert_same_bits, assert_sums_close
from kernel_cases import CASES, DTYPES, OPS, backward, draw_case, forward

# The CUDA kernels' own borders. Runs: chunks of 4096 elements (2048 in float64), pieces of up to 8192 for a block and
# 1024 for a warp, runs that are shorter than a pack of 16 bytes is wide, or start anywhere in one. Lanes: tiles of 128
# columns, row blocks of 32 rows and more, periods that no pack divides.
CUDA_LAYOUTS = [
    ((4095,), None),
    ((4097,), None),
    ((2, 3, 63), 1),
    ((1, 500, 8), 1),
    ((2, 500, 9), 1),
    ((1, 50, 17), 1),
    ((3, 5, 1000), 1),
    ((2, 3, 5000), 1),
    ((7, 20_000), 0),
    ((5000,), 0),
    ((3000, 3), 1),
    ((1000, 7), 1),
    ((33, 401), 1),
    ((600, 130), 1),
    ((3, 4097), 1),
    ((9, 6, 2), 1),
    ((100, 64), 1),
    ((20_000, 5), 1),
]
ALL_CASES = CASES + [(op, dtype, *layout) for layout in CUDA_LAYOUTS for op in OPS for dtype in (np.float32, *DTYPES)]
# A few of each regime and type, for what does not depend on the layout.
SOME_LAYOUTS = [((4097,), None), ((2, 500, 9), 1), ((3, 5, 1000), 1), ((33, 401), 1), ((9, 6, 2), 1)]
SOME_CASES = [(op, dtype, *layout) for layout in SOME_LAYOUTS for op in OPS for dtype in (np.float32, *DTYPES)]


def put_all(device, *arrays, offset=0):
    return [device.put(np.asarray(array), offset) for array in arrays]


@pytest.mark.parametrize(("op", "dtype", "shape", "axis"), ALL_CASES)
def test_outputs_masks_and_gradients_to_x_have_the_bits_of_the_cpu_kernels(device, core, op, dtype, shape, axis):
    grad_y, x, parameters = draw_case(op, dtype, shape, axis)
    expected_y, expected_mask = forward(core, op, x, parameters, axis=axis, save_mask=True)
    expected_grad_x = backward(core, op, grad_y, x, parameters, axis=axis)[0]

    on_grad_y, on_x, *on_parameters = put_all(device, grad_y, x, *parameters)
    y, mask = device.forward(op, on_x, on_parameters, axis=axis, save_mask=True)
    assert_same_bits(device.get(y), expected_y)
    np.testing.assert_array_equal(device.get(mask), expected_mask)
    y_alone, _ = device.forward(op, on_x, on_parameters, axis=axis)
    assert_same_bits(device.get(y_alone), expected_y)
    grad_x, *sums = device.backward(op, on_grad_y, on_x, on_parameters, axis=axis)
    assert_same_bits(device.get(grad_x), expected_grad_x)
    grad_x_by_mask = device.straight_through_grad(on_grad_y, mask)
    assert_same_bits(device.get(grad_x_by_mask), expected_grad_x)
    for array in (y, mask, y_alone, grad_x, grad_x_by_mask, *sums):
        assert device.is_untouched_around(array)
    if op == "fake_quant":
        (grad_x_alone,) = device.backward(op, on_grad_y, on_x, on_parameters, axis=axis, with_sums=False)
        assert_same_bits(device.get(grad_x_alone), expected_grad_x)


def exact_sums(core, op, grad_y, x, parameters, axis):
    """(value, sum of absolute terms, whether terms are products) of each parameter's gradient."""
    if op == "fake_quant":
        # The CPU's sums are exact but for one rounding; tests/test_ops.py holds them to the formulas.
        sums = core.fake_quant_grad(grad_y, x, *parameters, axis=axis)[1:]
        others = None if axis is None else tuple(i for i in range(x.ndim) if i != axis % x.ndim)
        magnitude = np.sum(np.abs(grad_y.astype(np.float64)), axis=others)
        return [(value.astype(np.float64), magnitude, False) for value in sums]
    _, _, *sums = getattr(lsq_oracle, OPS[op].function)(x, *parameters, grad_y, axis=axis, **OPS[op].attributes)
    return [(value.value, value.magnitude, True) for value in sums]


@pytest.mark.parametrize(("op", "dtype", "shape", "axis"), ALL_CASES)
def test_gradients_to_parameters_are_exact_sums_rounded_once(device, core, op, dtype, shape, axis):
    grad_y, x, parameters = draw_case(op, dtype, shape, axis)
    on_grad_y, on_x, *on_parameters = put_all(device, grad_y, x, *parameters)
    _, *sums = device.backward(op, on_grad_y, on_x, on_parameters, axis=axis)
    for actual, exact in zip(sums, exact_sums(core, op, grad_y, x, parameters, axis), strict=True):
        value, magnitude, of_products = exact
        assert_sums_close(device.get(actual), value, magnitude, of_products=of_products)


@pytest.mark.parametrize("offsets", [(1, 1, 1), (3, 3, 3), (0, 1, 2), (1, 0, 0), (5, 2, 7), (16, 9, 1)])
@pytest.mark.parametrize(("op", "dtype", "shape", "axis"), SOME_CASES)
def test_unaligned_views_give_the_same_bits_and_nothing_is_written_outside(
    device, core, op, dtype, shape, axis, offsets
):
    grad_y, x, parameters = draw_case(op, dtype, shape, axis)
    expected_y, expected_mask = forward(core, op, x, parameters, axis=axis, save_mask=True)
    expected_grad_x = backward(core, op, grad_y, x, parameters, axis=axis)[0]
    on_parameters = put_all(device, *parameters)
    on_grad_y, on_x = device.put(grad_y, offsets[0]), device.put(x, offsets[1])

    def output():
        return device.empty(shape, dtype, offsets[2])

    y, mask = device.forward(op, on_x, on_parameters, axis=axis, save_mask=True, out=output())
    y_alone, _ = device.forward(op, on_x, on_parameters, axis=axis, out=output())
    grad_x, *sums = device.backward(op, on_grad_y, on_x, on_parameters, axis=axis, out=output())
    for actual, exact in zip(sums, exact_sums(core, op, grad_y, x, parameters, axis), strict=True):
        assert_sums_close(device.get(actual), exact[0], exact[1], of_products=exact[2])
    by_mask = device.straight_through_grad(on_grad_y, mask, out=output())
    np.testing.assert_array_equal(device.get(mask), expected_mask)
    for actual, expected in [
        (y, expected_y),
        (y_alone, expected_y),
        (grad_x, expected_grad_x),
        (by_mask, expected_grad_x),
    ]:
        assert_same_bits(device.get(actual), expected)
        assert device.is_untouched_around(actual)


@pytest.mark.parametrize(("op", "dtype", "shape", "axis"), SOME_CASES)
def test_gradients_that_are_denormal_or_zero_keep_their_bits(device, core, op, dtype, shape, axis):
    _, x, parameters = draw_case(op, dtype, shape, axis)
    smallest = float(ml_dtypes.finfo(dtype).tiny)
    special = [0.0, -0.0, smallest, -smallest, smallest / 3, -smallest / 3, smallest / 100, 1.0, np.inf, np.nan]
    grad_y = np.resize(np.asarray(special), shape).astype(dtype)
    expected = backward(core, op, grad_y, x, parameters, axis=axis)[0]
    on_grad_y, on_x, *on_parameters = put_all(device, grad_y, x, *parameters)
    _, mask = device.forward(op, on_x, on_parameters, axis=axis, save_mask=True)
    gradients = [
        device.backward(op, on_grad_y, on_x, on_parameters, axis=axis)[0],
        device.straight_through_grad(on_grad_y, mask),
    ]
    if op == "fake_quant":
        gradients += device.backward(op, on_grad_y, on_x, on_parameters, axis=axis, with_sums=False)
    for gradient in gradients:
        assert_same_bits(device.get(gradient), expected)


@pytest.mark.parametrize(("op", "dtype", "shape", "axis"), SOME_CASES)
def test_output_may_be_an_input(device, op, dtype, shape, axis):
    grad_y, x, parameters = draw_case(op, dtype, shape, axis)
    on_grad_y, on_x, *on_parameters = put_all(device, grad_y, x, *parameters)
    expected = device.backward(op, on_grad_y, on_x, on_parameters, axis=axis)
    y, mask = device.forward(op, on_x, on_parameters, axis=axis, save_mask=True)
    by_mask = device.put(grad_y)
    device.straight_through_grad(by_mask, mask, out=by_mask)
    assert_same_bits(device.get(by_mask), device.get(expected[0]))
    actual = device.backward(op, on_grad_y, on_x, on_parameters, axis=axis, out=on_grad_y)
    for got, wanted in zip(actual, expected, strict=True):
        assert_same_bits(device.get(got), device.get(wanted))
    device.forward(op, on_x, on_parameters, axis=axis, out=on_x)
    assert_same_bits(device.get(on_x), device.get(y))


BAD = {"fake_quant": [(np.nan, 1), (1, -1), (-np.inf, 1), (2, 2)], "lsq_uniform": [(np.nan, 1), (1, -1), (0, np.inf)]}
BAD["lsq_symmetric"] = [(np.nan,), (-1,), (0,), (np.inf,)]


@pytest.mark.parametrize("dtype", [np.float32, *DTYPES])
@pytest.mark.parametrize(("shape", "axis"), [((40, 6), 1), ((2, 6, 300), 1), ((70,), None)])
@pytest.mark.parametrize("op", OPS)
def test_a_channel_that_cannot_be_quantized_with_is_nan_and_passes_no_gradient(device, core, op, shape, axis, dtype):
    grad_y, x, parameters = draw_case(op, dtype, shape, axis)
    for bad in BAD[OPS[op].function]:
        broken = [np.array(parameter) for parameter in parameters]
        for parameter, value in zip(broken, bad, strict=True):
            parameter[... if axis is None else 2] = value
        on_grad_y, on_x, *on_parameters = put_all(device, grad_y, x, *broken)
        y, mask = device.forward(op, on_x, on_parameters, axis=axis, save_mask=True)
        grad_x, *sums = device.backward(op, on_grad_y, on_x, on_parameters, axis=axis)
        expected_y = forward(core, op, x, parameters, axis=axis)
        expected_grad_x = backward(core, op, grad_y, x, parameters, axis=axis)[0]
        here = ... if axis is None else (slice(None), 2)
        expected_y[here], expected_grad_x[here] = np.nan, 0
        assert_same_bits(device.get(y), expected_y)
        assert_same_bits(device.get(grad_x), expected_grad_x)
        assert_same_bits(device.get(device.straight_through_grad(on_grad_y, mask)), expected_grad_x)
        for gradient in sums:
            assert device.get(gradient)[... if axis is None else 2] == 0


@pytest.mark.parametrize(("op", "dtype", "shape", "axis"), SOME_CASES)
def test_every_run_gives_the_same_bits(device, op, dtype, shape, axis):
    grad_y, x, parameters = draw_case(op, dtype, shape, axis)
    on_grad_y, on_x, *on_parameters = put_all(device, grad_y, x, *parameters)
    expected = device.backward(op, on_grad_y, on_x, on_parameters, axis=axis)
    for _ in range(100 if device.name == "gpu" else 2):
        actual = device.backward(op, on_grad_y, on_x, on_parameters, axis=axis)
        for got, wanted in zip(actual, expected, strict=True):
            assert_same_bits(device.get(got), device.get(wanted))


@pytest.mark.parametrize("order", ["backward", "shuffled"])
@pytest.mark.parametrize(("op", "dtype", "shape", "axis"), SOME_CASES)
def test_the_order_in_which_threads_run_does_not_matter(emulated, op, dtype, shape, axis, order):
    grad_y, x, parameters = draw_case(op, dtype, shape, axis)
    on_grad_y, on_x, *on_parameters = put_all(emulated, grad_y, x, *parameters)

    def run():
        arrays = emulated.forward(op, on_x, on_parameters, axis=axis, save_mask=True)
        arrays += tuple(emulated.backward(op, on_grad_y, on_x, on_parameters, axis=axis))
        return [emulated.get(array) for array in arrays]

    expected = run()
    emulated.functions.set_thread_order(order)
    for got, wanted in zip(run(), expected, strict=True):
        assert_same_bits(got, wanted)


# Launches of a gradient with sums. One: a piece per channel, or one block for all. Two: more of either.
BACKWARD_LAUNCHES = {
    ((4097,), None): 1,
    ((20_000,), None): 2,
    ((2, 500, 9), 1): 2,
    ((1, 500, 9), 1): 1,
    ((3, 5, 1000), 1): 2,
    ((5, 1000), 0): 1,
    ((9, 400), 1): 1,
    ((33, 400), 1): 1,
    ((33, 401), 1): 2,  # a row of eight periods, for packs: eight pieces of a channel
    ((600, 130), 1): 2,
    ((9, 6, 2), 1): 1,
}


@pytest.mark.parametrize(("shape", "axis"), BACKWARD_LAUNCHES)
@pytest.mark.parametrize("op", OPS)
def test_launches_are_one_forward_and_one_or_two_backward(emulated, core, op, shape, axis):
    def launches(call, *arguments, **attributes):
        before = emulated.functions.launch_count()
        call(*arguments, **attributes)
        return emulated.functions.launch_count() - before

    grad_y, x, parameters = draw_case(op, np.float32, shape, axis)
    on_grad_y, on_x, *on_parameters = put_all(emulated, grad_y, x, *parameters)
    mask = emulated.empty(((x.size + 7) // 8,), np.uint8)
    assert launches(emulated.forward, op, on_x, on_parameters, axis=axis, save_mask=True) == 1
    assert launches(emulated.straight_through_grad, on_grad_y, mask) == 1
    expected = BACKWARD_LAUNCHES[shape, axis]
    assert launches(emulated.backward, op, on_grad_y, on_x, on_parameters, axis=axis) == expected
    if op == "fake_quant":
        assert launches(emulated.backward, op, on_grad_y, on_x, on_parameters, axis=axis, with_sums=False) == 1


def test_an_empty_tensor_is_not_launched_but_its_sums_are_written(emulated):
    empty = emulated.empty((0, 3), np.float32)
    parameter = emulated.put(np.float32([1, 1, 1]))
    before = emulated.functions.launch_count()
    emulated.forward("lsq_symmetric", empty, [parameter], axis=1)
    assert emulated.functions.launch_count() == before
    _, sums = emulated.backward("lsq_symmetric", empty, empty, [parameter], axis=1)
    assert emulated.functions.launch_count() == before + 1
    np.testing.assert_array_equal(emulated.get(sums), [0, 0, 0])


# 2^31 elements and some more, in each regime.
HUGE_LAYOUTS = [((2**31 + 4099,), None), ((3, 2**30 + 1), 0), ((2**28 + 1, 9), 1), ((2, 2**22, 257), 1)]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("shape", "axis"), HUGE_LAYOUTS)
def test_more_than_2_to_the_31_elements_are_indexed_right(emulated, core, shape, axis, dtype):
    # Pages that nobody writes take no memory, and only a few blocks run: the first and the last.
    device, size, itemsize = emulated, int(np.prod(shape, dtype=np.int64)), np.dtype(dtype).itemsize

    def untouched(nbytes, shape, dtype):
        return DeviceArray(np.zeros(nbytes, np.uint8), 0, shape, dtype)

    x, y = (untouched(size * itemsize, shape, dtype) for _ in range(2))
    mask = untouched((size + 7) // 8, ((size + 7) // 8,), np.uint8)
    channels = shape[axis] if axis is not None else 1
    threshold = np.linspace(0.5, 1.5, min(channels, 5000), dtype=np.float32)
    threshold = np.resize(threshold, channels)
    inner = int(np.prod(shape[axis + 1 :], dtype=np.int64)) if axis is not None else size
    # Every number of the last elements is looked at, where a 32-bit index would have gone round.
    last = slice(size - 100, size)
    x.memory.view(dtype)[last] = np.linspace(-2, 2, 100).astype(dtype)
    device.functions.set_blocks_run(128)
    parameter = device.put(threshold if axis is not None else threshold.reshape(()))
    device.forward("lsq_symmetric", x, [parameter], axis=axis, out=y)
    elements = np.arange(size - 100, size)
    of_each = threshold[elements // inner % channels]
    expected = forward(core, "lsq_symmetric", x.memory.view(dtype)[last].copy(), [of_each], axis=0)
    assert_same_bits(y.memory.view(dtype)[last], expected)
    device.functions.lsq_symmetric(x, parameter, out=y, mask=mask, axis=axis)
    passes = np.unpackbits(mask.memory[-16:], bitorder="little")[: 128 - (-size % 8)][-100:]
    x_last = x.memory.view(dtype)[last].copy()
    _, expected_mask = core.lsq_symmetric(x_last, of_each, axis=0, save_mask=True)
    np.testing.assert_array_equal(passes, np.unpackbits(expected_mask, bitorder="little")[:100])
    y.memory.view(dtype)[last] = 5
    device.straight_through_grad(x, mask, out=y)
    expected = np.where(passes, x_last, np.zeros_like(x_last))
    np.testing.assert_array_equal(y.memory.view(dtype)[last].astype(np.float32), expected.astype(np.float32))
