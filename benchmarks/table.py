"""Prints the Markdown table of a JSON that pytest-benchmark wrote: python benchmarks/table.py RESULTS.json."""

import argparse
import json


def rows(results: dict) -> list[list[str]]:
    """One row per case and direction: times in milliseconds, and ratios of medians."""
    table = []
    for benchmark in results["benchmarks"]:
        info = benchmark["extra_info"]
        ours = benchmark["stats"]["median"]
        stock, memcpy = info["median_seconds"]["stock"], info["median_seconds"]["memcpy"]
        axis = "-" if info["axis"] is None else str(info["axis"])
        table.append(
            [info["case"], str(info["shape"]), axis, info["direction"].replace("_", " ").replace(" and ", " + ")]
            + [f"{seconds * 1e3:.2f}" for seconds in (ours, stock, memcpy)]
            + [f"{stock / ours:.1f}x", f"{ours / memcpy:.2f}"]
        )
    return table


def main() -> None:
    """Reads the file that the command line names and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", help="JSON written by pytest --benchmark-json")
    with open(parser.parse_args().results) as file:
        results = json.load(file)
    machine = results["machine_info"]
    cpu, tensorflow = machine["cpu"], machine["qatfast"]["tensorflow"]
    print(f"{cpu['brand_raw']}, {cpu['count']} cores; TensorFlow {tensorflow}; medians, interleaved\n")
    header = ["case", "shape", "axis", "direction", "ours ms", "stock ms", "memcpy ms", "stock / ours", "ours / memcpy"]
    for row in [header, ["---"] * len(header), *rows(results)]:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
