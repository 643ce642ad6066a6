"""The devices of these tests: what is around an array is watched, or is not there at all."""

import numpy as np
import pytest
from device import FILL, Device
from kernel_cases import draw_case


class CountingArrays:
    """NumPy, but for the memory that is neither filled nor given, which it hands out once."""

    def __init__(self):
        self.unfilled = []

    def empty(self, nbytes, dtype):
        self.unfilled.append(np.full(nbytes, 0xCD, dtype))
        return self.unfilled[-1]

    @staticmethod
    def asarray(array):
        return np.array(array)


@pytest.mark.parametrize("offset", [0, 3])
def test_exact_arrays_have_nothing_behind_them_and_outputs_are_unfilled(offset):
    arrays = CountingArrays()
    device = Device("host", None, arrays, np.asarray, exact=True)
    output = device.empty((5, 7), np.float32, offset)
    assert arrays.unfilled == [output.memory]
    assert output.memory.nbytes == output.offset + output.nbytes == (offset + 35) * 4
    value = np.arange(6, dtype=np.float16).reshape(2, 3)
    placed = device.put(value, offset)
    assert placed.memory.nbytes == (offset + 6) * 2
    np.testing.assert_array_equal(device.get(placed), value)
    assert device.is_untouched_around(placed)


@pytest.mark.parametrize("offset", [0, 3])
def test_memory_around_other_arrays_is_watched(offset):
    device = Device("host", None, np, np.asarray)
    placed = device.put(np.arange(6, dtype=np.float32), offset)
    assert device.is_untouched_around(placed)
    np.testing.assert_array_equal(device.get(placed), np.arange(6))
    empty = device.empty((6,), np.float32, offset)
    assert (empty.memory == FILL).all()
    placed.memory[placed.offset + placed.nbytes] = 0
    assert not device.is_untouched_around(placed)


def test_kernels_run_on_exact_arrays(emulated):
    exact = Device("exact", emulated.functions, np, np.asarray, exact=True)
    for shape, axis in [((33, 401), 1), ((3, 5, 1000), 1), ((4097,), None)]:
        grad_y, x, parameters = draw_case("lsq_uniform", np.float16, shape, axis)
        results = []
        for device in (emulated, exact):
            on_grad_y, on_x, *on_parameters = (device.put(array, 1) for array in (grad_y, x, *parameters))
            y, mask = device.forward("lsq_uniform", on_x, on_parameters, axis=axis, save_mask=True)
            found = device.backward("lsq_uniform", on_grad_y, on_x, on_parameters, axis=axis)
            results.append([device.get(array).tobytes() for array in (y, mask, *found)])
        assert results[0] == results[1]
