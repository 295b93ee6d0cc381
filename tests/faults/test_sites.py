"""Sites: which places a model has, and that to look for them changes nothing."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from nets import (
    Dictionary,
    Residual,
    Shared,
    Then,
    first_tensor,
    kinds,
    lenet,
    same_bits,
    state,
    unchanged,
)
from torch import nn

from pystack_nb.errors import FaultError
from pystack_nb.faults import BitFlip, Campaign, Exact, Fault, Noise, Replace, Zero, inject, sites
from pystack_nb.faults.sites import sites_of_a_sample
from pystack_nb.faults.trace import trace


every_kind = pytest.mark.parametrize("kind", kinds())


def only(frame, **wanted):
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


@every_kind
def test_every_kind_of_module_has_its_tensors_listed(kind):
    module, args = kinds()[kind]
    model = Then(module).eval()
    frame = sites(model, *args)

    given = first_tensor(module(*args))
    role = "output" if isinstance(module(*args), torch.Tensor) else "output.0"
    (row,) = only(frame, layer="inner", role=role).to_dict("records")
    assert row["shape"] == tuple(given.shape)
    assert row["dtype"] == given.dtype
    assert row["bits"] == 8 * given.element_size()
    assert row["elements"] == given.numel()
    assert row["kind"] == "neuron"
    weights = only(frame, kind="weight")
    assert weights["elements"].sum() == sum(t.numel() for t in state(model).values())
    assert row["type"] == type(module).__name__.removeprefix("Parametrized")

    of_one = sites_of_a_sample(model, args, {})
    pd.testing.assert_frame_equal(
        of_one[frame.columns.drop("elements")], frame.drop(columns="elements")
    )
    (row,) = only(of_one, layer="inner", role=role).to_dict("records")
    assert row["batch_dim"] == 0 or kind == "gru"
    if row["batch_dim"] == 0:
        assert row["elements"] * given.shape[0] == given.numel()
    assert (only(of_one, kind="weight")["batch_dim"] == -1).all()


@every_kind
def test_every_site_that_is_listed_can_be_struck(kind):
    module, args = kinds()[kind]
    model = Then(module).eval()
    frame = sites(model, *args)
    before = state(model)
    for layer, role, call in frame[["layer", "role", "call"]].itertuples(index=False):
        with inject(model, Fault(layer, role, call=call, error=Zero()), seed=0) as log:
            model(*args)
        assert len(log) == 1, (layer, role, call)
    assert unchanged(model, before)


@pytest.mark.parametrize("training", [True, False])
def test_looking_touches_nothing(training):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x):
            self.count = self.count + 1
            x = x + torch.rand_like(x) + random.random() + np.random.rand()  # noqa: NPY002
            return self.net(x)

    model = Noisy().train(training)
    model.net[0].weight.grad = torch.full((4, 4), 7.0)
    before, count = state(model), model.count
    drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002

    sites(model, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))

    assert unchanged(model, before)
    assert model.count is count
    assert (model.net[0].weight.grad == 7).all()
    assert all(p.grad is None for p in [*model.parameters()][1:])
    assert model.training == model.net[1].training == training
    assert torch.equal(drawn[0], torch.get_rng_state())
    assert drawn[1] == random.getstate()
    assert (drawn[2][1] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_looking_leaves_the_example_and_buffers_that_are_not_there_yet():
    class Changes(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("cache", None)
            self.register_buffer("kept", torch.zeros(2))

        def forward(self, x, y, *, more):
            assert x is y
            assert x is not more["z"]
            assert more["z"].requires_grad
            x.mul_(2)
            self.cache = x.mean(0)
            self.register_buffer("new", x.sum())
            del self.kept
            return x + more["z"]

    model, x = Changes(), torch.ones(2, 3)
    frame = sites(model, x, x, more={"z": torch.zeros(2, 3, requires_grad=True)})
    assert (x == 1).all()
    assert list(model.state_dict()) == ["kept"]
    assert list(model._buffers) == ["cache", "kept"]
    inputs = only(frame, kind="neuron").set_index("role")["same_as"]
    assert inputs["input.1"] == "(model):0:input.0"
    assert inputs["input.kw.more.z"] == ""


class Remembers(nn.Module):
    """Counts its forwards, and keeps what it gave in an attribute that was not there."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.forwards = 0
        self.sum = torch.zeros(4)

    def forward(self, x):
        counted.append(len(x))
        self.forwards += 1
        self.last = self.linear(x)
        self.sum += self.last.detach().sum(0)
        return self.last


counted = []


def test_looking_puts_plain_attributes_back():
    model = Remembers()
    held = model.sum
    sites(model, torch.randn(3, 4))
    assert (model.forwards, model.sum is held, held.tolist()) == (0, True, [0] * 4)
    assert "last" not in model.__dict__


@pytest.mark.parametrize("samples", [3, 4, 1])
def test_the_model_runs_once_and_once_more_with_one_sample_more_for_what_is_one_samples(samples):
    counted.clear()
    frame = sites(Remembers(), torch.randn(samples, 4))
    assert counted == [samples]
    assert only(frame, kind="neuron")["elements"].tolist() == [4 * samples] * 4
    counted.clear()
    frame = sites_of_a_sample(Remembers(), (torch.randn(samples, 4),), {})
    assert counted == [samples, samples + 1]
    assert only(frame, kind="neuron")["batch_dim"].tolist() == [0] * 4
    assert only(frame, kind="neuron")["elements"].tolist() == [4] * 4


def test_tensors_whose_paths_read_alike_have_roles_of_their_own():
    class Alike(nn.Module):
        def __init__(self):
            super().__init__()
            self.output = nn.Parameter(torch.full((1,), 2.0))
            self.register_buffer("input", torch.full((1,), 3.0))

        def forward(self, x):
            return {"a.b": x * self.output, "a": {"b": x * self.input}, 1: x, "1": x + 1}

    model, x = Alike(), torch.ones(1)
    frame = sites(model, x)
    assert frame["role"].tolist() == [
        *["input", "output.a.b", "output.a.b~2", "output.1", "output.1~2"],
        *["own.output", "own.input"],
    ]

    def struck(role):
        with inject(model, Fault("(model)", role, 0, Zero())):
            given = model(x)
        return [t.item() for t in (given["a.b"], given["a"]["b"], given[1], given["1"])]

    assert struck("output.a.b") == [0, 3, 1, 2]
    assert struck("output.a.b~2") == [2, 0, 1, 2]
    assert struck("output.1~2") == [2, 3, 1, 0]
    assert struck("own.output") == [0, 3, 1, 2]
    assert struck("own.input") == [2, 0, 1, 2]
    assert struck("input") == [0, 0, 0, 1]


def test_layers_come_in_the_order_in_which_they_run_with_the_same_names_for_weights():
    frame = sites(Shared(), torch.randn(2, 4, 6, 6))
    assert list(dict.fromkeys(frame["layer"])) == ["(model)", "early", "late", "unused"]
    assert only(frame, layer="early", role="output")["call"].tolist() == [0, 1]
    assert len(only(frame, layer="early", role="weight")) == 1
    assert set(only(frame, layer="unused")["kind"]) == {"weight"}


def test_tensors_that_are_one_are_marked_as_such():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(inplace=True))
    frame = sites(model, torch.randn(2, 3)).set_index(["layer", "role"])["same_as"]
    assert frame["(model)", "input"] == ""
    assert frame["0", "input"] == "(model):0:input"
    assert frame["1", "input"] == "0:0:output"
    assert frame["1", "output"] == ""  # the same memory, with other contents
    assert frame["(model)", "output"] == "1:0:output"

    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    frame = sites(tied, torch.randn(2, 3))
    assert only(frame, role="weight")["same_as"].tolist() == ["", "0:0:weight"]


def test_several_inputs_keywords_and_structures_have_roles():
    frame = sites(Dictionary(), torch.randn(2, 3), scale=torch.tensor(2.0), mask=torch.ones(2))
    roles = only(frame, layer="(model)")["role"].tolist()
    assert roles == [
        *["input.0", "input.kw.scale", "input.kw.mask"],
        *["output.logits", "output.parts.0", "output.parts.1.0", "output.mask"],
    ]
    scale = only(frame, role="input.kw.scale").iloc[0]
    assert (scale["shape"], scale["elements"]) == ((), 1)
    assert len(sites(Residual(), torch.ones(1, 2))) == 6


def test_a_dict_is_inputs_by_name_unless_the_model_takes_it_itself():
    named = {"x": torch.randn(2, 3), "scale": torch.tensor(2.0), "mask": torch.ones(2)}
    assert sites(Dictionary(), named).equals(sites(Dictionary(), **named))

    class Whole(nn.Module):
        def forward(self, batch):
            return batch["x"] + 1

    roles = sites(Whole(), {"x": torch.ones(2, 3)})["role"].tolist()
    assert roles == ["input.0.x", "output"]


def test_the_batch_is_found_where_it_is():
    class Turned(nn.Module):
        def forward(self, x):
            return x.t(), x.sum(), torch.arange(x.shape[1]), x.flatten()

    frame = sites_of_a_sample(Turned(), (torch.randn(3, 3),), {})
    assert only(frame, kind="neuron")["batch_dim"].tolist() == [0, 1, -1, -1, -1]
    assert only(frame, kind="neuron")["elements"].tolist() == [3, 3, 1, 3, 9]


def test_a_model_for_one_size_of_batch_alone_is_listed_too():
    class Fixed(nn.Module):
        def forward(self, x):
            return x.view(2, 6), torch.zeros(5)

    frame = sites_of_a_sample(Fixed(), (torch.randn(2, 3, 2),), {})
    assert frame["batch_dim"].tolist() == [0, 0, -1]


def test_a_model_that_is_one_layer_and_one_without_parameters_have_sites():
    assert set(sites(nn.Linear(2, 3), torch.ones(1, 2))["layer"]) == {"(model)"}
    assert sites(nn.ReLU(), torch.ones(1, 2))["role"].tolist() == ["input", "output"]


def test_quantised_layers_have_sites():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.Linear(4, 3)), {nn.Linear}, dtype=torch.qint8
        )
    frame = sites(model, torch.randn(2, 4))
    assert only(frame, layer="0", role="weight")["bits"].tolist() == [8]
    assert only(frame, layer="0", role="weight")["dtype"].tolist() == [torch.qint8]
    assert set(frame["layer"]) == {"(model)", "0"}


@pytest.mark.parametrize("make", [nn.Embedding, nn.EmbeddingBag])
def test_quantised_embeddings_have_a_weight_that_can_be_struck(make):
    config = torch.ao.quantization.float_qparams_weight_only_qconfig
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(make(6, 8)).eval(), {make: config}
        )
    x = torch.tensor([[0, 5], [2, 2]])
    clean, weight = model(x), model[0].weight().int_repr()
    frame = sites(model, x)
    assert only(frame, layer="0", kind="weight")["role"].tolist() == ["weight"]
    assert only(frame, layer="0", role="weight")["bits"].tolist() == [8]
    with inject(model, Fault("0", "weight", (2, 3), BitFlip(bit=7))) as log:
        struck = model(x)
        assert (model[0].weight().int_repr() != weight).nonzero().tolist() == [[2, 3]]
    assert same_bits(model(x), clean)
    assert (struck != clean).any()
    row = log.to_frame().iloc[0]
    scale = float(model[0].weight().q_per_channel_scales()[2])
    assert abs(row["after"] - row["before"]) == pytest.approx(128 * scale)
    with inject(model, Fault("0", "weight", (2, 3), Replace(0.3))):
        assert float(model[0].weight().dequantize()[2, 3]) == pytest.approx(0.3, abs=scale / 1.9)
    one = Campaign(model, x, metric=Exact(), sites="weights", faults=40, seed=0)
    assert {*one.run(progress=False)["outcome"]} == {"masked", "SDC"}
    one = Campaign(model, x, Noise(1.0), metric=Exact(), sites="weights", faults=40, seed=0)
    assert {*one.run(progress=False)["outcome"]} == {"masked", "SDC"}
    assert same_bits(model(x), clean)


@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16], ids=str)
@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.LSTMCell])
def test_quantised_recurrent_layers_have_sites_that_can_be_struck(make, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(make(4, 3)), {make}, dtype=dtype
        )
    x = torch.randn(2, 4) if make is nn.LSTMCell else torch.randn(5, 2, 4)
    clean = first_tensor(model(x))
    frame = sites(model, x)
    assert set(frame["layer"]) == {"(model)", "0"}
    weights = only(frame, kind="weight")
    assert weights["role"].tolist() == [name for name, _ in make(4, 3).named_parameters()]
    for role in weights["role"]:
        with inject(model, Fault("0", role, (2, 1)[: 1 + ("w" in role)], Zero())) as log:
            given = first_tensor(model(x))
        # The first step of a cell has no state that the other weights could meet.
        assert torch.equal(given, clean) == (role == "weight_hh"), role
        assert log.to_frame()["after"].tolist() == [0]
        assert torch.equal(first_tensor(model(x)), clean)


def test_an_example_that_can_not_grow_is_listed_too():
    example = torch.eye(3).to_sparse()
    assert sites(nn.Identity(), example)["elements"].tolist() == [9, 9]
    frame = sites_of_a_sample(nn.Identity(), (example,), {})
    assert frame["batch_dim"].tolist() == [0, 0]


def test_types_without_bits_are_listed_with_none():
    frame = sites(nn.Identity(), torch.ones(2, dtype=torch.complex64))
    assert frame["bits"].tolist() == [0, 0]


def test_the_trace_says_what_ran_within_what():
    calls = trace(lenet(), (torch.randn(2, 1, 8, 8),), {}).calls
    assert [call.layer.name for call in calls] == ["(model)", *"012345"]
    assert [call.parent for call in calls] == [-1, 0, 0, 0, 0, 0, 0]
    assert [call.started for call in calls] == [0, 1, 3, 5, 7, 9, 11]
    assert [call.ended for call in calls] == [13, 2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("args", [(), (torch.randn(2, 5),), ("text",)])
def test_an_example_that_does_not_fit_is_an_error(args):
    model = nn.Sequential(nn.Linear(3, 3))
    before = state(model)
    with pytest.raises(FaultError, match="keyword arguments by their names"):
        sites(model, *args)
    assert unchanged(model, before)


@pytest.mark.parametrize("model", [None, nn.Linear, torch.ones(3)])
def test_what_is_no_model_is_an_error(model):
    with pytest.raises(FaultError, match="give the model itself"):
        sites(model, torch.ones(1))


def test_a_model_without_any_tensor_is_an_error():
    class Empty(nn.Module):
        def forward(self):
            return 1

    with pytest.raises(FaultError, match="another one"):
        sites(Empty())


def test_a_model_whose_shapes_are_not_known_yet_is_listed_after_its_first_run():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.LazyLinear(3)
    with pytest.raises(FaultError, match="run the model once"):
        sites(model, torch.ones(2, 4))
    assert torch.nn.parameter.is_lazy(model.weight)


class Folded(nn.Module):
    """Takes a sample's steps for samples, as models of videos do."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AvgPool1d(4)
        self.table = nn.Embedding(10, 5)

    def forward(self, x):
        return self.pool(x.flatten(0, 1)).sum() + self.table(torch.arange(4)).sum()


@pytest.mark.parametrize("samples", range(1, 9))
def test_no_dimension_counts_samples_by_its_size_alone(samples):
    frame = sites_of_a_sample(Folded(), (torch.ones(samples, 3, 4, 8),), {})
    frame = frame.query("kind == 'neuron'")
    found = frame.set_index(["layer", "role"])["batch_dim"]
    assert found["pool", "output"] == -1
    assert found["table", "output"] == -1
