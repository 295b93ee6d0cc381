"""Sample sizes, intervals and allocations against published numbers and simulation."""

import math

import numpy as np
import pytest

from hypothesis import given
from hypothesis import strategies as st

from pystack_nb.errors import CampaignError
from pystack_nb.faults.statistics import (
    allocate,
    effective_trials,
    neyman,
    sample_size,
    stratified,
    upper_bound,
    wilson,
    wilson_limits,
)


@pytest.mark.parametrize(
    ("population", "error", "confidence", "size"),
    [
        (math.inf, 0.01, 0.95, 9604),
        (10**12, 0.01, 0.95, 9604),
        (math.inf, 0.05, 0.95, 384),
        (10_000, 0.01, 0.95, 4899),
        (math.inf, 0.01, 0.99, 16587),
        (1, 0.01, 0.99, 1),
        (0, 0.01, 0.99, 0),
        (32, 0.01, 0.99, 32),
    ],
)
def test_sample_sizes_are_those_of_leveugle(population, error, confidence, size):
    assert sample_size(population, error, confidence) == size


def test_a_sample_is_rounded_to_the_nearest():
    # 100 / (1 + 99 / 384.146) = 79.51 and 101 / (1 + 100 / 384.146) = 80.14
    assert sample_size(100, 0.05, 0.95) == 80
    assert sample_size(101, 0.05, 0.95) == 80


@given(st.integers(1, 10**15), st.floats(0.001, 0.2), st.floats(0.5, 0.999), st.floats(0.01, 0.99))
def test_a_sample_is_never_empty_nor_more_than_all(population, error, confidence, p):
    assert 1 <= sample_size(population, error, confidence, p) <= population


@pytest.mark.parametrize(
    "arguments", [(-1,), (10, 0.0), (10, 1.0), (10, 0.1, 1.0), (10, 0.1, 0.9, 0.0), (math.nan,)]
)
def test_a_size_of_nonsense_is_refused(arguments):
    with pytest.raises(CampaignError, match="pass"):
        sample_size(*arguments)


@pytest.mark.parametrize(
    ("events", "trials", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_newcombes_examples(events, trials, low, high):
    assert wilson(events, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_without_an_event_starts_at_zero_and_bounds_above():
    low, high = wilson(0, 385)
    assert low == 0.0
    assert high == pytest.approx(1.959964**2 / (385 + 1.959964**2))
    assert wilson(385, 385)[1] == 1.0


def test_wilson_without_a_trial_knows_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("counts", [(2, 1), (-1, 5), (math.nan, 5)])
def test_counts_that_cannot_be_are_refused(counts):
    with pytest.raises(CampaignError, match="pass"):
        wilson(*counts)


def test_without_an_event_the_one_sided_bound_is_the_rule_of_three():
    assert upper_bound(1000) == pytest.approx(3 / 1000, rel=0.01)
    assert (1 - upper_bound(7)) ** 7 == pytest.approx(0.05)
    assert upper_bound(0) == 1.0


@pytest.mark.parametrize(
    ("rate", "trials"), [(0.001, 385), (0.002, 385), (0.002, 1000), (0.05, 385), (0.5, 1000)]
)
def test_wilson_covers_as_often_as_it_claims(rate, trials):
    events = np.random.default_rng(1).binomial(trials, rate, 20_000)
    low, high = wilson_limits(events, trials)
    assert ((low <= rate) & (rate <= high)).mean() >= 0.93


@given(st.integers(0, 50), st.integers(1, 50), st.integers(1, 10**6))
def test_one_stratum_has_wilsons_interval(events, more, weight):
    trials = events + more
    estimate = stratified([events], [trials], [weight])
    assert estimate.rate == pytest.approx(events / trials)
    assert (estimate.low, estimate.high) == pytest.approx(wilson(events, trials))


def test_a_population_that_was_tried_wholly_is_certain():
    estimate = stratified([3, 0], [10, 5], [10, 5], populations=[10, 5])
    assert estimate.low == estimate.rate == estimate.high == pytest.approx(0.2)
    assert effective_trials([0, 5, 10], [10, 10, 10]).tolist() == [0, 9, math.inf]


def test_a_heavy_stratum_without_an_event_is_not_taken_for_certain():
    # 0 of 100 in 99 % of the population may well be 2 %.
    assert stratified([0, 50], [100, 100], [0.99, 0.01]).high > 0.02


def test_a_stratum_without_a_trial_could_be_anything():
    estimate = stratified([0, 0], [1000, 0], [0.9, 0.1])
    assert estimate.high >= 0.1


def test_strata_without_weight_have_no_rate():
    with pytest.raises(CampaignError, match="pass positive weights"):
        stratified([1], [2], [0])


@pytest.mark.parametrize("split", ["proportional", "equal", "neyman"])
@pytest.mark.parametrize("rates", [[0.3, 0.01, 0.001, 0.0, 0.2], [0.004] * 5])
def test_stratified_intervals_cover_the_truth(split, rates):
    rates, weights = np.array(rates), np.array([0.02, 0.5, 0.4, 0.05, 0.03])
    rng, truth, covered = np.random.default_rng(2), float(rates @ weights), []
    for _ in range(500):
        if split == "neyman":
            first = rng.binomial(50, rates)
            sizes = neyman(1500, weights, first, np.full(5, 50))
            events = first + rng.binomial(sizes - 50, rates)
        else:
            sizes = allocate(1500, weights if split == "proportional" else np.ones(5), least=1)
            events = rng.binomial(sizes, rates)
        estimate = stratified(events, sizes, weights)
        covered.append(estimate.low <= truth <= estimate.high)
    assert np.mean(covered) >= 0.93


@given(
    st.integers(0, 10_000),
    st.lists(st.integers(0, 1000), min_size=1, max_size=12),
    st.integers(0, 3),
    st.integers(3, 5000),
)
def test_allocation_is_exact_within_its_bounds(total, weights, least, most):
    parts = allocate(total, weights, least=least, most=most)
    assert (parts >= least).all()
    assert (parts <= most).all()
    free = sum(x > 0 for x in weights)
    if len(weights) * least <= total <= most * free + least * (len(weights) - free):
        assert parts.sum() == total


def test_allocation_is_in_proportion():
    assert allocate(100, [1, 2, 7]).tolist() == [10, 20, 70]
    assert allocate(10, [1, 1, 1]).sum() == 10
    assert allocate(5, [0, 0]).sum() == 0


def test_neyman_gives_more_to_strata_that_vary_and_keeps_the_pilot():
    sizes = neyman(2000, [1, 1, 1], [50, 1, 0], [100, 100, 100])
    assert sizes.sum() == 2000
    assert sizes[0] > 2 * sizes[1] > 2 * 100
    assert neyman(10, [1, 1], [0, 0], [100, 100]).tolist() == [100, 100]
