"""Every function on device arrays with every argument of a wrong kind: one message, which names the argument."""

import inspect

import numpy as np
import pytest
from device import DlpackArray

FLOAT = np.float32
DEVICE_ARRAYS = ["x", "grad_y", "min", "max", "threshold", "out", "mask", "grad_min", "grad_max", "grad_threshold"]


class WithInterface:
    """An object with what is said to be the CUDA array interface."""

    def __init__(self, interface):
        self.__cuda_array_interface__ = interface


class WithDlpack:
    """An object with what is said to be DLPack's."""

    def __dlpack__(self, stream=None):
        return 3

    def __dlpack_device__(self):
        return (2, 0)


class OnNoDevice(WithDlpack):
    """DLPack's interface without a device."""

    def __dlpack_device__(self):
        return "cuda"


ARRAYS = [None, 1.0, "x", b"x", [0.0], 1j, True, {}, np.zeros((3, 4), FLOAT), np.ndarray, WithInterface(None)]
ARRAYS += [WithInterface({"data": 3}), WithInterface({"data": ("x", False)}), WithDlpack(), OnNoDevice()]
ARRAYS += [DlpackArray(np.zeros((3, 4), FLOAT), (1, 0)), DlpackArray(np.zeros((3, 4), FLOAT), (2,))]
ON_DEVICE = [(value, "an array on a CUDA device") for value in ARRAYS]
INTEGERS = [(value, "an integer") for value in (None, "8", 8.0, True, [8], 8j, 2**40, np.array(8))]
FLAGS = [(value, "True or False") for value in (None, 1, "no", [True])]
FLOATS = [(value, "a number") for value in (None, "1", [1.0], 1j, True)]
WRONG = {
    **dict.fromkeys([*DEVICE_ARRAYS, "workspace"], ON_DEVICE),
    "num_bits": INTEGERS,
    "axis": [(value, "None or an integer") for value in ("last", 1.0, True, [1], 2**40)],
    "stream": [(value, "an integer that is not negative") for value in (None, "0", 1.5, -1, 2**70, True)],
    **dict.fromkeys(["narrow_range", "include_zero", "signed", "power_of_two", "exact_zero"], FLAGS),
    **dict.fromkeys(["grad_scale", "min_threshold", "min_width"], FLOATS),
    "op": [(value, "fake_quant, lsq_symmetric or lsq_uniform") for value in (None, 3, "lsq", b"fake_quant", ["x"])],
}
FUNCTIONS = ["fake_quant", "lsq_symmetric", "lsq_uniform"]
FUNCTIONS += [f"{name}_grad" for name in [*FUNCTIONS, "straight_through"]] + ["workspace_size"]


def good_arguments(device, function):
    """Arguments that the function takes."""
    arrays = {
        name: device.put(np.ones((3, 4), FLOAT)) if name in ("x", "grad_y", "out") else device.put(np.array(1, FLOAT))
        for name in DEVICE_ARRAYS
    }
    arrays |= {
        "min": device.put(np.array(-1, FLOAT)),
        "mask": device.empty((2,), np.uint8),
        "workspace": device.empty((100,), np.float64),
        "op": "fake_quant",
    }
    parameters = inspect.signature(getattr(device.functions, function)).parameters
    return {name: value for name, value in arrays.items() if name in parameters}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_argument_of_a_wrong_kind_is_named(device, function):
    call, good = getattr(device.functions, function), good_arguments(device, function)
    count = 0
    for argument, parameter in inspect.signature(call).parameters.items():
        for value, requirement in WRONG[argument]:
            if value is None and parameter.default is None:
                continue
            count += 1
            with pytest.raises(ValueError) as raised:
                call(**(good | {argument: value}))
            message = str(raised.value)
            assert message.startswith(f"{function}: {argument} must be {requirement}"), (argument, value)
            assert ", got " in message and len(message) < 300
    assert count >= 16
    call(**good)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_arguments_that_are_missing_or_unknown_are_named(device, function):
    call, good = getattr(device.functions, function), good_arguments(device, function)
    with pytest.raises(TypeError, match=rf"^{function}: arguments must be \(.*\), got 'bits'$"):
        call(**good, bits=8)
    for name in good:
        if inspect.signature(call).parameters[name].default is not inspect.Parameter.empty:
            continue
        with pytest.raises(TypeError, match=f"^{function}: {name} must be given, got nothing$"):
            call(**{key: value for key, value in good.items() if key != name})
