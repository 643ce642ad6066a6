"""Which kernels are hot, what they are held to on an H100 (sm_90), and the table that shows it."""

import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import gpu_limits
from kernel_figures import THREADS, Figures, element_type

ROOT = Path(__file__).parent.parent
ARCHITECTURE = "90"
# Kernels that move whole tensors in every training step; FinishSums, which is not among them, reads partial sums.
HOT = {
    "MapRuns": "forward of activations, per tensor, and of kernels with channels first; gradients to x alone",
    "MapLanes": "the same with channels last: Keras' kernels, depthwise ones, activations per channel",
    "ReduceRuns": "gradients with sums: every backward pass that learns a range, per tensor and channels first",
    "ReduceLanes": "the same with channels last",
    "PassMasked": "every straight-through backward pass",
}
TYPES = ("float", "Float16", "BFloat16", "unsigned int", "unsigned short")  # training's; float64 must overlap loads
# Shared memory of a block at most, where it limits anything: channels of a tile, then sums of its columns.
SHARED_BYTES = {"MapLanes": 32 * 1024, "ReduceLanes": 32 * 1024}

MIN_BYTES_IN_FLIGHT = 32 * 1024  # of a multiprocessor
MAX_SHARE = 0.75  # of issue slots and of the fullest pipe: above it, nothing comes near a copy's speed
MAX_DEPTHWISE = {4: 79, 2: 40}  # instructions per element, by bytes of it: all issue slots at a copy's speed
# Where that is missed, and what it is held to instead. LSQ's uniform grid takes three divisions in a row to prepare, a
# column of nine elements each: 41 instructions.
MISSED_DEPTHWISE = {"LsqUniform": 42}
DEPTHWISE_ELEMENTS = 9 * 2**22
COST_OF_ONE_ROW = 1.25  # of a row alone, against one of a full pass: counted by hand, 17.6 instructions for 14.7


class HotKernel(NamedTuple):
    """A kernel that is held to the aims."""

    name: str
    blocks: int  # on a multiprocessor
    figures: Figures
    depthwise: float | None  # instructions per element of a depthwise 3x3 kernel, for the forward pass of lanes

    @property
    def bytes_in_flight(self) -> int:
        """On a multiprocessor."""
        return self.figures.bytes_in_flight(self.blocks)

    @property
    def fullest_pipe(self) -> tuple[str, float]:
        """Its name, and the share of it that a copy's speed takes."""
        pipes = {pipe: share for pipe, share in self.figures.shares().items() if pipe != "ISSUE"}
        return max(pipes.items(), key=lambda item: item[1])

    def misses(self) -> list[str]:
        """The aims that it misses."""
        found, of = self.figures, []
        if found.loads_in_flight < found.loads_of_batch or not found.loads_of_batch:
            of.append(f"{found.loads_in_flight} of {found.loads_of_batch} loads in flight")
        if element_type(self.name) not in TYPES:
            return of
        if self.bytes_in_flight < MIN_BYTES_IN_FLIGHT:
            of.append(f"{self.bytes_in_flight // 1024} KB in flight, aim {MIN_BYTES_IN_FLIGHT // 1024}")
        issue, (pipe, share) = found.shares()["ISSUE"], self.fullest_pipe
        if issue > MAX_SHARE:
            of.append(f"{issue:.0%} of issue slots, aim {MAX_SHARE:.0%}")
        if share > MAX_SHARE:
            of.append(f"{share:.0%} of {pipe}, aim {MAX_SHARE:.0%}")
        most = self.most_of_depthwise()
        if self.depthwise is not None and self.depthwise > most:
            of.append(f"{self.depthwise:.0f} instructions per element of depthwise 3x3, aim {most}")
        return of

    def most_of_depthwise(self) -> int:
        """The most instructions per element of a depthwise 3x3 kernel."""
        formula = self.name.partition(", ")[2].split(",")[0]
        return max(MAX_DEPTHWISE.get(self.figures.itemsize, 0), MISSED_DEPTHWISE.get(formula, 0))


def family(kernel: str) -> str:
    """MapRuns of MapRuns<float, LsqUniform, Forward>."""
    return kernel.partition("<")[0]


def blocks(kernel: str, architecture: str, registers: int) -> int:
    """How many blocks of a kernel fit on a multiprocessor."""
    shared_bytes = SHARED_BYTES.get(family(kernel), 0)
    return gpu_limits.blocks_per_multiprocessor(architecture, THREADS, registers, shared_bytes)


def depthwise_elements() -> dict[int, int]:
    """Elements that a block takes of a depthwise 3x3 kernel, by bytes of one: the kernels' own index arithmetic."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "depthwise_blocks"
        source = Path(__file__).with_name("depthwise_blocks.cc")
        subprocess.run(["c++", "-std=c++17", f"-I{ROOT / 'csrc'}", str(source), "-o", str(program)], check=True)
        counts = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.split()
    return {itemsize: DEPTHWISE_ELEMENTS // int(count) for itemsize, count in zip((4, 2), counts, strict=True)}


def depthwise_per_element(figures: Figures, elements: int) -> float:
    """Instructions per element of a depthwise 3x3 kernel, of which a block takes so many elements: 9 rows of columns.

    Every warp executes the prologue, the passes that its share of the elements takes, and what follows. Rows that do
    not fill a pass are taken one by one, by a path of its own. A loop before the one that moves packs prepares columns,
    one per thread and pass.
    """
    full, rest = divmod(elements / THREADS, figures.elements)
    passes = full + rest / figures.elements * COST_OF_ONE_ROW
    passes_of_prologue = elements / 9 / THREADS
    of_warp = figures.prologue + figures.prologue_loops * (passes_of_prologue - 1)
    of_warp += figures.instructions * passes + figures.epilogue
    return of_warp * THREADS / elements


def hot_kernel(name: str, registers: int, figures: Figures, elements: dict[int, int]) -> HotKernel:
    """A kernel's figures as they are held to the aims."""
    few_rows = family(name) == "MapLanes" and name.endswith("Forward>") and figures.itemsize in elements
    depthwise = depthwise_per_element(figures, elements[figures.itemsize]) if few_rows else None
    return HotKernel(name, blocks(name, ARCHITECTURE, registers), figures, depthwise)


def table(kernels: list[HotKernel]) -> list[str]:
    """The Markdown lines."""
    columns = [
        "kernel",
        "blocks",
        "loads in flight",
        "KB in flight",
        "instructions per element",
        "issue",
        "fullest pipe",
    ]
    columns += ["before the loop", "depthwise 3x3"]
    lines = [f"| {' | '.join(columns)} |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for kernel in kernels:
        found, (pipe, share) = kernel.figures, kernel.fullest_pipe
        before = f"{found.prologue}, {found.prologue_loops} in loops" if found.prologue_loops else found.prologue or ""
        depthwise = "" if kernel.depthwise is None else f"{kernel.depthwise:.0f}"
        lines.append(
            f"| `{kernel.name}` | {kernel.blocks} | {found.loads_in_flight} of {found.loads_of_batch} "
            f"| {kernel.bytes_in_flight // 1024} | {found.per_element:.1f} | {found.shares()['ISSUE']:.0%} "
            f"| {pipe} {share:.0%} | {before} | {depthwise} |"
        )
    return lines
