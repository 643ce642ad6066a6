"""Benchmarks say what machine they ran on, and nothing that identifies it."""

import qatfast


def pytest_benchmark_update_machine_info(config, machine_info):
    """Adds what the kernels were built for; drops the host's name."""
    machine_info.pop("node", None)
    machine_info["qatfast"] = {key: value for key, value in qatfast.build_info().items() if key != "library"}
