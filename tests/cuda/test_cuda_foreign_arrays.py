"""Arrays of other libraries that describe themselves wrongly, or do not let themselves be described."""

import numpy as np
import pytest
from device import DlpackArray

FLOAT = np.float32
SHAPE = (3, 4)


class Described:
    """A device array, with parts of its description replaced."""

    def __init__(self, array, **changes):
        self.array = array
        self.__cuda_array_interface__ = array.__cuda_array_interface__ | changes


class Exported:
    """An object whose DLPack capsule is what `export` returns."""

    def __init__(self, export):
        self.export = export

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, stream=None):
        return self.export()


def raising(error):
    def export():
        raise error

    return export


def call(emulated, x, **others):
    arrays = {"min": emulated.put(np.array(-1, FLOAT)), "max": emulated.put(np.array(1, FLOAT))}
    emulated.functions.fake_quant(**({"x": x, "out": emulated.empty(SHAPE, FLOAT)} | arrays | others))


ON_CUDA = "an array on a CUDA device, got Described"
DESCRIPTIONS = [
    ({"strides": ()}, r"with as many strides as axes, got strides \(\) of shape \(3, 4\)"),
    ({"strides": (4,)}, r"with as many strides as axes, got strides \(4,\) of shape \(3, 4\)"),
    ({"strides": (16, 4, 4)}, r"with as many strides as axes, got strides \(16, 4, 4\) of shape \(3, 4\)"),
    ({"shape": (-3, 4)}, r"of lengths that memory has, got \(-3, 4\)"),
    ({"shape": (-3, -4)}, r"of lengths that memory has, got \(-3, -4\)"),
    ({"shape": (2**32, 2**31)}, r"of lengths that memory has, got \(4294967296, 2147483648\)"),
    ({"shape": (0, 2**32, 2**31)}, r"of lengths that memory has, got \(0, 4294967296, 2147483648\)"),
    ({"mask": "an array"}, "without a mask, got one"),
    ({"data": (3,)}, ON_CUDA),
    ({"data": ()}, ON_CUDA),
    ({"data": None}, ON_CUDA),
    ({"shape": None}, ON_CUDA),
    ({"typestr": None}, ON_CUDA),
]


@pytest.mark.parametrize(("changes", "requirement"), DESCRIPTIONS)
def test_a_wrong_description_is_refused(emulated, changes, requirement):
    x = Described(emulated.put(np.ones(SHAPE, FLOAT)), **changes)
    with pytest.raises(ValueError, match=f"^fake_quant: x must be {requirement}"):
        call(emulated, x)
    with pytest.raises(ValueError, match=f"^fake_quant: min must be {requirement}"):
        call(emulated, emulated.put(np.ones(SHAPE, FLOAT)), min=x)


@pytest.mark.parametrize(
    "error",
    [BufferError("cannot export what requires a gradient"), RuntimeError("no more"), AttributeError("no"), OSError(3)],
)
def test_what_an_array_says_when_it_is_not_exported_is_told(emulated, error):
    message = rf"^fake_quant: x must be exported by its library, got {type(error).__name__}: {error}"
    with pytest.raises(ValueError, match=message) as raised:
        call(emulated, Exported(raising(error)))
    assert raised.value.__cause__ is error


def test_an_interrupt_is_not_the_arrays_fault(emulated):
    with pytest.raises(KeyboardInterrupt):
        call(emulated, Exported(raising(KeyboardInterrupt())))


def test_a_capsule_of_another_kind_or_one_that_was_taken_is_refused(emulated):
    numbers = np.ones(SHAPE, FLOAT)
    capsule = numbers.__dlpack__()
    x = Exported(lambda: capsule)
    call(emulated, x)
    with pytest.raises(ValueError, match='^fake_quant: x must be a "dltensor" of DLPack, got "used_dltensor"'):
        call(emulated, x)
    if np.lib.NumpyVersion(np.__version__) >= "2.1.0":
        versioned = Exported(lambda: numbers.__dlpack__(max_version=(1, 0)))
        with pytest.raises(ValueError, match='x must be a "dltensor" of DLPack, got "dltensor_versioned"'):
            call(emulated, versioned)
    call(emulated, DlpackArray(numbers))
