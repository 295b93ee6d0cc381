from __future__ import annotations

import contextlib
import threading

import numpy as np
import pandas as pd
import pytest
import reference
import torch

from engine_nets import (
    Block,
    Both,
    Counts,
    Folds,
    InPlace,
    Looks,
    Mixes,
    Remembers,
    Sequences,
    Shared,
)
from evaluated import check, flips, lenet
from torch import nn

from pystack_nb.errors import FaultError
from pystack_nb.faults import engine_trace
from pystack_nb.faults.engine import Engine, EngineData
from pystack_nb.faults.engine_weights import Weight
from pystack_nb.faults.metrics import Exact, Tolerance, Top1, TopK


pytestmark = pytest.mark.usefixtures("one_way_of_attention")


class TestOutcomesEqualThoseOfOneFaultPerForward:
    @pytest.mark.parametrize("metric", [Top1(), TopK(2), Tolerance(1e-3), Exact()], ids=repr)
    def test_in_a_chain_of_layers_by_any_metric(self, metric):
        found = check(lenet(), [torch.randn(12, 1, 8, 8)], metric)
        assert {"masked", "SDC"} <= set(found["outcome"])

    def test_with_labels(self):
        inputs, labels = [torch.randn(12, 1, 8, 8)], torch.arange(12) % 5
        scores = check(lenet(), inputs, labels=labels)["score"]
        assert set(scores.dropna()) == {0.0, 1.0}
        check(lenet(), inputs, Top1(where_right=True), labels)

    def test_by_a_function_of_the_user(self):
        check(lenet(), [torch.randn(6, 1, 8, 8)], lambda good, bad, _: (good - bad).abs().max() > 1)

    @pytest.mark.parametrize("batch", [1, 3, 64])
    def test_with_any_batch(self, batch):
        check(lenet(), [torch.randn(7, 1, 8, 8)], batch_size=batch)

    def test_in_residual_blocks(self):
        net = nn.Sequential(Block(), Block(), nn.Flatten(), nn.Linear(48, 4))
        check(net, [torch.randn(8, 3, 4, 4)], Exact())

    def test_where_tensors_are_changed_in_place(self):
        check(InPlace(), [torch.randn(6, 1, 6, 6)], Exact())

    def test_in_channels_last_memory(self):
        net = lenet().to(memory_format=torch.channels_last)
        check(net, [torch.randn(8, 1, 8, 8).to(memory_format=torch.channels_last)], Exact())

    def test_in_recurrent_and_attention_layers(self):
        check(Sequences(), [torch.randn(5, 3, 4)])

    def test_in_layers_that_are_shared_or_never_run(self):
        tokens = torch.randint(0, 10, (6, 3))
        found = check(Shared(), [tokens, torch.rand(6)])
        assert "DUE" in set(found["outcome"])

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
    def test_in_other_types(self, dtype):
        check(lenet().to(dtype), [torch.randn(6, 1, 8, 8).to(dtype)])

    def test_where_a_forward_depends_on_numbers(self):
        net, inputs = Looks(), [torch.randn(6, 6)]
        assert Engine(net.eval(), EngineData(inputs)).program is None
        check(net, inputs)

    def test_where_a_batch_is_more_than_its_samples(self):
        net, inputs = Mixes(), [torch.randn(6, 6)]
        assert Engine(net.eval(), EngineData(inputs)).program is None
        check(net, inputs, Tolerance(1e-3))

    def test_of_weights_on_several_samples(self):
        inputs, labels = [torch.randn(12, 1, 8, 8)], torch.arange(12) % 5
        faults = flips(lenet(), inputs, 60, kind="weight")
        check(lenet(), inputs, labels=labels, faults=faults, weight_samples=5)
        check(lenet(), inputs, Exact(), faults=faults, weight_samples=5)

    @pytest.mark.parametrize("metric", [Tolerance(1e-3), Exact()], ids=repr)
    def test_in_any_tensor_of_the_output(self, metric):
        net, inputs = Both(), [torch.randn(6, 6)]
        faults = flips(net, inputs, 40, kind="weight").assign(layer="numbers", role="weight")
        faults["xor_mask"], faults["element"] = np.uint64(1 << 28), faults["element"] % 24
        assert "SDC" in set(check(net, inputs, metric, faults=faults)["outcome"])

    @pytest.mark.parametrize("metric", [Tolerance(1e-3), Exact()], ids=repr)
    def test_in_outputs_of_a_single_number(self, metric):
        net = nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))
        assert "SDC" in set(check(net, [torch.randn(6, 6)], metric)["outcome"])

    def test_of_classes_in_any_dimension(self):
        inputs, labels = [torch.randn(4, 1, 4, 8)], torch.randint(0, 3, (4, 4, 8))
        check(nn.Conv2d(1, 3, 1), inputs, Top1(class_dim=-3), labels)
        check(nn.Linear(8, 4), inputs, TopK(2, class_dim=-1))

    def test_of_bits_that_are_stuck(self):
        net, inputs = lenet(), [torch.randn(5, 1, 8, 8)]
        faults = flips(net, inputs, 200)
        faults["or_mask"], faults["xor_mask"] = faults["xor_mask"], np.uint64(0)
        found = check(net, inputs, Exact(), faults=faults)
        held = found["before"] == found["after"]
        assert held.any()
        assert (found["outcome"][held] == "masked").all()

    def test_when_a_fault_makes_an_operation_fail(self):
        tokens = torch.randint(0, 10, (6, 3))
        net = Shared().eval()
        faults = flips(net, [tokens, torch.rand(6)], 20)
        faults["layer"], faults["role"], faults["kind"] = "embed", "input", "neuron"
        faults["element"], faults["call"] = faults["element"] % 3, 0
        faults["xor_mask"] = np.uint64(1 << 40)
        faults.loc[::2, "xor_mask"] = np.uint64(1)
        found = check(net, [tokens, torch.rand(6)], faults=faults)
        assert (found["outcome"][1::2] == "DUE").all()

    def test_where_two_classes_are_as_good_as_equal(self):
        net = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 2))
        with torch.no_grad():
            net[2].weight[1] = net[2].weight[0]
            net[2].bias[1] = net[2].bias[0]
            net[2].weight[1, 0] += 1e-9
        found = check(net, [torch.randn(20, 40)])
        assert len(set(found["outcome"])) > 1

    @pytest.mark.parametrize("metric", [Top1(), Exact()], ids=repr)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    @pytest.mark.parametrize(
        ("layer", "shape"),
        [
            (nn.Linear(8, 6), (8,)),
            (nn.Linear(8, 6, bias=False), (3, 8)),
            (nn.Conv1d(4, 6, 3, groups=2), (4, 9)),
            (nn.Conv2d(2, 6, 3, padding="same"), (2, 5, 5)),
            (nn.Conv2d(2, 6, 3, stride=2, padding=1, padding_mode="circular"), (2, 5, 5)),
            (nn.Conv3d(2, 4, 2), (2, 3, 3, 3)),
        ],
        ids=["linear", "tokens", "groups", "same", "circular", "conv3d"],
    )
    def test_of_weights_in_several_channels_at_a_time(self, layer, shape, dtype, metric):
        with torch.no_grad():
            sizes = layer(torch.zeros(1, *shape)).numel()
        last = nn.Linear(sizes, 4)
        net = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), last).to(dtype).eval()
        inputs = [torch.randn(5, *shape).to(dtype)]
        faults = flips(net, inputs, 200, kind="weight")
        found = check(net, inputs, metric, faults=faults)
        # Of random samples and weights all classes may be far from each other.
        outcomes = {"masked", "SDC"} if isinstance(metric, Exact) else {"masked"}
        assert outcomes <= {*found["outcome"]}
        assert found.attrs["ways"]["batch"] > 100
        net.float()

    def test_of_weights_whose_output_is_used_beside_the_layer_that_gives_it(self):
        class Beside(nn.Module):
            def __init__(self):
                super().__init__()
                self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

            def forward(self, x):
                y = nn.functional.linear(x, self.one.weight)
                return self.two(self.one(x)) + y + self.two(y)

        check(Beside(), [torch.randn(5, 6)], Exact())

    def test_of_channels_that_are_not_made_each_by_itself(self, monkeypatch):
        # As with a kernel that rounds a channel by what the others are.
        net, inputs = lenet(), [torch.randn(4, 1, 8, 8)]
        struck = Weight.all_struck

        @contextlib.contextmanager
        def too_many(self, results, trials):
            others = np.setdiff1d(np.arange(len(self.tensor)), trials)[:1]
            kept = self.tensor.detach().clone()
            with struck(self, results, trials), torch.no_grad():
                self.tensor[others] += 1
                yield
            self.tensor.data.copy_(kept)

        monkeypatch.setattr(Weight, "all_struck", too_many)
        found = check(net, inputs, Exact(), faults=flips(net, inputs, 60, kind="weight"))
        assert found.attrs["ways"]["alone"] > 30


class TestAnEngine:
    def test_leaves_weights_buffers_and_hooks_as_they_were(self):
        net, inputs = lenet(), [torch.randn(6, 1, 8, 8)]
        before = {name: x.clone() for name, x in net.state_dict().items()}
        given = inputs[0].clone()
        Engine(net, EngineData(inputs)).evaluate(flips(net, inputs, 200))
        assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
        assert torch.equal(inputs[0], given)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())

    def test_restores_a_weight_when_the_metric_fails(self):
        net, inputs = lenet(), [torch.randn(6, 1, 8, 8)]
        before = {name: x.clone() for name, x in net.state_dict().items()}
        engine = Engine(net, EngineData(inputs), lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.evaluate(flips(net, inputs, 20, kind="weight"))
        assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())

    def test_gives_rows_in_the_order_given_and_the_same_in_any(self):
        net, inputs = lenet(), [torch.randn(6, 1, 8, 8)]
        faults = flips(net, inputs, 100)
        engine = Engine(net, EngineData(inputs))
        found, other = engine.evaluate(faults), engine.evaluate(faults[::-1])
        assert found["fault"].tolist() == faults["fault"].tolist()
        other = other[::-1].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, other, check_exact=True)

    def test_takes_no_faults_at_all(self):
        net, inputs = lenet(), [torch.randn(2, 1, 8, 8)]
        found = Engine(net, EngineData(inputs)).evaluate(flips(net, inputs, 5)[:0])
        assert list(found.columns) == ["fault", "outcome", "before", "after", "score"]
        assert found.empty

    def test_sees_weights_that_changed_between_calls(self):
        net, inputs = lenet(), [torch.randn(4, 1, 8, 8)]
        faults = flips(net, inputs, 60)
        engine = Engine(net, EngineData(inputs), Exact())
        engine.evaluate(faults)
        net.load_state_dict({k: v * 2 for k, v in net.state_dict().items()}, assign=True)
        expected = reference.evaluate(net, EngineData(inputs), faults, Exact())
        found = engine.evaluate(faults)
        pd.testing.assert_frame_equal(found, expected, check_exact=True, check_dtype=False)

    @pytest.mark.parametrize("change", ["hook", "forward"])
    def test_sees_hooks_and_forwards_that_came_between_calls(self, change):
        net, inputs = lenet(), [torch.randn(4, 1, 8, 8)]
        faults = flips(net, inputs, 60)
        engine = Engine(net, EngineData(inputs), Exact())
        engine.evaluate(faults)
        if change == "hook":
            net[2].register_forward_hook(lambda _, __, y: y.clamp(max=1))
        else:
            own = net[2].forward
            net[2].forward = lambda x: own(x).clamp(max=1)
        expected = reference.evaluate(net, EngineData(inputs), faults, Exact())
        found = engine.evaluate(faults)
        pd.testing.assert_frame_equal(found, expected, check_exact=True, check_dtype=False)

    @pytest.mark.parametrize("name", ["factor", "scale", "pair"])
    def test_sees_attributes_that_changed_between_calls(self, name):
        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(6, 6)
                self.factor, self.scale, self.pair = 1, torch.tensor(2.0), (3, 4)

            def forward(self, x):
                return self.linear(x) * self.factor * self.scale + self.pair[0]

        net, inputs = Scaled().eval(), [torch.randn(4, 6)]
        faults = flips(net, inputs, 60)
        engine = Engine(net, EngineData(inputs), Exact())
        engine.evaluate(faults)
        program = engine.program
        engine.evaluate(faults)
        assert engine.program is program
        setattr(net, name, {"factor": -1, "scale": torch.tensor(7.0), "pair": (5, 6)}[name])
        expected = reference.evaluate(net, EngineData(inputs), faults, Exact())
        found = engine.evaluate(faults)
        pd.testing.assert_frame_equal(found, expected, check_exact=True, check_dtype=False)

    def test_refuses_a_model_that_was_put_into_training_mode_between_calls(self):
        net, inputs = lenet(), [torch.randn(4, 1, 8, 8)]
        faults = flips(net, inputs, 10)
        engine = Engine(net, EngineData(inputs))
        engine.evaluate(faults)
        net.train()
        with pytest.raises(FaultError, match="training mode"):
            engine.evaluate(faults)

    @pytest.mark.parametrize("make", [Remembers, lambda: Counts(2)], ids=["buffers", "attributes"])
    def test_puts_what_a_model_remembers_back_after_each_forward(self, make):
        net, inputs = make().eval(), [torch.randn(6, 6)]
        faults = flips(net, inputs, 60)
        attributes = [dict(m.__dict__) | m._buffers for m in net.modules()]
        before = {k: v.clone() for k, v in net.state_dict().items()}
        engine = Engine(net, EngineData(inputs), Exact())
        found, other = engine.evaluate(faults), engine.evaluate(faults[::-1])
        other = other[::-1].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, other, check_exact=True)
        assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
        for module, own in zip(net.modules(), attributes, strict=True):
            assert (module.__dict__ | module._buffers).keys() == own.keys()
            assert all(own[k] is x for k, x in (module.__dict__ | module._buffers).items())

    def test_takes_elements_of_one_sample_where_samples_are_folded(self):
        net, inputs = Folds().eval(), [torch.randn(4, 5, 4)]
        faults = flips(net, [inputs[0][:1]], 40, kind="neuron")
        found = check(net, inputs, Exact(), faults=faults)
        assert found["before"].notna().all()

    @pytest.mark.parametrize(
        "way",
        [
            lambda x: x.numpy(),
            lambda x: x.tolist(),
            np.asarray,
            np.from_dlpack,
            lambda x: x.item() if x.numel() == 1 else x.sum().item(),
            lambda x: x.data.numpy(),
            lambda x: x.detach().tolist(),
        ],
        ids=["numpy", "tolist", "asarray", "dlpack", "item", "data", "detach"],
    )
    def test_follows_no_forward_that_takes_numbers_out_of_tensors(self, way):
        class Takes(nn.Module):
            def forward(self, x):
                return x * float(np.sum(way(self.last(x)))) + self.kept.tolist()[0]

            def __init__(self):
                super().__init__()
                self.last, self.kept = nn.Linear(6, 6), torch.ones(1)

        net, inputs = Takes().eval(), [torch.randn(4, 6)]
        with pytest.raises(engine_trace.UntraceableError):
            engine_trace.trace(net, inputs)
        assert not any(x.__dict__ for x in (*inputs, net.last.weight, net.kept))
        ways = check(net, inputs, Exact()).attrs["ways"]
        assert ways["direct"] == 250

    def test_lets_other_threads_take_numbers_meanwhile(self):
        own = {name: getattr(torch.Tensor, name) for name in engine_trace._WAYS_OUT}
        meet, seen = threading.Barrier(2), []

        class Waits(nn.Module):
            def forward(self, x):
                meet.wait(10)
                seen.append(all(getattr(torch.Tensor, n) is own[n] for n in own))
                y = x * 2
                meet.wait(10)
                return y

        threads = [
            threading.Thread(target=engine_trace.trace, args=(Waits(), [torch.ones(1, 2)]))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [True, True]

    @pytest.mark.parametrize("metric", [Top1(), Exact()], ids=repr)
    def test_starts_few_faults_anew_even_if_they_are_huge_or_every_bit_matters(self, metric):
        net, inputs = lenet(), [torch.randn(16, 1, 8, 8)]
        faults = flips(net, inputs, 300, kind="neuron")
        ways = Engine(net, EngineData(inputs), metric).evaluate(faults)
        assert ways.attrs["ways"]["batch"] == 300
        assert ways.attrs["ways"]["alone"] < 10
        assert ways.attrs["ways"]["direct"] == 0
