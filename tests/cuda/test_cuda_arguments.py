"""Arguments of the functions on device arrays: what is refused, and how it is said."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
from device import Device, DeviceArray, DlpackArray

FLOAT = np.float32


def arguments(device):
    """Good arguments of fake_quant_grad with sums, and of what else there is."""
    return {
        "grad_y": device.put(np.ones((3, 4), FLOAT)),
        "x": device.put(np.ones((3, 4), FLOAT)),
        "min": device.put(np.array(-1, FLOAT)),
        "max": device.put(np.array(1, FLOAT)),
        "out": device.empty((3, 4), FLOAT),
        "grad_min": device.empty((), FLOAT),
        "grad_max": device.empty((), FLOAT),
        "workspace": device.empty((100,), np.float64),
    }


def strided(array, strides):
    """The same memory with other strides."""

    class Strided:
        dtype = array.dtype
        __cuda_array_interface__ = array.__cuda_array_interface__ | {"strides": strides}

    return Strided()


def read_only(array):
    return DeviceArray(array.memory, array.offset, array.shape, array.dtype, read_only=True)


ERRORS = [
    ("x", lambda device, good: np.ones((3, 4), FLOAT), "x must be an array on a CUDA device, got ndarray"),
    ("min", lambda device, good: 1.0, "min must be an array on a CUDA device, got float"),
    ("x", lambda device, good: device.put(np.ones((3, 4), np.int32)), "x must be of dtype float32, float16, bfloat16"),
    ("x", lambda device, good: strided(good["x"], (4, 12)), "x must be C-contiguous and aligned to its elements, got"),
    ("min", lambda device, good: device.put(np.array(-1.0)), "min must be of dtype float32, got float64"),
    ("max", lambda device, good: device.put(np.ones(4, FLOAT)), r"max must be of shape \(\), got \(4,\)"),
    ("grad_y", lambda device, good: device.put(np.ones((4, 3), FLOAT)), r"grad_y must be of shape \(3, 4\), got"),
    ("out", lambda device, good: device.empty((12,), FLOAT), r"out must be of shape \(3, 4\), got \(12,\)"),
    ("out", lambda device, good: read_only(good["out"]), "out must be writeable, got a read-only array"),
    ("grad_min", lambda device, good: device.empty((1,), FLOAT), r"grad_min must be of shape \(\), got \(1,\)"),
    ("grad_min", lambda device, good: None, "grad_min and grad_max must be given both or neither, got one of them"),
    ("grad_min", lambda device, good: good["grad_max"], "grad_max must be apart from grad_min, got an array that"),
    ("workspace", lambda device, good: None, "workspace must be an array on a CUDA device, got NoneType"),
    (
        "workspace",
        lambda device, good: device.empty((0,), np.float64),
        "workspace must be of at least 2 elements, got 0",
    ),
    ("workspace", lambda device, good: device.empty((9,), FLOAT), "workspace must be of dtype float64, got float32"),
    ("num_bits", lambda device, good: 17, "num_bits must be from 2 to 16, got 17"),
    ("axis", lambda device, good: 2, r"axis must be an axis of x, of shape \(3, 4\), got 2"),
]


@pytest.mark.parametrize(("argument", "make", "message"), ERRORS)
def test_bad_arguments_are_named(device, argument, make, message):
    good = arguments(device)
    with pytest.raises(ValueError, match=f"^fake_quant_grad: {message}"):
        device.functions.fake_quant_grad(**(good | {argument: make(device, good)}))
    device.functions.fake_quant_grad(**good)


def test_a_mask_of_another_size_is_refused(device):
    good = arguments(device)
    mask = device.empty((3,), np.uint8)
    with pytest.raises(ValueError, match=r"fake_quant: mask must be of shape \(2,\), got \(3,\)"):
        device.functions.fake_quant(good["x"], good["min"], good["max"], out=good["out"], mask=mask)
    with pytest.raises(ValueError, match=r"straight_through_grad: mask must be of shape \(2,\), got \(3,\)"):
        device.functions.straight_through_grad(good["x"], mask, out=good["out"])


def test_an_output_that_overlaps_what_is_read_is_refused(device):
    x = device.put(np.ones(12, FLOAT))
    shifted = DeviceArray(x.memory, x.offset + 4, (11,), FLOAT)
    first = DeviceArray(x.memory, x.offset, (11,), FLOAT)
    low, high = device.put(np.array(-1, FLOAT)), device.put(np.array(1, FLOAT))
    with pytest.raises(ValueError, match="fake_quant: out must be x itself or apart from it"):
        device.functions.fake_quant(first, low, high, out=shifted)
    with pytest.raises(ValueError, match="fake_quant: out must be apart from min"):
        device.functions.fake_quant(first, DeviceArray(x.memory, x.offset, (), FLOAT), high, out=first)


def test_a_gradient_that_would_overwrite_a_parameter_is_refused(device):
    good = arguments(device)
    low = DeviceArray(good["out"].memory, good["out"].offset, (), FLOAT)
    with pytest.raises(ValueError, match="fake_quant_grad: out must be apart from min"):
        device.functions.fake_quant_grad(**(good | {"min": low}))


@pytest.mark.parametrize("parameter", ["min", "max"])
@pytest.mark.parametrize(("output", "dtype"), [("grad_min", FLOAT), ("grad_max", FLOAT), ("workspace", np.float64)])
def test_a_sum_that_would_overwrite_a_parameter_is_refused(device, output, dtype, parameter):
    good = arguments(device)
    place = good[parameter]
    over = DeviceArray(place.memory, place.offset, (4,) if output == "workspace" else (), dtype)
    with pytest.raises(ValueError, match=f"^fake_quant_grad: {output} must be apart from {parameter}, got an"):
        device.functions.fake_quant_grad(**(good | {output: over}))


@pytest.mark.parametrize("parameter", ["min", "max"])
def test_a_mask_that_would_overwrite_a_parameter_is_refused(device, parameter):
    good = {name: value for name, value in arguments(device).items() if name in ("x", "min", "max", "out")}
    mask = DeviceArray(good[parameter].memory, good[parameter].offset + 1, (2,), np.uint8)
    with pytest.raises(ValueError, match=f"^fake_quant: mask must be apart from {parameter}, got an array that"):
        device.functions.fake_quant(**good, mask=mask)


def test_an_unknown_op_or_axis_has_no_workspace(device):
    x = arguments(device)["x"]
    with pytest.raises(
        ValueError, match="workspace_size: op must be fake_quant, lsq_symmetric or lsq_uniform, got lsq"
    ):
        device.functions.workspace_size("lsq", x)
    with pytest.raises(ValueError, match="workspace_size: axis must be an axis of x"):
        device.functions.workspace_size("fake_quant", x, axis=5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_are_taken_by_dlpack_without_synchronizing(emulated, core, dtype):
    x = np.linspace(-2, 2, 60).astype(dtype).reshape(3, 4, 5)
    parameter_dtype = np.float64 if dtype == np.float64 else FLOAT
    low, high = -np.ones(4, parameter_dtype), np.ones(4, parameter_dtype)
    y, mask = np.empty_like(x), np.empty(8, np.uint8)
    arrays = [DlpackArray(array) for array in (x, low, high, y, mask)]
    before = [sys.getrefcount(array.array) for array in arrays]
    emulated.functions.fake_quant(*arrays[:3], out=arrays[3], mask=arrays[4], axis=1)
    expected_y, expected_mask = core.fake_quant(x, low, high, axis=1, save_mask=True)
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(mask, expected_mask)
    assert all(array.streams == [-1] for array in arrays)
    assert [sys.getrefcount(array.array) for array in arrays] == before, "a capsule was not given back"


def test_arrays_that_dlpack_says_are_elsewhere_or_strided_are_refused(emulated):
    good = arguments(emulated)
    x = np.ones((4, 3), FLOAT)
    with pytest.raises(ValueError, match="fake_quant: x must be an array on a CUDA device, got DlpackArray"):
        emulated.functions.fake_quant(DlpackArray(x, (1, 0)), good["min"], good["max"], out=good["out"])
    with pytest.raises(ValueError, match=r"x must be C-contiguous and aligned to its elements, got strides \(4, 12\)"):
        emulated.functions.fake_quant(DlpackArray(x.T), good["min"], good["max"], out=good["out"])
    with pytest.raises(ValueError, match="x must be of dtype float32, float16, bfloat16 or float64, got DLPack type 0"):
        integers = DlpackArray(np.ones((3, 4), np.int32))
        emulated.functions.fake_quant(integers, good["min"], good["max"], out=good["out"])


def test_what_cuda_says_is_raised(core):
    if not hasattr(core, "cuda"):
        pytest.skip("_core was built without CUDA")
    if find_spec("cupy"):
        pytest.skip("there may be a GPU, which would be given memory that is not its own")
    host = Device("no device", core.cuda, np, np.asarray)
    x = host.put(np.ones(5, FLOAT))
    with pytest.raises(RuntimeError, match="fake_quant: CUDA could not run it: CUDA driver"):
        core.cuda.fake_quant(x, host.put(np.array(-1, FLOAT)), host.put(np.array(1, FLOAT)), out=x)


@pytest.mark.gpu
def test_arrays_of_cupy_and_pytorch_are_taken_on_their_streams(core):
    cupy, torch = pytest.importorskip("cupy"), pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    values = np.linspace(-2, 2, 1000, dtype=FLOAT)
    expected = core.fake_quant(values, FLOAT(-1), FLOAT(1))
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        x, low, high = cupy.asarray(values), cupy.asarray(FLOAT(-1)), cupy.asarray(FLOAT(1))
        out = cupy.empty_like(x)
        core.cuda.fake_quant(x, low, high, out=out, stream=stream.ptr)
        np.testing.assert_array_equal(cupy.asnumpy(out, stream=stream), expected)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.tensor(values, device="cuda").to(dtype)
        low, high, out = (torch.tensor(v, device="cuda") for v in (-1.0, 1.0)), None, torch.empty_like(x)
        low, high = low
        core.cuda.fake_quant(x, low, high, out=out, stream=torch.cuda.current_stream().cuda_stream)
        exact = core.fake_quant(x.float().cpu().numpy(), FLOAT(-1), FLOAT(1))
        np.testing.assert_array_equal(out.float().cpu().numpy(), torch.tensor(exact).to(dtype).float().numpy())
