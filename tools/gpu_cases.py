"""What tools/gpu_bench.py times: tensors, our functions on them with the bytes that must move, and PyTorch's."""

from collections.abc import Callable
from typing import NamedTuple

import torch

# Of 2^26 elements in float32 where the name says no other: 256 MiB, five times the second-level cache of an H100.
CASES = {
    "per tensor": ((2**26,), None),
    "last axis": ((8192, 8192), 1),
    "first axis": ((8192, 8192), 0),
    "middle axis": ((64, 1024, 1024), 1),
    "activation NHWC": ((64, 128, 128, 64), 3),
    "depthwise 3x3": ((3, 3, 2**22, 1), 2),
    "depthwise 31x31": ((31, 31, 2**16, 1), 2),
    "embedding": ((30522, 768), 0),
    "per tensor, ReLU": ((2**26,), None),
}
SMALL_CASES = {"small, per tensor": ((64, 64), None), "small, per channel": ((64, 64), 1)}
DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16", "float64")}
RELU_CASES = ("per tensor, ReLU",)  # half of the elements zero, as activations are, and a range that starts there
QUICK_CASES = {
    "float32": ("per tensor", "last axis", "first axis", "middle axis", "depthwise 3x3", "per tensor, ReLU"),
    "float16": ("per tensor", "last axis", "first axis", "middle axis", "depthwise 3x3", "per tensor, ReLU"),
    "bfloat16": ("per tensor", "last axis"),
}
PARAMETERS = {"fake_quant": 2, "lsq_symmetric": 1, "lsq_uniform": 2}  # and as many sums per channel


class Case(NamedTuple):
    """A tensor and its parameters on the device."""

    name: str
    dtype: str
    axis: int | None
    x: torch.Tensor
    grad_y: torch.Tensor
    min: torch.Tensor
    max: torch.Tensor

    @property
    def others(self) -> tuple[int, ...]:
        """The axes that are not the channels'."""
        return tuple(i for i in range(self.x.dim()) if self.axis is None or i != self.axis)


def make_case(name: str, shape: tuple[int, ...], axis: int | None, dtype: str, device: str) -> Case:
    """Normal noise, and ranges that clip some of it; what a ReLU makes of it, where the case is of RELU_CASES."""
    generator = torch.Generator(device).manual_seed(0)
    x, grad_y = (torch.randn(shape, generator=generator, device=device).to(DTYPES[dtype]) for _ in range(2))
    channels = () if axis is None else (shape[axis],)
    high = torch.rand(channels, generator=generator, device=device) + 1
    high = high.to(torch.float64 if dtype == "float64" else torch.float32)
    if name in RELU_CASES:
        return Case(name, dtype, axis, x.relu_(), grad_y, torch.zeros_like(high), high)
    return Case(name, dtype, axis, x, grad_y, -high * 0.9, high)


class Run(NamedTuple):
    """A function of ours on a case."""

    call: Callable
    bytes: float  # that must move
    outputs: list[torch.Tensor]
    with_sums: bool = False  # gradients to parameters


def ours(case: Case, cuda, wrap: Callable, stream: Callable) -> dict[str, Run]:
    """Each of our functions, by name."""
    size, b = case.x.numel(), case.x.element_size()
    y, grad_x = torch.empty_like(case.x), torch.empty_like(case.x)
    mask = torch.empty((size + 7) // 8, dtype=torch.uint8, device=case.x.device)
    sums = [torch.empty_like(case.min) for _ in range(2)]
    axis = {"axis": case.axis}
    workspaces = {op: cuda.workspace_size(op, wrap(case.x), **axis) for op in PARAMETERS}
    workspace = torch.empty(max(workspaces.values()), dtype=torch.float64, device=case.x.device)
    x, grad_y, low, high, out, grad, bits, scratch = map(
        wrap, (case.x, case.grad_y, case.min, case.max, y, grad_x, mask, workspace)
    )
    first, second = map(wrap, sums)
    uniform = {"grad_min": first, "grad_max": second, "workspace": scratch, **axis}
    symmetric = {"grad_threshold": first, "workspace": scratch, **axis}

    def call(name, *arguments, **more):
        return lambda: getattr(cuda, name)(*arguments, **more, stream=stream())

    def forward(op, *parameters, **more):
        moved = (2 * b + (1 / 8 if more else 0)) * size + parameter_bytes(case, op)
        return Run(call(op, x, *parameters, out=out, **axis, **more), moved, [y])

    def backward(op, *parameters, **results):
        moved = 3 * b * size + 2 * parameter_bytes(case, op) + partial_bytes(case, op, workspaces[op])
        found = [grad_x, *sums[: PARAMETERS[op]]]
        return Run(call(f"{op}_grad", grad_y, x, *parameters, out=grad, **results), moved, found, with_sums=True)

    def straight_through(name, *arguments, moved, **more):
        return Run(call(name, grad_y, *arguments, out=grad, **more), moved, [grad_x])

    return {
        "fake_quant forward": forward("fake_quant", low, high),
        "fake_quant forward with mask": forward("fake_quant", low, high, mask=bits),
        "straight-through backward": straight_through("straight_through_grad", bits, moved=(2 * b + 1 / 8) * size),
        "fake_quant backward": straight_through(
            "fake_quant_grad", x, low, high, moved=3 * b * size + parameter_bytes(case, "fake_quant"), **axis
        ),
        "fake_quant backward with sums": backward("fake_quant", low, high, **uniform),
        "lsq_symmetric forward": forward("lsq_symmetric", high),
        "lsq_symmetric backward": backward("lsq_symmetric", high, **symmetric),
        "lsq_uniform forward": forward("lsq_uniform", low, high),
        "lsq_uniform backward": backward("lsq_uniform", low, high, **uniform),
    }


def parameter_bytes(case: Case, op: str) -> int:
    """Of an op's parameters, one number per channel each."""
    return PARAMETERS[op] * case.min.numel() * case.min.element_size()


def partial_bytes(case: Case, op: str, workspace: int) -> int:
    """Of partial sums, written and read again; none where each channel has one, which is its sum."""
    return 2 * 8 * workspace if workspace >= 2 * PARAMETERS[op] * case.min.numel() else 0


def theirs(case: Case) -> dict[str, tuple[Callable, str]]:
    """PyTorch's functions by name, each with the name of ours that does the same. They take float32 alone."""
    if case.dtype != "float32":
        return {}
    scale = (case.max - case.min) / 255
    zero_point = (-case.min / scale).round().clamp(0, 255)
    x = case.x.clone().requires_grad_()
    learned, learned_zero = (t.clone().reshape(-1).requires_grad_() for t in (scale, zero_point))
    if case.axis is None:
        fixed = torch.fake_quantize_per_tensor_affine
        constants = (float(scale), int(zero_point), 0, 255)
        learnable = torch._fake_quantize_learnable_per_tensor_affine
        learned_arguments = (learned, learned_zero, 0, 255)
    else:
        fixed = torch.fake_quantize_per_channel_affine
        constants = (scale, zero_point.to(torch.int32), case.axis, 0, 255)
        learnable = torch._fake_quantize_learnable_per_channel_affine
        learned_arguments = (learned, learned_zero, case.axis, 0, 255)
    y, learned_y = fixed(x, *constants), learnable(x, *learned_arguments)

    def forward():
        with torch.no_grad():
            fixed(case.x, *constants)

    def backward():
        torch.autograd.grad(y, x, case.grad_y, retain_graph=True)

    def learned_forward():
        with torch.no_grad():
            learnable(case.x, *learned_arguments)

    def learned_backward():
        torch.autograd.grad(learned_y, (x, learned, learned_zero), case.grad_y, retain_graph=True)

    return {
        "PyTorch fake_quantize forward": (forward, "fake_quant forward"),
        "PyTorch fake_quantize backward": (backward, "straight-through backward"),
        "PyTorch learnable forward": (learned_forward, "lsq_uniform forward"),
        "PyTorch learnable backward": (learned_backward, "lsq_uniform backward"),
    }
