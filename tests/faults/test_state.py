"""What is put back after forwards."""

import torch

from interrupting import interrupted_everywhere
from nets import state, unchanged
from torch import nn

from pystack_nb.faults.state import repeatable, untouched


def test_cudnn_is_as_it_was_when_the_last_of_several_ends():
    flags = torch.backends.cudnn
    before = flags.benchmark, flags.deterministic
    try:
        flags.benchmark, flags.deterministic = True, False
        one, other = (repeatable(torch.device("cuda")) for _ in range(2))
        # As two threads do that begin together.
        one.__enter__()
        other.__enter__()
        one.__exit__(None, None, None)
        assert (flags.benchmark, flags.deterministic) == (False, True)
        other.__exit__(None, None, None)
        assert (flags.benchmark, flags.deterministic) == (True, False)
    finally:
        flags.benchmark, flags.deterministic = before


class Changing(nn.Module):
    """Changes a buffer, and puts another object in the place of an attribute."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.seen = None

    def forward(self, x):
        self.count += 1
        self.seen = x
        self.more = x
        return x


def test_what_forwards_change_is_put_back_wherever_an_interrupt_comes():
    model = nn.Sequential(Changing(), nn.BatchNorm1d(3))
    before = state(model)
    held = [dict(module.__dict__) for module in model.modules()]
    generators = torch.get_rng_state()

    def run():
        with untouched(model):
            model(torch.randn(2, 3))

    def check(place):
        assert unchanged(model, before), place
        assert [dict(module.__dict__) for module in model.modules()] == held, place
        assert torch.equal(torch.get_rng_state(), generators), place

    assert interrupted_everywhere(run, check, "state.py") > 30
