"""Times one op against its comparators, interleaved, so that a machine that slows down slows them all.

Each case is a test of pytest-benchmark that times ours; before each of its rounds the comparators run and are timed,
the slow ones in the first rounds only. What they took goes into `extra_info`, in seconds.

Everything but a slow comparator runs once untimed right before it is timed: where the last thing that ran left a core
idle, as the stock per-channel op does, the first run after it pays milliseconds for waking that core up.
"""

import statistics
import time

ROUNDS = 15
SLOW_ROUNDS = 3
SLOW_SECONDS = 0.05


def run_interleaved(benchmark, ours, comparators):
    """Times `ours` by pytest-benchmark and `comparators`, a dict of names to functions, between its rounds."""
    seconds = {name: [] for name in comparators}

    def time_comparators():
        for name, run in comparators.items():
            is_slow = seconds[name] and statistics.median(seconds[name]) > SLOW_SECONDS
            if is_slow and len(seconds[name]) >= SLOW_ROUNDS:
                continue
            if not is_slow:
                run()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
        ours()

    def run_ours():
        ours()  # its result is let go at once, as the comparators' are: kept, it would cost the next run fresh memory

    for run in (ours, *comparators.values()):
        run()  # traced
    benchmark.pedantic(run_ours, setup=time_comparators, rounds=ROUNDS)
    benchmark.extra_info["median_seconds"] = {name: statistics.median(times) for name, times in seconds.items()}
