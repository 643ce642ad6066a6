"""What a measurement needs of the machine's memory, looked at before anything is allocated."""

from pathlib import Path

_MEMORY_INFO = Path("/proc/meminfo")
_LIMIT, _USED = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))


def available_bytes() -> int | None:
    """What this process may still allocate, by Linux and by the limit of its container; None where neither says."""
    known = []
    if _MEMORY_INFO.exists():
        fields = dict(line.split(":", 1) for line in _MEMORY_INFO.read_text().splitlines())
        if "MemAvailable" in fields:
            known.append(1024 * int(fields["MemAvailable"].split()[0]))
    if _LIMIT.exists() and _LIMIT.read_text().strip().isdecimal():
        known.append(int(_LIMIT.read_text()) - int(_USED.read_text()))
    return min(known, default=None)


def check_fits(argument: str, shape: tuple[int, ...], elements: int, bytes_per_element: int) -> None:
    """Raises ValueError if that many elements do not fit in memory.

    Args:
        argument: Where `shape` comes from, for the message.
        shape: What the user asked for.
        elements: How many elements it stands for.
        bytes_per_element: What is allocated at the same time, for each.
    """
    needed, available = elements * bytes_per_element, available_bytes()
    if available is not None and needed > available:
        raise ValueError(
            f"{argument} must fit in memory, got {shape}: takes about {_gibibytes(needed)}, and "
            f"{_gibibytes(available)} are free"
        )


def _gibibytes(count):
    return f"{count / 2**30:,.1f} GiB"
