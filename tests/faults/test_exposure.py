"""How long the bits of each layer are exposed, from recordings whose times are known."""

from __future__ import annotations

import contextlib
import math
import time

import numpy as np
import pandas as pd
import pytest
import torch

from nets import Shared, kinds, perceptron, samples, state, unchanged
from recorded import SECOND, recorded, timed
from synthetic import make_recording
from torch import nn

from pystack_nb import faults
from pystack_nb.errors import FaultError


MODELS = ["busy", "live", "uniform-bits", "macs"]


def by_site(table, column="bit_seconds"):
    sites = zip(table["layer"], table["role"], strict=True)
    return {site: round(x, 6) for site, x in zip(sites, table[column], strict=True)}


@pytest.mark.parametrize("told", [None, False, True])
@pytest.mark.parametrize("model_of", MODELS)
def test_times_of_launching_are_not_taken_for_run_times(model_of, told):
    model = perceptron()
    rec = timed(model, torch.ones(2, 3), lasting={"first": 2})
    for args in rec.events["args"]:
        args["device"] = "cuda"
        args.pop("synchronized", None)
        if told is not None and "inputs" in args:
            args["synchronized"] = told
    if told or model_of in {"uniform-bits", "macs"}:
        assert len(faults.exposure(rec, model, model_of))
    else:
        with pytest.raises(FaultError, match=r"'cuda'.*synchronize=True"):
            faults.exposure(rec, model, model_of)


def test_busy_bits_are_exposed_while_their_layer_itself_runs():
    model = perceptron()
    rec = timed(model, torch.ones(2, 3), lasting={"(model)": 7, "first": 2, "relu": 1, "last": 3})
    table = faults.exposure(rec, model)
    assert by_site(table) == {
        ("(model)", "output"): 0,  # what its last layer gave
        ("first", "output"): 2 * 4 * 32 * 2,
        ("first", "weight"): 12 * 32 * 2,
        ("first", "bias"): 4 * 32 * 2,
        ("relu", "output"): 2 * 4 * 32 * 1,
        ("last", "output"): 2 * 3 * 32 * 3,
        ("last", "weight"): 12 * 32 * 3,
        ("last", "bias"): 3 * 32 * 3,
    }
    assert table.columns.tolist() == [
        *("layer", "role", "bits", "seconds", "bit_seconds", "bit_seconds_sd")
    ]
    assert table.attrs == {
        "model_of": "busy",
        "forwards": 1,
        "left_out": 0,
        "forward_seconds": 13.0,
    }
    assert table["bit_seconds_sd"].isna().all()


def test_live_bits_are_exposed_from_the_end_of_their_call_to_that_of_the_last_reader():
    model = perceptron()
    rec = timed(model, torch.ones(2, 3), lasting={"(model)": 7, "first": 2, "relu": 1, "last": 3})
    seconds = by_site(faults.exposure(rec, model, "live"), "seconds")
    assert seconds["first", "output"] == 1
    assert seconds["relu", "output"] == 3
    assert seconds["last", "output"] == 0  # the model ends with it
    assert {seconds[x, y] for x, y in seconds if y in {"weight", "bias"}} == {13}


class Skip(nn.Module):
    def __init__(self, *, inplace=False):
        super().__init__()
        self.stem = nn.Linear(3, 3)
        self.identity = nn.Identity()
        self.one = nn.Linear(3, 3)
        self.relu = nn.ReLU(inplace=inplace)
        self.two = nn.Linear(3, 3)
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        x = self.identity(self.stem(x))
        return self.head(self.two(self.relu(self.one(x))) + x)


TIMES = {"(model)": 1, "stem": 2, "identity": 50, "one": 4, "relu": 8, "two": 16, "head": 32}


def test_what_a_skip_connection_takes_lives_until_it_is_added():
    model = Skip()
    rec = timed(model, torch.ones(1, 3), lasting=TIMES)
    seconds = by_site(faults.exposure(rec, model, "live"), "seconds")
    assert seconds["stem", "output"] == 50 + 4 + 8 + 16
    assert seconds["one", "output"] == 8
    assert seconds["two", "output"] == 0  # the sum is made at once


@pytest.mark.parametrize("model_of", MODELS)
def test_a_layer_without_storage_of_its_own_has_zero_weight_however_long_it_runs(model_of):
    model = Skip()
    table = faults.exposure(timed(model, torch.ones(1, 3), lasting=TIMES), model, model_of)
    found = table.set_index("layer")["bit_seconds"]
    assert found["identity"] == found["(model)"] == 0
    assert (table["bit_seconds"].groupby(table["layer"]).sum()[["stem", "one", "head"]] >= 0).all()


def test_what_is_overwritten_in_place_is_the_new_layer_s_from_then_on():
    model = Skip(inplace=True)
    rec = timed(model, torch.ones(1, 3), lasting=TIMES)
    live = by_site(faults.exposure(rec, model, "live"), "seconds")
    assert live["one", "output"] == 8
    assert live["relu", "output"] == 16
    busy = by_site(faults.exposure(rec, model, "busy"))
    assert busy["relu", "output"] == 3 * 32 * 8


class Adds(nn.Module):
    """A container with a sum of its own, made between its layers."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return self.inner(x) + x


def test_a_container_owns_what_it_computes_itself():
    model = nn.Sequential(Adds(), nn.Flatten(), nn.ReLU())
    rec = timed(model, torch.ones(1, 3), lasting={"0": 1, "0.inner": 2, "1": 4, "2": 8})
    bits = by_site(faults.exposure(rec, model), "bits")
    assert bits["0", "output"] == 3 * 32
    assert bits["1", "output"] == 0  # a view
    live = by_site(faults.exposure(rec, model, "live"), "seconds")
    assert live["0", "output"] == 4 + 8  # the view is read as late as that


@pytest.mark.parametrize("model_of", MODELS)
def test_doubling_all_times_doubles_the_exposure_and_no_share(model_of):
    model = Skip()
    once, twice = (
        faults.exposure(
            timed(model, torch.ones(1, 3), lasting={x: y * k for x, y in TIMES.items()}),
            model,
            model_of,
        )
        for k in (1, 2)
    )
    np.testing.assert_array_equal(twice["bit_seconds"], 2 * once["bit_seconds"])
    np.testing.assert_array_equal(twice["bits"], once["bits"])


def test_uniform_bits_make_shares_those_of_the_bits_whatever_the_trace():
    model = Skip()
    for times in (TIMES, dict(zip(TIMES, reversed(TIMES.values()), strict=True))):
        table = faults.exposure(
            timed(model, torch.ones(2, 3), lasting=times), model, "uniform-bits"
        )
        shares = table["bit_seconds"] / table["bit_seconds"].sum()
        np.testing.assert_allclose(shares, table["bits"] / table["bits"].sum())


def test_a_uniform_trace_gives_the_size_weighted_rate_of_a_campaign():
    model = perceptron()
    inputs, _ = samples(8)
    labels = model(inputs).argmax(1)
    campaign = faults.Campaign(model, (inputs, labels), faults.BitFlip(), seed=0, error=0.1)
    campaign.run(progress=False)
    rec = timed(model, inputs[:1], lasting={"first": 5, "relu": 1})
    table = faults.exposure(rec, model, "uniform-bits")
    assert campaign.reweight(table).total.rate == pytest.approx(campaign.total().rate)
    assert campaign.reweight(table).covered == pytest.approx(1)


def test_multiply_accumulates_share_out_the_whole_time():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5))
    rec = timed(model, torch.ones(1, 1, 4, 4), lasting={"1": 112})
    seconds = by_site(faults.exposure(rec, model, "macs"), "seconds")
    assert seconds["0", "weight"] == pytest.approx(112 * 72 / (72 + 40))
    assert seconds["3", "output"] == pytest.approx(112 * 40 / (72 + 40))
    assert seconds["1", "output"] == 0


def test_work_that_is_not_counted_is_refused_rather_than_taken_for_none():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(3, 4, batch_first=True)
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.lstm(x)[0][:, -1])

    model = Classifier().eval()
    rec = timed(model, torch.ones(1, 5, 3), lasting={"lstm": 5})
    with pytest.raises(FaultError, match="multiply-accumulates of 'lstm': choose another"):
        faults.exposure(rec, model, "macs")
    assert faults.exposure(rec, model, "busy")["bit_seconds"].sum() > 0


def test_several_forwards_give_mean_and_standard_deviation_and_some_can_be_left_out():
    model = perceptron()
    rec = timed(model, torch.ones(1, 3), lasting={"first": 1}, forwards=3, scale=2)
    table = faults.exposure(rec, model)
    own = table[(table["layer"] == "first") & (table["role"] == "bias")].iloc[0]
    assert own["seconds"] == pytest.approx(7 / 3)
    assert own["bit_seconds_sd"] == pytest.approx(4 * 32 * np.std([1, 2, 4], ddof=1))
    later = faults.exposure(rec, model, runs=slice(1, None))
    assert later.attrs["forward_seconds"] == pytest.approx(3)
    assert (later.attrs["forwards"], later.attrs["left_out"]) == (2, 1)
    with pytest.raises(FaultError, match="take more"):
        faults.exposure(rec, model, runs=slice(3, None))


def test_a_forward_that_is_held_up_counts_in_the_mean_and_shows_in_the_deviation():
    model, waits = perceptron(), [0, 0, 0.05, 0, 0]
    forward = model.relu.forward

    def run():
        with faults.annotate(model), torch.no_grad():
            for wait in waits:
                model.relu.forward = lambda x, wait=wait: time.sleep(wait) or forward(x)
                model(torch.ones(1, 3))

    rec = recorded(run)
    lasted = rec.events.groupby("name")["dur_ns"].apply(lambda x: x.to_numpy() / SECOND)
    table = faults.exposure(rec, model)
    own = table.set_index("layer").loc["relu"]
    assert own["seconds"] == pytest.approx(lasted["relu"].mean())
    assert own["bit_seconds_sd"] == pytest.approx(4 * 32 * lasted["relu"].std(ddof=1))
    assert table.attrs["forward_seconds"] == pytest.approx(lasted["(model)"].mean())
    assert lasted["relu"].mean() > 2 * np.median(lasted["relu"])
    later = faults.exposure(rec, model, runs=slice(3, None)).set_index("layer").loc["relu"]
    assert later["seconds"] == pytest.approx(lasted["relu"][3:].mean())


def test_a_layer_that_runs_twice_is_exposed_for_both_calls():
    model = Shared().eval()
    rec = timed(model, torch.ones(1, 4, 5, 5), lasting={"early": 3, "late": 1})
    table = faults.exposure(rec, model)
    found = by_site(table)
    assert found["early", "weight"] == 4 * 4 * 9 * 32 * 6
    assert found["early", "output"] == 2 * 100 * 32 * 3
    assert by_site(table, "bits")["early", "output"] == 2 * 100 * 32
    assert found["unused", "weight"] == 0  # never read
    live = by_site(faults.exposure(rec, model, "live"), "seconds")
    assert live["unused", "weight"] == 7  # but stored


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.out = nn.Linear(4, 10, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids):
        return self.out(self.embed(ids))


def test_a_weight_that_two_layers_have_counts_once_and_for_both_their_times():
    model = Tied()
    rec = timed(model, torch.tensor([[1, 2]]), lasting={"embed": 1, "out": 2})
    found = by_site(faults.exposure(rec, model))
    assert (found["embed", "weight"], found["out", "weight"]) == (40 * 32 * 3, 0)


@pytest.mark.parametrize("kind", sorted(kinds()))
def test_every_kind_of_module_is_exposed_with_the_bits_of_its_sites(kind):
    model, args = kinds()[kind]
    model.eval()
    rec = timed(model, *args)
    before = state(model)
    places = faults.sites(model, *args)
    outputs = places[~places["role"].str.startswith("input")]
    own = outputs[outputs["same_as"] == ""]
    # What a function made of a layer's output is nobody's until it has passed through a layer.
    passed = outputs[outputs["same_as"].str.contains(":input")]
    passed = set(zip(passed["layer"], passed["role"], strict=True))
    expected = {}
    for row in own.itertuples():
        size = math.prod(row.shape) * row.bits
        expected[row.layer, row.role] = expected.get((row.layer, row.role), 0) + size
    for model_of in MODELS[:3]:
        found = by_site(faults.exposure(rec, model, model_of), "bits")
        assert {x: y for x, y in found.items() if y and x not in passed} == expected
    assert unchanged(model, before)


def test_a_model_in_training_mode_is_left_as_it_is():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout()).train()
    rec = timed(model, torch.randn(2, 1, 5, 5))
    before, random = state(model), torch.get_rng_state()
    faults.exposure(rec, model, "live")
    assert unchanged(model, before)
    assert torch.equal(random, torch.get_rng_state())
    assert model.training


def test_forwards_that_were_broken_off_or_of_other_shapes_are_left_out():
    model = perceptron()

    def run():
        with faults.annotate(model), torch.no_grad():
            for rows in (4, 4, 4, 1):
                model(torch.ones(rows, 3))
            with pytest.raises(RuntimeError):
                model(torch.ones(4, 2))

    table = faults.exposure(recorded(run), model)
    assert (table.attrs["forwards"], table.attrs["left_out"]) == (3, 2)
    assert by_site(table, "bits")["first", "output"] == 4 * 4 * 32
    with pytest.raises(FaultError, match=r"slice\(1, None\)"):
        faults.exposure(timed(model, torch.ones(4, 3)), model, runs=3)


class Options:
    scale = 2


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x, options):
        return self.linear(x) * options.scale


def test_forwards_of_other_models_and_interrupted_ones_are_not_this_model_s():
    small, x = perceptron(), torch.ones(2, 3)
    wide = nn.Sequential()
    for name, part in [("first", nn.Linear(3, 9)), ("relu", nn.ReLU()), ("last", nn.Linear(9, 2))]:
        wide.add_module(name, part)
    twin = perceptron()

    def stop(module, args, output):
        raise KeyboardInterrupt

    def run():
        with faults.annotate(small), faults.annotate(wide), torch.no_grad():
            for model in (small, wide, small, wide, small):
                model(x)
            stopping = small.last.register_forward_hook(stop)
            with contextlib.suppress(KeyboardInterrupt):
                small(x)
            stopping.remove()

    rec = recorded(run)
    for model, count, broken, width in [(small, 3, 1, 4), (wide, 2, 0, 9), (twin, 3, 1, 4)]:
        table = faults.exposure(rec, model)
        assert table.attrs["forwards"] == count
        assert table.attrs["left_out"] == broken
        assert by_site(table, "bits")["first", "output"] == 2 * width * 32
    with pytest.raises(FaultError, match="pass the model that was recorded"):
        faults.exposure(rec, nn.Linear(3, 3))


def test_one_of_several_models_alike_has_to_be_the_object_that_ran():
    models, x = [perceptron() for _ in range(3)], torch.ones(2, 3)

    def run():
        for model in models[:2]:
            with faults.annotate(model), torch.no_grad():
                model(x)

    rec = recorded(run)
    assert faults.exposure(rec, models[0]).attrs["forwards"] == 1
    with pytest.raises(FaultError, match="pass the object that ran"):
        faults.exposure(rec, models[2])


def test_a_model_and_a_part_of_it_can_be_annotated_at_a_time():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 2))), torch.ones(3, 4)

    def run():
        with faults.annotate(model), faults.annotate(model[1]), faults.annotate(model):
            for _ in range(2):
                model(x)

    rec = recorded(run)
    assert faults.exposure(rec, model).attrs["forwards"] == 2
    assert by_site(faults.exposure(rec, model[1]), "bits")["0", "output"] == 3 * 2 * 32


def test_a_model_that_calls_itself_is_exposed_once_a_forward():
    class Recursive(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x, again=True):
            return self.linear(self(x, False) if again else x)

    model = Recursive()

    def run():
        with faults.annotate(model):
            model(torch.ones(1, 2))

    table = faults.exposure(recorded(run), model)
    assert table.attrs["forwards"] == 1
    assert by_site(table, "bits")["linear", "output"] == 2 * 2 * 32


def test_inputs_that_the_recording_cannot_tell_are_asked_for_and_taken():
    model, given = Odd(), (torch.ones(3, 2), Options())
    rec = timed(model, *given, lasting={"linear": 1})
    with pytest.raises(FaultError, match="pass inputs=, an example"):
        faults.exposure(rec, model)
    for inputs in (given, {"x": given[0], "options": given[1]}):
        assert by_site(faults.exposure(rec, model, inputs=inputs))["linear", "output"] == 6 * 32


def test_a_recording_that_cannot_tell_says_what_to_do():
    model = perceptron()
    rec = timed(model, torch.ones(1, 3))
    with pytest.raises(FaultError, match=r"with faults.annotate\(model\):`.* `pystack-nb record`"):
        faults.exposure(make_recording([]), model)
    with pytest.raises(FaultError, match="'busy', 'live', 'uniform-bits' or 'macs'"):
        faults.exposure(rec, model, "idle")
    with pytest.raises(FaultError, match="pass the model that was recorded"):
        faults.exposure(rec, nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)))
    with pytest.raises(FaultError, match="can't run on this example"):
        faults.exposure(rec, model, inputs=torch.ones(1, 7))
    with pytest.raises(FaultError, match="is no recording: pass what"):
        faults.exposure(None, model)
    with pytest.raises(FaultError, match="pass the model itself"):
        faults.exposure(rec, None)
    relu = nn.Sequential(nn.ReLU())
    rec = timed(relu, torch.ones(1, 3))
    with pytest.raises(FaultError, match="choose another model_of"):
        faults.exposure(rec, relu, "macs")

    def part():
        with faults.annotate(model):
            model.first(torch.ones(1, 3))

    with pytest.raises(FaultError, match="call the model, and not its layers"):
        faults.exposure(recorded(part), model)


def test_a_saved_recording_gives_the_same_exposure(tmp_path):
    model = perceptron()
    rec = timed(model, torch.ones(1, 3), lasting={"first": 1, "last": 2})
    rec.save(tmp_path / "saved")
    from pystack_nb import load

    for model_of in MODELS:
        pd.testing.assert_frame_equal(
            faults.exposure(load(tmp_path / "saved"), model, model_of),
            faults.exposure(rec, model, model_of),
        )
