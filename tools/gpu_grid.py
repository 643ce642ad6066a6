"""Runs every CUDA kernel on the first GPU without TensorFlow or pytest: for compute-sanitizer, and on many elements.

    compute-sanitizer python tools/gpu_grid.py           every op, type and regime on small tensors, unaligned ones too
    python tools/gpu_grid.py --elements 100000000        forward bits of GPU and CPU, and 100 equal gradients

The small tensors are exact: each is an allocation of its own size, unfilled if it is an output, and no kernel of CuPy
runs, so that the sanitizer needs no filter and sees every byte that is read or written where it should not be.

Needs `_core` on the path; see tools/gpu_check.sh.
"""

import argparse
import os
import sys
from pathlib import Path

import _core
import cupy
import numpy as np

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "cuda")]

from device import Device, DeviceArray  # noqa: E402
from grid import assert_same_bits  # noqa: E402
from kernel_cases import DTYPES, OPS, backward, draw_case, forward  # noqa: E402

LAYOUTS = [((4097,), None), ((2, 50, 9), 1), ((3, 5, 1000), 1), ((33, 401), 1), ((9, 6, 2), 1), ((100, 64), 1)]
CHUNK = 2**24
MEMORY_BEYOND_32_BITS = 24 * 2**30  # two tensors of 4.5 GiB, and what CuPy needs to fill one


def small_grid(device: Device) -> None:
    """Every op, type and regime, compared with the CPU kernels."""
    for op in OPS:
        for dtype in (np.float32, *DTYPES):
            for shape, axis in LAYOUTS:
                for offset in (0, 1, 3):
                    grad_y, x, parameters = draw_case(op, dtype, shape, axis)
                    on_grad_y, on_x = device.put(grad_y, offset), device.put(x, offset)
                    on_parameters = [device.put(parameter) for parameter in parameters]
                    run = {"axis": axis}
                    y, mask = device.forward(op, on_x, on_parameters, save_mask=True, **run)
                    grad_x, *_ = device.backward(op, on_grad_y, on_x, on_parameters, **run)
                    device.straight_through_grad(on_grad_y, mask)
                    if op == "fake_quant":
                        device.backward(op, on_grad_y, on_x, on_parameters, with_sums=False, **run)
                    assert_same_bits(device.get(y), forward(_core, op, x, parameters, **run))
                    expected = backward(_core, op, grad_y, x, parameters, **run)[0]
                    assert_same_bits(device.get(grad_x), expected)
    print("gpu_grid: every op, type and regime has the bits of the CPU kernels")


def many_elements(device: Device, elements: int) -> None:
    """Forward bits on `elements` elements of each op, and gradients that are the same 100 times."""
    threads = len(os.sched_getaffinity(0))
    rng = np.random.default_rng(0)
    for op in OPS:
        for dtype in (np.float32, np.float16):
            for axis in (None, 1):
                for start in range(0, elements // 2, CHUNK):
                    shape = (CHUNK // 4096, 4096)
                    x = (rng.standard_normal(shape, np.float32) * 2).astype(dtype)
                    channels = () if axis is None else (shape[axis],)
                    high = np.asarray(rng.uniform(0.1, 3, channels), np.float32)
                    parameters = (high,) if op == "lsq_symmetric" else (-high * np.float32(0.7), high)
                    on_parameters = [device.put(np.asarray(parameter)) for parameter in parameters]
                    on_x = device.put(x)
                    y, _ = device.forward(op, on_x, on_parameters, axis=axis)
                    expected = forward(_core, op, x, parameters, axis=axis, num_threads=threads)
                    assert_same_bits(device.get(y), expected)
                    if start:
                        continue
                    first = [device.get(a) for a in device.backward(op, on_x, on_x, on_parameters, axis=axis)]
                    for _ in range(100):
                        again = device.backward(op, on_x, on_x, on_parameters, axis=axis)
                        for got, wanted in zip(again[1:], first[1:], strict=True):
                            assert_same_bits(device.get(got), wanted)
                    assert_same_bits(device.get(again[0]), first[0])
            print(f"gpu_grid: {op}, {np.dtype(dtype)}: {elements} elements equal, 100 gradients equal", flush=True)


def beyond_32_bits(device: Device) -> None:
    """More than 2^31 elements, in runs and in lanes, compared where an index of 32 bits would have gone round."""
    free = cupy.cuda.runtime.memGetInfo()[0]
    if free < MEMORY_BEYOND_32_BITS:
        print(f"gpu_grid: more than 2^31 elements: skipped, {free / 2**30:.0f} GiB of memory are free", flush=True)
        return
    for shape, axis in [((2**31 + 5000,), None), ((2**28 + 1, 9), 1)]:
        size, channels = int(np.prod(shape)), 1 if axis is None else shape[axis]
        x = DeviceArray(cupy.empty(2 * size, np.uint8), 0, shape, np.float16)
        values = x.memory.view(np.float16)
        for start in range(0, size, 2**28):
            part = values[start : start + 2**28]
            part[...] = (cupy.arange(part.size, dtype=np.int32) % 251 - 125).astype(np.float32) / 60
        threshold = np.linspace(0.5, 1.5, channels, dtype=np.float32)
        parameter = device.put(threshold if axis is not None else threshold.reshape(()))
        y = DeviceArray(cupy.empty(2 * size, np.uint8), 0, shape, np.float16)
        device.forward("lsq_symmetric", x, [parameter], axis=axis, out=y)
        for start in (0, 2**30, 2**31 - 5000, size - 5000):
            where = np.arange(start, start + 5000) % channels
            part = cupy.asnumpy(values[start : start + 5000])
            expected = forward(_core, "lsq_symmetric", part, [threshold[where]], axis=0)
            assert_same_bits(cupy.asnumpy(y.memory.view(np.float16)[start : start + 5000]), expected)
        del x, y, values
    print("gpu_grid: more than 2^31 elements are indexed right", flush=True)


def main() -> None:
    """Runs the small grid, or many elements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=0, help="of each op and type; 0: the small grid")
    elements = parser.parse_args().elements
    if not elements:
        cupy.cuda.set_allocator(None)  # each array is an allocation that compute-sanitizer sees
    device = Device("gpu", _core.cuda, cupy, cupy.asnumpy, exact=not elements)
    if elements:
        beyond_32_bits(device)
        many_elements(device, elements)
    else:
        small_grid(device)


if __name__ == "__main__":
    main()
