"""Protections compared on a plan, whose strata are weighted by their sizes."""

import dataclasses

import numpy as np
import pytest

from nets import perceptron, samples

from pystack_nb.errors import CampaignError
from pystack_nb.faults.campaign import Campaign
from pystack_nb.faults.models import BitFlip
from pystack_nb.faults.protection_compare import compare
from pystack_nb.faults.protection_ranges import Ranger
from pystack_nb.faults.protection_scope import protect
from pystack_nb.faults.statistics import stratified, wilson


SAMPLES = 3


def campaign(model, data, **options):
    chosen = {"sites": "weights", "seed": 0} | options
    return Campaign(model, data, BitFlip(field="exponent"), **chosen)


def network():
    """Give a network, data, and something that repairs what is out of range in the middle."""
    model, (inputs, labels) = perceptron(1, width=10), samples(SAMPLES)
    return model, (inputs, labels), Ranger.profile(model, inputs, layers=["first"])


def compared(model, data, plan, ranger):
    table = compare(model, data, plan, {"ranger": ranger}, repeats=1)
    return table.set_index("protection")


@pytest.mark.parametrize(
    "options",
    [
        {"faults": 120, "allocation": "equal"},
        {"faults": 500, "allocation": "neyman"},
        {"error": 0.2, "per": "layer"},
        {"faults": 40},
        {"faults": 2},
    ],
    ids=["equal", "neyman", "per layer", "proportional", "fewer than strata"],
)
def test_rates_of_a_plan_are_those_of_a_campaign_whatever_the_allocation(options):
    model, data, ranger = network()
    one = campaign(model, data, **options)
    found = compared(model, data, one.plan(), ranger)
    one.run(progress=False)
    campaigns = {"none": one}
    if options.get("allocation") != "neyman":  # whose pilot would see, and plan, something else
        campaigns["ranger"] = campaign(model, data, **options)
        with protect(model, ranger):
            campaigns["ranger"].run(progress=False)
    for protection, each in campaigns.items():
        row, expected = found.loc[protection], each.total(confidence=0.95)
        assert row["SDC"] == (each.results["outcome"] == "SDC").sum()
        assert (row["SDC_rate"], row["SDC_low"], row["SDC_high"]) == pytest.approx(
            (expected.rate, expected.low, expected.high)
        )


def test_rates_of_strata_are_weighted_by_their_sizes():
    model, data, ranger = network()
    plan = campaign(model, data, faults=160, allocation="equal").plan()
    row = compared(model, data, plan, ranger).loc["none"]
    weights = plan.strata.set_index("stratum")["weight"]
    events, trials = [], []
    for stratum in weights.index:
        some = plan.faults[plan.faults["stratum"] == stratum]
        alone = compared(model, data, some, ranger).loc["none"]
        events.append(alone["SDC"])
        trials.append(alone["faults"])
    rates = np.array(events) / trials
    assert row["SDC_rate"] == pytest.approx(weights @ rates / weights.sum())
    assert row["SDC_rate"] != pytest.approx(sum(events) / sum(trials), rel=0.05)
    expected = stratified(events, trials, weights, populations=plan.strata["population"])
    assert (row["SDC_low"], row["SDC_high"]) == pytest.approx((expected.low, expected.high))


def test_a_table_of_faults_stays_a_plain_sample():
    model, data, ranger = network()
    plan = campaign(model, data, faults=160, allocation="equal").plan()
    row = compared(model, data, plan.faults, ranger).loc["none"]
    assert row["SDC_rate"] == row["SDC"] / 160
    assert (row["SDC_low"], row["SDC_high"]) == wilson(row["SDC"], 160)


def test_a_plan_of_fewer_faults_than_strata_is_a_plain_sample():
    model, data, ranger = network()
    plan = campaign(model, data, faults=2, seed=2).plan()
    assert (plan.strata["faults"] == 0).any()
    row = compared(model, data, plan, ranger).loc["none"]
    assert row["SDC_rate"] == row["SDC"] / 2


def test_a_stratum_whose_faults_were_taken_out_of_a_plan_is_not_known():
    model, data, ranger = network()
    plan = campaign(model, data, faults=160, allocation="equal").plan()
    whole = compared(model, data, plan, ranger).loc["none"]
    kept = plan.faults[plan.faults["layer"] == "first"]
    row = compared(model, data, dataclasses.replace(plan, faults=kept), ranger).loc["none"]
    weights = plan.strata.groupby("layer")["weight"].sum()
    unknown = weights["last"] / weights.sum()
    assert row["SDC_high"] - row["SDC_low"] > unknown > whole["SDC_high"] - whole["SDC_low"]


def test_an_equal_number_in_each_layer_gives_the_exhaustive_truth():
    model, data, ranger = network()
    everything = campaign(model, data, faults=10**6).plan().faults
    assert len(everything) == (3 * 10 + 10 + 10 * 3 + 3) * 8 * SAMPLES
    truth = compared(model, data, everything, ranger)["SDC_rate"]
    assert 0.02 < truth["ranger"] < 0.9 * truth["none"]  # as its bounds can't help the last layer
    inside, rates, plain = dict.fromkeys(truth.index, 0), [], []
    for seed in range(12):
        plan = campaign(model, data, faults=60, allocation="equal", seed=seed).plan()
        found = compared(model, data, plan, ranger)
        for name, rate in truth.items():
            row = found.loc[name]
            inside[name] += row["SDC_low"] <= rate <= row["SDC_high"]
        rates.append(found["SDC_rate"])
        plain.append(found["SDC"] / found["faults"])
    assert min(inside.values()) >= 11
    for name in truth.index:
        off = [abs(np.mean([x[name] for x in some]) - truth[name]) for some in (rates, plain)]
        assert off[0] < 0.015
        assert off[1] > 0.04  # the last layer's bias has few bits, and weighs as much there


def test_what_is_neither_a_plan_nor_a_table_is_refused():
    model, data, _ = network()
    one = campaign(model, data, faults=2)
    with pytest.raises(CampaignError, match=r"a Campaign is no plan: give campaign\.plan\(\)"):
        compare(model, data, one, {})
