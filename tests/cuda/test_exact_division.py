"""Division by a prepared reciprocal (csrc/core/exact_division.h) has the bits of IEEE division."""

import os

THREADS = os.cpu_count() or 1


def test_quotients_nearest_to_the_middle_of_two_numbers_are_rounded_right(emulated):
    tried, wrong, dividend, divisor = emulated.functions.try_hardest_divisions(THREADS)
    assert tried > 10_000_000
    assert wrong == 0, f"{wrong} of {tried} are wrong, {dividend!r} / {divisor!r} is one"


def test_random_quotients_are_rounded_right(emulated):
    count = 10**9
    tried, wrong, dividend, divisor = emulated.functions.try_random_divisions(count, 1, THREADS)
    assert tried >= count
    assert wrong == 0, f"{wrong} of {tried} are wrong, {dividend!r} / {divisor!r} is one"
