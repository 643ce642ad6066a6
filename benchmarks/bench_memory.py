"""What a quantized activation keeps for backward: bytes per element, from the peak memory of a long chain of them.

Every variant runs in a process of its own; what pytest-benchmark times here is that process, and means nothing.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from memory_chain import ENVIRONMENT, LONG, SHORT

from qatfast.benchmark.op_case import OPS

# Beside the 1/8 byte of a mask, an op keeps some kilobytes of bookkeeping: a large tensor, to tell them apart.
ELEMENTS = {"fake_quant": 2**24, "lsq_symmetric": 2**22, "lsq_uniform": 2**22}
SCRIPT = Path(__file__).parent / "memory_chain.py"
OTHERS = {"fake_quant": ["stock"], "lsq_symmetric": ["formulas"], "lsq_uniform": ["formulas"]}


def measure(implementation, op):
    """Bytes per element and layer, and the peaks."""
    name = f"{implementation} {op}"
    command = [sys.executable, str(SCRIPT), name, "--elements", str(ELEMENTS[op])]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("op", OPS)
def test_memory(benchmark, op, settings):
    if (settings.quick and op != "fake_quant") or (op == "lsq_uniform" and not settings.full):
        pytest.skip("only with --full, or without --quick")
    measured = {"ours": benchmark.pedantic(measure, args=("ours", op), rounds=1)}
    measured.update({other: measure(other, op) for other in OTHERS[op]})
    benchmark.group = "memory"
    benchmark.extra_info.update(suite="memory", op=op, elements=ELEMENTS[op], layers=[SHORT, LONG], measured=measured)
