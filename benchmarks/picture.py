"""Draws a run: every op in times of a memcpy of its tensor, and training steps in times of the float one."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from qatfast.benchmark.figures import direction_label
from qatfast.benchmark.op_case import BACKWARD, BOTH, FORWARD, OPS
from qatfast.benchmark.op_comparison import EMPTY_NAME, MEMCPY_NAME, OURS_NAME
from qatfast.benchmark.training import FLOAT

COLORS = {
    OURS_NAME: "#1d6fb8",
    "ours float16": "#5fa3dd",
    "ours bfloat16": "#a3cdf0",
    "formulas XLA": "#7b5ea7",
    "formulas": "#b4a0cf",
    "stock": "#d9822b",
    "MCT": "#d9822b",
    "stock XLA": "#f0c08a",
    "formulas XLA fused": "#c9bfe0",
    "torch": "#b4235a",
    "reference": "#1d6fb8",
    FLOAT: "#6b7280",
}
LINE = "#111827"
BAR_INCHES = 0.12
COLUMNS = (FORWARD, BACKWARD, BOTH)


def draw(measurements: dict[str, list[dict]], machine: str, path: Path) -> None:
    """Writes the picture: a panel for every op (row) and direction (column), and one for every model's steps.

    Args:
        measurements: The measurements of each suite that ran.
        machine: What to write below the title.
        path: Where to; its ending says the format.
    """
    matplotlib.use("Agg")
    measured = [one for one in measurements.get("ops", []) if one["direction"] in COLUMNS]
    ops = [op for op in OPS if any(one["op"] == op for one in measured)]
    steps = measurements.get("training step", []) + measurements.get("MCT training step", [])
    if not ops and not steps:
        raise SystemExit("nothing to draw: neither ops nor training steps were measured")
    panels = {op: [_chosen(measured, op, direction) for direction in COLUMNS] for op in ops}
    bars = {op: max(len(chosen) * (len(_names(chosen)) + 1) for chosen in row) for op, row in panels.items()}
    heights = [BAR_INCHES * bars[op] + 0.7 for op in ops]
    heights += [2 * BAR_INCHES * max(len(one["seconds"]) for one in steps) + 0.7] if steps else []
    figure = plt.figure(figsize=(18, sum(heights) + 1.2), layout="constrained")
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    for row, op in enumerate(ops):
        columns = grid[row].subgridspec(1, len(COLUMNS))
        for column, chosen in enumerate(panels[op]):
            if chosen:
                _draw_ops(figure.add_subplot(columns[column]), chosen, bars[op])
    if steps:
        columns = grid[len(ops)].subgridspec(1, len(steps))
        for column, one in enumerate(steps):
            _draw_steps(figure.add_subplot(columns[column]), one)
    handles = {}
    for axes in figure.axes:
        handles.update({label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)})
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize=8)
    figure.suptitle(f"qatfast in times of a parallel memcpy of the same float32 tensor. {machine}", fontsize=9)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _chosen(measurements, op, direction):
    return [one for one in measurements if (one["op"], one["direction"]) == (op, direction)]


def _names(measurements):
    """The implementations to draw, those of float32 only, ours first."""
    names = dict.fromkeys(name for one in measurements for name in one["seconds"] if name in COLORS)
    return list(names)


def _draw_ops(axes, measurements, bars_high):
    names = _names(measurements)
    for position, name in enumerate(names):
        ratios = [one["seconds"].get(name, np.nan) / one["seconds"][MEMCPY_NAME] for one in measurements]
        offsets = np.arange(len(measurements)) * (len(names) + 1) + position
        bars = axes.barh(offsets, ratios, height=0.9, color=COLORS[name], label=name)
        axes.bar_label(bars, [_label(ratio) for ratio in ratios], padding=3, fontsize=6)
    calls = [one["seconds"][EMPTY_NAME] / one["seconds"][MEMCPY_NAME] for one in measurements]
    offsets = np.arange(len(measurements)) * (len(names) + 1)
    call = {"color": "white", "alpha": 0.45, "edgecolor": LINE, "linewidth": 0.3}
    axes.barh(offsets, calls, height=0.9, label="of which an empty tf.function call", **call)
    axes.axvline(1.0, color=LINE, linewidth=1, label="memcpy")
    axes.set_xscale("log")
    axes.set_xlim(0.1, 3 * axes.get_xlim()[1])
    axes.set_yticks(offsets + (len(names) - 1) / 2, [_case_label(one) for one in measurements], fontsize=7)
    axes.set_ylim(bars_high - 0.5, -1.0)  # bars are as thick in every panel of a row
    axes.set_title(f"{measurements[0]['op']}, {direction_label(measurements[0]['direction'])}", fontsize=9)
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_steps(axes, measurement):
    seconds = measurement["seconds"]
    colors = [COLORS[name.split(",")[0].split()[0]] for name in seconds]
    ratios = [value / seconds[FLOAT] for value in seconds.values()]
    bars = axes.barh(list(seconds), ratios, color=colors)
    labels = [f"{ratio:.2f}x ({1e3 * value:.0f} ms)" for ratio, value in zip(ratios, seconds.values(), strict=True)]
    axes.bar_label(bars, labels, padding=3, fontsize=7)
    axes.axvline(1.0, color=LINE, linewidth=1)
    axes.set_xlim(0, 1.25 * max(ratios))
    axes.invert_yaxis()
    axes.tick_params(labelsize=7)
    axes.set_title(f"{measurement['case']}: training step in times of the float one", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _label(ratio):
    return "" if np.isnan(ratio) else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def _case_label(measurement):
    return f"{measurement['case']}\n{'x'.join(map(str, measurement['shape']))}"
