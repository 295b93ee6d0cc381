"""Functions that burn known shares of CPU time, and measure themselves while they do."""

from __future__ import annotations

import random
import time

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from collections.abc import Callable

OTHER = "other"

_TURN_NS = 10_000_000  # of CPU time, for all functions together
_CALIBRATION_NS = 50_000_000


def burn_integers(count: int) -> int:
    """Work with integers."""
    value = 1
    for _ in range(count):
        value = (value * 1103515245 + 12345) & 0x7FFFFFFF
    return value


def burn_strings(count: int) -> int:
    """Work with strings."""
    length = 0
    for number in range(count):
        length += len(f"{number:x}".rjust(8, "0"))
    return length


def burn_lists(count: int) -> int:
    """Work with lists."""
    items = [0] * 16
    for number in range(count):
        items[number & 15] += number
    return items[3]


def burn_dictionaries(count: int) -> int:
    """Work with dictionaries."""
    found: dict[int, int] = {}
    for number in range(count):
        found[number & 63] = found.get(number & 31, 0) + 1
    return len(found)


def burn_floats(count: int) -> float:
    """Work with floats."""
    value = 0.5
    for _ in range(count):
        value = 3.7 * value * (1.0 - value)
    return value


def burn_builtins(count: int) -> int:
    """Spend the time in a C function that is called for it."""
    total = 0
    for _ in range(count):
        total += sum((1, 2, 3, 4, 5, 6, 7, 8))
    return total


SHARES: dict[Callable[[int], float], float] = {
    burn_integers: 0.40,
    burn_strings: 0.25,
    burn_lists: 0.15,
    burn_dictionaries: 0.10,
    burn_floats: 0.07,
    burn_builtins: 0.03,
}
NAMES = [function.__name__ for function in SHARES]


def calibrate() -> dict[Callable[[int], float], float]:
    """Return how many rounds of its loop each function makes in a nanosecond of CPU time."""
    return {function: _rounds_a_nanosecond(function) for function in SHARES}


def burn_shares(seconds: float, rates: dict[Callable[[int], float], float]) -> dict[str, int]:
    """Burn CPU time, and return how many nanoseconds of it each function really had.

    Rates are those of `calibrate`. The functions take turns in slices whose lengths and order
    are random: no sampler, whatever its period, can run in step with them.
    """
    chance = random.Random(11)
    burnt = dict.fromkeys(NAMES, 0)
    clock = time.thread_time_ns
    begin = clock()
    until = begin + int(seconds * 1e9)
    while clock() < until:
        turn = list(SHARES.items())
        chance.shuffle(turn)
        for function, share in turn:
            count = int(_TURN_NS * share * rates[function] * chance.uniform(0.5, 1.5))
            since = clock()
            function(count)
            burnt[function.__name__] += clock() - since
    burnt[OTHER] = clock() - begin - sum(burnt.values())
    return burnt


def _rounds_a_nanosecond(function: Callable[[int], float]) -> float:
    count = 1000
    while True:
        since = time.thread_time_ns()
        function(count)
        spent = time.thread_time_ns() - since
        if spent >= _CALIBRATION_NS:
            return count / spent
        count *= 2
