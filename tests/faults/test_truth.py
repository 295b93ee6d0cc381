"""Every weight, every bit, every sample of a small network: the intervals cover that truth."""

from types import SimpleNamespace

import nets
import numpy as np
import pytest
import reference

from pystack_nb.faults import plan
from pystack_nb.faults.metrics import Top1
from pystack_nb.faults.models import BitFlip
from pystack_nb.faults.plan import Design
from pystack_nb.faults.results import Analysis
from pystack_nb.faults.sites import sites_of_a_sample
from pystack_nb.faults.strata import stratify


SAMPLES = 4


class Drawn(Analysis):
    """A campaign whose outcomes are looked up."""

    confidence = 0.95
    results = strata = proportional = None

    def __init__(self, made, outcomes, proportional):
        self.results = made.faults.assign(outcome=outcomes)
        self.strata, self.proportional = made.strata, proportional


class Truth:
    """Every weight, every bit, every sample of a small network."""

    def __init__(self):
        net, (inputs, labels) = nets.perceptron(), nets.samples(SAMPLES)
        weights = sites_of_a_sample(net, (inputs,), {}).query("kind == 'weight'")
        population = int(weights["elements"].sum()) * 32 * SAMPLES
        self.strata = stratify(weights, BitFlip(), SAMPLES, per="network")
        everything = plan.make(self.strata, Design(faults=population), 0).faults
        data = SimpleNamespace(inputs=[inputs], labels=labels)
        found = reference.evaluate(net, data, everything, Top1())
        self.of = [np.zeros((n, 32, SAMPLES), "<U6") for n in weights["elements"]]
        for stratum, rows in everything.groupby("stratum"):
            at = rows["element"], rows["bit"], rows["sample"]
            self.of[stratum][at] = found["outcome"][rows.index]
        assert all((x != "").all() for x in self.of)

    def rate(self, event):
        return np.concatenate([x.ravel() for x in self.of]).__eq__(event).mean()

    def look_up(self, faults):
        outcomes = np.zeros(len(faults), "<U6")
        for stratum, rows in faults.groupby("stratum"):
            at = rows["element"], rows["bit"], rows["sample"]
            outcomes[rows.index] = self.of[stratum][at]
        return outcomes

    def run(self, design, seed):
        made, events = plan.make(self.strata, design, seed), None
        if design.allocation == "neyman":
            events = made.faults["stratum"][self.look_up(made.faults) != "masked"]
            made = plan.make(self.strata, design, seed, np.bincount(events, minlength=len(self.of)))
        return Drawn(made, self.look_up(made.faults), design.proportional)


@pytest.fixture(scope="module")
def truth():
    return Truth()


@pytest.mark.parametrize(
    ("seeds", "design"),
    [
        (1000, Design(faults=400)),
        (150, Design(faults=400, allocation="equal")),
        (150, Design(faults=800, allocation="neyman")),
    ],
    ids=["proportional", "equal", "neyman"],
)
def test_intervals_cover_the_exhaustive_truth_as_often_as_they_claim(truth, seeds, design):
    rates = {x: truth.rate(x) for x in ("SDC", "DUE")}
    assert 0.005 < rates["SDC"] < 0.2
    covered = dict.fromkeys(rates, 0)
    for seed in range(seeds):
        campaign = truth.run(design, seed)
        for event, rate in rates.items():
            estimate = campaign.total(event)
            covered[event] += estimate.low <= rate <= estimate.high
    assert min(covered.values()) >= 0.93 * seeds


def test_the_whole_population_gives_the_truth_itself(truth):
    everything = Design(faults=sum(x.size for x in truth.of))
    estimate = truth.run(everything, 0).total()
    assert estimate.low == estimate.high == estimate.rate
    assert estimate.rate == pytest.approx(truth.rate("SDC"))
