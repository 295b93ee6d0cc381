"""Campaigns whose faults a seed tells each: patterns, noise, functions."""

import dataclasses
import threading

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import nets
import numpy as np
import pandas as pd
import pytest
import torch

from campaigning import run, same

from pystack_nb.errors import CampaignError, FaultError
from pystack_nb.faults import campaign as campaigns
from pystack_nb.faults import plan
from pystack_nb.faults.campaign import Campaign
from pystack_nb.faults.fault import Fault
from pystack_nb.faults.injection import inject
from pystack_nb.faults.metrics import Exact
from pystack_nb.faults.models import (
    BitFlip,
    Custom,
    Noise,
    RandomValue,
    Replace,
    Sequence,
    StuckAt,
    Zero,
)
from pystack_nb.faults.patterns import (
    BitErrorRate,
    Channel,
    Element,
    ElementErrorRate,
    Everywhere,
    Region,
    Row,
    Several,
)
from pystack_nb.faults.sites import sites


FAULTS = 120


def doubled(values, rng):
    return values * 2 + torch.from_numpy(rng.standard_normal(len(values)))


def tripled(values, rng):
    return values * 3 + torch.from_numpy(rng.standard_normal(len(values)))


def campaign(error=None, pattern=None, net=None, data=None, **options):
    net, data = net or nets.perceptron(), data or nets.samples()
    return Campaign(net, data, error, pattern=pattern, **({"seed": 1, "faults": FAULTS} | options))


def outcome(net, fault, inputs, error, pattern):
    """Run one row of the results by itself: what is written in it is all that is known."""
    if fault.bit >= 0:
        error = BitFlip(bit=fault.bit)
    one = Fault(fault.layer, fault.role, pattern, error, call=fault.call)
    sample = inputs[[fault.sample]]
    with torch.no_grad():
        golden = net(sample)
        with inject(net, one, seed=fault.seed) as log:
            faulty = net(sample)
    log = log.to_frame()
    first = (log["before"][0], log["after"][0]) if len(log) else (np.nan, np.nan)
    if not faulty.isfinite().all():
        return ("DUE", *first)
    return ("masked" if torch.equal(golden.argmax(1), faulty.argmax(1)) else "SDC", *first)


MODELS = [
    (Noise(3.0), None),
    (Custom(doubled), Element()),
    (Sequence(BitFlip(), Noise(1.0)), None),
    (Noise(1.0, relative=True), Channel()),
    (BitFlip(), Channel()),
    (BitFlip(field="exponent"), Row()),
    (StuckAt(1, bit=30), Row()),
    (Replace(1e3), Several(2)),
    (RandomValue(-50, 50), Everywhere()),
    (Zero(), ElementErrorRate(0.3)),
    (BitFlip(), BitErrorRate(0.02)),
]


@pytest.mark.parametrize(("error", "pattern"), MODELS, ids=str)
def test_each_row_of_the_results_can_be_injected_by_itself(error, pattern):
    net, (inputs, _) = nets.perceptron(), nets.samples()
    before = nets.state(net)
    results = run(campaign(error, pattern, net))
    assert nets.unchanged(net, before)
    assert len(results) <= FAULTS
    assert set(results["kind"]) == {"neuron", "weight"}
    for fault in results.itertuples():
        found = outcome(net, fault, inputs, error, pattern)
        np.testing.assert_equal((fault.outcome, fault.before, fault.after), found)


@pytest.mark.parametrize(("error", "pattern"), [MODELS[1], MODELS[4], MODELS[10]], ids=str)
def test_results_depend_on_no_batch_worker_or_resumption(error, pattern, tmp_path, monkeypatch):
    expected = run(campaign(error, pattern))
    same(run(campaign(error, pattern, batch_size=3)), expected)
    monkeypatch.setattr(campaigns, "_BATCH", (25, 25))
    with ThreadPoolExecutor(3) as pool:
        same(run(campaign(error, pattern), pool), expected)
    if isinstance(error, Custom):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            same(run(campaign(error, pattern), pool), expected)
    run(campaign(error, pattern, path=tmp_path))
    for part in sorted(tmp_path.glob("part-*"))[1::2]:
        part.unlink()
    same(run(campaign(error, pattern, path=tmp_path)), expected)


def test_a_larger_sample_starts_with_the_smaller_one():
    table = sites(nets.perceptron(), nets.samples()[0]).query("layer == 'first'")
    one, other = (
        campaign(Noise(1.0), sites=table.query("role == 'output'"), faults=n).plan().faults
        for n in (30, 700)
    )
    same(one, other.head(30))


@pytest.mark.parametrize("pattern", [Channel(), Row(), Everywhere()])
def test_a_larger_sample_of_a_pattern_looks_at_no_more_faults_than_it_needs(monkeypatch, pattern):
    net = torch.nn.Conv2d(1, 16, 3, padding=1).eval()
    data = nets.samples(40, (1, 8, 8))
    table = sites(net, data[0][:1]).query("role == 'output'")
    first, looked = type(pattern).first, []
    monkeypatch.setattr(type(pattern), "first", lambda *args: looked.append(1) or first(*args))
    options = {"net": net, "data": data, "sites": table, "metric": Exact()}
    small = plan.make((one := campaign(Zero(), pattern, **options))._strata, one.design, 1)
    looked.clear()
    design = dataclasses.replace(one.design, faults=5)
    few = plan.make(one._strata, design, 1)
    assert len(looked) <= 2 * 64
    wanted = len(few.faults)
    same(few.faults, small.faults.head(wanted))


def test_the_population_of_a_pattern_counts_its_places():
    def populations(error, pattern, **options):
        strata = campaign(error, pattern, per="layer", faults=100, **options).plan().strata
        return {(x.layer, x.role): x.population for x in strata.itertuples()}

    last = ("last", "output"), ("last", "weight"), ("last", "bias")
    found = populations(Zero(), Channel())
    # 3 channels of 8 samples, 3 rows of a weight, 3 numbers of a bias.
    assert [found[x] for x in last] == [24, 24, 24]
    found = populations(Zero(), Row())
    assert [found[x] for x in last] == [8, 24, 8]
    found = populations(StuckAt(1, bit=3), Channel(1))
    assert [found[x] for x in last] == [8, 8, 8]
    found = populations(Zero(), Everywhere())
    assert [found[x] for x in last] == [8, 8, 8]
    for error, pattern in [
        (BitFlip(), Channel()),
        (Noise(1.0), None),
        (BitFlip(), BitErrorRate(0.1)),
    ]:
        assert set(populations(error, pattern).values()) == {np.inf}


def test_no_place_is_drawn_twice_and_all_are_when_all_are_wanted():
    faults = campaign(Zero(), Channel(), per="layer", faults=10_000).plan().faults
    assert not faults.duplicated(["layer", "role", "element", "sample"]).any()
    channels = {"first": 4, "relu": 4, "last": 3}
    of_outputs = faults[faults["role"] == "output"].groupby("layer").size()
    assert of_outputs.to_dict() == {k: v * 8 for k, v in channels.items()}


def test_each_bit_can_be_a_stratum_of_a_pattern():
    one = campaign(BitFlip(field="exponent"), Channel(), per="layer,bit", sites="weights")
    results = run(one)
    assert set(results["bit"]) == set(range(23, 31))
    inputs, net = nets.samples()[0], nets.perceptron()
    for fault in results.head(40).itertuples():
        found = outcome(net, fault, inputs, None, Channel())
        np.testing.assert_equal((fault.outcome, fault.before, fault.after), found)
    assert set(one.summary("bit")["bit"]) == set(range(23, 31))


def test_a_single_element_with_bits_is_as_without_a_pattern():
    same(run(campaign(BitFlip(), Element())), run(campaign(BitFlip())))
    assert "seed" not in run(campaign(BitFlip()))


def test_weights_are_tried_on_several_samples():
    results = run(campaign(Noise(2.0), Channel(), sites="weights", weight_samples=4))
    net, (inputs, _) = nets.perceptron(), nets.samples()
    for fault in results.head(20).itertuples():
        found = [
            outcome(net, fault._replace(sample=x), inputs, Noise(2.0), Channel()) for x in range(4)
        ]
        worst = max((x[0] for x in found), key=["masked", "SDC", "DUE"].index)
        assert fault.outcome == worst


def test_a_quantised_model_takes_every_error_model():
    inputs, labels = nets.samples()
    net = nets.quantised_linear()
    table = sites(net, inputs[:1]).query("role == 'weight'")
    for error in (Sequence(Zero(), BitFlip()), Noise(0.3), Custom(doubled)):
        results = run(campaign(error, Channel(), net, (inputs, labels), sites=table, faults=20))
        assert (results["before"] != results["after"]).any()


def test_the_plan_says_that_each_fault_has_a_forward_of_its_own():
    plan = campaign(Noise(1.0), faults=60).plan()
    assert "a forward for each" in repr(plan)
    assert plan.seconds > 0
    assert "a forward for each" not in repr(campaign(BitFlip()).plan())


def test_a_folder_of_another_function_or_pattern_is_refused(tmp_path):
    run(campaign(Custom(doubled), Channel(), path=tmp_path))
    with pytest.raises(CampaignError, match="error_model"):
        run(campaign(Custom(tripled), Channel(), path=tmp_path))
    with pytest.raises(CampaignError, match="pattern"):
        run(campaign(Custom(doubled), Row(), path=tmp_path))


def test_a_function_that_draws_elsewhere_is_refused():
    generator = np.random.default_rng(0)
    error = Custom(lambda values, _: values + float(generator.random()))
    with pytest.raises(FaultError, match="draw from the generator that it is given"):
        run(campaign(error))


def test_a_function_that_draws_elsewhere_is_refused_also_if_the_first_fault_strikes_nothing():
    generator = np.random.default_rng(0)
    error = Custom(lambda values, _: values + float(generator.random()))
    one = campaign(error, ElementErrorRate(0.05), sites="neurons")
    table = plan.make(one._strata, one.design, one.seed).faults
    with pytest.raises(FaultError, match="draw from the generator that it is given"):
        one._own().evaluate(table)


@pytest.mark.parametrize("kind", ["neurons", "weights"])
def test_a_function_that_fails_is_no_outcome_and_leaves_the_model_as_it_was(kind):
    def fails(values, rng):
        raise KeyError("not there")

    net = nets.perceptron()
    before = nets.state(net)
    with pytest.raises(KeyError, match="not there"):
        run(campaign(Sequence(Zero(), Custom(fails)), Channel(), net, sites=kind))
    assert nets.unchanged(net, before)


def test_a_function_that_cannot_be_sent_says_so():
    lock = threading.Lock()
    error = Custom(lambda values, _: values * (2 if lock.locked() else 3))
    with ThreadPoolExecutor(1) as pool, pytest.raises(CampaignError, match=r"error model.*be sent"):
        run(campaign(error), pool)


@pytest.mark.parametrize(
    ("error", "pattern", "told"),
    [
        (BitFlip(), Channel(7), "no channel 7"),
        (BitFlip(), Row(1), "no dimension 1"),
        (Zero(), BitErrorRate(0.1), "give BitFlip"),
        (Zero(), Several(50), "50 elements can't be struck"),
        (Zero(), "channel", "pattern is str 'channel'; pass a pattern"),
    ],
    ids=str,
)
def test_a_pattern_that_does_not_fit_is_refused(error, pattern, told):
    with pytest.raises(CampaignError, match=told):
        campaign(error, pattern)


def sequences():
    """Give a model whose batch comes second, within, and its data."""
    torch.manual_seed(0)
    return Sequences().eval(), (torch.randn(6, 7, 8), torch.randint(3, (6,)))


class Sequences(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.TransformerEncoderLayer(8, 2, 16)
        self.lstm = torch.nn.LSTM(8, 5)
        self.last = torch.nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.lstm(self.encoder(x.transpose(0, 1)))[0][-1])


@pytest.mark.parametrize("layer", ["encoder", "lstm"])
def test_no_pattern_takes_samples_for_channels(layer):
    net, data = sequences()
    table = sites(net, data[0][:1]).query(f"layer == '{layer}' and role.str.startswith('output')")
    table = table.head(1)
    assert campaign(net=net, data=data, sites=table).sites["batch_dim"].tolist() == [1]
    for pattern in (Channel(), Row(1)):
        with pytest.raises(CampaignError, match=r"dimension 1 counts the samples here: give"):
            campaign(Zero(), pattern, net, data, sites=table)
    strata = campaign(Zero(), Channel(dim=-1), net, data, sites=table).plan().strata
    assert strata["population"].tolist() == [6 * table["shape"].iloc[0][-1]]


@pytest.mark.parametrize("pattern", [Channel(), Channel(2), Channel(dim=-1), Row(), Row(0), Row(1)])
@pytest.mark.parametrize("batch", [None, 0, 1])
def test_the_first_element_of_a_pattern_is_that_of_all_it_draws(pattern, batch):
    region = Region((4, 3, 5), 1, batch or 0, None if batch is None else 2)
    if pattern == Channel(2) and batch == 1:
        region = Region((3, 4, 5), 0, 1, 2)
    for seed in range(30):
        one, other = np.random.default_rng(seed), np.random.default_rng(seed)
        drawn = region.whole(pattern.elements(one, region))
        assert pattern.first(other, region) == drawn[0]
        assert one.bit_generator.state == other.bit_generator.state


def test_a_place_weighs_the_same_whatever_type_it_has():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 3).double()).eval()
    net[0].register_forward_hook(lambda _, __, y: y.double())
    for pattern, wanted in [(Everywhere(), {1.0}), (ElementErrorRate(0.1), {1.0}), (None, None)]:
        strata = campaign(BitFlip(), pattern, net, sites="weights", faults=40).plan().strata
        weight = strata.set_index(["layer", "role"])["weight"]
        if wanted is None:
            assert weight["1", "bias"] / weight["0", "bias"] == 64 * 3 / (32 * 4)
        else:
            assert set(weight) == wanted


def exposed():
    return pd.DataFrame({"layer": ["first", "last"], "bit_seconds": [1.0, 2.0]})


def test_rates_of_patterns_are_not_those_of_upsets():
    one = campaign(Zero(), Everywhere())
    run(one)
    assert "SDC rate per event of Everywhere()" in repr(one.reweight(exposed()))
    with pytest.raises(CampaignError, match="leave upset_rate away"):
        one.reweight(exposed(), upset_rate=1e-6)
    one = campaign(BitFlip(), Element())
    run(one)
    assert "SDC rate per upset" in repr(one.reweight(exposed(), upset_rate=1e-6))
    one = campaign(BitFlip(), BitErrorRate(0.1))
    run(one)
    with pytest.raises(CampaignError, match="run a campaign without a pattern"):
        one.reweight(exposed())


def test_a_plot_says_that_bits_of_patterns_are_not_told_apart():
    one = campaign(BitFlip(), Channel())
    run(one)
    texts = [x.get_text() for x in one.plot_bits().axes[0].texts]
    assert any('pass per="layer,bit"' in x for x in texts)


def test_seeds_are_numbers_that_json_keeps():
    assert (campaign(BitFlip(), Channel()).plan().faults["seed"] < 2**53).all()
