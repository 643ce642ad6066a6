"""Builds qatfast for every TensorFlow minor that pyproject.toml allows, and runs the op and model tests on each.

    python tools/tf_matrix.py --output DIR [VERSION ...]

Without versions: the newest patch release of each minor that the package index has for this Python. Each gets an
environment of `make install`, about 2 GB, which is deleted once its tests have run, unless it was there before or
KEEP=1. Writes matrix.json, matrix.md and a log for each version to DIR; rows of earlier runs stay for versions that
this one leaves out. Fails if any version does not build or fails a test.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).parent.parent
# What depends on TensorFlow's or Keras' version; MCT's flow, the benchmark and the examples are run on two versions.
TESTS = [
    "config", "copies", "derivatives", "dtypes", "library", "load_model", "lsq", "lsq_guards", "lsq_ops",
    "lsq_training", "memory", "mixed_precision", "model", "ops", "quantizers_base", "raw_ops", "ste",
    "symbolic_keras", "wrapper", "xla",
]  # fmt: skip
# Prints what an environment holds, as JSON.
FACTS = """
import json, platform, qatfast, sys, tensorflow as tf
keras = sys.modules[tf.keras.Model.__module__.split(".")[0]]
keras = f"{keras.__name__} {keras.__version__}"
print(json.dumps({"python": platform.python_version(), "keras": keras, **qatfast.build_info()}))
"""


def allowed_minors() -> range:
    """Minor versions of TensorFlow 2 that pyproject.toml allows."""
    first, after = re.search(r"tensorflow>=2\.(\d+),<2\.(\d+)", (ROOT / "pyproject.toml").read_text()).groups()
    return range(int(first), int(after))


def newest_of_each_minor() -> list[str]:
    """The newest release of each minor that is allowed, the oldest first."""
    command = [sys.executable, "-m", "pip", "index", "versions", "tensorflow"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    listed = re.search(r"Available versions: (.+)", listing).group(1).split(", ")
    patches = {minor: [found for found in listed if found.startswith(f"2.{minor}.")] for minor in allowed_minors()}
    missing = [f"2.{minor}" for minor, found in patches.items() if not found]
    if missing:
        raise SystemExit(f"tf_matrix: the package index has no TensorFlow {', '.join(missing)} for this Python")
    return [found[0] for found in patches.values()]  # pip lists the newest first


def environment(version: str) -> Path:
    """Where the Makefile keeps the environment of a version."""
    return ROOT / ".venv" / f"tf-{version}"


def run(command: list, log: Path, **variables: str) -> bool:
    """Runs a command, its output added to `log`. Whether it succeeded."""
    with log.open("a") as output:
        print("$", *command, file=output, flush=True)
        return not subprocess.run(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **variables}, check=False
        ).returncode


def count(report: Path) -> dict[str, int]:
    """How many tests passed, failed and were skipped, by a JUnit file; none at all where it is missing."""
    if not report.exists():
        return {"passed": 0, "failed": 0, "skipped": 0}
    suite = ElementTree.parse(report).getroot().find("testsuite")
    tests, errors, failures, skipped = (int(suite.get(key)) for key in ("tests", "errors", "failures", "skipped"))
    return {"passed": tests - errors - failures - skipped, "failed": errors + failures, "skipped": skipped}


def row(version: str, output: Path, jobs: str) -> dict:
    """Builds and tests one version."""
    python, log, report = environment(version) / "bin" / "python", output / f"{version}.log", output / f"{version}.xml"
    log.unlink(missing_ok=True)
    report.unlink(missing_ok=True)
    start = time.monotonic()
    result = {"tensorflow": version, "built": run(["make", "install", f"TF={version}", "EXTRAS=test"], log)}
    result["build_seconds"] = round(time.monotonic() - start)
    start = time.monotonic()
    if result["built"]:
        facts = subprocess.run([python, "-c", FACTS], cwd=output, capture_output=True, text=True, check=False).stdout
        found = json.loads(facts.splitlines()[-1]) if facts else {}
        result |= {name: found.get(name, "does not import") for name in ("python", "keras", "instruction_set")}
        files = [f"tests/test_{name}.py" for name in TESTS]
        options = ["-q", "-n", jobs, "--dist", "worksteal", f"--junitxml={report}", "-p", "no:cacheprovider"]
        result["ok"] = run([python.with_name("pytest"), *options, *files], log, TF_CPP_MIN_LOG_LEVEL="2")
    return {"ok": False} | result | count(report) | {"test_seconds": round(time.monotonic() - start)}


def markdown(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    columns = ["tensorflow", "keras", "python", "passed", "failed", "skipped", "build_seconds", "test_seconds"]
    lines = ["| " + " | ".join(columns).replace("_", " ") + " |", "|" + " --- |" * 3 + " ---: |" * 5]
    lines += ["| " + " | ".join(str(found.get(column, "")) for column in columns) + " |" for found in rows]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs the versions one after the other. The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the table and the logs")
    parser.add_argument("--jobs", default=str(os.cpu_count()), help="tests that run at once (all processors)")
    parser.add_argument("versions", nargs="*", help="releases of TensorFlow (the newest of each minor)")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    table = output / "matrix.json"
    rows = {found["tensorflow"]: found for found in json.loads(table.read_text())} if table.exists() else {}
    versions = arguments.versions or newest_of_each_minor()
    for version in versions:
        is_mine = not environment(version).exists() and os.environ.get("KEEP") != "1"
        rows[version] = row(version, output, arguments.jobs)
        if is_mine:
            shutil.rmtree(environment(version), ignore_errors=True)
        print(json.dumps(rows[version]), flush=True)
        ordered = sorted(rows.values(), key=lambda found: [int(part) for part in found["tensorflow"].split(".")])
        table.write_text(json.dumps(ordered, indent=1) + "\n")
        (output / "matrix.md").write_text(markdown(ordered))
    print((output / "matrix.md").read_text(), end="")
    return 0 if all(rows[version]["ok"] for version in versions) else 1


if __name__ == "__main__":
    sys.exit(main())
