"""Devices that the CUDA kernels run on in tests: a GPU, and the emulator, which runs the same code on the CPU."""

import ml_dtypes
import numpy as np
from kernel_cases import OPS, backward, forward

FILL = 7  # every byte of memory around an array


class DeviceArray:
    """An array in a device's memory, described by the CUDA array interface, whatever its type."""

    def __init__(self, memory, offset, shape, dtype, read_only=False):
        self.memory, self.offset, self.shape, self.dtype = memory, offset, tuple(shape), np.dtype(dtype)
        self.read_only = read_only

    @property
    def nbytes(self):
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def pointer(self):
        """Address of the first element."""
        data = self.memory.data
        return (data.ptr if hasattr(data, "ptr") else self.memory.ctypes.data) + self.offset

    @property
    def __cuda_array_interface__(self):
        typestr = "<V2" if self.dtype == ml_dtypes.bfloat16 else self.dtype.str
        data = (self.pointer, self.read_only)
        return {"version": 3, "shape": self.shape, "typestr": typestr, "data": data, "strides": None}


class DlpackArray:
    """NumPy memory that DLPack says is a CUDA device's, as PyTorch's and CuPy's arrays do."""

    def __init__(self, array, device=(2, 0)):
        self.array, self.device, self.streams = array, device, []

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, stream=None):
        self.streams.append(stream)
        return self.array.__dlpack__()


class Device:
    """The functions of `_core.cuda` on one device, and its memory (that of a NumPy-like module).

    `op` is one of `kernel_cases.OPS`, of which the attributes are too. Memory around an array is filled, so that what
    is written there is seen. With `exact` nothing is around, arrays that are not put are not filled, and no kernel but
    ours runs: a sanitizer then sees what is read or written outside of an array, and what is read before it is written.
    """

    def __init__(self, name, functions, arrays, to_numpy, exact=False):
        self.name, self.functions, self._arrays, self._to_numpy = name, functions, arrays, to_numpy
        self._exact = exact

    def empty(self, shape, dtype, offset=0):
        """An array `offset` elements after the start of its memory, whose elements are yet to be written."""
        itemsize = np.dtype(dtype).itemsize
        size = int(np.prod(shape, dtype=np.int64))
        if self._exact:
            memory = self._arrays.empty((offset + size) * itemsize, np.uint8)
        else:
            memory = self._arrays.asarray(np.full((size + 64) * itemsize, FILL, np.uint8))
        return DeviceArray(memory, offset * itemsize, shape, dtype)

    def put(self, array, offset=0):
        """A NumPy array on the device."""
        before = offset * array.dtype.itemsize
        raw = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        around = 0 if self._exact else 64 * array.dtype.itemsize - before
        memory = np.pad(raw, (before, around), constant_values=FILL)
        return DeviceArray(self._arrays.asarray(memory), before, array.shape, array.dtype)

    def get(self, array):
        """A device array as a NumPy array."""
        raw = self._to_numpy(array.memory[array.offset : array.offset + array.nbytes])
        return raw.copy().view(array.dtype).reshape(array.shape)

    def is_untouched_around(self, array):
        """Whether the memory around an array is as it was; a sanitizer watches that of exact ones."""
        if self._exact:
            return True
        raw = self._to_numpy(array.memory)
        return (raw[: array.offset] == FILL).all() and (raw[array.offset + array.nbytes :] == FILL).all()

    def forward(self, op, x, parameters, *, save_mask=False, out=None, **attributes):
        """Device arrays y and mask (None unless `save_mask`)."""
        out = out or self.empty(x.shape, x.dtype)
        mask = self.empty((mask_bytes(x),), np.uint8) if save_mask else None
        forward(self.functions, op, x, parameters, out=out, mask=mask, **attributes)
        return out, mask

    def backward(self, op, grad_y, x, parameters, *, out=None, axis=None, with_sums=True, **attributes):
        """Device arrays grad_x and the gradient to each parameter (none unless `with_sums`)."""
        out = out or self.empty(x.shape, x.dtype)
        names = ["grad_threshold"] if op == "lsq_symmetric" else ["grad_min", "grad_max"]
        sums = {}
        if with_sums:
            sums = {name: self.empty(p.shape, p.dtype) for name, p in zip(names, parameters, strict=True)}
            size = self.functions.workspace_size(OPS[op].function, x, axis=axis)
            attributes["workspace"] = self.empty((size,), np.float64)
        backward(self.functions, op, grad_y, x, parameters, out=out, axis=axis, **sums, **attributes)
        assert not with_sums or self.is_untouched_around(attributes["workspace"])
        return [out, *sums.values()]

    def straight_through_grad(self, grad_y, mask, out=None):
        """Device array grad_x."""
        out = out or self.empty(grad_y.shape, grad_y.dtype)
        self.functions.straight_through_grad(grad_y, mask, out=out)
        return out


def mask_bytes(x):
    """Bytes of a mask for an array."""
    return (int(np.prod(x.shape, dtype=np.int64)) + 7) // 8
