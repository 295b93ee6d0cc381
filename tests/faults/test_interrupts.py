"""Ctrl-C wherever it may come: the model is left as it was."""

from __future__ import annotations

import torch

from interrupting import interrupted_everywhere
from nets import quantised_linear, samples, unchanged

from pystack_nb.faults import Fault, inject


X = samples(2)[0]
INJECTING = ("injection.py", "patches.py", "hooks.py", "elements.py")


def test_a_packed_weight_is_undone_wherever_an_interrupt_comes():
    model = quantised_linear()
    before = model[0].weight().int_repr().clone()

    def run():
        with inject(model, Fault("0", "weight", (0, 0)), Fault("0", "bias", 0, when=0)):
            model(X)

    def check(place):
        assert torch.equal(model[0].weight().int_repr(), before), place
        assert unchanged(model, {}), place

    assert interrupted_everywhere(run, check, *INJECTING) > 100
