"""Models that try to mislead the engine: outcomes are those of one fault per forward."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import reference
import torch

from evaluated import check, flips
from torch import nn
from torch.nn import functional

from pystack_nb.faults.engine import Engine, EngineData
from pystack_nb.faults.engine_weights import Weight
from pystack_nb.faults.metrics import Exact, Top1, TopK


pytestmark = pytest.mark.usefixtures("one_way_of_attention")


def of_weights(net, inputs, count=150, role=None):
    """Draw flips of the ten highest bits of weights."""
    faults = flips(net, inputs, 40 * count, kind="weight")
    if role is not None:
        faults = faults[faults["role"] == role]
    faults = faults[faults["bit"] >= 22].head(count)
    assert len(faults) == count
    return faults.reset_index(drop=True)


def set_to(faults, numbers):
    """Let faults write float32 numbers."""
    stored = np.asarray(numbers, np.float32).view(np.uint32).astype(np.uint64)
    return faults.assign(and_mask=np.uint64(0), xor_mask=np.uint64(0), or_mask=stored)


class Transposed(nn.Module):
    """Its layer uses a view of the parameter that has the parameter's shape."""

    class Layer(nn.Module):
        def __init__(self, owner):
            super().__init__()
            self.__dict__["owner"] = owner

        def forward(self, x):
            return functional.linear(x, self.owner.view)

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 6))
        self.view = self.w.data.t()
        self.layer = self.Layer(self)
        self.out = nn.Linear(6, 5)

    def forward(self, x):
        return self.out(torch.relu(self.layer(x)))


class TestWeightsStruckInSeveralChannelsAtATime:
    def test_are_not_those_that_a_layer_sees_transposed(self):
        net, inputs = Transposed().eval(), [torch.randn(5, 6)]
        check(net, inputs, Exact(), faults=of_weights(net, inputs, role="w"))

    def test_are_not_those_whose_memory_a_bias_shares(self):
        net, inputs = (
            nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5)),
            [torch.randn(5, 6)],
        )
        net[0].bias = nn.Parameter(net[0].weight.data.view(-1)[:6])
        check(net, inputs, Exact(), faults=of_weights(net, inputs, 400))


class Weighted(nn.Module):
    """Adds tensors with a factor, which vector instructions round once and others twice."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.last, self.kind = nn.Identity(), nn.Identity(), kind

    def forward(self, x):
        x = self.first(x)
        if self.kind == "add":
            x = torch.add(x, x.abs(), alpha=0.3)
        elif self.kind == "sub":
            x = torch.sub(x, x.flip(-1), alpha=0.3)
        else:
            x = torch.add(x, 1.7, alpha=0.3)
        return self.last(x)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.same = nn.Identity()

    def forward(self, x):
        z = torch.view_as_complex(self.same(x))
        return torch.view_as_real(z * z.flip(-1)).flatten(1)


class TestOperationsThatRoundARowByItsPlaceInABatch:
    @pytest.mark.parametrize(
        ("kind", "dtype"),
        [
            ("add", torch.bfloat16),
            ("sub", torch.bfloat16),
            ("number", torch.float32),
            ("number", torch.float64),
        ],
    )
    def test_are_sums_with_a_factor(self, kind, dtype):
        net, inputs = Weighted(kind).to(dtype), [torch.randn(9, 5).to(dtype)]
        faults = flips(net, inputs, 80)
        low = (faults["bit"] % 4).to_numpy(np.uint64)
        check(net, inputs, Exact(), faults=faults.assign(xor_mask=np.uint64(1) << low))

    def test_are_those_on_complex_numbers(self):
        net, inputs = Complex(), [torch.randn(9, 5, 2)]
        check(net, inputs, Exact(), faults=flips(net, inputs, 120))


class Indexed(nn.Module):
    """Has a table and places in it, as Swin's attention."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 5)
        self.table = nn.Parameter(torch.randn(9, 5))
        self.register_buffer("index", torch.tensor([1, 3, 5]))

    def forward(self, x):
        return self.linear(x) + self.table[self.index].sum(0)


class Factored(nn.Module):
    def __init__(self):
        super().__init__()
        half = torch.randn(4, 4)
        self.w = nn.Parameter(half @ half.T + torch.eye(4))

    def forward(self, x):
        return x @ torch.linalg.cholesky(self.w)


class TestWhatIsComputedFromWeightsAlone:
    @pytest.mark.parametrize("several", [None, 3])
    @pytest.mark.parametrize(("make", "role"), [(Indexed, "index"), (Factored, "w")])
    def test_may_fail_under_a_fault(self, make, role, several):
        net, inputs = make().eval(), [torch.randn(5, 4)]
        faults = flips(net, inputs, 400, kind="weight")
        faults = faults[faults["role"] == role].head(60).reset_index(drop=True)
        engine = Engine(net, EngineData(inputs))
        assert engine.program is not None
        found = check(net, inputs, faults=faults, weight_samples=several)
        assert "DUE" in set(found["outcome"])
        assert found.attrs["ways"]["direct"] == 0


class Masked(nn.Module):
    """Gives classes that can't be, as language models do."""

    def __init__(self, number):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))
        self.number = number

    def forward(self, x):
        y = self.inner(x)
        return torch.cat([y, torch.full_like(y[:, :1], self.number)], 1)


class TestOutputsWithInfinities:
    @pytest.mark.parametrize("metric", [Top1(), TopK(2), TopK(4)], ids=repr)
    @pytest.mark.parametrize("number", [-math.inf, math.inf])
    def test_are_judged_by_their_finite_numbers(self, number, metric):
        net, inputs = Masked(number), [torch.randn(6, 6)]
        found = check(net, inputs, metric, torch.arange(6) % 4, flips(net, inputs, 200))
        assert found.attrs["ways"]["alone"] < 60

    def test_do_not_hide_how_far_rounding_errors_go(self):
        net, inputs = Masked(-math.inf).eval(), [torch.randn(6, 6)]
        plain = Engine(net.inner, EngineData(inputs), batch_size=6)
        engine = Engine(net, EngineData(inputs), batch_size=6)
        plain.noise, engine.noise  # noqa: B018 - computes them
        assert engine.noise == plain.noise


class Reads(nn.Module):
    """Takes its numbers out of what it owns."""

    def __init__(self, way):
        super().__init__()
        self.linear, self.way = nn.Linear(4, 5), way
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("several", torch.rand(5))
        self.register_buffer("places", torch.tensor([3]))
        self.register_buffer("chosen", torch.tensor([True, False, True, True, False]))

    def forward(self, x):
        return self.way(self, torch.tanh(self.linear(x)))


READS = {
    "item": lambda own, y: y * own.scale.item(),
    "bool": lambda own, y: y.flip(-1) if own.flag else y,
    "int": lambda own, y: y.roll(int(own.places), -1),
    "list": lambda own, y: y * torch.tensor(own.several.tolist()),
    "numpy": lambda own, y: y * float(own.several.numpy()[0]),
    "equal": lambda own, y: y if torch.equal(own.several, own.several.sort().values) else -y,
    "nonzero": lambda own, y: y * own.chosen.nonzero().shape[0],
    "mask": lambda own, y: y * own.several[own.chosen].shape[0],
}


class TestNumbersThatAForwardTakesOutOfWeights:
    @pytest.mark.parametrize("way", READS.values(), ids=READS)
    def test_are_struck_there_and_read_anew_when_they_have_changed(self, way):
        net, inputs = Reads(way).eval(), [torch.randn(5, 4)]
        faults = flips(net, inputs, 400)
        own = (faults["layer"] == "(model)") & (faults["kind"] == "weight")
        faults = pd.concat([faults[own], faults[~own].head(40)], ignore_index=True)
        engine = Engine(net, EngineData(inputs), Exact())
        engine.evaluate(faults)
        net.scale.data.fill_(0.25)
        net.several.fill_(0.5)
        net.chosen[1] = True
        found = engine.evaluate(faults)
        expected = reference.evaluate(net, EngineData(inputs), faults, Exact())
        pd.testing.assert_frame_equal(found, expected, check_exact=True, check_dtype=False)
        assert not any(x.__dict__ for x in (*net.parameters(), *net.buffers()))


class Common(nn.Module):
    """Adds something to all numbers alike, and takes it out again: what is left is rounding."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 48), nn.Linear(48, 64)
        with torch.no_grad():
            self.second.weight[:, :24] = self.second.weight[:1, :24]
        self.norm, self.last = nn.LayerNorm(64), nn.Linear(64, 10)

    def forward(self, x):
        return self.last(self.norm(self.second(self.first(x))))


class TestRoundingErrorsOfLargeFaults:
    @pytest.mark.parametrize("several", [None, 8])
    @pytest.mark.parametrize("beside", ["numbers", "zeros"])
    def test_are_as_large_as_the_faults(self, beside, several):
        torch.manual_seed(0)
        net, inputs = Common().eval(), [torch.randn(8, 64)]
        if beside == "zeros":
            net.first.bias.data.zero_()
        faults = flips(net, inputs, 4000, kind="weight")
        mine = (faults["layer"] == "first") & (faults["role"] == "bias")
        faults = faults[mine & (faults["element"] < 24)].head(60).reset_index(drop=True)
        size = 10 ** np.random.default_rng(0).uniform(2, 7, len(faults))
        labels = torch.arange(8)
        check(net, inputs, TopK(3), labels, set_to(faults, size), weight_samples=several)


class TestAnInterrupt:
    def test_between_a_fault_and_what_undoes_it_leaves_no_bit_changed(self, monkeypatch):
        net, inputs = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)).eval(), [torch.randn(5, 4)]
        kept = {name: x.clone() for name, x in net.state_dict().items()}
        put_back, interrupts = Weight.put_back, [KeyboardInterrupt()]

        def interrupted(weight):
            if interrupts:
                raise interrupts.pop()
            put_back(weight)

        monkeypatch.setattr(Weight, "put_back", interrupted)
        faults = flips(net, inputs, 40, kind="weight")
        with pytest.raises(KeyboardInterrupt):
            Engine(net, EngineData(inputs)).evaluate(faults)
        assert all(torch.equal(x, kept[name]) for name, x in net.state_dict().items())


class Cancels(nn.Module):
    """Subtracts numbers that all have what the first neuron gives added to them."""

    def __init__(self, first):
        super().__init__()
        self.first = first
        self.spread, self.out = nn.Linear(48, 96, bias=False), nn.Linear(96, 4, bias=False)
        with torch.no_grad():
            self.spread.weight[:, 0] = self.spread.weight[0, 0]
            self.out.weight[:, 48:] = -self.out.weight[:, :48]

    def forward(self, x):
        return self.out(self.spread(self.first(x)))


class Times(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return x * self.weight


def test_small_samples_beside_large_ones_are_rounded_as_by_themselves():
    torch.manual_seed(0)
    net = Cancels(nn.Linear(8, 48)).eval()
    inputs = [torch.randn(6, 8) * torch.tensor([1e4, *[1e-4] * 5])[:, None]]
    faults = flips(net, inputs, 150, kind="neuron")
    faults["layer"], faults["role"], faults["element"], faults["call"] = "first", "output", 0, 0
    check(net, inputs, faults=set_to(faults, np.tile([1e5, 1e6, 1e7], 50)), batch_size=16)


@pytest.mark.parametrize(
    "first", [Times(torch.ones(48)), nn.Linear(48, 48)], ids=["times", "linear"]
)
def test_weights_of_large_numbers_beside_small_ones_are_rounded_as_by_themselves(first):
    torch.manual_seed(0)
    x = torch.randn(6, 48)
    x[:, 0] = 1e8
    with torch.no_grad():
        # The only large number in the input hardly counts until a fault strikes.
        first.weight[..., 0] = 1e-9
    net = Cancels(first).eval()
    faults = flips(net, [x], 100, kind="weight")
    faults["layer"], faults["role"], faults["element"] = "first", "weight", 0
    faults = set_to(faults, np.random.default_rng(0).uniform(0.01, 0.14, len(faults)))
    for weight_samples in (None, 6):
        check(net, [x], faults=faults, batch_size=16, weight_samples=weight_samples)
