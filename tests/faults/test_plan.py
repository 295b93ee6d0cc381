"""What a campaign draws: strata, sample sizes and faults."""

import math

import nets
import numpy as np
import pandas as pd
import pytest
import torch

from pystack_nb.errors import CampaignError
from pystack_nb.faults import plan
from pystack_nb.faults.models import BitFlip, Noise, RandomValue, Replace, StuckAt, Zero
from pystack_nb.faults.plan import Design
from pystack_nb.faults.sites import sites_of_a_sample
from pystack_nb.faults.statistics import sample_size
from pystack_nb.faults.strata import stratify


SAMPLES = 4


def places():
    found = sites_of_a_sample(nets.perceptron(), (nets.samples(SAMPLES)[0],), {})
    return found.query("same_as == '' and role != 'input'")


def row(**changed):
    one = {"layer": "a", "call": 0, "role": "output", "kind": "neuron", "elements": 6}
    return one | {"dtype": torch.float32, "batch_dim": -1} | changed


def make(model=None, sites=None, seed=0, samples=SAMPLES, **design):
    sites = places() if sites is None else sites
    design = Design(**design)
    return plan.make(stratify(sites, model or BitFlip(), samples, per=design.per), design, seed)


def test_the_same_seed_draws_the_same_faults_and_another_one_others():
    pd.testing.assert_frame_equal(make(seed=3, faults=500).faults, make(seed=3, faults=500).faults)
    assert not make(seed=3, faults=500).faults.equals(make(seed=4, faults=500).faults)


def test_a_larger_sample_starts_with_the_smaller_one():
    (stratum,) = stratify(pd.DataFrame([row(elements=500)]), BitFlip(), 9, per="network")
    small, large = (pd.DataFrame(stratum.draw(7, n)) for n in (100, 3000))
    pd.testing.assert_frame_equal(small, large[:100])


def test_no_fault_is_drawn_twice_and_all_are_drawn_when_all_are_wanted():
    (stratum,) = stratify(pd.DataFrame([row()]), BitFlip(), 2, per="network")
    assert stratum.population == 6 * 32 * 2
    faults = pd.DataFrame(stratum.draw(0, 384))
    assert not faults.duplicated(["element", "sample", "bit"]).any()
    assert len(faults) == 384


def test_faults_are_uniform_over_elements_samples_and_bits():
    (stratum,) = stratify(pd.DataFrame([row(elements=10_000)]), BitFlip(), 5, per="network")
    faults = pd.DataFrame(stratum.draw(0, 20_000))
    for values, size in (
        (faults["element"] // 500, 20),
        (faults["sample"], 5),
        (faults["bit"], 32),
    ):
        seen, expected = np.bincount(values, minlength=size), 20_000 / size
        # Chi-squared has the mean size - 1 and the variance 2 (size - 1).
        excess = ((seen - expected) ** 2 / expected).sum() - (size - 1)
        assert abs(excess) < 4 * math.sqrt(2 * (size - 1))


def test_a_module_that_runs_twice_is_one_stratum_with_both_its_calls():
    table = pd.DataFrame([row(elements=3), row(call=1, elements=9)])
    (stratum,) = stratify(table, Zero(), 100, per="layer")
    faults = pd.DataFrame(stratum.draw(1, 1000))
    largest = faults.groupby("call")["element"].max()
    assert largest.to_dict() == {0: 2, 1: 8}
    assert (faults["call"] == 1).mean() == pytest.approx(0.75, abs=0.06)


def test_masks_say_what_happens_to_the_stored_bits():
    faults = make(StuckAt(1, bit=30), faults=50).faults
    assert (faults["or_mask"] == 1 << 30).all()
    assert (faults["bit"] == 30).all()
    faults = make(Replace(1.5), faults=50).faults
    assert (faults["value"] == 1.5).all()
    assert (faults["and_mask"] == 0).all()
    assert (faults["bit"] == -1).all()


def test_sample_sizes_are_for_the_network_a_layer_or_a_bit():
    whole = int(make(faults=1).strata["population"].sum())
    assert len(make(error=0.05).faults) == sample_size(whole, 0.05)
    layers = make(error=0.05, per="layer").strata
    assert layers["faults"].tolist() == [sample_size(x, 0.05) for x in layers["population"]]
    bits = make(error=0.2, per="layer,bit")
    assert len(bits.strata) == 32 * len(layers)
    assert bits.strata["faults"].tolist() == [
        sample_size(x, 0.2) for x in bits.strata["population"]
    ]
    struck = bits.faults.merge(bits.strata[["stratum", "bit"]], on="stratum")
    assert (struck["bit_x"] == struck["bit_y"]).all()


def test_a_number_of_faults_is_split_in_proportion_or_equally():
    strata = make(faults=310).strata
    assert strata["faults"].sum() == 310
    share = 310 * strata["weight"] / strata["weight"].sum()
    assert (strata["faults"] - share).abs().max() <= 1
    assert set(make(faults=700, allocation="equal").strata["faults"]) == {100}


def test_fewer_faults_than_strata_are_no_more_than_were_asked_for():
    assert len(make(faults=3).faults) == 3


def test_fewer_faults_than_strata_are_a_plain_random_sample():
    strata = stratify(places(), BitFlip(), SAMPLES, per="network")
    share = np.array([x.weight for x in strata]) / sum(x.weight for x in strata)
    sizes = np.array([Design(faults=2).sizes(strata, seed) for seed in range(400)])
    assert (sizes.sum(1) == 2).all()
    assert np.abs(sizes.mean(0) / 2 - share).max() < 4 * np.sqrt(0.25 / 800)
    assert sizes[5].tolist() == make(faults=2, seed=5).sizes.tolist()


def test_a_plain_random_sample_takes_no_fault_twice():
    table = pd.DataFrame([row(layer=x, elements=1) for x in "abcde"])
    for seed in range(20):
        assert make(Zero(), table, samples=1, faults=4, seed=seed).sizes.max() == 1


def test_fewer_faults_than_the_pilot_are_refused():
    with pytest.raises(CampaignError, match="faults=600 are fewer than the 700"):
        make(faults=600, allocation="neyman")


def test_a_small_stratum_gets_all_its_faults_and_no_more():
    table = pd.DataFrame([row(elements=1), row(layer="b", elements=10_000)])
    assert make(Zero(), table, samples=1, faults=101, allocation="equal").sizes.tolist() == [1, 100]


def test_more_faults_than_there_are_are_all_of_them():
    table = pd.DataFrame([row(elements=24)])
    assert len(make(Zero(), table, samples=1, faults=10**12).faults) == 24


def test_more_faults_than_can_be_held_are_refused_before_they_are_drawn():
    large = pd.DataFrame([row(elements=10**7)])
    for wanted in ({"faults": 10**12}, {"error": 1e-6}, {"error": 1e-6, "per": "layer"}):
        with pytest.raises(CampaignError, match=r"more than the 20,000,000 .* pass fewer faults"):
            make(sites=large, **wanted)
    with pytest.raises(CampaignError, match="pass fewer faults"):
        make(RandomValue(-1, 1), large, faults=10**400)


def test_endless_choices_have_no_finite_population():
    made = make(RandomValue(-1, 1), pd.DataFrame([row(elements=2)]), error=0.05)
    assert math.isinf(made.strata["population"][0])
    assert len(made.faults) == sample_size(math.inf, 0.05)


def test_neymans_pilot_comes_first_and_is_kept():
    of = stratify(places(), BitFlip(), SAMPLES, per="network")
    design = Design(faults=1500, allocation="neyman")
    pilot = plan.make(of, design, 5)
    events = np.zeros(len(of), np.int64)
    events[-1] = 50
    whole = plan.make(of, design, 5, events)
    pd.testing.assert_frame_equal(whole.faults[: len(pilot.faults)], pilot.faults)
    assert whole.sizes[-1] == whole.sizes.max()
    assert len(whole.faults) == 1500


def test_a_plan_is_a_table_that_says_how_many_and_of_what():
    text = repr(make(faults=310, per="layer,bit"))
    assert "310 faults" in text
    assert "seed 0" in text
    assert "first weight weight float32" in " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"per": "bit"}, "per='bit' is unknown"),
        ({"allocation": "fair"}, "allocation='fair' is unknown"),
        ({"faults": 0}, "0 faults are no campaign"),
        ({"error": 0}, "error margin of 0"),
        ({"confidence": 95}, "confidence of 95"),
        ({"error": 0.1, "sites": pd.DataFrame([row(elements=0)])}, "no site to strike"),
        ({"error": 0.1, "sites": pd.DataFrame([row(dtype="torch.float7")])}, "no type of torch"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(arguments, told):
    with pytest.raises(CampaignError, match=told):
        make(**arguments)


def test_what_masks_cannot_tell_is_told_by_seeds():
    faults = make(Noise(0.1), faults=50).faults
    assert (faults["xor_mask"] == 0).all()
    assert faults["seed"].is_unique
    assert (faults["element"] >= 0).all()


def test_models_of_several_bits_have_no_stratum_for_each():
    with pytest.raises(CampaignError, match="no single bit"):
        make(BitFlip(bits=2), faults=5, per="layer,bit")
