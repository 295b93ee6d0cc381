"""Campaigns on models that take several inputs, by place or by name."""

import io
import warnings

import nets
import numpy as np
import pandas as pd
import pytest
import torch

from torch.utils.data import DataLoader

from pystack_nb.errors import CampaignError, FaultError
from pystack_nb.faults.campaign import Campaign
from pystack_nb.faults.data import tensors
from pystack_nb.faults.models import BitFlip, Noise
from pystack_nb.faults.patterns import BitErrorRate, Channel, ElementErrorRate, Several
from pystack_nb.faults.protection import NanDetector, Ranger, compare
from pystack_nb.faults.sites import sites


class Masked(torch.nn.Module):
    """Takes a keyword argument only, and looks at what was left away."""

    def __init__(self, *, varies=False):
        super().__init__()
        self.inner = nets.perceptron()
        self.varies = varies

    def forward(self, x, *, mask, scale=None):
        y = self.inner(x * mask)
        if self.varies and y.sum() > 1e9:
            y = y + 1
        return y if scale is None else y * scale


def inputs():
    x, labels = nets.samples()
    return {"x": x, "mask": (x > -0.5).float()}, labels


def campaign(data, net=None, error=None, **options):
    return Campaign(net or Masked().eval(), data, error, **({"seed": 3, "faults": 200} | options))


def plainly():
    """Give the results of a model that takes what the other one makes of its arguments."""
    given, labels = inputs()
    net = torch.nn.Sequential()
    net.inner = nets.perceptron()
    one = campaign((given["x"] * given["mask"], labels), net.eval())
    return one.run(progress=False)


@pytest.mark.parametrize("varies", [False, True])
def test_a_model_is_given_its_arguments_by_their_names(varies):
    data = inputs()
    net = Masked(varies=varies).eval()
    one = campaign(data, net)
    assert (one._own().program is None) == varies
    results = one.run(progress=False)
    pd.testing.assert_frame_equal(results, plainly(), check_exact=True)


def test_seeded_faults_and_the_stored_fingerprint_know_the_names(tmp_path):
    data, labels = inputs()
    error = Noise(2.0)
    results = campaign((data, labels), error=error, path=tmp_path).run(progress=False)
    assert set(results["outcome"]) >= {"masked", "SDC"}
    same = campaign((dict(reversed(data.items())), labels), error=error, path=tmp_path)
    pd.testing.assert_frame_equal(same.run(progress=False), results, check_exact=True)
    renamed = {"x": data["mask"], "mask": data["x"]}
    with pytest.raises(CampaignError, match="data"):
        campaign((renamed, labels), error=error, path=tmp_path).run()


def test_all_forms_of_named_samples_are_the_same():
    named, labels = inputs()
    samples = [({k: v[i] for k, v in named.items()}, labels[i]) for i in range(len(labels))]
    for data in (
        (named, labels),
        samples,
        DataLoader(samples, batch_size=3),
        DataLoader(samples, batch_size=3, shuffle=True),
    ):
        found, found_labels = tensors(data)
        args, kwargs = found.arguments
        assert args == ()
        assert all(torch.equal(kwargs[k], named[k]) for k in named)
        assert torch.equal(found_labels, labels)
    found, none = tensors(named)
    assert set(found.arguments[1]) == {"x", "mask"}
    assert none is None


def test_several_inputs_are_given_by_place():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nets.perceptron()

        def forward(self, x, mask):
            return self.inner(x * mask)

    named, labels = inputs()
    for form in (tuple, list):
        results = campaign((form(named.values()), labels), Two().eval()).run(progress=False)
        pd.testing.assert_frame_equal(results, plainly(), check_exact=True)


def test_protections_are_compared_on_named_inputs():
    data, net = inputs(), Masked().eval()
    faults = campaign(data, net, BitFlip(bit=30), faults=20).plan().faults
    defences = {"ranger": Ranger.profile(net, data[0]), "nan": NanDetector()}
    table = compare(net, data, faults, defences, repeats=1)
    assert table["faults"].tolist() == [20, 20, 20]


def test_names_without_tensors_and_unequal_numbers_are_refused():
    named, labels = inputs()
    for data in (({}, labels), (named | {"mask": torch.ones(3)}, labels), ({"x": "text"}, labels)):
        with pytest.raises(CampaignError, match="pass"):
            tensors(data)


class Folds(torch.nn.Module):
    """Folds time into the batch, so that nothing tells which of a layer's rows are a sample's."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 4)

    def forward(self, x):
        return self.linear(x.flatten(0, 1)).unflatten(0, (len(x), -1)).mean(1)


@pytest.mark.parametrize(
    "pattern", [None, Channel(), Several(2), ElementErrorRate(0.1), BitErrorRate(0.01)]
)
def test_sites_of_any_number_of_samples_in_any_order_are_those_of_one(pattern):
    net, data = Folds().eval(), nets.samples(8, (5, 3))
    found = []
    for count in (8, 1):
        table = sites(net, data[0][:count]).query("role in ['output', 'weight']")
        assert table.query("layer == 'linear'")["elements"].tolist() == [count * 5 * 4, 3 * 4]
        one = campaign(
            data, net, sites=table[:: -1 if count == 1 else 1], pattern=pattern, faults=40
        )
        assert one.sites.query("layer == 'linear'")["elements"].tolist() == [5 * 4, 3 * 4]
        found.append(one.run(progress=False))
    pd.testing.assert_frame_equal(*found)


class Grows(torch.nn.Module):
    """Has more rows of a layer for larger samples."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 4)

    def forward(self, x):
        size = 1 + int(x[0, 0, 0])
        return self.linear(x.expand(-1, size, 3)).sum(1)


@pytest.mark.parametrize("pattern", [Channel(0), Several(2), ElementErrorRate(0.1)])
def test_a_pattern_planned_for_another_shape_is_refused(pattern):
    data = torch.arange(4.0)[:, None, None].expand(4, 1, 3).contiguous(), torch.zeros(4).long()
    with pytest.raises(FaultError, match=r"was planned to: .* inputs of one sample"):
        campaign(data, Grows().eval(), sites="neurons", pattern=pattern, faults=40).run(
            progress=False
        )


@pytest.mark.parametrize("where", ["model", "data"])
def test_what_has_no_numbers_is_refused(where):
    model, (x, labels) = nets.perceptron(), nets.samples()
    numbers = nets.perceptron()
    plan = campaign((x, labels), numbers).plan()
    meta = torch.device("meta")
    model, x = (model.to(meta), x) if where == "model" else (model, x.to(meta))
    for use in (
        lambda: campaign((x, labels), model),
        lambda: compare(model, (x, labels), plan, {"nan": NanDetector()}),
        lambda: Ranger.profile(model, x),
    ):
        with pytest.raises(CampaignError, match=r"on the meta device, .* pass real data"):
            use()
    assert (sites(model.to(meta), x.to(meta))["bits"] == 32).all()


def test_sites_can_come_from_a_file():
    net = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)).eval()
    data = torch.randn(5, 8), torch.zeros(5).long()
    table = sites(net, data[0][:1]).query("layer in ['0', '2']")
    written = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    assert written["layer"].dtype == np.int64
    one, other = (campaign(data, net, sites=x).sites for x in (table, written))
    pd.testing.assert_frame_equal(one, other)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: pd.concat([x, x[["layer"]]], axis=1), "several columns 'layer'; leave one"),
        (lambda x: x.assign(role=[["output"]] * len(x)), r"has no .*\['output'\].*pass rows"),
        (lambda x: x.head(0), "is empty; pass some rows"),
    ],
)
def test_tables_that_name_no_sites_are_refused(change, told):
    table = sites(nets.perceptron(), nets.samples()[0])
    with pytest.raises(CampaignError, match=told):
        campaign(nets.samples(), nets.perceptron(), sites=change(table))


def test_what_only_simulates_quantisation_is_struck_only_where_it_is_named():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
        net.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
        net = torch.ao.quantization.prepare_qat(net.train())
        net(nets.samples()[0])
        net.eval()
    listed = sites(net, nets.samples()[0])
    assert listed["layer"].str.contains("fake_quant").any()
    one = campaign(nets.samples(), net)
    assert not one.sites["layer"].str.contains("weight_fake_quant").any()
    owners = {"0", "2"}
    assert set(one.sites.query("kind == 'weight'")["layer"]) == owners
    of_activations = one.sites["layer"].str.contains("activation_post_process")
    assert set(one.sites[of_activations]["kind"]) == {"neuron"}
    named = listed[listed["layer"] == "0.weight_fake_quant"].query("role == 'output'")
    assert len(campaign(nets.samples(), net, sites=named).sites) == 1


@pytest.mark.parametrize("metric", [None, lambda golden, faulty, _: bool((golden != faulty).any())])
@pytest.mark.parametrize("error", [None, Noise(1.0)])
def test_data_stays_where_it_is_whatever_the_default_device_is(metric, error):
    data, net = nets.samples(), nets.perceptron()
    expected = campaign(data, net, error, metric=metric).run(progress=False)
    # Of all devices the one from which nothing comes back.
    with torch.device("meta"):
        found = campaign(data, net, error, metric=metric).run(progress=False)
    pd.testing.assert_frame_equal(found, expected)


def test_sites_that_one_sample_does_not_reach_are_refused():
    table = sites(nets.perceptron(), nets.samples()[0]).query("role == 'output'")
    for wrong in ({"call": 1}, {"layer": "third"}, {"role": "output.0"}):
        with pytest.raises(CampaignError, match=r"one sample of the data; .*inputs\[:1\]"):
            campaign(nets.samples(), nets.perceptron(), sites=table.assign(**wrong))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sites": ["conv2", "fc1"]}, r'\["layer"\]\.isin'),
        ({"path": 5}, "path=5 is no folder; pass its name"),
    ],
)
def test_other_kinds_of_arguments_are_refused_by_name(options, told):
    with pytest.raises(CampaignError, match=told):
        campaign(nets.samples(), nets.perceptron(), **options)


def test_no_sample_and_one_without_a_batch_are_refused():
    x, labels = nets.samples()
    with pytest.raises(CampaignError, match="there is no sample"):
        tensors((x[:0], labels[:0]))
    with pytest.raises(CampaignError, match=r"pass \(x\[:1\], y\[:1\]\)"):
        tensors((x[0], labels[0]))
