"""Operations for which the last bit of a number may decide: no batch is followed through them."""

from __future__ import annotations

import pytest
import torch

from evaluated import check, flips
from torch import nn
from torch.nn import functional

from pystack_nb.faults.engine import Engine, EngineData
from pystack_nb.faults.metrics import Exact


class Near(nn.Module):
    """Adds up numbers in two ways, and does something with the difference, which is about 0."""

    def __init__(self, function, beside):
        super().__init__()
        self.first, self.mid, self.last = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        self.function, self.beside = function, beside

    def forward(self, x):
        h = torch.relu(self.first(x))
        z = self.mid(h)
        other = (h @ self.mid.weight.t() + self.mid.bias).sum(1)
        found = self.function(other - z.sum(1))
        given = self.last(torch.relu(z))
        return (given, found) if self.beside else given + 10 * found[:, None] * given.roll(1, 1)


NEAR_ZERO = {
    "sqrt": torch.sqrt,
    "acos": lambda x: torch.acos(1 + x),
    "log of one more": lambda x: torch.log(x + 1e-9).nan_to_num(0),
}
STEEP = {
    "reciprocal": lambda x: torch.atan(1 / x),
    "inverse root": lambda x: torch.atan(torch.rsqrt(x.square())),
    "quotient": lambda x: x / (x.abs() + 1e-12),
    "logarithm of a square": lambda x: torch.log(x.square() + 1e-14) / 10,
    "logarithm of a variance": lambda x: torch.stack([x, -x], 1).var(1).add(1e-14).log() / 10,
    "root of a norm": lambda x: x.square().sqrt().sqrt().sqrt(),
    "overwritten": lambda x: _overwritten(x.exp()).log().nan_to_num(0, 0, 0),
    "with a number below zero": lambda x: (torch.full((1,), -1.0) + x.exp()).sqrt().nan_to_num(0),
    "of a complex number": lambda x: torch.complex(-torch.ones_like(x), x).log().imag,
}
JUMPS = {
    "rounds": lambda x: (x + 0.5).round(),
    "rounds down": torch.floor,
    "sign": torch.sign,
    "compares": lambda x: (x > 0).float(),
    "chooses": lambda x: torch.stack([x, 0 * x], 1).argmax(1).float(),
    "sorts": lambda x: torch.stack([x, 0 * x], 1).sort(1)[1][:, 0].float(),
    "casts": lambda x: (1e6 * x).long().float(),
    "rounds, by its other name": lambda x: torch.special.round(x + 0.5),
    "divides and rounds down": lambda x: torch.divide(x, 1.0, rounding_mode="floor"),
    "counts": lambda x: torch.stack([x, x], 1).norm(p=0, dim=1),
    "angle": lambda x: torch.angle(torch.complex(-torch.ones_like(x), x)),
    "casts to a byte": lambda x: (x + 1.0625).to(torch.float8_e4m3fn).float(),
    "an operation of somebody's": lambda x: _rounded(x + 0.5),
    "quantises": lambda x: torch.fake_quantize_per_tensor_affine(x + 0.5, 1.0, 0, -4, 4),
}


@torch.library.custom_op("pystack_nb_tests::rounded", mutates_args=())
def _rounded(x: torch.Tensor) -> torch.Tensor:
    return x.round()


def _overwritten(x):
    x[:].sub_(1)
    return x


EVERYTHING = NEAR_ZERO | STEEP | JUMPS


def nets(seeds, function, *, beside=False, kind=Near):
    """Give some seeds, with a network and inputs of each."""
    for seed in range(seeds):
        torch.manual_seed(seed)
        yield seed, kind(function, beside).eval(), [torch.randn(6, 16)]


@pytest.mark.parametrize("name", EVERYTHING)
def test_where_a_last_bit_decides_outcomes_are_those_of_single_faults(name):
    for seed, net, inputs in nets(2, EVERYTHING[name]):
        check(net, inputs, faults=flips(net, inputs, 400, seed, "neuron"))


@pytest.mark.parametrize("name", NEAR_ZERO)
def test_an_output_beside_the_main_one_is_no_number_where_it_is_not_by_itself(name):
    for seed, net, inputs in nets(3, NEAR_ZERO[name], beside=True):
        check(net, inputs, faults=flips(net, inputs, 400, seed, "neuron"))


def test_weights_on_several_samples_at_once_jump_as_they_do_on_one():
    for seed, net, inputs in nets(3, JUMPS["compares"]):
        faults = flips(net, inputs, 100, seed, "weight").assign(sample=0)
        check(net, inputs, faults=faults, weight_samples=6)


def test_whole_numbers_that_are_the_output_hang_on_jumps():
    class Counts(Near):
        def forward(self, x):
            given = super().forward(x)
            return (20 * given).round().long()

    for seed, net, inputs in nets(2, JUMPS["compares"], kind=Counts):
        check(net, inputs, faults=flips(net, inputs, 200, seed, "neuron"))


class Between(nn.Module):
    """A function between two layers."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(16, 16), nn.Linear(16, 4), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def last_jump(net, *inputs):
    return Engine(net.eval(), EngineData(list(inputs)), Exact()).program.last_jump


def test_the_last_jump_is_where_it_is():
    jump, smooth = (lambda x: x * (x > 0)), torch.tanh
    x = torch.randn(4, 16)
    one = last_jump(nn.Sequential(Between(jump), nn.Linear(4, 4)), x)
    other = last_jump(nn.Sequential(Between(smooth), nn.Linear(4, 16), Between(jump)), x)
    assert 0 < one < other


SMOOTH = {
    "root mean square": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "unit vectors": lambda x: functional.normalize(x, dim=-1),
    "divided by the norm": lambda x: x / torch.sqrt((x * x).sum(-1, keepdim=True)),
    "logarithm of a sum of exponentials": lambda x: x - x.exp().sum(-1, keepdim=True).log(),
    "standardised": lambda x: x / torch.sqrt(x.var(-1, keepdim=True) + 1e-5),
    "entropy": lambda x: x.softmax(-1) * torch.log(x.softmax(-1) + 1e-9),
    "largest": lambda x: x - x.max(-1, keepdim=True)[0],
    "sorted": lambda x: x.topk(16)[0],
    "cubed": lambda x: x**3,
    "generalised mean": lambda x: x.clamp(min=1e-6).pow(3.0).mean(-1, True).pow(1 / 3) + x,
    "logarithm of probabilities": lambda x: x.softmax(-1).clamp(min=1e-9).log(),
    "logarithmic spectrum": lambda x: torch.fft.fft(x).abs().square().clamp(min=1e-10).log10(),
    "moments": lambda x: x / torch.sqrt(torch.var_mean(x, -1, keepdim=True)[0] + 1e-5),
    "exponential": lambda x: 2**x,
    "of rectified": lambda x: torch.log1p(x.relu()),
    "unit vectors by hand": lambda x: x / torch.linalg.norm(x, dim=-1, keepdim=True),
    "without infinities": lambda x: torch.where(torch.isinf(x), 0.0, x),
    "normalised": nn.LayerNorm(16),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_usual_layers_do_not_jump(name):
    net = Between(SMOOTH[name])
    assert last_jump(net, torch.randn(4, 16)) == 0
    check(net, [torch.randn(4, 16)])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x.pow(2) - 1).relu().sqrt(),
        lambda x: (x.exp() - 1).abs().log(),
        lambda x: torch.sub(x.exp(), 1).abs().sqrt(),
        lambda x: torch.add(x.exp(), x.exp(), alpha=-1).sqrt().nan_to_num(),
        lambda x: torch.pow(x.abs(), 0.3),
        lambda x: x.div(0.1, rounding_mode="floor"),
        lambda x: functional.threshold(x, 0.1, 20.0),
        lambda x: functional.hardshrink(x, 0.1),
    ],
)
def test_differences_and_steps_are_known_by_what_they_are_made_of(function):
    assert last_jump(Between(function), torch.randn(4, 16)) > 0


def test_masks_of_the_input_do_not_jump():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x, mask):
            scores = self.layer(x) @ x.transpose(1, 2)
            causal = torch.ones(len(x), 5, 5).tril()
            scores = scores.masked_fill((mask == 0)[:, None], float("-inf"))
            scores = scores.masked_fill((1 - mask.float()).bool()[:, None], float("-inf"))
            scores = scores.masked_fill(causal == 0, float("-inf"))
            return (scores.softmax(-1) @ x).sum(1) / mask.sum(1, keepdim=True)

    for mask in (torch.ones(4, 5), torch.ones(4, 5, dtype=torch.long)):
        assert last_jump(Masked(), torch.randn(4, 5, 8), mask) == 0
        check(Masked(), [torch.randn(4, 5, 8), mask], faults=None)


def test_predictions_beside_the_output_do_not_jump():
    class Predicts(Between):
        def forward(self, x):
            given = super().forward(x)
            return given, given.argmax(1)

    assert last_jump(Predicts(torch.relu), torch.randn(4, 16)) == 0
