"""Times ours through pytest-benchmark and everything else in turns with it.

`extra_info` of each test in the JSON says what was measured, and has `seconds`: the median seconds of every function by
name, ours included.
"""

import statistics

from qatfast.benchmark.op_case import BACKWARD, FORWARD
from qatfast.benchmark.op_comparison import DEFAULT_COMPARATORS, OURS_NAME, checked_runs
from qatfast.benchmark.timing import SECONDS_PER_RUN, Turns


def run_in_turns(
    benchmark, runs, settings, main=OURS_NAME, repeats=1, seconds_per_run=SECONDS_PER_RUN, **measured
):  # fmt: skip
    """Times `runs`, a dict of functions by name.

    Args:
        benchmark: The fixture of pytest-benchmark.
        runs: All traced, and checked.
        settings: What the command line chose.
        main: The name of the function that pytest-benchmark itself times: ours.
        repeats: Calls per look at the clock.
        seconds_per_run: What all rounds of one slow function together should take.
        **measured: What is measured, for `extra_info`.
    """
    others = Turns({name: run for name, run in runs.items() if name != main}, repeats, seconds_per_run)
    ours = runs[main]

    def run_ours():
        for _ in range(repeats):
            ours()  # its result is let go at once: kept, it would cost the next run fresh memory

    def take_turns():
        others.take_round()
        ours()

    quiet = settings.wait_for_quiet()
    if quiet is not None:
        measured["quiet_memcpy_ms"] = quiet
    benchmark.pedantic(run_ours, setup=take_turns, rounds=settings.rounds)
    of_ours = statistics.median(benchmark.stats.stats.data) / repeats
    medians = {main: of_ours, **others.medians()}
    benchmark.extra_info.update(measured, seconds={name: medians[name] for name in runs})


def measure_op(benchmark, case, direction, settings):
    """Measures one op on one tensor against all that the settings name; the types after the first in single passes."""
    comparators = settings.comparators or DEFAULT_COMPARATORS[case.op]
    dtypes = settings.dtypes if direction in (FORWARD, BACKWARD) or settings.full else settings.dtypes[:1]
    runs = checked_runs(case, direction, dtypes, comparators)
    benchmark.group = f"{case.op} {direction}"
    run_in_turns(
        benchmark,
        runs,
        settings,
        suite="ops",
        op=case.op,
        case=case.name,
        shape=case.shape,
        axis=case.axis,
        num_bits=case.num_bits,
        dtype=settings.dtypes[0],
        direction=direction,
    )
