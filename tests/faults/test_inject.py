"""Injections: what they change, against a computation by hand, and that nothing else changes."""

from __future__ import annotations

import copy
import math
import time
import warnings

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch

from nets import (
    Dictionary,
    Residual,
    Shared,
    Then,
    first_tensor,
    flipped,
    kinds,
    lenet,
    same_bits,
    state,
    unchanged,
)
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from pystack_nb.errors import FaultError
from pystack_nb.faults import (
    BitErrorRate,
    BitFlip,
    Custom,
    Everywhere,
    Fault,
    FaultInjection,
    Noise,
    Replace,
    Several,
    StuckAt,
    Zero,
    bits,
    inject,
    sites,
    structures,
)


IMAGES = torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)
every_kind = pytest.mark.parametrize("kind", kinds())


@every_kind
def test_an_output_is_struck_in_that_bit_alone(kind):
    module, args = kinds()[kind]
    model = Then(module).eval()
    before = state(model)
    clean = first_tensor(module(*args))
    index = tuple(size - 1 for size in clean.shape)
    expected = Then.go_on(flipped(clean, index, 6))
    role = "output" if isinstance(module(*args), torch.Tensor) else "output.0"

    with inject(model, Fault("inner", role, index, BitFlip(bit=6))) as log:
        given = model(*args)

    assert same_bits(given, expected)
    assert unchanged(model, before)
    assert same_bits(model(*args), Then.go_on(clean))
    (row,) = log.to_frame().to_dict("records")
    assert (row["layer"], row["role"], row["index"], row["bit"]) == ("inner", role, index, 6)
    assert row["before"] == clean[index].item()
    assert row["changed"] == 1 << 6
    assert row["forward"] == 0


@every_kind
def test_an_input_is_struck_in_that_bit_alone(kind):
    module, args = kinds()[kind]
    model = Then(module).eval()
    index = tuple(0 for _ in args[0].shape)
    kept = args[0].clone()
    expected = model(flipped(args[0], index, 1), *args[1:])
    role = "input" if len(args) == 1 else "input.0"

    with inject(model, Fault("inner", role, index, BitFlip(bit=1))):
        given = model(*args)

    assert same_bits(given, expected)
    assert same_bits(args[0], kept)


@every_kind
def test_each_weight_and_buffer_is_struck_in_that_bit_alone(kind):
    module, args = kinds()[kind]
    model = Then(module).eval()
    before = state(model)
    listed = sites(model, *args)
    listed = listed[listed["kind"] == "weight"]
    assert len(listed) == len(before)
    for layer, role, shape in listed[["layer", "role", "shape"]].itertuples(index=False):
        index = tuple(size // 2 for size in shape)
        path = f"{layer}.{role}"
        owner = path if path in before else path.replace(f".{role}", f".parametrizations.{role}")
        twin = copy.deepcopy(model)
        held = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}[owner]
        held.data = flipped(held, index, 2)

        with inject(model, Fault(layer, role, index, BitFlip(bit=2))) as log:
            assert same_bits(state(model)[owner], held)
            given = model(*args)

        assert same_bits(given, twin(*args)), path
        assert unchanged(model, before), path
        assert log.to_frame()["forward"].tolist() == [-1]


def test_dicts_and_tuples_are_struck_by_path_and_not_in_place():
    model = Dictionary()
    x, scale, mask = torch.randn(2, 3), torch.tensor(2.0), torch.ones(2)
    clean = model(x, scale=scale, mask=mask)
    seen = []
    hook = model.register_forward_hook(lambda *given: seen.append(given[2]))

    for role, index in [("output.parts.1.0", (1,)), ("output.logits", (0, 3))]:
        with inject(model, Fault("(model)", role, index, Replace(77.0))):
            given = model(x, scale=scale, mask=mask)
        by_path = {"output.logits": given["logits"], "output.parts.1.0": given["parts"][1][0]}
        assert by_path[role][index] == 77
        original = seen.pop()
        assert original is not given
        assert torch.equal(original["logits"], clean["logits"])
        assert torch.equal(original["parts"][1][0], clean["parts"][1][0])
        assert given["parts"][1][1] == "text"
    hook.remove()

    with inject(model, Fault("", "input.kw.mask", 1, Zero())):
        assert model(x, scale=scale, mask=mask)["mask"].tolist() == [1, 0]
    assert mask.tolist() == [1, 1]
    with inject(model, Fault("(model)", "input.kw.scale", (), Replace(0.0))):
        assert not model(x, scale=scale)["logits"].any()


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@dataclass(frozen=True)
class Record:
    first: torch.Tensor
    second: torch.Tensor


class Attributed(OrderedDict):
    """A dict with attributes, as libraries of transformers give it."""


@pytest.mark.parametrize(
    ("make", "second"),
    [
        (lambda x: Pair(x, x + 1), "output.1"),
        (lambda x: Record(x, x + 1), "output.second"),
        (lambda x: [x, x + 1], "output.1"),
        (lambda x: Attributed(first=x, second=x + 1), "output.second"),
        (lambda x: x.reshape(1, 3).mul(-1).cummin(1), "output.0"),
        (lambda x: pack_padded_sequence(x.reshape(1, 3, 1), [3], batch_first=True), "output.0"),
    ],
)
def test_structures_of_every_kind_are_rebuilt_as_what_they_were(make, second):
    class Gives(nn.Module):
        def forward(self, x):
            return make(x)

    model, x = Gives(), torch.zeros(3)
    clean = model(x)
    with inject(model, Fault("", second, Everywhere(), Replace(9.0))):
        given = model(x)
    assert type(given) is type(clean)
    paths = structures.outputs(clean)
    assert structures.outputs(given) == paths
    for role, path in paths.items():
        tensor = structures.get(given, path)
        if role == second:
            assert (tensor == 9).all()
        else:
            assert torch.equal(tensor, structures.get(clean, path))
    assert (x == 0).all()


def test_a_fault_in_one_branch_leaves_the_other_alone():
    model, x = Residual(), torch.ones(2, 3)
    with inject(model, Fault("branch", "output", (0, 0), Replace(5.0))):
        assert model(x).tolist() == [[5.5, 1.5, 1.5], [1.5, 1.5, 1.5]]
    with inject(model, Fault("relu", "output", (1, 1), Replace(-5.0))):
        assert model(x)[1].tolist() == [1.5, -4, 1.5]
    assert (x == 1).all()


def test_the_calls_of_a_shared_layer_are_told_apart():
    model, x = Shared(), torch.randn(1, 4, 6, 6)
    first = torch.relu(model.early(x))
    second = model.early(first)
    index = (0, 3, 5, 5)
    with inject(model, Fault("early", index=index, error=BitFlip(bit=30), call=1)) as log:
        given = model(x)
    assert same_bits(given, model.late(torch.relu(flipped(second, index, 30))))
    assert log.to_frame()["call"].tolist() == [1]
    with inject(model, Fault("again", index=index, call=None, error=Zero())) as log:
        model(x)
    assert log.to_frame()[["layer", "call"]].to_numpy().tolist() == [["early", 0], ["early", 1]]
    # The second run is by that path, but `call` alone says which one is struck.
    with inject(model, Fault("again", index=index)) as log:
        model(x)
    assert log.to_frame()[["layer", "call"]].to_numpy().tolist() == [["early", 0]]
    with (
        pytest.raises(FaultError, match="did not take place"),
        inject(model, Fault("early", call=2)),
    ):
        model(x)


def test_a_permanent_fault_stays_where_it_is_in_any_number_of_forwards():
    model = lenet()
    with inject(model, Fault("0", error=StuckAt(1)), seed=3) as log:
        given = [model(IMAGES) for _ in range(4)]
    assert all(same_bits(given[0], other) for other in given)
    frame = log.to_frame()
    assert frame["forward"].tolist() == [0, 1, 2, 3]
    assert len({*frame["index"]}) == len({*frame["bit"]}) == 1


def test_a_transient_fault_strikes_its_forwards_alone():
    model = lenet()
    before = state(model)
    clean = model(IMAGES)
    neuron = Fault("5", index=(0, 0), error=Replace(99.0), when=1)
    weight = Fault("5", "bias", 0, Replace(1e3), when=(2, 3))
    with inject(model, neuron, weight) as log:
        given = []
        for _ in range(5):
            given.append(model(IMAGES))
            assert same_bits(model[5].bias, before["5.bias"])
    assert [same_bits(clean, g) for g in given] == [True, False, False, False, True]
    assert same_bits(given[2], given[3])
    assert log.to_frame()["forward"].tolist() == [1, 2, 3]


def test_short_batches_and_other_sizes_do_not_stop_a_loop():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    with inject(model, Fault("0"), Fault("0", index=(2, 0, 0, 0)), Fault("1", sample=2)) as log:
        for shape in [(3, 1, 8, 8), (1, 1, 8, 8), (3, 1, 5, 5)]:
            model(torch.randn(shape))
    assert log.to_frame().groupby("fault").size().tolist() == [3, 2, 2]


def test_neurons_and_weights_are_struck_in_one_pass_in_the_order_given():
    model = nn.Linear(2, 2, bias=False)
    nn.init.ones_(model.weight)
    faults = [
        Fault("(model)", "weight", (0, 0), Replace(3.0)),
        Fault("(model)", "output", (0, 0), Custom(lambda values, _: values + 10)),
        Fault("(model)", "output", (0, 0), Custom(lambda values, _: values * 2)),
        Fault("(model)", "input", (0, 1), Replace(0.5)),
    ]
    with inject(model, *faults):
        assert model(torch.ones(1, 2)).tolist() == [[27, 1.5]]


def test_contexts_nest():
    model = lenet()
    before = state(model)
    outer = Fault("5", "bias", 0, Replace(1.0))
    with inject(model, outer):
        once = model(IMAGES)
        with inject(model, Fault("5", "bias", 0, Replace(2.0)), Fault("2", index=(0, 0, 0, 0))):
            assert torch.allclose(model(IMAGES)[1:, 0], once[1:, 0] + 1)
        assert same_bits(model(IMAGES), once)
    assert unchanged(model, before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_whatever_is_raised_everything_is_restored(error):
    def bad(values, rng):
        raise error("on purpose")

    model = lenet()
    before = state(model)
    weights = [Fault("5", "weight", Everywhere()), Fault("0", "weight", Everywhere(), when=0)]
    with pytest.raises(error, match="on purpose"), inject(model, *weights):
        raise error("on purpose")
    assert unchanged(model, before)
    with pytest.raises(error), inject(model, *weights, Fault("2", error=Custom(bad))):
        model(IMAGES)
    assert unchanged(model, before)
    with pytest.raises(error), inject(model, *weights, Fault("5", "bias", 0, Custom(bad))):
        pass
    assert unchanged(model, before)


def test_after_a_forward_that_failed_the_next_one_is_struck():
    model = lenet()
    clean = state(model)
    with inject(model, Fault("5", index=(0, 0)), Fault("5", "bias", 0, when=(0, 1))) as log:
        with pytest.raises(RuntimeError):
            model(torch.zeros(1, 1, 8, 16))
        assert same_bits(model[5].bias, clean["5.bias"])
        model(IMAGES)
    assert log.to_frame()[["fault", "forward"]].to_numpy().tolist() == [[1, 0], [1, 1], [0, 1]]


def test_nan_payloads_and_signs_of_zero_come_back():
    model = nn.Linear(2, 2)
    patterns = torch.tensor([[0x7FA00001, -0x80000000], [-0x3FFFFF, 1]], dtype=torch.int32)
    model.weight.data = patterns.clone().view(torch.float32)
    for error in (BitFlip(), Zero(), Noise(1.0), Replace(math.nan)):
        with inject(model, Fault("", "weight", Everywhere(), error)):
            assert not torch.equal(model.weight.data.view(torch.int32), patterns)
        assert torch.equal(model.weight.data.view(torch.int32), patterns)


def test_training_goes_on_under_faults_and_gradients_pass():
    torch.manual_seed(0)
    model = lenet().train()
    faults = [
        Fault("2", error=BitFlip(field="mantissa")),
        Fault("5", "weight", (0, 0), when=0, error=Replace(0.0)),
    ]
    with inject(model, *faults):
        model(IMAGES).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model[1].num_batches_tracked == 1
    assert model.training


def test_a_stuck_bit_stays_so_whatever_is_written_to_it_and_a_flipped_one_does_not():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    before = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    faults = [
        Fault("0", "weight", (0, 0), StuckAt(1, bit=31)),
        Fault("1", "running_mean", 0, StuckAt(1, bit=31)),
        Fault("0", "bias", 0, BitFlip(bit=20)),
    ]
    seen = []
    model[0].register_forward_hook(lambda layer, *_: seen.append(layer.weight[0, 0].item()))
    with inject(model, *faults) as log:
        for _ in range(3):
            (model(torch.randn(4, 2)) ** 3).sum().backward()
            optimizer.step()
            with torch.no_grad():
                model[0].bias.fill_(0.5)
                model[0].weight.abs_()
                model[1].running_mean.fill_(2.0)
        written = model[0].weight.detach().clone()
        model.eval()(torch.zeros(1, 2))
        assert model[1].running_mean[0] == -2
        assert model[0].bias[0] == 0.5
    assert len(seen) == 4
    assert max(seen) < 0
    assert len(log) == 3
    assert written[0, 0] != before[0, 0]
    assert same_bits(model[0].weight, written)
    assert model[1].running_mean[0] == 2


def test_inference_mode_is_fine():
    model = lenet()
    with torch.inference_mode():
        with inject(model, Fault("5", index=(0, 0), error=Replace(7.0)), Fault("0", "weight")):
            assert model(IMAGES)[0, 0] == 7
        inner = nn.Linear(2, 2)
    with inject(inner, Fault("", "weight", (0, 0), Replace(1.0))):
        assert inner.weight[0, 0] == 1


def test_layers_that_are_called_by_themselves_are_struck_too():
    model = lenet()
    weight = Fault("0", "weight", (0, 0, 0, 0), Replace(50.0), when=1)
    with inject(model, Fault("0", index=(0, 0, 0, 0), error=Replace(3.0)), weight) as log:
        assert model[0](IMAGES)[0, 0, 0, 0] == 3
        model[0](IMAGES)
    assert log.to_frame()["forward"].tolist() == [0, 1, 1]


def test_the_log_says_when():
    model = lenet()
    started = time.monotonic_ns()
    with inject(model, Fault("0"), Fault("0", "weight")) as log:
        assert len(log) == 1
        model(IMAGES)
    assert len(log) == 2
    times = log.to_frame()["time_ns"].tolist()
    assert started <= times[0] <= times[1] <= time.monotonic_ns()


def test_a_recording_of_the_process_has_an_event_for_each_injection(monkeypatch):
    model, events = lenet(), []
    monkeypatch.setattr("pystack_nb.marks.recording", lambda: True)
    monkeypatch.setattr("pystack_nb.marks.emit", lambda *event: events.append(event))
    weight = Fault("5", "weight", (2, 1), Replace(4.0))
    with inject(model, Fault("0", index=Several(3), error=StuckAt(1, bit=2)), weight) as log:
        model(IMAGES)
    identity = nn.Identity()
    with inject(identity, Fault("", index=BitErrorRate(0.0)), Fault("", "input", ())):
        identity(torch.tensor(1.0))
    kind, names, starts, _, args = zip(*events, strict=True)
    assert {*kind} == {"fault"}
    assert names[:2] == ("5:weight", "0:output")
    assert list(starts[:2]) == log.to_frame()["time_ns"].unique().tolist()
    assert args[0]["index"] == [2, 1]
    assert args[0]["after"] == 4
    assert args[1]["elements"] == 3
    assert args[1]["index"] == list(log.to_frame()["index"][1])
    assert [(a["elements"], a.get("index")) for a in args[2:]] == [(1, []), (0, None)]


def test_packed_weights_of_quantised_layers_are_unpacked_struck_and_packed_again():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.Linear(4, 3), nn.ReLU()), {nn.Linear}, dtype=torch.qint8
        )
    x = torch.randn(2, 4)
    clean, weight = model(x), model[0].weight().int_repr()
    listed = sites(model, x)
    roles = listed[(listed["layer"] == "0") & (listed["kind"] == "weight")]["role"].tolist()
    assert roles == ["weight", "bias"]
    with inject(model, Fault("0", "weight", (1, 2), BitFlip(bit=7))):
        struck = model[0].weight()
        expected = weight.clone()
        expected[1, 2] ^= -128
        assert torch.equal(struck.int_repr(), expected)
        given = model[0](x)
        change = (int(expected[1, 2]) - int(weight[1, 2])) * struck.q_scale() * x[:, 2]
    # The kernel quantises the inputs, so that it is only nearly linear.
    assert torch.allclose(given[:, 1], model[0](x)[:, 1] + change, atol=0.05)
    assert torch.equal(model[0].weight().int_repr(), weight)
    assert same_bits(model(x), clean)
    with inject(model, Fault("0", "bias", 0, Replace(1e4))):
        assert (model(x)[:, 0] > 9e3).all()
    assert same_bits(model(x), clean)


def test_a_permanent_fault_is_placed_once_and_its_log_holds_no_more_than_was_stored(monkeypatch):
    placed, own = [], bits.place
    monkeypatch.setattr(bits, "place", lambda *args: placed.append(1) or own(*args))
    model = nn.Sequential(nn.ReLU()).half()
    x = torch.ones(4, 5, dtype=torch.float16)
    with inject(model, Fault("0", index=Everywhere(), error=BitFlip(bit=15))) as log:
        given = [model(x) for _ in range(3)]
    assert len(placed) == 1
    assert all(torch.equal(y, -x) for y in given)
    for injection in log.injections:
        assert injection.before.stored.nbytes == injection.after.stored.nbytes == x.nbytes
        assert injection.positions is log.injections[0].positions
        assert injection.bit is log.injections[0].bit
    frame = log.to_frame()
    assert set(frame["changed"]) == {1 << 15}
    assert (set(frame["before"]), set(frame["after"])) == ({1.0}, {-1.0})


def test_declared_values_may_lie_anywhere():
    pfi = FaultInjection(nn.Conv2d(1, 2, 1), 2, [1, 3, 3])
    places = {"dim1": [0, 1], "dim2": [1, 2], "dim3": [0, 2]}
    value = [torch.tensor(7.0), 9]
    model = pfi.declare_neuron_fault_injection(
        batch=[0, 1], layer_num=[0, 0], **places, value=value
    )
    given = model(torch.zeros(2, 1, 3, 3)).detach()
    assert (float(given[0, 0, 1, 0]), float(given[1, 1, 2, 2])) == (7, 9)
