"""Exposures that vary from forward to forward, together or each by itself."""

import functools
import operator

import numpy as np
import pandas as pd
import pytest
import torch

from nets import perceptron
from recorded import timed

from pystack_nb.faults import exposure_noise
from pystack_nb.faults.exposure import exposure
from pystack_nb.faults.reweighting import reweight


SITES = [("conv", "output"), ("conv", "weight"), ("last", "weight")]
RATES, FAULTS = np.array([0.25, 0.02, 0.1]), np.array([4000, 1000, 3000])
COUNTS = pd.DataFrame({"stratum": range(3), "faults": FAULTS, "SDC": RATES * FAULTS})
STRATA = pd.DataFrame(SITES, columns=["layer", "role"]).assign(
    stratum=range(3), faults=FAULTS, weight=1.0, population=np.inf
)
UPSETS = 1e-6


def table_of(each, sites=SITES):
    """Make a table of exposure from the bit-seconds of each site (row) in each forward."""
    each = np.asarray(each, float)
    table = pd.DataFrame(sites, columns=["layer", "role"]).assign(
        bit_seconds=each.mean(1), bit_seconds_sd=each.std(1, ddof=1)
    )
    table.attrs["forwards"] = each.shape[1]
    exposure_noise.keep(table, each)
    return table


def without(table, *names):
    """Give the same table, as somebody else would have made it."""
    plain = table.copy()
    plain.attrs = {"forwards": table.attrs["forwards"]}
    return plain.drop(columns=[*names])


def found(table, **options):
    counts = options.pop("counts", COUNTS)
    return reweight(counts, STRATA, table, upset_rate=UPSETS, **options)


def width(estimate):
    return estimate.high - estimate.low


def relative(estimate):
    return width(estimate) / estimate.rate


@pytest.fixture
def shaken():
    """Give a table whose rows vary, each with all others."""
    factor = np.random.default_rng(0).gamma(4, 0.25, 20)
    return table_of(np.outer([5, 1, 4], factor / factor.mean()))


def test_noise_that_all_layers_share_leaves_the_shares_alone_but_not_the_events(shaken):
    sure = found(without(shaken, "bit_seconds_sd"))
    apart, together = found(without(shaken)), found(shaken)
    assert (together.total.low, together.total.high) == pytest.approx(
        (sure.total.low, sure.total.high)
    )
    assert width(apart.total) > 1.2 * width(sure.total)
    events = [relative(x.events_per_inference) for x in (sure, apart, together)]
    assert events[0] < 0.8 * events[1] < 0.8 * events[2]
    assert together.total.rate == sure.total.rate
    assert together.events_per_inference.rate == sure.events_per_inference.rate


def test_noise_of_each_row_by_itself_counts_as_it_does_in_a_table_of_deviations():
    # Rows of a Hadamard matrix: samples whose covariance is exactly none.
    pair = np.array([[1, 1], [1, -1]])
    signs = functools.reduce(np.kron, [pair, pair, pair])[1:4]
    table = table_of(np.array([[5.0], [1], [4]]) * (1 + 0.2 * signs))
    one, other = found(table), found(without(table))
    for name in ("total", "events_per_inference"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a.rate, a.low, a.high) == pytest.approx((b.rate, b.low, b.high))
    assert width(one.total) > 1.05 * width(found(without(table, "bit_seconds_sd")).total)


def test_layers_that_take_time_from_each_other_move_the_shares_more():
    shift = np.random.default_rng(1).normal(0, 1.5, 30)
    table = table_of([5 + shift, np.ones(30), 4 - shift])
    assert width(found(table).total) > 1.05 * width(found(without(table)).total)
    sure = found(without(table, "bit_seconds_sd"))
    gradient = (RATES - sure.total.rate) / table["bit_seconds"].sum()
    sums = gradient @ np.array([5 + shift, np.ones(30), 4 - shift])
    more = (1.96 * sums.std(ddof=1)) ** 2 / 30
    above = sure.total.high - sure.total.rate
    assert found(table).total.high - sure.total.rate == pytest.approx(
        np.sqrt(above**2 + more), rel=1e-4
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.assign(bit_seconds=2 * x["bit_seconds"]),
        lambda x: x.assign(bit_seconds_sd=2 * x["bit_seconds_sd"]),
        lambda x: x.drop(columns="bit_seconds_sd"),
        lambda x: x.assign(layer=x["layer"].replace("last", "other")),
        lambda x: x.groupby("layer", as_index=False)[["bit_seconds", "bit_seconds_sd"]].sum(),
        lambda x: x.drop(columns="role"),
    ],
    ids=["times", "deviations", "no deviations", "names", "sums", "no roles"],
)
def test_a_table_that_was_changed_counts_as_it_is(shaken, change):
    changed = change(shaken)
    strata = STRATA.assign(dtype="float32", elements=100)
    one, other = (
        reweight(COUNTS, strata, x, upset_rate=UPSETS) for x in (changed, without(changed))
    )
    assert one.total == other.total
    assert one.events_per_inference == other.events_per_inference


def test_fewer_forwards_than_are_kept_or_more_count_as_they_are_told(shaken):
    shaken.attrs["forwards"] = 2000
    assert found(shaken).total == found(without(shaken)).total


def test_rows_that_are_left_out_or_moved_leave_what_the_others_have_in_common(shaken):
    fewer = shaken.iloc[[2, 0]]
    one, sure = found(fewer), found(without(fewer, "bit_seconds_sd"))
    assert width(one.total) == pytest.approx(width(sure.total))
    moved, there = found(shaken.iloc[::-1]).events_per_inference, found(shaken).events_per_inference
    assert (moved.low, moved.high) == pytest.approx((there.low, there.high))


def test_rows_that_no_fault_struck_are_left_out(shaken):
    each = np.vstack([[x[2] for x in shaken.attrs[exposure_noise.KEPT]], np.arange(20.0)])
    more = table_of(each, [*SITES, ("idle", "output")])
    one, sure = found(more), found(without(more, "bit_seconds_sd"))
    assert width(one.total) == pytest.approx(width(sure.total))
    assert one.covered < 1


def test_what_forwards_gave_outlives_copies_joining_and_files(shaken, tmp_path):
    expected, copied = found(shaken).events_per_inference, shaken.copy()
    assert copied.equals(shaken)
    assert pd.concat([shaken.iloc[:2], copied.iloc[2:]]).equals(shaken)
    shaken.to_parquet(tmp_path / "kept.parquet")
    shaken.to_pickle(tmp_path / "kept.pickle")
    for again in (
        copied,
        pd.concat([shaken.iloc[:2], copied.iloc[2:]]),
        pd.read_parquet(tmp_path / "kept.parquet"),
        pd.read_pickle(tmp_path / "kept.pickle"),
        shaken.assign(note="seen").query("bit_seconds > 0").reset_index(drop=True),
    ):
        assert found(again).events_per_inference == expected


@pytest.mark.parametrize("model_of", ["busy", "live", "uniform-bits", "macs"])
def test_forwards_that_are_all_slower_leave_the_interval_of_the_total_as_it_is(model_of):
    model, lasting = perceptron(), {"first": 2, "relu": 1, "last": 3}
    rec = timed(model, torch.ones(2, 3), lasting=lasting, forwards=5, scale=1.5)
    table = exposure(rec, model, model_of)
    kept = {(layer, role): x for layer, role, x in table.attrs[exposure_noise.KEPT]}
    assert [*kept] == [*zip(table["layer"], table["role"], strict=True)]
    assert kept["first", "bias"] == pytest.approx(
        kept["first", "bias"][0] * 1.5 ** np.arange(5), rel=1e-6
    )
    strata = STRATA.assign(layer=["first", "relu", "last"], role=["weight", "output", "weight"])
    sure, apart, together = (
        reweight(COUNTS, strata, x, upset_rate=UPSETS)
        for x in (without(table, "bit_seconds_sd"), without(table), table)
    )
    assert width(together.total) == pytest.approx(width(sure.total), rel=1e-6)
    assert width(apart.total) > 1.02 * width(sure.total)
    events = [relative(x.events_per_inference) for x in (apart, together)]
    assert events[0] < events[1]


def test_one_forward_tells_nothing_of_the_others():
    model = perceptron()
    table = exposure(timed(model, torch.ones(2, 3), lasting={"first": 1}), model)
    assert exposure_noise.KEPT not in table.attrs


@pytest.mark.parametrize("common", [0.3, 0.0], ids=["together", "apart"])
def test_intervals_cover_the_truth_as_often_as_they_claim_whatever_layers_share(common):
    rng, repeats, forwards = np.random.default_rng(5), 300, 40
    means = np.array([4.0, 1, 3])  # shares as those of the faults, of which it is one pool
    truth = {
        "total": means @ RATES / means.sum(),
        "events_per_inference": UPSETS * means @ RATES,
    }
    covered = dict.fromkeys(truth, 0)
    for _ in range(repeats):
        each = 1 + common * rng.standard_normal(forwards)
        each = means[:, None] * (each + 0.05 * rng.standard_normal((3, forwards)))
        counts = COUNTS.assign(SDC=rng.binomial(FAULTS, RATES))
        result = found(table_of(each), counts=counts)
        for name, rate in truth.items():
            estimate = operator.attrgetter(name)(result)
            covered[name] += estimate.low <= rate <= estimate.high
    assert all(0.92 * repeats <= x <= 0.985 * repeats for x in covered.values())
