"""The forwards of layers as events of a recording."""

from __future__ import annotations

import contextlib
import copy
import threading

import pytest
import torch

from interrupting import interrupted_everywhere
from nets import Dictionary, Residual, Shared, kinds, lenet, perceptron, state, unchanged
from recorded import layers_of, recorded
from torch import nn

from pystack_nb import faults, mark
from pystack_nb.errors import FaultError


def annotated(model, *args, times=1, **kwargs):
    def run():
        with faults.annotate(model):
            for _ in range(times):
                model(*args, **kwargs)

    return recorded(run)


def test_each_forward_of_each_layer_is_a_span_within_that_of_its_container():
    model = nn.Sequential(lenet(), nn.Softmax(1)).eval()
    rec = annotated(model, torch.randn(2, 1, 8, 8), times=2)
    names = ["(model)", "0", *(f"0.{x}" for x in range(6)), "1"]
    assert layers_of(rec) == [(name, 0) for name in names] * 2
    first = rec.events[:9].set_index("name")
    ends = first["ts_ns"] + first["dur_ns"]
    for inner, outer in [("0", "(model)"), ("0.5", "0"), ("1", "(model)")]:
        assert first["ts_ns"][outer] <= first["ts_ns"][inner]
        assert ends[inner] <= ends[outer]
    assert ends["0.0"] <= first["ts_ns"]["0.1"]
    args = first["args"]["0.0"]
    assert args.pop("model") == first["args"]["(model)"]["model"]
    assert args == {"call": 0, "type": "Conv2d", "device": "cpu"}


def test_a_layer_that_runs_twice_has_two_calls_and_its_first_name():
    rec = annotated(Shared().eval(), torch.randn(1, 4, 5, 5), times=2)
    once = [("(model)", 0), ("early", 0), ("early", 1), ("late", 0)]
    assert layers_of(rec) == once * 2


@pytest.mark.parametrize("kind", sorted(kinds()))
def test_every_kind_of_module_has_the_layers_of_its_sites_and_stays_as_it_is(kind):
    model, args = kinds()[kind]
    model.eval()
    before = state(model)
    rec = annotated(model, *args)
    ran = faults.sites(model, *args).query("kind == 'neuron'")
    assert {x for x, _ in layers_of(rec)} >= set(ran["layer"])
    assert unchanged(model, before)


def test_what_a_model_was_given_is_told_by_shape_and_type():
    rec = annotated(Dictionary(), torch.randn(2, 3), scale=2.0)
    args = rec.events["args"][0]
    assert args["inputs"] == (
        '[{"tuple":[{"tensor":"float32","shape":[2,3]}]},{"dict":{"scale":{"value":2.0}}}]'
    )
    assert (args["grad"], args["training"], args["synchronized"]) == (True, True, False)


def test_an_exception_in_a_forward_ends_the_spans_it_passes_and_is_named():
    model = lenet()

    def run():
        with faults.annotate(model), contextlib.suppress(RuntimeError):
            model(torch.randn(2, 1, 7, 7))
        assert unchanged(model, before)

    before = state(model)
    rec = recorded(run)
    raised = dict(zip(rec.events["name"], ("raised" in x for x in rec.events["args"]), strict=True))
    assert [x for x in raised if raised[x]] == ["(model)", "5"]
    assert rec.events["args"][0]["raised"] == "RuntimeError"


def stop(module, args):
    raise KeyboardInterrupt


class Interrupted(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.interrupt = nn.Identity()

    def forward(self, x):
        if self.training:
            self.stopping = self.interrupt.register_forward_pre_hook(stop)
        return self.interrupt(self.inner(x))


def test_an_interrupt_leaves_no_hook_and_ends_the_spans_with_the_block():
    model = Interrupted()

    def run():
        with contextlib.suppress(KeyboardInterrupt), faults.annotate(model):
            model(torch.ones(1, 2))

    rec = recorded(run)
    args = dict(zip(rec.events["name"], rec.events["args"], strict=True))
    assert args["(model)"]["raised"] == "KeyboardInterrupt"
    assert "raised" not in args["inner"]
    model.stopping.remove()
    assert unchanged(model, state(model))


def test_no_hook_is_left_wherever_an_interrupt_comes():
    model = nn.Sequential(nn.Linear(2, 2))
    before = state(model)

    def run():
        with faults.annotate(model), faults.annotate(model[0]):
            model(torch.ones(1, 2))

    def check(place):
        assert unchanged(model, before), place

    assert interrupted_everywhere(lambda: recorded(run), check, "annotate.py") > 100
    assert layers_of(recorded(run)) == [("(model)", 0), ("0", 0), ("(model)", 0)]


def test_a_forward_after_an_interrupted_one_begins_anew():
    model = Interrupted()

    def run():
        with faults.annotate(model):
            with contextlib.suppress(KeyboardInterrupt):
                model(torch.ones(1, 2))
            model.stopping.remove()
            model.eval()
            model(torch.ones(1, 2))

    rec = recorded(run)
    assert layers_of(rec)[-3:] == [("(model)", 0), ("inner", 0), ("interrupt", 0)]
    assert ["raised" in x for x in rec.events["args"]][-3:] == [False] * 3


def test_an_exception_that_is_being_handled_around_the_forward_is_not_the_layer_s():
    model = perceptron()

    def run():
        with faults.annotate(model):
            try:
                _ = 1 / 0
            except ZeroDivisionError:
                model(torch.ones(1, 3))

    assert not any("raised" in x for x in recorded(run).events["args"])


def test_forwards_in_several_threads_do_not_mix():
    model = perceptron()

    def run():
        with faults.annotate(model):
            threads = [
                threading.Thread(target=lambda: [model(torch.ones(1, 3)) for _ in range(50)])
                for _ in range(3)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    rec = recorded(run)
    for _, events in rec.events.groupby("tid"):
        assert events["name"].tolist() == ["(model)", "first", "relu", "last"] * 50
        assert {x["call"] for x in events["args"]} == {0}


def test_layers_lie_within_the_marks_around_them():
    model = perceptron()

    def run():
        with mark("batch", number=1), faults.annotate(model):
            model(torch.ones(1, 3))

    rec = recorded(run)
    batch = rec.events[rec.events["kind"] == "mark"].iloc[0]
    layers = rec.events[rec.events["kind"] == "layer"]
    end_ns = batch["ts_ns"] + batch["dur_ns"]
    assert layers["ts_ns"].between(batch["ts_ns"], end_ns).all()
    assert (layers["ts_ns"] + layers["dur_ns"] <= end_ns).all()


def test_without_a_recording_nothing_happens_and_with_one_outputs_are_the_same():
    model, x = Residual().eval(), torch.randn(2, 3)
    plain = model(x)
    with faults.annotate(model, synchronize=True):
        assert torch.equal(model(x), plain)
        copied = copy.deepcopy(model)
    assert torch.equal(copied(x), plain)
    assert unchanged(model, {})


def test_what_is_no_model_is_refused():
    with pytest.raises(FaultError, match="pass the model itself"), faults.annotate(lambda x: x):
        pass


def test_a_forward_that_was_interrupted_and_caught_is_told_and_ends_with_its_last_layer():
    model = Interrupted()

    def run():
        with faults.annotate(model):
            with contextlib.suppress(KeyboardInterrupt):
                model(torch.ones(1, 2))
            model.stopping.remove()
            with mark("between"):
                model.eval()
            model(torch.ones(1, 2))
            with contextlib.suppress(KeyboardInterrupt):
                model.train()(torch.ones(1, 2))

    events = recorded(run).events
    roots = events[events["name"] == "(model)"]
    raised = [x.get("raised") for x in roots["args"]]
    assert raised == ["interrupted", None, "interrupted"]
    between = events.loc[events["kind"] == "mark", "ts_ns"].item()
    assert roots["ts_ns"].iloc[0] + roots["dur_ns"].iloc[0] <= between


class Recursive(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x, depth=2):
        return self.linear(self(x, depth - 1) if depth else x)


def test_a_model_that_calls_itself_has_spans_within_each_other():
    rec = annotated(Recursive(), torch.ones(1, 2), times=2)
    calls = [("(model)", 0), ("(model)", 1), ("(model)", 2), ("linear", 0), ("linear", 1)]
    assert layers_of(rec) == [*calls, ("linear", 2)] * 2
    ends = rec.events["ts_ns"] + rec.events["dur_ns"]
    assert ends[0] >= ends[1] >= ends[2]
    assert not any("raised" in x for x in rec.events["args"])


def test_annotating_a_model_twice_tells_once_until_the_first_ends():
    model, x = perceptron(), torch.ones(1, 3)

    def run():
        with faults.annotate(model):
            with faults.annotate(model):
                model(x)
            model(x)
        model(x)

    names = ["(model)", "first", "relu", "last"]
    assert layers_of(recorded(run)) == [(name, 0) for name in names] * 2
    assert unchanged(model, {})


def test_a_copy_that_was_made_while_its_original_was_annotated_tells_nothing():
    model = perceptron()

    def run():
        with faults.annotate(model):
            copy.deepcopy(model)(torch.ones(1, 3))

    assert layers_of(recorded(run)) == []
