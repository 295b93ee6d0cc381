"""The counter into nanoseconds, by pairs of both."""

from __future__ import annotations

import numpy as np
import pytest

from hypothesis import given, settings
from hypothesis import strategies as st

from pystack_nb import wire
from pystack_nb.calibration import calibrate


TSC, MONOTONIC = wire.ClockSource.TSC, wire.ClockSource.MONOTONIC
START, NS = 10**14, 5 * 10**12


def pairs(*rows):
    return np.array(list(rows), wire.PAIR)


def pair_at(ns, hz=3e9, width=60, off=0):
    """What is read at a time, the clock's reading being `off` too late."""
    counter = START + round((ns - NS) * hz / 1e9)
    return counter - width // 2, ns + off, counter + width // 2


def read(calibration, counter):
    knots = calibration.knots
    at = np.interp(
        float(counter - START),
        (knots["counter"].astype(np.int64) - START).astype(float),
        (knots["ns"] - NS).astype(float),
    )
    return NS + round(at)


def test_a_counter_that_is_the_clock_is_read_as_it_is():
    found = calibrate(pairs((NS, NS, NS), (NS + 7, NS + 7, NS + 8)), MONOTONIC)
    assert (found.source, found.hz, found.error_ns, found.is_sound) == ("monotonic", 1e9, 0, True)
    assert (found.knots["counter"] == found.knots["ns"]).all()


@pytest.mark.parametrize(
    ("pair", "source"), [((NS, NS + 5, NS + 9), "monotonic"), (pair_at(NS), "tsc")]
)
def test_what_the_counter_is_can_be_seen_when_nobody_told(pair, source):
    assert calibrate(pairs(pair), None).source == source


def test_the_rate_and_the_error_are_measured():
    times = range(NS, NS + 10**10, 10**8)
    found = calibrate(pairs(*(pair_at(x, off=n % 3 * 10) for n, x in enumerate(times))), TSC)
    assert found.hz == pytest.approx(3e9, rel=1e-7)
    assert 10 <= found.error_ns <= 31
    assert found.is_sound


def test_a_pair_that_took_long_to_read_is_not_used():
    interrupted = pair_at(NS + 10**9, width=10**7, off=10**6)
    found = calibrate(pairs(pair_at(NS), interrupted, pair_at(NS + 2 * 10**9)), TSC)
    assert len(found.knots) == 2
    assert found.error_ns == 0


def test_a_clock_that_changes_its_pace_is_followed():
    slow = [pair_at(NS + x) for x in range(0, 10**9, 10**8)]
    begin = START + 3 * 10**9
    fast = [(begin + x, NS + 10**9 + x // 2, begin + x) for x in range(0, 10**9, 10**8)]
    found = calibrate(pairs(*fast, *slow), TSC)
    assert read(found, START + 15 * 10**8) == NS + 5 * 10**8
    assert read(found, begin + 4 * 10**8) == NS + 10**9 + 2 * 10**8


def test_many_pairs_make_few_knots():
    found = calibrate(pairs(*(pair_at(NS + x) for x in range(0, 10**9, 10**5))), TSC)
    assert 10 <= len(found.knots) <= 22


@pytest.mark.parametrize("rows", [[], [pair_at(NS)], [pair_at(NS)] * 3, [(5, 5, 1), (0, 0, 0)]])
def test_too_few_pairs_are_told(rows):
    found = calibrate(pairs(*rows), TSC)
    assert not found.is_sound
    assert len(found.knots) == 2


NUMBERS = st.one_of(st.integers(0, 100), st.integers(0, 2**64 - 1))


@settings(deadline=None)
@given(
    st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=30),
    st.sampled_from([TSC, MONOTONIC, None]),
)
def test_any_pairs_make_knots_that_rise(rows, source):
    found = calibrate(pairs(*rows), source)
    assert len(found.knots) >= 2
    assert (np.diff(found.knots["counter"].astype(np.int64)) > 0).all()
    assert (np.diff(found.knots["ns"]) > 0).all()
    assert found.hz > 0
