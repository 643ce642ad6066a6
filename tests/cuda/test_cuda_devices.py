"""Several devices: kernels run on the one that has the arrays, whichever is current, and all must be on one."""

import numpy as np
import pytest
from device import DlpackArray

FLOAT = np.float32


@pytest.fixture
def several(emulated):
    """The emulator with three devices, the first one current, and all memory its own until it is said otherwise."""
    yield emulated
    emulated.functions.forget_devices()
    emulated.functions.set_current_device(0)


def on_device(several, number, value, dtype=FLOAT):
    """An array of the CUDA array interface, which does not tell its device: CUDA does."""
    array = several.put(np.asarray(value, dtype))
    several.functions.set_device_of(array.memory.ctypes.data, array.memory.nbytes, number)
    return array


def arguments(several, number, *, dlpack):
    """Arguments of fake_quant_grad on one device."""

    def put(value, dtype=FLOAT):
        if dlpack:
            return DlpackArray(np.array(value, dtype), (2, number))
        return on_device(several, number, value, dtype)

    ones = np.ones((3, 4))
    arrays = {"grad_y": put(ones), "x": put(ones), "min": put(-1.0), "max": put(1.0), "out": put(ones)}
    sums = {"grad_min": put(0.0), "grad_max": put(0.0), "workspace": put(np.zeros(100), np.float64)}
    return arrays, sums, put(np.zeros(2), np.uint8)


def call_all(functions, arrays, sums, mask):
    """Every way to call, and what each refuses or launches on."""
    forward = {key: value for key, value in arrays.items() if key != "grad_y"}
    yield lambda **change: functions.fake_quant(**(forward | {"mask": mask} | change))
    yield lambda **change: functions.fake_quant_grad(**(arrays | sums | change))
    yield lambda **change: functions.fake_quant_grad(**(arrays | change))
    yield lambda **change: functions.lsq_uniform(**(forward | change))
    yield lambda **change: functions.straight_through_grad(
        **({"grad_y": arrays["grad_y"], "mask": mask, "out": arrays["out"]} | change)
    )


@pytest.mark.parametrize("current", [0, 1, 2])
@pytest.mark.parametrize("dlpack", [False, True])
def test_kernels_run_on_the_device_of_the_arrays_and_the_current_one_stays(several, dlpack, current):
    functions = several.functions
    functions.set_current_device(current)
    for call in call_all(functions, *arguments(several, 1, dlpack=dlpack)):
        call()
        assert functions.launch_device() == 1
        assert functions.current_device() == current


@pytest.mark.parametrize("dlpack", [False, True])
def test_an_array_on_another_device_is_named_and_nothing_runs(several, dlpack):
    functions = several.functions
    arrays, sums, mask = arguments(several, 1, dlpack=dlpack)
    other_arrays, other_sums, other_mask = arguments(several, 2, dlpack=dlpack)
    others = other_arrays | other_sums | {"mask": other_mask}
    taken = [("x", "min", "max", "out", "mask"), ("grad_y", "x", *sums, "out"), ("grad_y", "min", "out")]
    taken += [("x", "max", "out"), ("grad_y", "mask", "out")]
    before = functions.launch_count()
    for call, names in zip(call_all(functions, arrays, sums, mask), taken, strict=True):
        for name in names:
            first = names[0]
            # The first array that is given says which device it is.
            wrong, wanted, got = (name, 1, 2) if name != first else (r"\w+", 2, 1)
            message = rf"\w+: {wrong} must be on CUDA device {wanted}, as {first} is, got an array on device {got}"
            with pytest.raises(ValueError, match=message):
                call(**{name: others[name]})
    assert functions.launch_count() == before
    assert functions.current_device() == 0


def test_the_current_device_stays_when_a_call_fails(several):
    arrays, sums, _ = arguments(several, 1, dlpack=True)
    with pytest.raises(ValueError, match="num_bits must be from 2 to 16"):
        several.functions.fake_quant_grad(**arrays, **sums, num_bits=1)
    assert several.functions.current_device() == 0


def test_a_device_that_is_not_there_is_what_cuda_says(several):
    arrays, *_ = arguments(several, 7, dlpack=True)
    with pytest.raises(RuntimeError, match="fake_quant_grad: CUDA could not run it: invalid device ordinal"):
        several.functions.fake_quant_grad(**arrays)


def test_memory_of_the_host_is_refused(several):
    arrays, *_ = arguments(several, 1, dlpack=False)
    arrays["max"] = on_device(several, -1, 1.0)
    with pytest.raises(ValueError, match="fake_quant_grad: max must be an array on a CUDA device, got memory that is"):
        several.functions.fake_quant_grad(**arrays)


@pytest.mark.parametrize("dlpack", [False, True])
def test_an_empty_array_is_on_no_device(several, dlpack):
    arrays, _, _ = arguments(several, 1, dlpack=dlpack)
    empty, _, _ = arguments(several, 2, dlpack=dlpack)
    nothing = DlpackArray(np.zeros((0, 4), FLOAT), (2, 2)) if dlpack else several.put(np.zeros((0, 4), FLOAT))
    forward = {"x": nothing, "min": arrays["min"], "max": arrays["max"], "out": nothing}
    several.functions.fake_quant(**forward)
    assert several.functions.current_device() == 0
