"""What a kernel's machine code will do on a GPU: what it keeps in flight, and what it executes per element.

All figures are of the fast path: the way through the kernel on which whole packs of 16 bytes are moved and elements
quantized. Of all ways it is the one with

1. the most loads and stores of 16 bytes,
2. the fewest calls (the slow path of a division is a subroutine),
3. the fewest other accesses to global memory and exchanges between threads (element by element; masks nobody wants),
4. the most roundings and sums in double precision, then the most comparisons of floats (else it would be that of a
   channel whose range is nothing, whose elements need none),
5. the fewest instructions.

Where a loop moves 16 bytes at a time, the figures are of one pass through it, and what comes before is the prologue,
whose loads must be in flight together too; else they are of the whole kernel, from start to end. Elements are those of
the packs that are stored. Every instruction on the way counts, one whose predicate is false too: it takes its issue
slot.
"""

from collections import Counter
from typing import NamedTuple

import gpu_limits
from sass import Flow, Instruction, least_in_flight

THREADS = 256  # of a block: kThreads of channel_tiles_cuda.h
PACK_BYTES = 16
ITEMSIZES = {"double": 8, "unsigned long": 8, "float": 4, "unsigned int": 4, "Float16": 2, "BFloat16": 2}
ITEMSIZES["unsigned short"] = 2


class Figures(NamedTuple):
    """What one kernel does on its fast path."""

    itemsize: int
    loads_in_flight: int  # of 16 bytes, a thread's
    loads_of_batch: int
    elements: int  # of a pass, or of the kernel
    instructions: int
    prologue: int  # instructions of a warp before the loop, each earlier loop entered once; 0: no loop
    prologue_loops: int  # of these, in loops
    epilogue: int  # after the loop, with no other loop entered
    clocks: dict[str, float]  # of a warp, on each pipe
    bytes_moved: int  # of a thread, 16 at a time

    @property
    def per_element(self) -> float:
        """Instructions per element."""
        return self.instructions / self.elements

    def bytes_in_flight(self, blocks: int) -> int:
        """Of a multiprocessor with so many blocks."""
        return blocks * THREADS * self.loads_in_flight * PACK_BYTES

    def shares(self) -> dict[str, float]:
        """The shares of an H100's issue slots and pipes that the kernel needs to move bytes as fast as a copy."""
        clocks_of_copy = gpu_limits.WARP * self.bytes_moved / gpu_limits.COPY_BYTES_PER_CLOCK
        return {pipe: clocks / clocks_of_copy for pipe, clocks in self.clocks.items()}


def element_type(kernel: str) -> str:
    """The type of x among a kernel's template arguments."""
    arguments = kernel.partition("<")[2].rstrip(">").split(", ")
    return next(argument for argument in arguments if argument in ITEMSIZES)


def cost(line: Instruction) -> tuple[int, ...]:
    """What the fast path is the cheapest by: see above."""
    return (
        -line.is_wide,
        line.name == "CALL",
        (line.is_global and not line.is_wide) or line.name == "SHFL",
        -(line.name in ("FRND", "DADD")),
        -(line.name in ("FSETP", "DSETP")),
        1,
    )


def cost_of_preparing(line: Instruction) -> tuple[int, ...]:
    """The same for the way to the loop, on which channels are read one by one, divided and rounded."""
    return (-line.is_wide, line.name == "CALL", -(line.name in ("FRND", "MUFU")), 1)


def hot_loop(flow: Flow) -> tuple[int, list[Instruction]] | None:
    """(first block, instructions of a pass) of the loop that moves the most packs, or None."""
    found = []
    for head, body in flow.loops.items():
        way = flow.path(head, flow.latches(head), cost, within=body)
        code = flow.code(way) if way else []
        wide = Counter(line.opcode for line in code if line.is_wide)
        if wide:
            found.append(((sum(wide.values()), -len(code)), head, code))
    return max(found, key=lambda loop: loop[0])[1:] if found else None


def figures(kernel: str, code: list[Instruction]) -> Figures | None:
    """Figures of a kernel, or None if it stores no packs of 16 bytes."""
    flow = Flow(code)
    loop = hot_loop(flow)
    prologue, in_loops, epilogue = [], [], []
    if loop is None:
        way = flow.path(0, flow.exits, cost)
        body = flow.code(way) if way else []
        in_flight = least_in_flight(body)
    else:
        head, body = loop
        way = flow.path(0, {head}, cost_of_preparing)[:-1]
        prologue = flow.code(way)
        of_loops = set().union(*(blocks for start, blocks in flow.loops.items() if head not in blocks))
        in_loops = flow.code([block for block in way if block in of_loops])
        ways = [flow.path(latch, flow.exits, lambda line: (line.name == "CALL", 1)) for latch in flow.latches(head)]
        epilogue = min((flow.code(way[1:]) for way in ways if way), key=len, default=[])
        in_flight = least_in_flight([*prologue, *body, *body], after=body)
    itemsize = ITEMSIZES[element_type(kernel)]
    stores = sum(line.is_wide_store for line in body)
    loads = sum(line.is_wide_load for line in body)
    if not stores:
        return None
    return Figures(
        itemsize, *in_flight, stores * PACK_BYTES // itemsize, len(body), len(prologue), len(in_loops), len(epilogue),
        gpu_limits.clocks_of_pipes(body), PACK_BYTES * (loads + stores),
    )  # fmt: skip
