"""Bits of layers that compute in several types, and arguments that can't be."""

import io

import numpy as np
import pandas as pd
import pytest

from matplotlib.figure import Figure
from nets import quantised_linear, samples
from test_results import Outcomes, exposure

from pystack_nb.errors import CampaignError, OptionError
from pystack_nb.faults.campaign import Campaign
from pystack_nb.faults.metrics import Exact
from pystack_nb.faults.models import BitFlip, StuckAt, Zero
from pystack_nb.faults.patterns import Channel


def two_types():
    outcomes = Outcomes()
    outcomes.strata["dtype"] = ["float32", "float32", "qint8"]
    last = outcomes.results["layer"] == "last"
    outcomes.results.loc[last, "bit"] %= 8
    return outcomes


def test_bits_of_one_number_and_two_types_are_two_rows():
    one = two_types()
    table = one.summary(("dtype", "bit"))
    assert list(table[["dtype", "bit"]].itertuples(index=False, name=None)) == [
        *(("float32", x) for x in range(32)),
        *(("qint8", x) for x in range(8)),
    ]
    last = one.results["layer"] == "last"
    assert table["faults"][table["dtype"] == "qint8"].sum() == last.sum()
    assert one.summary("dtype")["faults"].tolist() == [400, 200]
    assert "dtype" not in one.results


def test_with_one_type_the_type_changes_no_rate():
    one = Outcomes()
    typed = one.summary(("dtype", "bit")).drop(columns="dtype")
    assert typed.equals(one.summary("bit"))


def test_a_campaign_in_a_quantised_model_keeps_its_types_apart():
    one = Campaign(quantised_linear().eval(), samples(), seed=0, faults=400, metric=Exact())
    one.run(progress=False)
    bits = one.summary(("dtype", "bit")).groupby("dtype")["bit"].max()
    assert bits.to_dict() == {"float32": 31, "qint8": 7}
    labels = [x.get_text() for x in one.plot_bits().axes[0].get_xticklabels()]
    assert {x.split("\n")[1] for x in labels if "\n" in x} == {"float32", "qint8"}


@pytest.mark.parametrize("given", [False, True])
def test_a_figure_of_bits_has_a_group_for_each_type(given):
    figure = two_types().plot_bits(ax=Figure(figsize=(9, 3)).subplots() if given else None)
    (ax,) = figure.axes
    labels = [x.get_text() for x in ax.get_xticklabels()]
    assert sorted(x.split("\n")[1] for x in labels if "\n" in x) == ["float32", "qint8"]
    places = dict(zip(ax.get_xticks(), labels, strict=True))
    assert len(places) == 40
    numbers = [int(places[x].split("\n")[0]) for x in sorted(places, reverse=True)]
    assert numbers == [*range(31, -1, -1), *range(7, -1, -1)]
    texts = [x.get_text() for x in ax.texts]
    assert texts == ["s", "exponent", "mantissa", "s", "magnitude"]
    figure.savefig(io.BytesIO())  # which lays it out
    texts = [x.get_window_extent() for x in ax.texts]
    assert not any(x.overlaps(y) for i, x in enumerate(texts) for y in texts[:i])
    below = ax.xaxis.label.get_window_extent()
    assert not any(below.overlaps(x.get_window_extent()) for x in ax.get_xticklabels())


def test_a_type_without_a_bit_that_was_struck_has_no_group():
    one = two_types()
    one.results.loc[one.results["layer"] == "last", "bit"] = -1
    (ax,) = one.plot_bits().axes
    assert not any("\n" in x.get_text() for x in ax.get_xticklabels())
    assert len(ax.get_xticks()) == 32


@pytest.mark.parametrize("pattern", [None, Channel()])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Zero(), "Zero() strikes whole values"),
        (BitFlip(bits=2), "strikes several bits together"),
        (StuckAt(1, bit=(3, 4)), "strikes several bits together"),
    ],
)
def test_a_figure_without_bits_says_which_model_strikes_none(error, pattern, told):
    one = Outcomes()
    one.results["bit"] = -1
    one.error_model, one.pattern = error, pattern
    (text,) = one.plot_bits().axes[0].texts
    assert told in text.get_text()
    assert "per=" not in text.get_text()


def test_columns_can_be_named_in_one_text():
    one, named = two_types(), ["layer", "role", "bit"]
    pd.testing.assert_frame_equal(one.summary("layer,role, bit"), one.summary(named))


def test_columns_that_can_not_be_are_refused():
    with pytest.raises(CampaignError, match=r"by=5 names no columns; pass"):
        Outcomes().summary(5)
    with pytest.raises(CampaignError, match="outcomes are what is counted"):
        Outcomes().summary(("layer", "outcome"))
    with pytest.raises(CampaignError, match="no column 3"):
        Outcomes().summary([3])
    with pytest.raises(CampaignError, match=r"no column \['layer'\]"):
        Outcomes().summary([["layer"]])


@pytest.mark.parametrize("table", [3, None, {"layer": ["conv"]}, np.zeros(3)])
def test_an_exposure_that_is_no_table_is_refused(table):
    with pytest.raises(CampaignError, match=r"pass faults.exposure\(...\)"):
        Outcomes().reweight(table)
    assert Outcomes().reweight(exposure(conv=1.0)).covered == 1


@pytest.mark.parametrize("draw", ["plot_layers", "plot_bits"])
def test_axes_that_are_none_are_refused(draw):
    with pytest.raises(OptionError, match=r"ax is int 3; pass axes"):
        getattr(Outcomes(), draw)(ax=3)
    with pytest.raises(OptionError, match="ax is ndarray"):
        getattr(Outcomes(), draw)(ax=Figure().subplots(2))
