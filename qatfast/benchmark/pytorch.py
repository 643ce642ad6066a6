"""PyTorch's fake quantization on the CPU, where torch is installed: `fake_quant` only, float32."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from qatfast.benchmark.op_case import BACKWARD, BOTH, FORWARD, OpCase, normal

try:
    import torch
except ImportError:
    torch = None


def is_available(case: OpCase, direction: str) -> bool:
    """Whether torch is installed and knows this: its ranges are constants, which have no gradient."""
    return torch is not None and case.op == "fake_quant" and direction in _DIRECTIONS and case.num_bits <= 8


def torch_run(case: OpCase, direction: str) -> Callable[[], tuple]:
    """Returns a function that runs torch's op on what the case's other implementations get.

    The scale and the zero point are computed once, before: torch takes them as they are.
    """
    x, grad_y = (torch.from_numpy(normal(case.shape, tf.float32, seed).numpy().copy()) for seed in (0, 2))
    range_min, range_max = (parameter.numpy() for parameter in case.parameters(tf.float32))
    quant_max = 2**case.num_bits - 1
    scale = (range_max - range_min) / np.float32(quant_max)
    zero_point = np.clip(np.round(-range_min / scale), 0, quant_max).astype(np.int32)
    if case.axis is None:

        def quantize():
            return torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero_point), 0, quant_max)
    else:
        scales, zero_points = torch.from_numpy(scale), torch.from_numpy(zero_point)
        axis = case.axis % len(case.shape)

        def quantize():
            return torch.fake_quantize_per_channel_affine(x, scales, zero_points, axis, 0, quant_max)

    return _DIRECTIONS[direction](quantize, x, grad_y)


def _forward(quantize, x, grad_y):
    def run():
        with torch.no_grad():
            return (quantize().numpy(),)

    return run


def _backward(quantize, x, grad_y):
    x.requires_grad_()
    y = quantize()
    return lambda: (torch.autograd.grad(y, x, grad_y, retain_graph=True)[0].numpy(),)


def _forward_and_backward(quantize, x, grad_y):
    x.requires_grad_()

    def run():
        y = quantize()
        return (torch.autograd.grad(y, x, y.detach())[0].numpy(),)

    return run


_DIRECTIONS = {FORWARD: _forward, BACKWARD: _backward, BOTH: _forward_and_backward}
