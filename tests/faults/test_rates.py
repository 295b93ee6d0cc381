"""Rates of campaigns whose strata differ, against sums of their rows in plain Python."""

import math

from collections import defaultdict
from statistics import NormalDist

import nets
import pytest
import torch

from torch import nn

from pystack_nb.faults.campaign import Campaign
from pystack_nb.faults.metrics import Exact
from pystack_nb.faults.models import BitFlip, Noise, Zero
from pystack_nb.faults.patterns import BitErrorRate, Channel, Row, Several


BITS = {"float64": 64, "float32": 32, "bfloat16": 16}
SAMPLES = 8


class Mixed(nn.Module):
    """Computes in three types, in layers of very different sizes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 24)
        self.second = nn.Linear(24, 6).double()
        self.third = nn.Linear(6, 3).bfloat16()

    def forward(self, x):
        y = torch.relu(self.first(x)).double()
        return self.third(torch.relu(self.second(y)).bfloat16())


def channels(site):
    return site.shape[-1] if site.kind == "neuron" else site.shape[0]


def lines(site):
    return math.prod(site.shape[:-1])


def numbers(site):
    return math.prod(site.shape)


def bits(site):
    return numbers(site) * BITS[site.dtype]


def one(site):
    return 1


# What is struck, how many places of one sample a site has, and whether none is struck twice.
WAYS = {
    "bits": (BitFlip(), None, bits, True),
    "channels": (BitFlip(), Channel(), channels, False),
    "empty channels": (Zero(), Channel(), channels, True),
    "rows": (Zero(), Row(), lines, True),
    "several": (Noise(3.0), Several(2), numbers, False),
    "rate": (BitFlip(), BitErrorRate(0.01), one, False),
}
DESIGNS = {
    "equal": {"faults": 135, "allocation": "equal"},
    "few": {"faults": 12},
    "proportional": {"faults": 120},
    "hardly any": {"faults": 5},
    "by layer": {"per": "layer", "error": 0.2, "confidence": 0.9},
    "neyman": {"faults": 950, "allocation": "neyman"},
    "on some samples": {"faults": 100, "weight_samples": 2},
}
# A pilot of a hundred faults in each stratum takes long.
CASES = [(way, design) for way in WAYS for design in DESIGNS if design != "neyman" or way == "bits"]


def wilson(rate, trials, confidence):
    if math.isinf(trials):
        return rate, rate
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    square = rate * (1 - rate) / trials + z * z / (4 * trials**2)
    half = z * math.sqrt(square) / (1 + z * z / trials)
    return (middle - half if rate > 0 else 0.0), (middle + half if rate < 1 else 1.0)


def newcombe_low(rate, trials, confidence):
    if math.isinf(trials):
        return rate
    z, n, p = NormalDist().inv_cdf((1 + confidence) / 2), trials, rate
    if p == 0:
        return 0.0
    root = z * z - 2 - 1 / n + 4 * p * (n * (1 - p) + 1)
    low = (2 * n * p + z * z - 1 - z * math.sqrt(max(0.0, root))) / (2 * (n + z * z))
    return min(max(low, 0.0), p)


def estimate(strata, confidence):
    """Give rate and limits of strata ``(events, trials, weight, population)``."""
    whole = sum(w for *_, w, _ in strata)
    pools = defaultdict(list)
    effective = [
        n if math.isinf(size) else math.inf if n == size else n * (size - 1) / (size - n)
        for _, n, _, size in strata
    ]
    usual = sum(n for n in effective if math.isfinite(n)) or 1.0
    for (k, n, w, _), trials in zip(strata, effective, strict=True):
        density = trials / (w / whole)
        near = density if math.isinf(density) else round(math.log2(density / usual))
        pools[near].append((k / n, w / whole, density))
    rate, below, above = 0.0, 0.0, 0.0
    for pool in pools.values():
        weight = sum(w for _, w, _ in pool)
        p = sum(p * w for p, w, _ in pool) / weight
        trials = weight * min(x for *_, x in pool)
        low, high = wilson(p, trials, confidence)
        if len(pools) > 1:
            low = newcombe_low(p, trials, confidence)
        rate += weight * p
        below += (weight * (p - low)) ** 2
        above += (weight * (high - p)) ** 2
    low = max(0.0, rate - math.sqrt(below)) if rate > 0 else 0.0
    high = min(1.0, rate + math.sqrt(above)) if rate < 1 else 1.0
    return rate, low, high


def strata_of(campaign, event, way, weight_samples=None):
    """Give each layer and role its ``[events, trials, weight, population]``, from rows alone."""
    *_, places, finite = way
    found = {}
    for site in campaign.sites.itertuples():
        size = places(site._replace(dtype=str(site.dtype).removeprefix("torch.")))
        samples = 1 if weight_samples and site.kind == "weight" else SAMPLES
        population = size * samples if finite else math.inf
        found[site.layer, site.role] = [0, 0, size, population]
    for row in campaign.results.itertuples():
        stratum = found[row.layer, row.role]
        stratum[0] += row.outcome == event
        stratum[1] += 1
    return found


@pytest.fixture(scope="module")
def run():
    done = {}

    def run(way, design):
        if (way, design) not in done:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                net = Mixed().eval()
            error, pattern, *_ = WAYS[way]
            options = {"pattern": pattern, "metric": Exact(), "seed": 2} | DESIGNS[design]
            one = Campaign(net, nets.samples(SAMPLES), error, **options)
            one.run(progress=False)
            done[way, design] = one
        return done[way, design]

    return run


@pytest.mark.parametrize("event", ["SDC", "DUE", "masked"])
@pytest.mark.parametrize(("way", "design"), CASES)
def test_the_total_is_that_of_the_rows(run, way, design, event):
    one = run(way, design)
    strata = strata_of(one, event, WAYS[way], one.weight_samples).values()
    if design == "hardly any":
        # Fewer faults than strata are a plain random sample.
        strata = [[sum(x) for x in zip(*strata, strict=True)]]
    for confidence in (None, 0.8):
        found = one.total(event, confidence=confidence)
        expected = estimate(strata, confidence or one.confidence)
        assert (found.rate, found.low, found.high) == pytest.approx(expected, abs=1e-12)
        assert found.trials == len(one.results)


@pytest.mark.parametrize("by", ["layer", "kind", "sample"])
@pytest.mark.parametrize(("way", "design"), CASES)
def test_a_summary_is_that_of_the_rows(run, way, design, by):
    one, event = run(way, design), "SDC"
    whole = strata_of(one, event, WAYS[way], one.weight_samples)
    cells = defaultdict(lambda: [0, 0])
    for row in one.results.itertuples():
        cell = cells[getattr(row, by), row.layer, row.role]
        cell[0] += row.outcome == event
        cell[1] += 1
    table = one.summary(by)
    assert table["faults"].sum() == len(one.results)
    for row in table.itertuples():
        # What a sample has of a stratum is its part of the stratum's faults.
        strata = [
            [k, n, whole[layer, role][2] * n / whole[layer, role][1], math.inf]
            for (key, layer, role), (k, n) in cells.items()
            if key == getattr(row, by)
        ]
        if design == "hardly any":
            strata = [[sum(x) for x in zip(*strata, strict=True)]]
        expected = estimate(strata, one.confidence)
        assert (row.faults, row.sdc) == (sum(x[1] for x in strata), sum(x[0] for x in strata))
        assert (row.sdc_rate, row.sdc_low, row.sdc_high) == pytest.approx(expected, abs=1e-12)
