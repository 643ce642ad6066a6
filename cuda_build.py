"""Compiles the CUDA kernels with nvcc: for setup.py, and for tools/cuda_report.py, which reads what the assembler said.

QATFAST_CUDA=auto|0|1     whether to build them (auto: where nvcc is found)
QATFAST_CUDA_ARCHS        compute capabilities, such as "80,90" (default: all below). The newest is also kept as PTX,
                          which drivers compile for GPUs that are newer still.
"""

import hashlib
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent
ARCHITECTURES = "75,80,86,89,90"
# Bit for bit the CPU's results: denormals count as zero, no contraction into fused multiply-add, IEEE division.
FLAGS = ["-O3", "-std=c++17", "-ftz=true", "-fmad=false", "-prec-div=true", "-prec-sqrt=true", "-Xptxas=-v"]
HOST_FLAGS = ["-fPIC", "-Wall", "-Wextra", "-ffp-contract=off"]


class Toolkit(NamedTuple):
    """A CUDA toolkit: its compiler, where its static runtime is, and its release."""

    nvcc: str
    library_dir: str
    release: str


class Compiled(NamedTuple):
    """A compiled .cu file, and what the compiler printed."""

    source: Path
    object: Path
    log: str


def sources() -> list[Path]:
    """The files with kernels."""
    return sorted((ROOT / "csrc" / "core").glob("*_cuda.cu"))


def find_toolkit() -> Toolkit | None:
    """The toolkit of CUDA_HOME, of the PATH or of the usual place, or None."""
    home = os.environ.get("CUDA_HOME")
    candidates = [f"{home}/bin/nvcc" if home else None, shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    for nvcc in filter(None, candidates):
        if Path(nvcc).exists():
            return Toolkit(nvcc, library_dir(nvcc), re.search(r"release (\d+\.\d+)", output_of(nvcc, "--version"))[1])
    return None


def library_dir(nvcc: str) -> str:
    """Where the static runtime is; nvcc itself may be a script elsewhere, so it is asked where it belongs."""
    top = Path(re.search(r"^#\$ TOP=(.*)$", output_of(nvcc, "--dryrun", "-x", "cu", "/dev/null"), re.MULTILINE)[1])
    for folder in (top / "lib64", top / "lib", *top.glob("targets/*/lib")):
        if (folder / "libcudart_static.a").exists():
            return str(folder.resolve())
    raise SystemExit(f"qatfast: {top} has no libcudart_static.a: install it, or set QATFAST_CUDA=0")


def output_of(*command: str) -> str:
    """What a command prints, on either stream."""
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    return run.stdout


def toolkit_to_use() -> Toolkit | None:
    """The toolkit to build with, or None where QATFAST_CUDA and what is there say to build without CUDA."""
    setting = os.environ.get("QATFAST_CUDA", "auto")
    if setting not in ("auto", "0", "1"):
        raise SystemExit(f"qatfast: QATFAST_CUDA must be auto, 0 or 1, got {setting!r}")
    if setting == "0":
        return None
    toolkit = find_toolkit()
    if setting == "1" and toolkit is None:
        raise SystemExit("qatfast: QATFAST_CUDA=1 needs nvcc: put it on the PATH, or set CUDA_HOME")
    if setting == "1" and not sources():
        raise SystemExit("qatfast: QATFAST_CUDA=1 needs csrc/core/*_cuda.cu, which are not there")
    return toolkit if sources() else None


def architectures() -> list[str]:
    """The compute capabilities to compile for, lowest first."""
    setting = os.environ.get("QATFAST_CUDA_ARCHS", ARCHITECTURES)
    names = [name.strip() for name in setting.split(",")]
    if not all(re.fullmatch(r"\d{2,3}a?", name) for name in names):
        raise SystemExit(f"qatfast: QATFAST_CUDA_ARCHS must be capabilities such as 80,90, got {setting!r}")
    return sorted(set(names), key=lambda name: int(name.rstrip("a")))


def described_architectures() -> list[str]:
    """What is compiled in, as build_info() tells."""
    return [*architectures(), f"{architectures()[-1]}-ptx"]


def compile_kernels(toolkit: Toolkit, jobs: int) -> list[Compiled]:
    """Compiles every .cu file, or finds it compiled from the same text with the same flags under build/cuda."""
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures()]
    targets.append("-gencode=arch=compute_{0},code=compute_{0}".format(architectures()[-1]))
    files = sources()
    threads = max(1, jobs // max(1, len(files)))
    command = [toolkit.nvcc, *FLAGS, f"-Xcompiler={','.join(HOST_FLAGS)}", "-Icsrc", *targets]
    headers = b"".join(path.read_bytes() for path in sorted((ROOT / "csrc" / "core").glob("*.h")))

    def compile_one(source: Path) -> Compiled:
        text = headers + source.read_bytes() + " ".join([*command, toolkit.release]).encode()
        folder = ROOT / "build" / "cuda" / hashlib.sha256(text).hexdigest()[:16]
        result, log = folder / f"{source.stem}.o", folder / f"{source.stem}.log"
        if not result.exists():
            folder.mkdir(parents=True, exist_ok=True)
            partial = result.with_suffix(f".{os.getpid()}.o")
            run = subprocess.run(
                [*command, f"--threads={threads}", "-c", str(source), "-o", str(partial)],
                cwd=ROOT, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if run.returncode != 0:
                raise SystemExit(f"qatfast: nvcc cannot compile {source.name}:\n{run.stdout}{run.stderr}")
            log.write_text(run.stdout + run.stderr)
            partial.rename(result)
        return Compiled(source, result, log.read_text())

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(compile_one, files))
