from __future__ import annotations

import pytest
import torch

from engine_nets import Chance, Counts, Folds, Looks, Rolls
from evaluated import flips, lenet
from torch import nn

from pystack_nb.errors import CampaignError, FaultError
from pystack_nb.faults.engine import Engine, EngineData
from pystack_nb.faults.metrics import Tolerance, Top1, TopK


pytestmark = pytest.mark.usefixtures("one_way_of_attention")


class TestRefused:
    def test_is_a_model_in_training_mode(self):
        with pytest.raises(FaultError, match=r"model\.eval\(\)"):
            Engine(lenet().train(), EngineData([torch.randn(2, 1, 8, 8)]))

    def test_is_a_model_that_draws_random_numbers(self):
        net, inputs = nn.Sequential(nn.Linear(3, 3), Chance()).eval(), [torch.randn(4, 3)]
        with pytest.raises(FaultError, match="random"):
            Engine(net, EngineData(inputs)).evaluate(flips(net, inputs, 5))

    def test_is_a_model_that_remembers_where_it_can_not_be_put_back(self):
        net, inputs = Counts([]).eval(), [torch.randn(1, 6)]
        with pytest.raises(FaultError, match="another output for the same input"):
            Engine(net, EngineData(inputs)).evaluate(flips(net, inputs, 18))

    def test_is_a_model_that_draws_from_other_generators(self):
        net, inputs = Rolls().eval(), [torch.randn(4, 6)]
        with pytest.raises(FaultError, match="random"):
            Engine(net, EngineData(inputs)).evaluate(flips(net, inputs, 5))

    def test_is_an_element_of_another_sample_even_if_the_model_catches_all(self):
        class Catches(Folds):
            def forward(self, x):
                try:
                    return super().forward(x)
                except Exception:  # noqa: BLE001 - as some models do
                    return x.sum((1, 2), keepdim=True)[:, :, 0].expand(len(x), 3)

        for net in (Folds().eval(), Catches().eval()):
            inputs = [torch.randn(4, 5, 4)]
            faults = flips(net, inputs, 3, kind="neuron")
            faults["layer"], faults["role"], faults["element"] = "token", "output", 5 * 3
            with pytest.raises(FaultError, match="15 elements of a sample"):
                Engine(net, EngineData(inputs)).evaluate(faults)

    @pytest.mark.parametrize("looks", [False, True])
    def test_is_a_golden_output_without_a_finite_number(self, looks):
        class Divides(Looks):
            def forward(self, x):
                y = super().forward(x) if looks else self.linear(x)
                return y / (x[:, :1] * 0)

        net, inputs = Divides().eval(), [torch.randn(4, 6)]
        with pytest.raises(CampaignError, match="has no finite number"):
            Engine(net, EngineData(inputs)).evaluate(flips(net, inputs, 5))

    def test_is_a_metric_without_its_labels(self):
        with pytest.raises(CampaignError, match="labels"):
            Engine(lenet(), EngineData([torch.randn(2, 1, 8, 8)]), Top1(where_right=True))

    @pytest.mark.parametrize(
        ("labels", "told"),
        [
            (torch.full((4,), 7), "from 7 to 7, and the model has 5 classes"),
            (torch.full((4,), -100), "give labels from 0 to 4"),
            (torch.rand(4), "float32 name no class"),
            (torch.eye(5, dtype=torch.int64)[:4], r"shape \(5,\) and type int64"),
        ],
        ids=["large", "negative", "floating", "one-hot"],
    )
    def test_are_labels_that_name_no_class(self, labels, told):
        net, inputs = lenet(), [torch.randn(4, 1, 8, 8)]
        with pytest.raises(CampaignError, match=told):
            Engine(net, EngineData(inputs, labels)).evaluate(flips(net, inputs, 5))

    @pytest.mark.parametrize(
        ("net", "metric", "told"),
        [
            (nn.Conv2d(1, 3, 1), Top1(), r"say which dimension"),
            (nn.Conv2d(1, 3, 1), TopK(2), r"class_dim=-3"),
            (nn.Flatten(), Top1(class_dim=-3), "no dimension -3"),
            (nn.Sequential(nn.Conv2d(1, 1, 4), nn.Flatten(0)), Top1(), "another metric"),
        ],
        ids=["pixels", "more pixels", "no pixels", "a number"],
    )
    def test_are_outputs_without_a_known_dimension_of_classes(self, net, metric, told):
        inputs = [torch.randn(4, 1, 4, 4)]
        with pytest.raises(CampaignError, match=told):
            Engine(net.eval(), EngineData(inputs), metric).evaluate(flips(net, inputs, 5))

    def test_is_a_class_that_is_nan_without_a_fault(self):
        class Roots(nn.Module):
            def forward(self, x):
                return x.sqrt()

        net, inputs = nn.Sequential(nn.Linear(6, 4), Roots()).eval(), [torch.randn(4, 6)]
        with pytest.raises(CampaignError, match="NaN for a class"):
            Engine(net, EngineData(inputs)).evaluate(flips(net, inputs, 5))

    @pytest.mark.parametrize(
        "make",
        [
            lambda: Tolerance("a"),
            lambda: Tolerance(-1),
            lambda: Tolerance(rtol=float("nan")),
            lambda: TopK(0),
            lambda: TopK(1.5),
            lambda: Top1(class_dim=1),
        ],
    )
    def test_is_a_metric_that_can_not_be(self, make):
        with pytest.raises(CampaignError, match="give"):
            make()

    def test_are_more_samples_than_there_are(self):
        with pytest.raises(CampaignError, match="weight_samples"):
            Engine(lenet(), EngineData([torch.randn(2, 1, 8, 8)]), weight_samples=3)

    @pytest.mark.parametrize(
        ("column", "value", "error"),
        [
            ("sample", 9, CampaignError),
            ("element", 10**6, FaultError),
            ("layer", "nowhere", FaultError),
        ],
    )
    def test_is_a_fault_that_can_not_be(self, column, value, error):
        net, inputs = lenet(), [torch.randn(4, 1, 8, 8)]
        faults = flips(net, inputs, 3)
        faults[column] = value
        with pytest.raises(error):
            Engine(net, EngineData(inputs)).evaluate(faults)
