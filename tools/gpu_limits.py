"""What GPUs have: limits of a multiprocessor, pipes and which instruction takes which, and an H100's copy."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from sass import Instruction

WARP = 32


class Limits(NamedTuple):
    """What the blocks on one multiprocessor share. A block takes `reserved` bytes of shared memory for itself."""

    threads: int
    blocks: int
    shared_bytes: int
    reserved: int
    registers: int = 65536


# CUDA C++ Programming Guide, "Compute Capabilities", table "Technical Specifications per Compute Capability".
LIMITS = {
    "75": Limits(1024, 16, 64 * 1024, 0),
    "80": Limits(2048, 32, 164 * 1024, 1024),
    "86": Limits(1536, 16, 100 * 1024, 1024),
    "89": Limits(1536, 24, 100 * 1024, 1024),
    "90": Limits(2048, 32, 228 * 1024, 1024),
}
REGISTERS_AT_ONCE = 256  # a warp's registers are given out in multiples of this


def blocks_per_multiprocessor(architecture: str, threads: int, registers: int, shared_bytes: int) -> int:
    """How many blocks fit: by threads, registers and shared memory."""
    limits = LIMITS[architecture.rstrip("a")]
    of_warp = -(-registers * WARP // REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
    return min(
        limits.threads // threads,
        limits.blocks,
        limits.registers // of_warp // (threads // WARP),
        limits.shared_bytes // (shared_bytes + limits.reserved) if shared_bytes else limits.blocks,
    )


# An H100 (SXM, sm_90), as ../shared/reviews/cuda.md takes it: what a copy moves, read and written, and the clock at it.
COPY_BYTES_PER_SECOND = 3.0e12
MULTIPROCESSORS = 132
CLOCK = 1.755e9
COPY_BYTES_PER_CLOCK = COPY_BYTES_PER_SECOND / MULTIPROCESSORS / CLOCK  # of one multiprocessor

# Threads per clock and multiprocessor: the guide's table "Throughput of Native Arithmetic Instructions", compute
# capability 9.0; ISSUE: four schedulers, an instruction of a warp each.
THREADS_PER_CLOCK = {"ISSUE": 128, "ALU": 64, "FMA": 128, "FMA heavy": 64, "XU": 16, "FP64": 64, "LSU": 32}
# Which pipe executes what: "Pipelines" in the Kernel Profiling Guide of Nsight Compute. FMA heavy is one half of FMA
# and alone multiplies integers. Others (branches, barriers, constants, the uniform datapath) only take an issue slot.
OPCODES = {
    "ALU": "BMSK FLO FMNMX FSEL FSET FSETP IABS IADD3 IMNMX ISETP LEA LOP3 MOV P2R PLOP3 POPC PRMT R2P SEL SGXT "
    "SHF VABSDIFF VIADD VIADDMNMX VIMNMX VOTE VOTEU F2FP I2FP",
    "FMA": "FADD FFMA FMUL HADD2 HFMA2 HMUL2 HSET2 HSETP2 HMNMX2",
    "FMA heavy": "IMAD IDP",
    "XU": "MUFU FCHK FRND F2F F2I I2F",
    "FP64": "DADD DMUL DFMA DSETP",
    "LSU": "LDG STG LDS STS LDL STL LD ST SHFL ATOM ATOMG ATOMS RED LDSM",
}
PIPE_OF = {opcode: pipe for pipe, opcodes in OPCODES.items() for opcode in opcodes.split()}


def clocks_of_pipes(code: Iterable[Instruction]) -> dict[str, float]:
    """For how many clocks of a multiprocessor a warp's instructions keep each pipe, and the schedulers, busy."""
    threads: Counter[str] = Counter()
    for line in code:
        threads["ISSUE"] += WARP
        pipe = PIPE_OF.get(line.name)
        if pipe == "LSU":  # as many turns as a thread moves words of 32 bits
            threads[pipe] += WARP * (4 if "128" in line.has else 2 if "64" in line.has else 1)
        elif pipe:
            threads[pipe] += WARP
        if pipe == "FMA heavy":
            threads["FMA"] += WARP
    return {pipe: count / THREADS_PER_CLOCK[pipe] for pipe, count in threads.items()}
