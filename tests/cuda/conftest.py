"""The devices that these tests run on, and the CPU kernels that they are held to.

They need no TensorFlow: pytest tests/cuda --confcutdir=tests/cuda, with the module _core on the path.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))

from device import Device  # noqa: E402
from kernel_cases import _core  # noqa: E402

HAS_KERNELS = any((TESTS.parent / "csrc" / "core").glob("*_cuda.cu"))


@pytest.fixture(scope="session")
def core():
    """The kernels on NumPy arrays: of the installed package, or by themselves where TensorFlow is missing."""
    return _core


def emulator():
    """The emulator as a device."""
    if not HAS_KERNELS:
        pytest.skip("csrc/core has no CUDA kernels")
    if os.environ.get("QATFAST_NO_EMULATION") == "1":
        pytest.skip("QATFAST_NO_EMULATION=1")
    try:
        import _emulated_cuda
    except ImportError:
        pytest.fail("the emulated kernels are not on the path: run `make test`, which builds them")
    return Device("emulator", _emulated_cuda, np, np.asarray)


def gpu(core):
    """The first GPU as a device."""
    import cupy

    if not hasattr(core, "cuda"):
        pytest.skip("_core was built without CUDA")
    try:
        cupy.cuda.Device(0).use()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"no GPU: {error}")
    return Device("gpu", core.cuda, cupy, cupy.asnumpy)


# A GPU is looked for where CuPy is installed.
DEVICES = ["emulator", *([pytest.param("gpu", marks=pytest.mark.gpu)] if find_spec("cupy") else [])]


@pytest.fixture(params=DEVICES)
def device(request, core):
    """Each device that there is."""
    return emulator() if request.param == "emulator" else gpu(core)


@pytest.fixture
def emulated():
    """The emulator alone, its settings put back afterwards."""
    device = emulator()
    yield device
    device.functions.set_thread_order("forward")
    device.functions.set_blocks_run(0)
