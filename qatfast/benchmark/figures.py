"""What the measured seconds mean: ratios, as rows of Markdown tables and as numbers to compare with an earlier run.

A measurement is a dict as it stands in `extra_info` of pytest-benchmark's JSON: what was measured, and `seconds`, the
median seconds by name (of memory: `measured`). Its `suite` says which of the tables it belongs in.
"""

from collections.abc import Iterable, Sequence

from qatfast.benchmark.op_comparison import COMPARATORS, EMPTY_NAME, MEMCPY_NAME, OURS_NAME
from qatfast.benchmark.training import FLOAT

SINGLE = "single "  # before the name of the shorter of two chains of small ops

_OURS_IN = f"{OURS_NAME} "


def op_ratios(measurement: dict) -> dict[str, float]:
    """The ratios of one op on one tensor; 'net' is without what a call of an empty `tf.function` takes."""
    seconds = measurement["seconds"]
    ours, memcpy, empty = seconds[OURS_NAME], seconds[MEMCPY_NAME], seconds[EMPTY_NAME]
    ratios = {"ours / memcpy": ours / memcpy, "net / memcpy": (ours - empty) / memcpy}
    for name, value in seconds.items():
        if name.startswith(_OURS_IN):
            dtype = name.removeprefix(_OURS_IN)
            ratios[f"{dtype} / {measurement['dtype']}"] = value / ours
            ratios[f"{dtype} / {measurement['dtype']}, net"] = (value - empty) / (ours - empty)
    ratios.update({f"{name} / ours": seconds[name] / ours for name in COMPARATORS if name in seconds})
    return ratios


def op_rows(measurements: Sequence[dict]) -> list[list[str]]:
    """The rows of a table of ops, the header first."""
    all_ratios = [op_ratios(measurement) for measurement in measurements]
    columns = list(dict.fromkeys(name for ratios in all_ratios for name in ratios))
    header = ["op", "case", "shape", "axis", "direction", "ours ms", "memcpy ms", "empty call ms", *columns]
    rows = [header]
    for measurement, ratios in zip(measurements, all_ratios, strict=True):
        seconds = measurement["seconds"]
        times = [f"{1e3 * seconds[name]:.2f}" for name in (OURS_NAME, MEMCPY_NAME, EMPTY_NAME)]
        axis = "-" if measurement["axis"] is None else str(measurement["axis"])
        rows.append(
            [measurement["op"], measurement["case"], str(list(measurement["shape"])), axis]
            + [direction_label(measurement["direction"]), *times]
            + [format_ratio(name, ratios.get(name)) for name in columns]
        )
    return rows


def step_ratios(measurement: dict) -> dict[str, float]:
    """Every training step in steps of the float model in graph mode."""
    seconds = measurement["seconds"]
    return {f"{name} / {FLOAT}": value / seconds[FLOAT] for name, value in seconds.items()}


def step_rows(measurements: Sequence[dict]) -> list[list[str]]:
    """The rows of a table of training steps, the header first."""
    rows = [["model", "input", "step", "ms", "to float"]]
    for measurement in measurements:
        for name, value in measurement["seconds"].items():
            ratio = f"{value / measurement['seconds'][FLOAT]:.2f}x"
            rows.append([measurement["case"], str(list(measurement["shape"])), name, f"{1e3 * value:.1f}", ratio])
    return rows


def microseconds_per_op(measurement: dict) -> dict[str, float]:
    """Of small tensors: the time of one op, in a chain of many less one of a single op."""
    seconds, chain = measurement["seconds"], measurement["chain"]
    if chain == 1:
        return {name: 1e6 * value for name, value in seconds.items()}
    names = [name for name in seconds if not name.startswith(SINGLE)]
    return {name: 1e6 * (seconds[name] - seconds[SINGLE + name]) / (chain - 1) for name in names}


def small_ratios(measurement: dict) -> dict[str, float]:
    """Ours in times of each other one."""
    times = microseconds_per_op(measurement)
    return {f"ours / {name}": times[OURS_NAME] / value for name, value in times.items() if name != OURS_NAME}


def small_rows(measurements: Sequence[dict]) -> list[list[str]]:
    """The rows of a table of ops on small tensors, the header first."""
    names = list(dict.fromkeys(name for measurement in measurements for name in microseconds_per_op(measurement)))
    names.sort(key=lambda name: name != OURS_NAME)
    others = names[1:]
    header = ["op", "case", "mode", *(f"{name} us" for name in names), *(f"ours / {name}" for name in others)]
    rows = [header]
    for measurement in measurements:
        times, ratios = microseconds_per_op(measurement), small_ratios(measurement)
        rows.append(
            [measurement["op"], measurement["case"], direction_label(measurement["direction"])]
            + [f"{times[name]:.1f}" if name in times else "-" for name in names]
            + [format_ratio(f"ours / {name}", ratios.get(f"ours / {name}")) for name in others]
        )
    return rows


def memory_ratios(measurement: dict) -> dict[str, float]:
    """Bytes per element that a quantized activation keeps for backward."""
    return {f"{name}, bytes": values["bytes_per_element"] for name, values in measurement["measured"].items()}


def memory_rows(measurements: Sequence[dict]) -> list[list[str]]:
    """The rows of a table of what forward keeps, the header first."""
    rows = [["op", "elements", "implementation", "bytes kept per element", "peak MiB of the long chain"]]
    for measurement in measurements:
        longest = str(max(measurement["layers"]))
        case = [measurement["op"], f"{measurement['elements']:,}"]
        for name, values in measurement["measured"].items():
            peak = values["peak_bytes"][longest] / 2**20
            rows.append([*case, name, f"{values['bytes_per_element']:.4f}", f"{peak:.0f}"])
    return rows


def direction_label(direction: str) -> str:
    """'forward + backward' for 'forward_and_backward'."""
    return direction.replace("_with_range", ", with range").replace("_and_", " + ").replace("_", " ")


def format_ratio(name: str, value: float | None) -> str:
    """'0.93', or '80.5x' for what ours is compared with; '-' where there is none."""
    if value is None:
        return "-"
    return f"{value:.1f}x" if name.endswith("/ ours") else f"{value:.2f}"


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first row is its header."""
    header, *others = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *others])


SUITES = {  # title, ratios of a measurement, rows of a table
    "ops": ("Ops in graph mode", op_ratios, op_rows),
    "small": ("Ops on 4,096 elements: per op in a graph, and called eagerly", small_ratios, small_rows),
    "training step": ("Training steps", step_ratios, step_rows),
    "MCT training step": ("Training steps of MCT's models", step_ratios, step_rows),
    "memory": ("Memory kept for backward", memory_ratios, memory_rows),
}
