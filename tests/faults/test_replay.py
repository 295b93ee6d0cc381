"""Faults of a campaign that are injected anew, each by itself."""

import dataclasses

from typing import ClassVar

import nets
import numpy as np
import pytest
import torch

from torch import nn

from pystack_nb.errors import CampaignError, FaultError
from pystack_nb.faults.campaign import Campaign
from pystack_nb.faults.fault import Fault
from pystack_nb.faults.injection import inject
from pystack_nb.faults.metrics import Metric, Verdict
from pystack_nb.faults.models import BitFlip, Noise, RandomValue, Sequence, StuckAt, Zero
from pystack_nb.faults.patterns import BitErrorRate, Channel, Element, Row, Several
from pystack_nb.faults.sites import sites


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 5, num_layers=2, batch_first=True)
        self.last = nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.lstm(x)[0][:, -1])


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.encoder(x + self.attention(x, x, x)[0]).mean(1))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


NETS = {
    "convolutional": (convolutional, (1, 8, 8)),
    "recurrent": (Recurrent, (6, 4)),
    "attentive": (Attentive, (6, 4)),
}
PATTERNS = [
    (BitFlip(), Channel(dim=-1)),
    (StuckAt(1, field="exponent"), Row()),
    (Noise(3.0), Several(3)),
    (BitFlip(), BitErrorRate(0.01)),
]


class Telling(Metric):
    """Judges by the class; its score hangs on every number of the output."""

    def judge(self, golden, faulty, labels):  # noqa: ARG002
        weights = torch.arange(1.0, 1 + golden[0].numel()).double().sqrt()
        score = (faulty.double().flatten(1) * weights).sum(1)
        return Verdict(golden.argmax(1) != faulty.argmax(1), score, None)


def network(name, dtype):
    """Give a network and its samples, alike each time."""
    make, shape = NETS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make().eval().to(dtype)
    inputs, labels = nets.samples(6, shape)
    return net, (inputs.to(dtype), labels)


def campaign(net, data, error, pattern=None, **options):
    given = {"seed": 3, "faults": 25, "metric": Telling()} | options
    one = Campaign(net, data, error, pattern=pattern, **given)
    one.run(progress=False)
    return one


def struck(one, row, fault, **options):
    """Run the model on the row's sample alone, with the fault: give output and log."""
    with torch.no_grad(), inject(one.model, fault, **options) as log:
        output = one.model(one.inputs[0][[row.sample]])
    return output, log.to_frame().drop(columns="time_ns")


def judged(one, row, faulty, log):
    """Give what a row of the results says."""
    values = (log["before"][0], log["after"][0]) if len(log) else (np.nan, np.nan)
    if not faulty.isfinite().all():
        return ("DUE", *values, np.nan)
    with torch.no_grad():
        golden = one.model(one.inputs[0][[row.sample]])
    said = one.metric.judge(golden, faulty, None)
    return ("SDC" if said.changed else "masked", *values, float(said.score))


def told(row):
    return row.outcome, row.before, row.after, row.score


def indices(one, row, log):
    """Give the struck elements, each with its number, and the shape of their tensor."""
    where = ["layer", "role", "call"]
    site = one.sites[one.sites[where].eq([getattr(row, x) for x in where]).all(axis=1)]
    shape = site["shape"].item()
    index = np.array(log["index"].tolist()).reshape(len(log), len(shape))
    return index, np.ravel_multi_index(index.T, shape), shape


def check_pattern(pattern, first, index, numbers, shape):
    assert len({*numbers}) == len(numbers)
    if isinstance(pattern, Several):
        assert len(numbers) == pattern.count
        return
    # The channel of the last dimension, or a row along it.
    assert numbers[0] == first
    channel = isinstance(pattern, Channel)
    shared = index[:, -1:] if channel else index[:, :-1]
    assert (shared == shared[0]).all()
    assert len(numbers) == (np.prod(shape) // shape[-1] if channel else shape[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("error", "pattern"), PATTERNS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("name", NETS)
def test_each_row_of_a_pattern_is_what_its_fault_does_alone(name, error, pattern, dtype):
    net, data = network(name, dtype)
    before = nets.state(net)
    one = campaign(net, data, error, pattern)
    assert set(one.results["kind"]) == {"neuron", "weight"}
    for row in one.results.itertuples():
        faulty, log = struck(one, row, one.fault(row.fault))
        np.testing.assert_equal(judged(one, row, faulty, log), told(row))
        # As the plan says it in words.
        by_seed = Fault(row.layer, row.role, pattern, error, call=row.call)
        again, same = struck(one, row, by_seed, seed=row.seed)
        assert nets.same_bits(faulty, again)
        np.testing.assert_equal(log.to_dict("list"), same.to_dict("list"))
        if not isinstance(pattern, BitErrorRate):
            check_pattern(pattern, row.element, *indices(one, row, log))
    assert nets.unchanged(net, before)


class Noted(BitFlip):
    """Notes which elements it is given."""

    seen: ClassVar[list] = []

    def change(self, elements, drawn):
        self.seen.append(elements.positions.tolist())
        super().change(elements, drawn)


@pytest.mark.parametrize("pattern", [Channel(dim=-1), Row(), Several(3), BitErrorRate(0.01)])
@pytest.mark.parametrize("name", NETS)
def test_a_fault_strikes_the_elements_that_it_struck_in_the_campaign(name, pattern):
    net, data = network(name, torch.float32)
    one = Campaign(net, data, Noted(), pattern=pattern, seed=5, faults=12)
    table = one.plan().faults
    for row in table.itertuples():
        Noted.seen.clear()
        one._own().evaluate(table.iloc[[row.Index]])
        *_, in_campaign = Noted.seen
        struck(one, row, one.fault(row.fault))
        assert Noted.seen[-1] == in_campaign


MASKED = [
    (BitFlip(), None),
    (BitFlip(bits=2, burst=True), Element()),
    (StuckAt(0, field="exponent"), None),
    (RandomValue(-50, 50), None),
    (Sequence(Zero(), BitFlip()), None),
    (Noise(2.0), None),
]


@pytest.mark.parametrize(("error", "pattern"), MASKED, ids=str)
def test_each_row_of_single_elements_is_what_its_fault_does_alone(error, pattern):
    net, data = network("convolutional", torch.float16)
    one = campaign(net, data, error, pattern)
    for row in one.results.itertuples():
        faulty, log = struck(one, row, one.fault(row.fault))
        np.testing.assert_equal(judged(one, row, faulty, log), told(row))
        assert indices(one, row, log)[1].tolist() == [row.element]
        assert log["bit"].tolist() == [row.bit] or isinstance(error, Noise)


@pytest.mark.parametrize("pattern", [None, Channel()])
@pytest.mark.parametrize("error", [BitFlip(), Zero(), RandomValue(-1, 1)], ids=str)
def test_a_row_of_a_quantised_weight_is_what_its_fault_does_alone(error, pattern):
    net, data = nets.quantised_linear(), nets.samples()
    table = sites(net, data[0][:1]).query("role == 'weight'")
    one = campaign(net, data, error, pattern, sites=table, faults=9)
    for row in one.results.itertuples():
        faulty, log = struck(one, row, one.fault(row.fault))
        np.testing.assert_equal(judged(one, row, faulty, log), told(row))


def test_a_fault_of_one_bit_of_a_pattern_strikes_that_bit():
    net, data = network("recurrent", torch.bfloat16)
    one = campaign(net, data, BitFlip(field="exponent"), Channel(dim=-1), per="layer,bit")
    for row in one.results.itertuples():
        faulty, log = struck(one, row, one.fault(row.fault))
        np.testing.assert_equal(judged(one, row, faulty, log), told(row))
        assert set(log["bit"]) == {row.bit}


def test_a_fault_is_there_after_a_resumption_too(tmp_path):
    net, data = network("recurrent", torch.float32)
    options = {"path": tmp_path, "allocation": "neyman", "faults": 1700, "metric": None}
    options |= {"sites": "neurons"}
    one = campaign(net, data, BitFlip(), **options)
    again = Campaign(net, data, BitFlip(), seed=3, **options)
    again.plan()
    assert [again.fault(x) for x in range(1700)] == [one.fault(x) for x in range(1700)]


def test_a_fault_in_a_forward_of_several_samples_needs_one_of_them():
    net, data = network("recurrent", torch.float32)
    one = campaign(net, data, BitFlip(), Row(), sites="neurons")
    for row in one.results.itertuples():
        fault = one.fault(row.fault)
        told = rf"sample {row.sample} alone, as in model\(inputs\[\[{row.sample}\]\]\)"
        with pytest.raises(FaultError, match=told), inject(net, fault):
            net(data[0])
        _, log = struck(one, row, fault)
        with inject(net, dataclasses.replace(fault, sample=row.sample)) as several:
            net(data[0])
        dim, several = fault.batch_dim, several.to_frame()
        of_one = [(*x[:dim], row.sample, *x[dim + 1 :]) for x in log["index"]]
        assert several["index"].tolist() == of_one
        assert several["bit"].tolist() == log["bit"].tolist()


def test_a_fault_that_is_not_there_is_named():
    net, data = network("convolutional", torch.float32)
    with pytest.raises(CampaignError, match=r"call plan\(\) or run\(\) first"):
        Campaign(net, data, seed=0, faults=20).fault(3)
    one = campaign(net, data, BitFlip())
    with pytest.raises(CampaignError, match="no fault 25; pass a number from 0 to 24"):
        one.fault(25)
    with pytest.raises(CampaignError, match="number=-1"):
        one.fault(-1)
    with pytest.raises(CampaignError, match=r"number=2\.5"):
        one.fault(2.5)
