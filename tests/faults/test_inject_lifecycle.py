"""Injections in forwards that are broken off or run at once, and in models that are copied."""

from __future__ import annotations

import copy
import io
import pickle
import threading

import pytest
import torch

from nets import perceptron, same_bits, samples, state, unchanged
from torch import nn

from pystack_nb.faults import Fault, Replace, bits, inject


X = samples(2)[0]


class Fragile(nn.Module):
    """Runs a layer, before or after which it may be interrupted."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.breaks = nn.Identity()
        self.depth = 0

    def forward(self, x):
        if self.depth:
            self.depth -= 1
            return self(self.layer(x))
        return self.breaks(self.layer(x))


def interrupt(*_):
    raise KeyboardInterrupt


def break_off(model, x=X):
    hook = model.breaks.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(x)
    hook.remove()


def test_after_an_interrupted_forward_the_next_ones_are_struck():
    model = Fragile()
    with inject(model, Fault("layer", index=(0, 0), error=Replace(9.0))) as log:
        break_off(model)
        assert [model(X)[0, 0].item() for _ in range(2)] == [9, 9]
    assert [(one.forward, one.call) for one in log.injections] == [(0, 0), (1, 0), (2, 0)]


def test_a_transient_weight_is_put_back_when_the_forward_after_an_interrupted_one_begins():
    model = Fragile()
    before, clean = state(model), model(X)
    with inject(model, Fault("layer", "weight", (0, 0), Replace(9.0), when=0)):
        break_off(model)
        assert same_bits(model(X), clean)
        break_off(model)
        assert same_bits(model.layer.weight, before["layer.weight"])
    assert unchanged(model, before)


@pytest.mark.parametrize("when", [None, 0])
def test_an_interrupt_while_a_weight_is_put_back_does_not_keep_it_from_being_put_back(
    when, monkeypatch
):
    model, write, done = Fragile(), bits.write, []
    before = state(model)

    def interrupted(*args):
        if not done:
            done.append(args)
            raise KeyboardInterrupt
        write(*args)

    monkeypatch.setattr(bits, "write", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        inject(model, Fault("layer", "weight", when=when), Fault("layer", "bias")),
    ):
        model(X)
    assert done
    assert unchanged(model, before)


def test_a_layer_that_runs_alone_after_an_interrupted_forward_is_not_taken_for_a_part_of_it():
    model = Fragile()
    with inject(model, Fault("layer", index=(0, 0), error=Replace(9.0))) as log:
        break_off(model)
        model.layer(X)
    assert [(one.forward, one.call) for one in log.injections] == [(0, 0), (1, 0)]


def test_a_model_that_calls_itself_is_one_forward():
    model = Fragile()
    weight = Fault("layer", "weight", (0, 0), Replace(9.0), when=0)
    with inject(model, Fault("layer", call=None), weight) as log:
        model.depth = 2
        model(X)
        model(X)
    of_outputs = [(one.forward, one.call) for one in log.injections if one.role == "output"]
    assert of_outputs == [(0, 0), (0, 1), (0, 2), (1, 0)]


def test_a_part_that_is_interrupted_and_tried_again_is_a_further_call_of_one_forward():
    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = Fragile()

        def forward(self, x):
            break_off(self.part)
            return self.part(x)

    model = Tries()
    before = state(model)
    weight = Fault("part.layer", "weight", (0, 0), Replace(9.0), when=1)
    with inject(model, Fault("part", call=1), Fault("part.layer", call=None), weight) as log:
        model(X)
        model(X)
        assert same_bits(model.part.layer.weight, before["part.layer.weight"])
    seen = [(one.fault, one.forward, one.call) for one in log.injections]
    assert seen == [(1, 0, 0), (1, 0, 1), (0, 0, 1), (2, 1, 0), (1, 1, 0), (1, 1, 1), (0, 1, 1)]


def test_each_thread_has_forwards_of_its_own():
    class Meets(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.barrier = threading.Barrier(2, timeout=30)

        def forward(self, x):
            self.barrier.wait()
            y = self.layer(x)
            self.barrier.wait()
            return y

    model, given = Meets(), []
    with inject(model, Fault("layer", index=(0, 0), error=Replace(9.0))) as log:
        threads = [threading.Thread(target=lambda: given.append(model(X))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        model.barrier = threading.Barrier(1)
        given.append(model(X))
    assert [one[0, 0].item() for one in given] == [9, 9, 9]
    assert sorted((one.forward, one.call) for one in log.injections) == [(0, 0), (1, 0), (2, 0)]


def test_copies_of_a_model_do_not_take_the_hooks_with_them():
    model = perceptron()
    clean = model(X)

    def saved(model):
        file = io.BytesIO()
        torch.save(model, file)
        return torch.load(io.BytesIO(file.getvalue()), weights_only=False)

    transient = Fault("last", "weight", (0, 0), Replace(9.0), when=0)
    with inject(model, Fault("first", index=(0, 0), error=Replace(9.0)), transient) as log:
        struck = model(X)
        twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), saved(model)]
        within = [twin(X) for twin in twins]
        assert len(log) == 2
    assert not same_bits(struck, clean)
    assert all(same_bits(given, clean) for given in within)
    assert all(same_bits(twin(X), clean) for twin in twins)


def test_replicas_of_a_layer_are_struck_as_further_calls_of_it():
    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = perceptron()

        def forward(self, x):
            replicas = [self.module, copy.copy(self.module)]
            return torch.cat([each(part) for each, part in zip(replicas, x.chunk(2), strict=True)])

    model = Parallel()
    clean = model(X)
    for layer in ("module", "module.last"):
        with inject(model, Fault(layer, index=(0, 0), error=Replace(9.0), call=1)) as log:
            given = model(X)
        assert given[1, 0] == 9
        assert same_bits(given[0], clean[0])
        assert [(one.forward, one.call) for one in log.injections] == [(0, 1)]
    assert same_bits(model(X), clean)
