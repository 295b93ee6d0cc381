"""Ctrl-C wherever it may come in a campaign: the model is left as it was."""

from __future__ import annotations

import pandas as pd
import torch

from evaluated import flips
from interrupting import interrupted_everywhere
from nets import perceptron, quantised, quantised_linear, samples, state, unchanged
from torch import nn

from pystack_nb import faults
from pystack_nb.faults.engine import Engine, EngineData


STRIKING = ("engine_weights.py", "engine_direct.py", "engine_seeded.py")
X = samples(2)[0]


def left_as_it_was(model):
    before = state(model)

    def check(place):
        assert unchanged(model, before), place

    return check


def weight_faults(model, count):
    return flips(model, [X], count, kind="weight")


def test_a_weight_that_the_engine_strikes_is_put_back():
    model = perceptron()
    engine, rows = Engine(model, EngineData([X])), weight_faults(model, 4)
    expected = engine.evaluate(rows)
    where = (*STRIKING, "engine_evaluation.py")
    check = left_as_it_was(model)
    assert interrupted_everywhere(lambda: engine.evaluate(rows), check, *where) > 100
    assert engine.evaluate(rows).equals(expected)


class Quantised(nn.Module):
    """Has a quantised buffer of its own, and changes another one whenever it runs."""

    def __init__(self):
        super().__init__()
        self.register_buffer("codes", quantised(torch.linspace(-1, 1, 9).reshape(3, 3)))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return x @ self.codes.dequantize()


def test_a_quantised_buffer_that_is_struck_to_see_what_becomes_of_it_is_put_back():
    model = Quantised().eval()
    rows = weight_faults(model, 12)
    rows = rows[rows["role"] == "codes"].head(2).reset_index(drop=True)
    engine = Engine(model, EngineData([X]))
    check = left_as_it_was(model)
    assert len(rows) == 2
    assert interrupted_everywhere(lambda: engine.evaluate(rows), check, *STRIKING) > 30


def test_a_packed_weight_that_the_engine_strikes_is_put_back():
    model = quantised_linear()
    rows = weight_faults(model, 2)
    engine = Engine(model, EngineData([X]))
    packed = model[0].weight().int_repr().clone(), model[0].bias().clone()

    def check(place):
        assert torch.equal(model[0].weight().int_repr(), packed[0]), place
        assert torch.equal(model[0].bias(), packed[1]), place

    assert interrupted_everywhere(lambda: engine.evaluate(rows), check, *STRIKING) > 30


def test_a_campaign_puts_back_what_it_struck():
    model, data = perceptron(), samples(2)
    for options in (
        {"error_model": faults.BitFlip()},
        {"error_model": faults.Noise(1.0), "pattern": faults.Row(dim=0)},
    ):

        def run(options=options):
            kept = {"seed": 0, "sites": "weights", "error": 0.9, "confidence": 0.5}
            faults.Campaign(model, data, **options, **kept).run(progress=False)

        check = left_as_it_was(model)
        where = ("engine_weights.py", "engine_seeded.py")
        assert interrupted_everywhere(run, check, *where, step=3) > 30


def test_a_campaign_that_is_broken_off_ends_with_the_same_table():
    model, data = perceptron(), samples(2)
    kept = {"seed": 0, "sites": "weights", "faults": 40}
    expected = faults.Campaign(model, data, **kept).run(progress=False)
    broken = []

    def run():
        broken.append(faults.Campaign(model, data, **kept))
        broken[-1].run(progress=False)

    def check(place):
        if not broken:
            return  # it was not there yet
        found = broken.pop().run(progress=False)
        pd.testing.assert_frame_equal(found, expected, check_exact=True, obj=str(place))

    assert interrupted_everywhere(run, check, "campaign.py", step=3) > 40


def test_models_that_are_looked_at_keep_no_hooks_and_give_their_numbers():
    model = perceptron()
    modules = [*model.modules()]

    def looked_at():
        faults.sites(model, X)
        program = Engine(model, EngineData([X])).program
        assert program is not None

    def check(place):
        for module in modules:
            assert not module._forward_hooks, place
            assert not module._forward_pre_hooks, place
        for tensor in model.parameters():
            tensor.data.numpy()
            assert tensor.tolist() is not None, place

    assert interrupted_everywhere(looked_at, check, "engine_trace.py", "trace.py", step=7) > 60
