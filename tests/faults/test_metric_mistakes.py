"""Metrics of one's own: what they are given, and what is said of mistakes in them."""

import inspect

import nets
import pytest
import torch

from pystack_nb import faults
from pystack_nb.errors import CampaignError


def campaign(metric):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nets.perceptron().eval()
    return faults.Campaign(net, nets.samples(), seed=1, faults=60, metric=metric)


@pytest.mark.parametrize(
    ("function", "cause", "told"),
    [
        (lambda g, f, _: f.argmax(1) != g.argmax(1), IndexError, r"fails even .*IndexError"),
        (lambda g, f: bool((g != f).any()), TypeError, "fails even .*2 positional arguments"),
        (lambda *x: x[1].foo == x[0], AttributeError, "fails even .*'foo'"),
        (lambda g, f, _: g @ f[:2] > 0, RuntimeError, "fails even .*RuntimeError"),
        (lambda *_: (True, 0.5), TypeError, r"returned tuple \(True, 0.5\)"),
        (lambda *_: None, TypeError, "returned None"),
        (lambda g, f, _: g != f, RuntimeError, r"returned a tensor of shape \(3,\)"),
        (lambda *_: "wrong", ValueError, "returned str 'wrong'"),
        (lambda g, f, _: None if (g != f).any() else False, TypeError, "returned None"),
    ],
)
def test_a_mistake_in_a_function_is_told_with_what_it_is_given(function, cause, told):
    with pytest.raises(CampaignError, match=told) as caught:
        campaign(function).run(progress=False)
    assert isinstance(caught.value.__cause__, cause)
    text = str(caught.value)
    assert "(golden, faulty, label) of one sample without a batch dimension" in text
    assert "shape (3,)" in text
    assert text.endswith("or a number that is 0 where nothing is wrong")


@pytest.mark.parametrize("error", [ValueError, torch.OutOfMemoryError, ZeroDivisionError])
def test_a_function_that_fails_of_what_a_fault_did_fails_as_it_is(error):
    def function(golden, faulty, label):
        if (golden != faulty).any():
            raise error("on purpose")
        return False

    with pytest.raises(error, match="on purpose") as caught:
        campaign(function).run(progress=False)
    assert not isinstance(caught.value, CampaignError)


def test_an_error_that_is_no_mistake_of_a_call_is_left_as_it_is():
    def function(*_):
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        campaign(function).run(progress=False)


def judging(give):
    class Own(faults.Metric):
        def judge(self, golden, faulty, labels):  # noqa: ARG002 - of its base
            return give((golden != faulty).any(1))

    return Own()


@pytest.mark.parametrize(
    ("give", "told"),
    [
        (lambda x: x, "returned a tensor of shape"),
        (lambda _: None, "returned None"),
        (lambda x: faults.Verdict(True, x.double()), "returned a Verdict with bool True"),
        (
            lambda x: faults.Verdict(x[:, None], x.double()),
            "returned a Verdict with a tensor of shape",
        ),
        (lambda x: faults.Verdict(x, None), "returned a Verdict with None"),
        (lambda x: faults.Verdict(2 * x, x.double()), "returned a Verdict .* and type int64"),
    ],
)
def test_a_metric_that_returns_no_verdict_is_told_to(give, told):
    with pytest.raises(CampaignError, match=rf"Own.judge\(\) {told}.*faults.Verdict\(changed, s"):
        campaign(judging(give)).run(progress=False)


def test_a_metric_of_all_tensors_that_returns_no_verdict_is_told_to():
    class Own(faults.Exact):
        def judge_all(self, golden, faulty, labels):  # noqa: ARG002 - of its base
            return (golden[0] != faulty[0]).any(1)

    told = r"Own.judge_all\(\) returned a tensor.*let it return faults.Verdict"
    with pytest.raises(CampaignError, match=told):
        campaign(Own()).run(progress=False)


@pytest.mark.parametrize("metric", [lambda g, f, _: bool((g == f).all()), lambda *_: float("nan")])
def test_a_metric_that_tells_what_is_right_is_refused(metric):
    with pytest.raises(CampaignError, match="in all of 8 samples: let it return True"):
        campaign(metric).run(progress=False)
    one = campaign(metric)
    one.plan()
    with pytest.raises(CampaignError, match="in all of 8 samples: let it return True"):
        one.run(progress=False)


def test_a_metric_that_calls_some_samples_wrong_is_warned_of():
    def missed(golden, faulty, label):
        return bool(faulty.argmax() != label)

    with pytest.warns(RuntimeWarning, match=r"in \d+ of 8 samples: all faults in such samples"):
        campaign(missed).run(progress=False)


def test_a_function_that_gives_nan_says_that_the_output_is_wrong():
    found = campaign(lambda g, f, _: float("nan") if (g != f).any() else 0).run(progress=False)
    exact = campaign(faults.Exact()).run(progress=False)
    assert found["outcome"].tolist() == exact["outcome"].tolist()


def test_a_verdict_needs_no_lead():
    found = campaign(judging(lambda x: faults.Verdict(x, x.double()))).run(progress=False)
    exact = campaign(faults.Exact()).run(progress=False)
    assert found["outcome"].tolist() == exact["outcome"].tolist()


def test_a_class_that_can_not_be_made_by_itself_is_told():
    class Far(faults.Metric):
        def __init__(self, atol):
            self.atol = atol

        def judge(self, golden, faulty, labels):
            raise NotImplementedError

    with pytest.raises(CampaignError, match=r"the metric Far can't be made .*'atol'.*an object"):
        campaign(Far)


def test_a_number_is_the_score_and_wrong_where_it_is_not_zero():
    def far(golden, faulty, label):
        return float((faulty - golden).abs().max() > 0.1)

    found = campaign(far).run(progress=False)
    here = found[found["outcome"] != "DUE"]
    assert set(here["score"]) == {0.0, 1.0}
    assert (here["score"] > 0).tolist() == (here["outcome"] == "SDC").tolist()


def test_help_tells_what_a_function_is_given_and_returns():
    told = inspect.getdoc(faults.Campaign)
    assert "``(golden, faulty, label)``" in told
    assert "without a batch dimension" in told
    assert "an SDC if not 0" in told
