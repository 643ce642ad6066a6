"""Times functions in turns, so that a machine that slows down slows them all.

Only ratios of medians from one run mean anything: on a shared machine the same copy takes twice as long a minute later.
"""

import os
import statistics
import time
from collections.abc import Callable

import numpy as np

from qatfast import _core

ROUNDS = 11
SLOW_SECONDS = 0.05
SECONDS_PER_RUN = 0.25  # slow functions run in the first rounds only
MIN_ROUNDS, MIN_ROUNDS_BEYOND_SECONDS, BEYOND_SECONDS = 3, 2, 0.5

PARALLEL_BYTES = 2**20  # starting threads takes longer than copying less
POLL_BYTES = 64 * 2**20
POLL_PAUSE_SECONDS = 0.5


class Turns:
    """Functions that are timed in turns, one round at a time.

    From the second round on, each runs once untimed right before it is timed, unless it is slow: where the last thing
    that ran left a core idle, the first run after it pays milliseconds for waking that core up. Results are let go at
    once: kept, they would cost the next run fresh memory.

    Args:
        runs: Functions without arguments, by name.
        repeats: How often each is called between two looks at the clock, for functions of microseconds.
        seconds_per_run: What all rounds of one slow function together should take.
    """

    def __init__(self, runs: dict[str, Callable], repeats: int = 1, seconds_per_run: float = SECONDS_PER_RUN):
        self._runs = runs
        self._repeats = repeats
        self._seconds_per_run = seconds_per_run
        self.seconds = {name: [] for name in runs}

    def take_round(self) -> None:
        """Times each function once, but those that are slow and were timed often enough."""
        for name, run in self._runs.items():
            times = self.seconds[name]
            if times and len(times) >= self._wanted_rounds(statistics.median(times) * self._repeats):
                continue
            if times and times[-1] * self._repeats <= SLOW_SECONDS:
                run()
            start = time.perf_counter()
            for _ in range(self._repeats):
                run()
            times.append((time.perf_counter() - start) / self._repeats)

    def _wanted_rounds(self, seconds):
        if seconds <= SLOW_SECONDS:
            return float("inf")
        least = MIN_ROUNDS if seconds < BEYOND_SECONDS else MIN_ROUNDS_BEYOND_SECONDS
        return max(least, round(self._seconds_per_run / seconds))

    def medians(self) -> dict[str, float]:
        """Median seconds of a call, by name."""
        return {name: statistics.median(times) for name, times in self.seconds.items()}


def time_in_turns(
    runs: dict[str, Callable], rounds: int = ROUNDS, seconds_per_run: float = SECONDS_PER_RUN
) -> dict[str, float]:  # fmt: skip
    """Returns the median seconds of a call of each function; see `Turns`."""
    turns = Turns(runs, seconds_per_run=seconds_per_run)
    for _ in range(rounds):
        turns.take_round()
    return turns.medians()


def parallel_memcpy(array: np.ndarray) -> Callable[[], None]:
    """Returns a function that copies `array` on all cores that this process may use; on one if it is small."""
    destination = np.empty_like(array)
    destination.fill(0)  # its pages are there before anybody looks at the clock
    threads = len(os.sched_getaffinity(0)) if array.nbytes >= PARALLEL_BYTES else 1
    return lambda: _core.memcpy(destination, array, num_threads=threads)


def wait_for_quiet(milliseconds: float, timeout_seconds: float) -> float:
    """Waits until a copy of 64 MiB takes at most `milliseconds`, or until the time is up.

    Returns:
        The median milliseconds of the last copies.
    """
    copy = parallel_memcpy(np.zeros(POLL_BYTES, np.uint8))
    end = time.monotonic() + timeout_seconds
    while True:
        found = 1e3 * time_in_turns({"memcpy": copy}, rounds=5)["memcpy"]
        if found <= milliseconds or time.monotonic() >= end:
            return found
        time.sleep(POLL_PAUSE_SECONDS)
