"""Compiles the CUDA kernels for all architectures, and tells what each needs of a GPU.

    python tools/cuda_report.py [--check]

Fails on any warning of the compiler, and if a kernel spills registers to local memory. Without --check it writes the
table of registers to docs/cuda-kernels.md; with it, it fails if that table is of other kernels. Registers may differ
from one release of CUDA to the next.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
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
        name = re.sub(r"(Forward|Pass)Map<[^<>]*(<[^<>]*>)? *>", r"\1", name)
        names.append(re.sub(r"(Lsq\w+)<\w+>", r"\1", name).replace(" >", ">"))
    return names


def table(groups: dict[str, list[Entry]], release: str) -> str:
    """The Markdown table of registers."""
    architectures = cuda_build.architectures()
    lines = [
        "# Registers of the CUDA kernels",
        "",
        f"Written by `python tools/cuda_report.py`, CUDA {release}. Registers per thread, by capability; blocks",
        "have 256 threads, and a multiprocessor 65,536 registers. No kernel spills to local memory: CI checks it.",
    ]
    for source, found in groups.items():
        lines += ["", f"## {source}", "", f"| kernel | {' | '.join(architectures)} |"]
        lines.append("| --- |" + " ---: |" * len(architectures))
        rows: dict[str, dict[str, int]] = {}
        for entry in found:
            rows.setdefault(entry.kernel, {})[entry.architecture] = entry.registers
        for kernel in sorted(rows):
            cells = " | ".join(str(rows[kernel].get(architecture, "")) for architecture in architectures)
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
    text = table(groups, toolkit.release)
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
