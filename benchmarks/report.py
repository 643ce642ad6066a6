"""Tables, a picture and a comparison from the JSON that the benchmarks wrote.

    python benchmarks/report.py .benchmarks/latest.json --markdown results.md --picture results.png
    python benchmarks/report.py .benchmarks/latest.json --compare benchmarks/results/EARLIER.json
    python benchmarks/report.py .benchmarks/latest.json --save benchmarks/results

Two runs are compared by their ratios, case by case: milliseconds of different minutes cannot be.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from qatfast.benchmark.figures import SUITES, direction_label, markdown


def load(path: Path) -> dict:
    """Reads a JSON of pytest-benchmark; exits with a sentence where it is none of ours."""
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: cannot be read as JSON: {error}")
    if not results.get("benchmarks"):
        sys.exit(f"{path}: has no benchmarks in it")
    if any("suite" not in benchmark["extra_info"] for benchmark in results["benchmarks"]):
        sys.exit(f"{path}: must be written by the benchmarks of this version of qatfast")
    return results


def by_suite(results: dict) -> dict[str, list[dict]]:
    """The measurements of each suite that ran, in the order of `SUITES`."""
    measurements = [benchmark["extra_info"] for benchmark in results["benchmarks"]]
    grouped = {suite: [one for one in measurements if one["suite"] == suite] for suite in SUITES}
    return {suite: found for suite, found in grouped.items() if found}


def machine(results: dict) -> str:
    """Processor, cores, GPU and TensorFlow, in one line."""
    info = results["machine_info"]
    gpu = f"{info['gpu']}, " if info.get("gpu") else ""
    backend = "" if info["qatfast"]["backend"] == "native" else f", backend {info['qatfast']['backend']}"
    return (
        f"{gpu}{info['cpu']['brand_raw']}, {info['cpu']['count']} cores, TensorFlow {info['qatfast']['tensorflow']}"
        f"{backend}; medians, interleaved; formulas of LSQ: {info['formulas']}"
    )


def tables(results: dict) -> str:
    """All tables, in Markdown."""
    parts = [machine(results)]
    for suite, measurements in by_suite(results).items():
        title, _, rows = SUITES[suite]
        parts += [f"### {title}", markdown(rows(measurements))]
    return "\n\n".join(parts)


def ratios_by_case(results: dict) -> dict[tuple, float]:
    """Every ratio, by all that tells it from others: suite, op, case, shape, axis, bits, direction, and its name."""
    found = {}
    for suite, measurements in by_suite(results).items():
        for one in measurements:
            shape = str(list(one.get("shape", ())))
            case = (suite, one.get("op", ""), one.get("case", ""), shape, str(one.get("axis", "-")))
            case += (str(one.get("num_bits", "-")), direction_label(one.get("direction", "")))
            found.update({(*case, name): value for name, value in SUITES[suite][1](one).items()})
    return found


def comparison(results: dict, earlier: dict) -> str:
    """A table of every ratio that both runs have: now, earlier, and one by the other, the largest change first."""
    now, before = ratios_by_case(results), ratios_by_case(earlier)
    common = [key for key in now if key in before]
    if not common:
        sys.exit("the two runs have no case in common")
    changes = {key: now[key] / before[key] if before[key] > 0 < now[key] else float("nan") for key in common}
    common.sort(key=lambda key: -abs(changes[key] - 1))
    header = ["suite", "op", "case", "shape", "axis", "bits", "direction", "ratio", "earlier", "now", "now / earlier"]
    rows = [header, *([*key, f"{before[key]:.3f}", f"{now[key]:.3f}", f"{changes[key]:.2f}"] for key in common)]
    missing = len(before) - len(common)
    return f"now: {machine(results)}\n\nearlier: {machine(earlier)}\n\n{markdown(rows)}" + (
        f"\n\n{missing} ratios of the earlier run are not in this one." if missing else ""
    )


def device_name(results: dict) -> str:
    """'amd-epyc-2-cores-tensorflow-2.21' for the name of a file."""
    info = results["machine_info"]
    tensorflow = ".".join(info["qatfast"]["tensorflow"].split(".")[:2])
    processor = info.get("gpu") or f"{info['cpu']['brand_raw']} {info['cpu']['count']} cores"
    text = f"{processor} tensorflow {tensorflow}".lower()
    return re.sub(r"[^a-z0-9.]+", "-", text).strip("-")


def main() -> None:
    """Does what the command line asks for; prints the tables, or the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON written by pytest --benchmark-json")
    parser.add_argument("--compare", type=Path, metavar="EARLIER", help="JSON of an earlier run")
    parser.add_argument("--markdown", type=Path, help="file to write the tables to")
    parser.add_argument("--picture", type=Path, help="PNG or SVG file to draw the ops and steps to; needs matplotlib")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="keep JSON, tables and picture, named by device")
    arguments = parser.parse_args()
    results = load(arguments.results)
    text = comparison(results, load(arguments.compare)) if arguments.compare else tables(results)
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n")
    if arguments.picture:
        from picture import draw

        draw(by_suite(results), machine(results), arguments.picture)
    if arguments.save:
        from picture import draw

        arguments.save.mkdir(parents=True, exist_ok=True)
        stem = arguments.save / device_name(results)
        for benchmark in results["benchmarks"]:
            benchmark["stats"].pop("data", None)
        Path(f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
        Path(f"{stem}.md").write_text(tables(results) + "\n")
        draw(by_suite(results), machine(results), Path(f"{stem}.png"))


if __name__ == "__main__":
    main()
