"""Options of the benchmarks, and what their JSON says about the machine: nothing that identifies it."""

import dataclasses

import pytest
import tensorflow as tf
from cases import MODELS, QUICK_MODELS

import qatfast
from qatfast.benchmark.arguments import parse_axis, parse_shape
from qatfast.benchmark.implementations import formulas_source
from qatfast.benchmark.op_case import DIRECTIONS
from qatfast.benchmark.op_comparison import COMPARATORS, DTYPES
from qatfast.benchmark.timing import ROUNDS, wait_for_quiet

QUICK_ROUNDS = 5
DEFAULT_DTYPES = ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the command line chose."""

    shapes: tuple
    axes: tuple
    dtypes: tuple
    num_bits: int
    directions: tuple
    comparators: tuple  # empty: each op's own
    models: tuple
    rounds: int
    quick: bool
    full: bool
    quiet_milliseconds: float | None
    quiet_timeout: float

    def wait_for_quiet(self) -> float | None:
        """Waits as --quiet-ms asks for; returns the milliseconds of a copy then."""
        if self.quiet_milliseconds is None:
            return None
        return wait_for_quiet(self.quiet_milliseconds, self.quiet_timeout)


def pytest_addoption(parser):
    """Adds the options."""
    group = parser.getgroup("qatfast", "qatfast's benchmarks")
    add = group.addoption
    add("--shape", action="append", type=parse_shape, help="shape of x, as 4096,4096, instead of the suite's cases")
    add("--axis", action="append", type=parse_axis, help="channel axis of each --shape, or none: per tensor (default)")
    add(
        "--dtype",
        action="append",
        choices=DTYPES,
        help=f"of x; the others are compared with the first {DEFAULT_DTYPES}",
    )
    add("--num-bits", type=int, default=8, help="of the grid")
    add("--direction", action="append", choices=DIRECTIONS, help="what to measure [all]")
    add("--comparator", action="append", choices=COMPARATORS, help="besides a memcpy [what users run]")
    add("--model", action="append", choices=MODELS, help="of the training steps [all]")
    add("--rounds", type=int, help=f"how often each function is timed [{ROUNDS}]")
    add("--quick", action="store_true", help="a few cases, few rounds, one model, no XLA in its steps")
    add("--full", action="store_true", help="everything: takes a quarter of an hour and more")
    add("--quiet-ms", type=float, help="wait before each case until a copy of 64 MiB takes at most this long")
    add("--quiet-timeout", type=float, default=60.0, help="seconds after which --quiet-ms gives up waiting [60]")


def _read_settings(config) -> Settings:
    get = config.getoption
    quick = get("--quick")
    return Settings(
        shapes=tuple(get("--shape") or ()),
        axes=tuple(get("--axis") or [None]),
        dtypes=tuple(dict.fromkeys(get("--dtype") or DEFAULT_DTYPES)),
        num_bits=get("--num-bits"),
        directions=tuple(get("--direction") or DIRECTIONS),
        comparators=tuple(get("--comparator") or (COMPARATORS if get("--full") else ())),
        models=tuple(get("--model") or (QUICK_MODELS if quick else MODELS)),
        rounds=get("--rounds") or (QUICK_ROUNDS if quick else ROUNDS),
        quick=quick,
        full=get("--full"),
        quiet_milliseconds=get("--quiet-ms"),
        quiet_timeout=get("--quiet-timeout"),
    )


def pytest_configure(config):
    """Lets the libraries that ours is compared with warn, and keeps TensorFlow from doing so."""
    tf.get_logger().setLevel("ERROR")  # it takes the functions of many cases for one that is traced many times
    config.addinivalue_line("filterwarnings", "ignore:CUDA initialization:UserWarning")
    config.addinivalue_line("filterwarnings", "ignore:Benchmark fixture was not used at all")  # a failure says enough
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("the benchmarks need pytest-benchmark: pip install 'qatfast[bench]'")


def pytest_generate_tests(metafunc):
    """Parametrizes what takes a `case` with the cases that its module makes of the settings."""
    if "case" in metafunc.fixturenames:
        try:
            pairs = metafunc.module.cases(_read_settings(metafunc.config))
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
        ids = [f"{case.op}-{case.name}-{direction}" for case, direction in pairs]
        metafunc.parametrize("case, direction", pairs, ids=ids)


@pytest.fixture(scope="session")
def settings(pytestconfig):
    """What the command line chose."""
    return _read_settings(pytestconfig)


def pytest_benchmark_update_machine_info(config, machine_info):
    """Adds what the kernels were built for; drops the host's name and the long list of processor flags."""
    machine_info.pop("node", None)
    machine_info["cpu"].pop("flags", None)
    machine_info["qatfast"] = {key: value for key, value in qatfast.build_info().items() if key != "library"}
    machine_info["formulas"] = formulas_source()
    # Where there is a GPU, TensorFlow places models on it by itself.
    gpus = tf.config.list_physical_devices("GPU")
    machine_info["gpu"] = tf.config.experimental.get_device_details(gpus[0])["device_name"] if gpus else None
