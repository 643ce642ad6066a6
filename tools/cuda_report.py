"""Compiles the CUDA kernels for all architectures, and tells what each needs of a GPU.

    python tools/cuda_report.py [--check]

Fails on any warning of the compiler, if a kernel spills registers to local memory, and if a hot kernel's machine code
misses an aim of hot_kernels.py. Without --check it writes the tables to docs/cuda-kernels.md; with it, it fails if they
are of other kernels. Registers and instructions may differ from one release of CUDA to the next. Needs nvcc, and
cuobjdump and nvdisasm (from PyPI; `make cuda-check` installs them).
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import hot_kernels  # noqa: E402
import sass  # noqa: E402
from kernel_figures import figures  # noqa: E402

import cuda_build  # noqa: E402

TABLE = ROOT / "docs" / "cuda-kernels.md"
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


class Entry(NamedTuple):
    """One kernel on one architecture."""

    kernel: str
    architecture: str
    registers: int
    local_bytes: int  # stack and spills


def entries(log: str) -> list[Entry]:
    """What ptxas -v says of each kernel."""
    found = list(ENTRY.finditer(log))
    names = readable([match["name"] for match in found])
    return [
        Entry(
            name, match["arch"], int(match["registers"]), sum(int(match[key]) for key in ("stack", "stores", "loads"))
        )
        for name, match in zip(names, found, strict=True)
    ]


def readable(symbols: list[str]) -> list[str]:
    """Mangled symbols as people write them: MapRuns<float, LsqUniform, Forward>."""
    text = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True).stdout
    names = []
    for name in text.splitlines():
        name = re.sub(r"^void |qatfast::|cuda::|\(anonymous namespace\)::|Formula|\(int\)", "", name)
        name = re.sub(r">\(.*", ">", name)
        name = re.sub(r"(Lsq\w+)<\w+>", r"\1", name).replace(" >", ">")
        name = re.sub(r"(Forward|Pass)Map<[^<>]*(<[^<>]*>)?(, false)?>", r"\1", name)
        names.append(re.sub(r"ForwardMap<[^<>]*(<[^<>]*>)?, true>", "Forward with mask", name))
    return names


def disassembler() -> list[str] | None:
    """The command that lists machine code: cuobjdump of the PyPI package, of the PATH, or None."""
    spec = importlib.util.find_spec("nvidia")
    for location in spec.submodule_search_locations if spec else []:
        for found in Path(location).glob("cu*/bin/cuobjdump"):
            return ["env", f"PATH={found.parent}:{os.environ['PATH']}", str(found)]
    return [shutil.which("cuobjdump")] if shutil.which("cuobjdump") else None


def listed(command: list[str], compiled: cuda_build.Compiled) -> Iterator[tuple[str, list[sass.Instruction]]]:
    """(kernel, instructions) of each kernel of an object file, on the architecture of the aims."""
    arguments = [*command, "-sass", "-arch", f"sm_{hot_kernels.ARCHITECTURE}", str(compiled.object)]
    listing = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    found = list(sass.functions(listing.splitlines()))
    return zip(readable([symbol for symbol, _ in found]), [code for _, code in found], strict=True)


def hot(command: list[str], compiled: list[cuda_build.Compiled], groups: dict[str, list[Entry]]) -> list:
    """The hot kernels, by name; None for one that moves nothing 16 bytes at a time."""
    registers = {
        entry.kernel: entry.registers
        for found in groups.values()
        for entry in found
        if entry.architecture == hot_kernels.ARCHITECTURE
    }
    elements = hot_kernels.depthwise_elements()
    kernels = {}
    with ThreadPoolExecutor() as pool:
        for listing in pool.map(lambda file: list(listed(command, file)), compiled):
            for name, code in listing:
                if hot_kernels.family(name) in hot_kernels.HOT:
                    found = figures(name, code)
                    kernels[name] = found and hot_kernels.hot_kernel(name, registers[name], found, elements)
    return sorted(kernels.items())


def table(groups: dict[str, list[Entry]], hot_ones: list, release: str) -> str:
    """The Markdown tables: what hot kernels do, and registers and blocks of all."""
    architectures = cuda_build.architectures()
    lines = [
        "# The CUDA kernels as machine code",
        "",
        f"Written by `python tools/cuda_report.py`, CUDA {release}. Blocks have 256 threads. No kernel spills to local",
        "memory; CI checks that, and that hot kernels meet the aims in `tools/hot_kernels.py`.",
        "",
        f"## What hot kernels do on sm_{hot_kernels.ARCHITECTURE}",
        "",
        "Blocks and KB are of a multiprocessor; loads in flight are a thread's, of 16 bytes, when the first of a batch",
        "is waited for; shares are of an H100 at the speed of a copy (3.0 TB/s). Before the loop: a warp's",
        "instructions. Depthwise 3x3: instructions per element of 9 rows, with what comes before and after the loop.",
        "What is counted, and along which way through a kernel, `tools/kernel_figures.py` tells.",
        "",
        *hot_kernels.table([kernel for _, kernel in hot_ones if kernel]),
        "",
        "## Registers of a thread / blocks on a multiprocessor, by capability",
    ]
    for source, found in groups.items():
        lines += ["", f"### {source}", "", f"| kernel | {' | '.join(architectures)} |"]
        lines.append("| --- |" + " ---: |" * len(architectures))
        rows: dict[str, dict[str, str]] = {}
        for entry in found:
            blocks = hot_kernels.blocks(entry.kernel, entry.architecture, entry.registers)
            rows.setdefault(entry.kernel, {})[entry.architecture] = f"{entry.registers} / {blocks}"
        for kernel in sorted(rows):
            cells = " | ".join(rows[kernel].get(architecture, "") for architecture in architectures)
            lines.append(f"| `{kernel}` | {cells} |")
    return "\n".join(lines) + "\n"


def kernels_of(text: str) -> list[str]:
    """The kernels that a table lists."""
    return re.findall(r"^\| `(.*?)`", text, re.MULTILINE)


def main() -> None:
    """Compiles, checks, and writes or compares the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with docs/cuda-kernels.md instead of writing it")
    check = parser.parse_args().check
    toolkit = cuda_build.find_toolkit()
    if toolkit is None:
        sys.exit("cuda_report: nvcc is needed: put it on the PATH, or set CUDA_HOME")
    if not cuda_build.sources():
        sys.exit("cuda_report: there is nothing to compile: csrc/core has no *_cuda.cu")
    compiled = cuda_build.compile_kernels(toolkit, int(os.environ.get("QATFAST_JOBS", os.cpu_count() or 1)))
    groups = {kernel.source.name: entries(kernel.log) for kernel in compiled}
    complaints = [
        f"{kernel.source.name}: {line}" for kernel in compiled for line in kernel.log.splitlines() if "warning" in line
    ]
    complaints += [
        f"{source}: {entry.kernel} on {entry.architecture} uses {entry.local_bytes} bytes of local memory"
        for source, found in groups.items()
        for entry in found
        if entry.local_bytes
    ]
    expected = len(cuda_build.architectures())
    for kernel in compiled:
        found = len(groups[kernel.source.name])
        if found % expected or found != kernel.log.count("Compiling entry function"):
            complaints.append(f"{kernel.source.name}: {found} entries of ptxas on {expected} architectures")
    if not any(groups.values()):
        complaints.append("ptxas names no kernel")
    groups = {source: found for source, found in groups.items() if found}  # the others have host code alone
    command = disassembler()
    if command is None:
        sys.exit("cuda_report: cuobjdump is needed: run make cuda-check, which installs it")
    if hot_kernels.ARCHITECTURE not in cuda_build.architectures():
        sys.exit(f"cuda_report: QATFAST_CUDA_ARCHS must have {hot_kernels.ARCHITECTURE}, which the aims are for")
    hot_ones = hot(command, compiled, groups)
    complaints += [f"{name}: moves nothing 16 bytes at a time" for name, kernel in hot_ones if not kernel]
    complaints += [f"{name}: {miss}" for name, kernel in hot_ones if kernel for miss in kernel.misses()]
    for name in sorted(set(hot_kernels.HOT) - {hot_kernels.family(name) for name, _ in hot_ones}):
        complaints.append(f"{name}: no such kernel, but hot_kernels.py says that it is hot")
    text = table(groups, hot_ones, toolkit.release)
    if not check:
        TABLE.write_text(text)
    elif not TABLE.exists() or kernels_of(TABLE.read_text()) != kernels_of(text):
        complaints.append(f"{TABLE.relative_to(ROOT)} is not of these kernels: run python tools/cuda_report.py")
    if complaints:
        sys.exit("cuda_report:\n" + "\n".join(complaints))
    total = sum(map(len, groups.values()))
    print(f"cuda_report: {total // expected} kernels on {expected} architectures, no warning, nothing in local memory")


if __name__ == "__main__":
    main()
