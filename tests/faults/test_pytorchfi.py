from __future__ import annotations

import copy
import logging
import random
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch

from pytorchfi_nets import BOTH, IMAGES, SHAPE, drawn_from, run, same, site_with
from torch import nn

from pystack_nb import marks
from pystack_nb import neuron_error_models as neurons
from pystack_nb import weight_error_models as weights
from pystack_nb.errors import FaultError
from pystack_nb.faults import FaultInjection, pytorchfi


@pytest.fixture(autouse=True)
def one_thread():
    # Threads that wait for each other take seconds for these tiny tensors on a busy machine.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model():
    return drawn_from()


@pytest.fixture
def pfi(model):
    return FaultInjection(model, 4, SHAPE, BOTH)


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_both_dialects_name_the_same(pfi):
    assert pytorchfi.fault_injection is FaultInjection
    assert pfi.declare_neuron_fi.__func__ is FaultInjection.declare_neuron_fault_injection
    assert pfi.declare_weight_fi.__func__ is FaultInjection.declare_weight_fault_injection
    assert pfi.fi_reset.__func__ is FaultInjection.reset_fault_injection
    assert pfi.get_total_batches() == pfi.batch_size == 4
    assert pfi.get_output_size() is pfi.output_size
    assert pfi.get_fmap_HW(1) == (3, 3)
    assert pfi.get_tensor_dim(1, 1) == pfi.get_fmaps_num(1) == 6
    assert pfi.get_layer_type(2) is nn.Linear
    assert pfi.get_layer_dim(2) == 2
    assert pfi.get_weights_dim(0) == 4
    assert pfi.get_original_model() is pfi.original_model
    pfi.updateLayer()
    assert pfi.get_current_layer() == 1


def test_a_corrupted_model_works_for_any_number_of_forwards_and_the_original_stays_right(
    pfi, model
):
    right, before = run(model, IMAGES), copy.deepcopy(model.state_dict())
    corrupted = pfi.declare_neuron_fault_injection(
        batch=[0, 2], layer_num=[1, 2], dim1=[3, 4], dim2=[1, None], dim3=[2, None], value=[50, 9]
    )
    wrong = [run(corrupted, IMAGES) for _ in range(3)]
    assert same(wrong[0], wrong[1])
    assert same(wrong[0], wrong[2])
    assert same(right, run(model, IMAGES))
    assert same(right[[1, 3]], wrong[0][[1, 3]])
    assert wrong[0][2, 4] == 9
    assert not torch.equal(right[0], wrong[0][0])
    assert hooks(model) == 0
    assert same(before.values(), model.state_dict().values())


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_neurons_and_weights_of_convolutions_are_struck_whatever_their_dimensions(dims):
    conv = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1]
    torch.manual_seed(0)
    model = nn.Sequential(conv(2, 3, 3, padding=1))
    images = torch.rand(2, 2, *[5] * dims)
    pfi = FaultInjection(model, 2, [2, *[5] * dims], [conv])
    random.seed(2)
    right = run(model, images)
    for _ in range(5):
        wrong = run(neurons.random_neuron_inj(pfi, 7, 8), images)
        layer, batch, value = pfi.corrupt_layer[0], pfi.corrupt_batch[0], pfi.corrupt_value[0]
        changed = (wrong != right).nonzero()
        assert layer == 0
        assert len(changed) == 1
        assert changed[0, 0] == batch
        assert wrong[tuple(changed[0])] == pytest.approx(value)
        state = weights.random_weight_inj(pfi, min_val=7, max_val=8).state_dict()
        assert int((state["0.weight"] != model[0].weight).sum()) == 1
        assert not torch.equal(run(pfi.corrupted_model, images), right)


class Swapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.b = nn.Conv2d(4, 8, 3, padding=1)
        self.a = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return self.b(self.a(x))


def test_numbers_of_neurons_and_weights_follow_execution():
    model = Swapped()
    pfi = FaultInjection(model, 1, SHAPE)
    assert pfi.layer_names == ["a", "b"]
    assert pfi.output_size == [[1, 4, 8, 8], [1, 8, 8, 8]]
    assert [list(size) for size in pfi.weights_size] == [[4, 3, 3, 3], [8, 4, 3, 3]]
    corrupted = pfi.declare_weight_fi(layer_num=[0], k=[3], dim1=[2], dim2=[1], dim3=[0], value=[5])
    assert corrupted.state_dict()["a.weight"][3, 2, 1, 0] == 5


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = self.again = nn.Conv2d(3, 3, 3, padding=1)
        self.more = nn.ModuleList([self.conv])

    def forward(self, x):
        return self.again(self.conv(x))


def test_a_shared_module_has_a_number_for_each_run_and_one_weight():
    model = Twice()
    pfi = FaultInjection(model, 1, SHAPE)
    image = torch.rand(1, *SHAPE)
    assert pfi.layer_names == ["conv", "conv"]
    assert pfi.get_weights_size(0) == pfi.get_weights_size(1)
    site = {"batch": [0], "dim1": [0], "dim2": [0], "dim3": [0], "value": [100]}
    last = run(pfi.declare_neuron_fi(layer_num=[1], **site), image)
    assert int((last != run(model, image)).sum()) == 1
    first = run(pfi.declare_neuron_fi(layer_num=[0], **site), image)
    assert int((first != run(model, image)).sum()) > 1
    calls = []
    weights.multi_weight_inj(pfi, sdc_p=1.0, function=lambda w, i: calls.append(i) or w[i])
    assert len(set(calls)) == len(calls) == model.conv.weight.numel()


def test_every_innermost_module_is_a_layer_in_all_mode(model, capsys):
    pfi = FaultInjection(model, 4, SHAPE, ["all"])
    assert pfi.get_total_layers() == 6
    assert pfi.get_layer_type(1) is nn.ReLU
    text = pfi.print_pytorchfi_layer_summary()
    assert capsys.readouterr().out.strip() == text.strip()
    random.seed(0)
    assert {weights.random_weight_location(pfi)[0][0] for _ in range(50)} == {0, 2, 5}
    right = run(model, IMAGES)
    for layer in range(6):
        at = neurons.random_neuron_location(pfi, layer)[1:]
        dims = {f"dim{i + 1}": [number] for i, number in enumerate(at)}
        wrong = pfi.declare_neuron_fi(batch=[1], layer_num=[layer], **dims, value=[1e4])
        assert not torch.equal(run(wrong, IMAGES), right)


def test_overlapping_layer_types_count_once(model):
    assert FaultInjection(model, 4, SHAPE, [nn.Conv2d, nn.Module]).output_size[0] == [1, 8, 8, 8]
    assert FaultInjection(model, 4, SHAPE, [nn.Conv2d, nn.Conv2d]).get_total_layers() == 2


def test_the_summary_says_what_scripts_look_for(pfi):
    text = pfi.print_pytorchfi_layer_summary()
    for part in (
        *["PYTORCHFI INIT SUMMARY", "Shape of input into the model: (3 8 8 )", "Batch Size: 4"],
        *["Conv2d", "Linear", "CUDA Enabled: False"],
    ):
        assert part in text


def test_a_model_that_is_one_layer_is_one():
    model = nn.Linear(4, 3)
    pfi = FaultInjection(model, 2, [4], [nn.Linear])
    assert pfi.layer_names == ["(model)"]
    wrong = pfi.declare_neuron_fi(
        batch=[1], layer_num=[0], dim1=[2], dim2=[None], dim3=[None], value=[7]
    )
    assert run(wrong, torch.rand(2, 4))[1, 2] == 7
    wrong = pfi.declare_weight_fi(
        layer_num=[0], k=[1], dim1=[2], dim2=[None], dim3=[None], value=[7]
    )
    assert wrong.state_dict()["weight"][1, 2] == 7


def test_parametrised_and_quantised_layers_are_layers():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 2, 3)))
    pfi = FaultInjection(model, 1, SHAPE)
    image = torch.rand(1, *SHAPE)
    site = {"batch": [0], "layer_num": [0], "dim1": [0], "dim2": [0], "dim3": [0]}
    assert run(pfi.declare_neuron_fi(**site, value=[9]), image)[0, 0, 0, 0] == 9
    with pytest.raises(FaultError, match=r"faults\.inject"):
        weights.random_weight_inj(pfi)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 3)))
        pfi = FaultInjection(quantised, 1, [4], [type(quantised[0])])
        site = {"batch": [0], "layer_num": [0], "dim1": [1], "dim2": [None], "dim3": [None]}
        assert run(pfi.declare_neuron_fi(**site, value=[9]), torch.rand(1, 4))[0, 1] == 9


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 4)
        self.memory = nn.LSTM(4, 5, batch_first=True)
        self.norm = nn.LayerNorm(5)

    def forward(self, words, scale):
        return self.norm(self.memory(self.table(words))[0]) * scale


def test_embeddings_recurrent_layers_and_models_of_two_inputs_are_struck():
    model = Words()
    inputs = torch.arange(6).reshape(1, 6), torch.ones(1)
    with pytest.raises(FaultError, match="inputs="):
        FaultInjection(model, 1, [6], ["all"])
    pfi = FaultInjection(model, 1, [6], ["all"], inputs=inputs)
    assert pfi.layer_names == ["table", "memory", "norm"]
    right = run(model, *inputs)
    for layer in range(3):
        corrupted = pfi.declare_neuron_fi(
            batch=[0], layer_num=[layer], dim1=[2], dim2=[1], dim3=[None], value=[3]
        )
        assert not torch.equal(run(corrupted, *inputs), right)
    assert weights.random_weight_location(pfi, 2)[2:] == ([None], [None], [None])
    random.seed(1)
    assert not torch.equal(run(weights.random_weight_inj(pfi, 2, 5, 6), *inputs), right)


def test_a_weight_that_another_module_uses_comes_after_the_layers_that_run():
    model = nn.MultiheadAttention(4, 2, batch_first=True)
    x = torch.rand(1, 3, 4)
    pfi = FaultInjection(model, 1, [3, 4], [nn.MultiheadAttention, nn.Linear], inputs=(x, x, x))
    assert pfi.layer_names == ["(model)", "out_proj"]
    assert pfi.get_total_layers() == 1
    right = run(model, x, x, x)[0]
    wrong = pfi.declare_weight_fi(
        layer_num=[1], k=[0], dim1=[0], dim2=[None], dim3=[None], value=[9]
    )
    assert not torch.equal(run(wrong, x, x, x)[0], right)


def test_finding_the_layers_touches_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    state, level = copy.deepcopy(model.state_dict()), logging.getLogger().handlers[:]
    generators = torch.get_rng_state(), random.getstate()
    legacy = np.random.get_state()[1].tolist()  # noqa: NPY002 - the global one
    FaultInjection(model, 2, SHAPE, ["all"], inputs=torch.ones(1, *SHAPE))
    assert all(module.training for module in model.modules())
    assert same(state.values(), model.state_dict().values())
    assert torch.equal(generators[0], torch.get_rng_state())
    assert generators[1] == random.getstate()
    assert legacy == np.random.get_state()[1].tolist()  # noqa: NPY002
    assert hooks(model) == 0
    assert logging.getLogger().handlers == level


def test_the_sample_is_drawn_as_pytorchfi_draws_it():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5)).train()
    torch.manual_seed(3)
    torch.randn((1, *SHAPE))
    expected = torch.rand(4)
    torch.manual_seed(3)
    FaultInjection(model, 2, SHAPE)
    assert torch.equal(torch.rand(4), expected)


def test_indices_beyond_an_outputs_dimensions_are_ignored_with_a_warning(pfi):
    with pytest.warns(UserWarning, match="Dim2 and Dim3 ignored"):
        corrupted = pfi.declare_neuron_fi(**site_with(layer_num=[2]))
    assert run(corrupted, IMAGES)[0, 0] == 1


def test_a_fault_that_cannot_take_place_is_an_error(model):
    pfi = FaultInjection(model, 4, SHAPE, BOTH)
    corrupted = pfi.declare_neuron_fi(**site_with(batch=[3]))
    with pytest.raises(FaultError, match="drop_last"):
        run(corrupted, IMAGES[:2])
    run(corrupted, IMAGES)
    assert hooks(model) == 0

    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x) if x.sum() < 1e3 else x

    pfi = FaultInjection(Skips(), 4, SHAPE)
    with pytest.raises(FaultError, match=r"0 \(conv\)"):
        run(pfi.declare_neuron_fi(**site_with()), IMAGES + 1e3)


def test_everything_is_restored_when_a_forward_fails(pfi, model):
    before = copy.deepcopy(model.state_dict())
    random.seed(0)
    for corrupted in (neurons.random_neuron_inj(pfi), weights.random_weight_inj(pfi)):
        with pytest.raises(RuntimeError, match="channels"):
            corrupted(torch.rand(4, 5, 8, 8))
        assert hooks(model) == 0
        assert same(before.values(), model.state_dict().values())


def test_declarations_leave_nothing_behind(pfi, model):
    for _ in range(50):
        run(neurons.random_neuron_inj(pfi), IMAGES)
    assert pfi.handles == []
    assert hooks(model) == 0


def test_a_reset_ends_neuron_faults(pfi, model):
    right = run(model, IMAGES)
    corrupted = pfi.declare_neuron_fi(**site_with(value=[1e3]))
    assert not torch.equal(run(corrupted, IMAGES), right)
    pfi.fi_reset()
    assert pfi.corrupted_model is None
    assert pfi.corrupt_layer == []
    assert torch.equal(run(corrupted, IMAGES), right)


def test_a_corrupted_model_is_the_original_but_for_its_faults(pfi, model):
    corrupted = pfi.declare_weight_fi(
        layer_num=[2], k=[1], dim1=[2], dim2=[None], dim3=[None], value=[5]
    )
    assert same(corrupted.parameters(), model.parameters())
    assert [*corrupted.state_dict()] == [*model.state_dict()]
    assert corrupted.state_dict()["5.weight"][1, 2] == 5
    assert model[5].weight[1, 2] != 5
    with corrupted.applied() as struck:
        assert struck[5].weight[1, 2] == 5
    corrupted.train()
    assert model[0].training
    assert corrupted.training
    corrupted.eval()
    assert not model.training
    assert corrupted.double() is corrupted
    assert model[0].weight.dtype == torch.float64
    run(corrupted, IMAGES.double())
    assert "Conv2d" in repr(corrupted)
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = corrupted.nothing_of_this_name


def test_methods_of_the_model_run_under_the_faults():
    class Predicts(Swapped):
        def predict(self, x):
            return self(x).sum()

    model = Predicts()
    pfi = FaultInjection(model, 1, SHAPE)
    image = torch.rand(1, *SHAPE)
    corrupted = pfi.declare_neuron_fi(**site_with(layer_num=[1], value=[1e4]))
    assert corrupted.predict(image) > 5e3 > model.predict(image)


def test_gradients_of_a_model_with_wrong_weights_are_those_of_a_copy(pfi, model):
    corrupted = pfi.declare_weight_fi(
        layer_num=[1, 2], k=[1, 4], dim1=[2, 4], dim2=[0, None], dim3=[1, None], value=[3, -2]
    )
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[2].weight[1, 2, 0, 1] = 3
        other[5].weight[4, 4] = -2
    corrupted(IMAGES).square().sum().backward()
    other(IMAGES).square().sum().backward()
    assert same([model[0].weight.grad], [other[0].weight.grad])
    assert model[2].weight.grad[1, 2, 0, 1] == 0
    other[2].weight.grad[1, 2, 0, 1] = 0
    assert same([model[2].weight.grad], [other[2].weight.grad])


def test_tied_weights_are_wrong_in_both_places():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    pfi = FaultInjection(model, 1, [3], [nn.Linear])
    corrupted = pfi.declare_weight_fi(
        layer_num=[1], k=[0], dim1=[0], dim2=[None], dim3=[None], value=[9]
    )
    with corrupted.applied() as struck:
        assert struck[0].weight is struck[1].weight
        assert struck[0].weight[0, 0] == 9


def test_a_function_sees_each_layer_when_it_runs(pfi, model):
    seen = []

    def function(module, args, output):
        seen.append((pfi.get_current_layer(), type(module).__name__, tuple(args[0].shape)))
        pfi.updateLayer()
        return output * 0

    corrupted = pfi.declare_neuron_fi(function=function)
    for _ in range(2):
        assert not run(corrupted, IMAGES).any()
    assert seen == 2 * [
        (0, "Conv2d", (4, 3, 8, 8)),
        (1, "Conv2d", (4, 8, 8, 8)),
        (2, "Linear", (4, 54)),
    ]


def test_bits_of_linear_layers_flip_too(model):
    pfi = neurons.single_bit_flip_func(model, 4, SHAPE, layer_types=[nn.Linear])
    random.seed(4)
    right = run(model, IMAGES)
    wrong = run(
        neurons.random_neuron_single_bit_inj_batched(pfi, [2.0], batch_random=False), IMAGES
    )
    assert (wrong != right).sum(1).tolist() == [1, 1, 1, 1]
    with pytest.raises(FaultError, match="set_conv_max"):
        run(neurons.random_neuron_single_bit_inj(pfi, []), IMAGES)
    with pytest.raises(FaultError, match="single_bit_flip_func"):
        neurons.random_neuron_single_bit_inj_batched(FaultInjection(model, 4, SHAPE), [1.0])


def test_a_model_that_cannot_be_copied_is_no_obstacle(model):
    model.lock = threading.Lock()
    pfi = FaultInjection(model, 4, SHAPE)
    random.seed(0)
    right = run(model, IMAGES)
    assert not torch.equal(run(neurons.random_inj_per_layer_batched(pfi, 50, 60), IMAGES), right)


def test_an_identity_that_is_struck_leaves_its_input_alone():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.same = nn.Identity()

        def forward(self, x):
            return torch.stack([self.same(x), x])

    pfi = FaultInjection(Residual(), 4, SHAPE, ["all"])
    struck, other = run(pfi.declare_neuron_fi(**site_with(value=[7])), IMAGES)
    assert struck[0, 0, 0, 0] == 7
    assert torch.equal(other, IMAGES)


@pytest.mark.parametrize("module", ["neuron_error_models", "weight_error_models"])
def test_without_torch_the_error_models_say_what_to_install(module):
    program = f"import sys; sys.modules['torch'] = None; import pystack_nb.{module}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert b"TorchMissingError" in done.stderr
    assert b"pip install pystack-nb[torch]" in done.stderr


def test_a_recording_is_told_of_each_fault(pfi, monkeypatch):
    told = []
    monkeypatch.setattr(marks, "recording", lambda: True)
    monkeypatch.setattr(marks, "emit", lambda kind, name, *_: told.append((kind, name)))
    random.seed(0)
    run(pfi.declare_neuron_fi(**site_with(layer_num=[1])), IMAGES)
    run(weights.random_weight_inj(pfi, 2), IMAGES)
    assert told == [("fault", "2:output"), ("fault", "5:weight")]
