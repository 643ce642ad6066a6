"""Types of command-line arguments, for pytest's options and for `python -m qatfast`."""

import argparse


def parse_shape(text: str) -> tuple[int, ...]:
    """'4096,4096' as (4096, 4096)."""
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"a shape must be positive integers with commas between, got {text!r}")
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
