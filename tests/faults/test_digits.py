"""What is known of faults in neural networks comes out on handwritten digits.

Rates depend on the training: intervals that are far from each other are asserted, no decimals.
"""

from __future__ import annotations

import copy

import digits
import pytest
import torch

from pystack_nb import faults


SIGN, EXPONENT, MANTISSA = [31], range(23, 31), range(23)


def strike(net, kind, count, *, error=None, layers=digits.LAYERS, data=None):
    """Inject as many faults into each bit of each layer, and give the results."""
    data = data or digits.held_out()
    sites = faults.sites(net, data[0][:1])
    # Where a layer is wrapped its weight is the wrapper's.
    role = "weight" if kind == "weight" else "output"
    sites = sites[(sites["kind"] == kind) & (sites["role"] == role) & sites["layer"].isin(layers)]
    assert set(sites["layer"]) == set(layers)
    bits = sum(len(set(error.candidates(x))) if error else 8 * x.itemsize for x in sites["dtype"])
    campaign = faults.Campaign(
        net,
        data,
        error,
        sites,
        seed=0,
        per="layer,bit",
        faults=bits * count,
        allocation="equal",
        confidence=0.95,
    )
    return campaign.run(progress=False)


def rate(rows, outcome="SDC"):
    """Give Wilson's interval."""
    return faults.wilson(int((rows["outcome"] == outcome).sum()), len(rows))


def bit(results, *bits):
    return results[results["bit"].isin(bits)]


def others(results, worst):
    return [rows for number, rows in results.groupby("bit") if number != worst]


def layer(results, *layers):
    return results[results["layer"].isin(layers)]


@pytest.fixture(scope="module")
def weights():
    """Faults in every bit of single precision weights."""
    return strike(digits.trained(), "weight", 60)


@pytest.fixture(scope="module")
def neurons():
    """Faults in every bit of what the layers give, before the ReLU."""
    return strike(digits.trained(), "neuron", 100)


class TestWeights:
    def test_have_a_bit_30_of_zero_where_they_are_smaller_than_two(self):
        for name in digits.LAYERS:
            weight = digits.trained().get_submodule(name).weight
            assert weight.abs().max() < 2
            assert not (weight.view(torch.int32) >> 30 & 1).any()

    def test_depend_on_bit_30_more_than_on_any_other_in_single_precision(self, weights):
        low, _ = rate(bit(weights, 30))
        assert all(low > 4 * rate(rows)[1] for rows in others(weights, 30))
        assert (bit(weights, 30)["after"].abs() > 1e30).mean() > 0.9

    def test_depend_on_bit_30_in_each_layer(self, weights):
        for _, rows in weights.groupby("layer"):
            rest = rows[rows["bit"] != 30]
            assert rate(bit(rows, 30))[0] > 10 * rate(rest)[1]

    def test_hardly_depend_on_the_mantissa(self, weights):
        assert rate(bit(weights, 30))[0] > 20 * rate(bit(weights, *MANTISSA))[1]

    def test_depend_on_bit_14_in_bfloat16(self):
        net = copy.deepcopy(digits.trained()).to(torch.bfloat16)
        results = strike(net, "weight", 60, data=digits.held_out(torch.bfloat16))
        low, _ = rate(bit(results, 14))
        assert all(low > 4 * rate(rows)[1] for rows in others(results, 14))

    def test_depend_on_bit_14_in_float16_which_is_too_small_for_infinity(self):
        results = strike(digits.stored_as(torch.float16), "weight", 60)
        low, _ = rate(bit(results, 14))
        assert all(low > 4 * rate(rows)[1] for rows in others(results, 14))
        assert not (results["outcome"] == "DUE").any()

    def test_are_far_safer_as_integers_of_eight_bits_whichever_of_them_flips(self, weights):
        results = strike(digits.stored_as(torch.int8), "weight", 100)
        low, _ = rate(bit(weights, 30))
        assert set(results["bit"]) == set(range(8))
        assert all(low > 5 * rate(rows)[1] for _, rows in results.groupby("bit"))
        assert low > 20 * rate(results)[1]
        assert not (results["outcome"] == "DUE").any()


class TestNeurons:
    def test_depend_on_their_exponent_twenty_times_as_much_as_on_their_mantissa(self, neurons):
        low, _ = rate(bit(neurons, *EXPONENT))
        assert low > 20 * rate(bit(neurons, *MANTISSA))[1]

    def test_depend_on_bit_30_where_numbers_are_small_and_on_lower_ones_where_not(self, neurons):
        # Flipped from 1 to 0 the bit makes a number vanish, which a network bears.
        small, large = layer(neurons, "c1"), layer(neurons, "f1")
        assert (small["before"].abs() >= 2).mean() < 0.1 < (large["before"].abs() >= 2).mean()
        low, _ = rate(bit(small, 30))
        assert all(low > 4 * rate(rows)[1] for rows in others(small, 30))
        assert rate(bit(large, 26, 27, 28, 29))[0] > rate(bit(large, 30))[1]

    def test_may_change_their_sign_before_a_relu_but_not_as_logits(self):
        results = strike(
            digits.trained(),
            "neuron",
            500,
            error=faults.BitFlip(bit=31),
            layers=("c1", "c2", "f2"),
        )
        hidden, logits = rate(layer(results, "c1", "c2")), rate(layer(results, "f2"))
        assert logits[0] > 5 * hidden[1]


@pytest.mark.parametrize("kind", ["neuron", "weight"])
def test_normalisation_makes_nan_of_what_would_be_a_wrong_answer_of_the_first_layer(kind):
    plain, normed = (
        strike(
            digits.trained(norm=norm), kind, 400, error=faults.BitFlip(bit=30), layers=("c1",)
        ).query("outcome != 'masked'")
        for norm in (False, True)
    )
    assert rate(normed, "DUE")[0] > 1.5 * rate(plain, "DUE")[1]
    assert (
        faults.wilson((normed["outcome"] == "SDC").sum(), 400)[1]
        < (faults.wilson((plain["outcome"] == "SDC").sum(), 400)[0])
    )


class TestRestrictedRanges:
    def compared(self, layers, error, count):
        net, data = digits.trained(), digits.held_out()
        sites = faults.sites(net, data[0][:1]).query("kind == 'neuron' and role == 'output'")
        sites = sites[sites["layer"].isin(layers)]
        plan = faults.Campaign(net, data, error, sites, seed=0, faults=count).plan()
        ranger = {"Ranger": faults.Ranger.profile(net, digits.seen())}
        table = faults.compare(net, data, plan.faults, ranger, repeats=1)
        return table.set_index("protection").loc[["none", "Ranger"]].itertuples()

    def test_leave_few_of_the_faults_of_hidden_layers(self):
        none, ranger = self.compared(("c1", "c2", "f1"), faults.BitFlip(field="exponent"), 1000)
        assert none.SDC_low > 2 * ranger.SDC_high
        due = [faults.wilson(row.DUE, row.faults) for row in (none, ranger)]
        assert due[0][0] > due[1][1]

    def test_of_hidden_layers_leave_all_those_of_the_logits(self):
        none, ranger = self.compared(("f2",), faults.BitFlip(), 200)
        assert none.SDC > 0
        assert (none.SDC, none.DUE) == (ranger.SDC, ranger.DUE)
