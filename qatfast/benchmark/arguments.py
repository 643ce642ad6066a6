"""Types of command-line arguments, for pytest's options and for `python -m qatfast`."""

import argparse
import math
from pathlib import Path


def parse_shape(text: str) -> tuple[int, ...]:
    """'4096,4096' as (4096, 4096)."""
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"a shape must be positive integers with commas between, got {text!r}")
    if math.prod(shape) >= 2**63:
        raise argparse.ArgumentTypeError(f"a shape must have fewer than 2^63 elements, got {text!r}")
    return shape


def parse_axis(text: str) -> int | None:
    """'-1' as -1; 'none' as None: one range per tensor."""
    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"an axis must be an integer or none, got {text!r}") from None


def parse_positive(text: str) -> int:
    """'16' as 16."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def parse_positive_number(text: str) -> float:
    """'1.5' as 1.5."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return number


def parse_bits(text: str) -> int:
    """'4' as 4: a number of bits of a grid."""
    if not text.isdecimal() or not 2 <= int(text) <= 16:
        raise argparse.ArgumentTypeError(f"must be an integer from 2 to 16, got {text!r}")
    return int(text)


def parse_output_file(text: str) -> Path:
    """A file that can be written, as far as its folder tells."""
    path = Path(text)
    if not text or path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, got {text!r}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be in a folder that exists, got {text!r}")
    return path
