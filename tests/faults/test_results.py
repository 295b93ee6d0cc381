"""Rates, reweighting, figures and exports of outcomes that are made up."""

import json

import numpy as np
import pandas as pd
import pytest

from matplotlib.figure import Figure

from pystack_nb.errors import CampaignError, ExportPathError
from pystack_nb.faults.results import Analysis
from pystack_nb.faults.statistics import stratified, wilson


# layer, role, elements, faults, SDC, DUE
STRATA = [
    ("conv", "output", 1000, 200, 40, 10),
    ("conv", "weight", 100, 200, 2, 0),
    ("last", "weight", 3000, 200, 0, 4),
]


class Outcomes(Analysis):
    confidence, proportional = 0.95, False
    results = strata = None

    def __init__(self, rows=STRATA, proportional=False, seed=0):
        rng = np.random.default_rng(seed)
        names = ["layer", "role", "elements", "faults"]
        self.strata = pd.DataFrame([x[:4] for x in rows], columns=names).assign(
            stratum=range(len(rows)), dtype="float32", kind="weight", bit=-1
        )
        self.strata["weight"] = 32.0 * self.strata["elements"]
        self.strata["population"] = np.inf
        self.proportional, parts = proportional, []
        for number, (layer, role, _, faults, sdc, due) in enumerate(rows):
            outcome = ["SDC"] * sdc + ["DUE"] * due + ["masked"] * (faults - sdc - due)
            parts.append(
                pd.DataFrame(
                    {
                        "stratum": number,
                        "layer": layer,
                        "role": role,
                        "bit": rng.integers(32, size=faults),
                        "xor_mask": np.uint64(1 << 63),
                        "outcome": outcome,
                        "after": rng.choice([1e-30, 2.5, np.nan, np.inf], size=faults),
                    }
                )
            )
        self.results = pd.concat(parts, ignore_index=True)
        self.results.insert(0, "fault", np.arange(len(self.results)))


def exposure(**seconds):
    return pd.DataFrame({"layer": seconds.keys(), "bit_seconds": seconds.values()})


def test_a_summary_counts_and_gives_wilsons_intervals():
    table = Outcomes().summary()
    assert table["layer"].tolist() == ["conv", "conv", "last"]
    row = table.iloc[0]
    assert (row["faults"], row["masked"], row["sdc"], row["due"]) == (200, 150, 40, 10)
    assert row["sdc_rate"] == 0.2
    assert (row["sdc_low"], row["sdc_high"]) == wilson(40, 200)
    assert (row["due_low"], row["due_high"]) == wilson(10, 200)


def test_without_an_event_there_is_an_upper_bound():
    row = Outcomes().summary().iloc[2]
    assert row["sdc_rate"] == row["sdc_low"] == 0
    assert 3 / 200 < row["sdc_high"] == wilson(0, 200)[1]


def test_a_confidence_can_be_chosen():
    row = Outcomes().summary(confidence=0.8).iloc[0]
    assert (row["sdc_low"], row["sdc_high"]) == wilson(40, 200, 0.8)


def test_rows_over_unequally_drawn_strata_are_weighted_by_size():
    row = Outcomes().summary("layer").iloc[0]
    assert row["sdc"] == 42
    assert row["sdc_rate"] == pytest.approx((1000 * 0.2 + 100 * 0.01) / 1100)
    assert row["sdc_low"] < row["sdc_rate"] < row["sdc_high"]


def test_rows_over_strata_that_were_drawn_in_proportion_are_pooled():
    rows = [("conv", "output", 1000, 200, 40, 10), ("conv", "weight", 100, 20, 2, 0)]
    row = Outcomes(rows, proportional=True).summary("layer").iloc[0]
    assert row["sdc_rate"] == pytest.approx(42 / 220)
    assert (row["sdc_low"], row["sdc_high"]) == pytest.approx(wilson(42, 220))


def test_rows_over_a_plain_random_sample_are_pooled():
    rows = [("conv", "output", 1000, 3, 2, 0), ("conv", "weight", 99, 1, 0, 0)]
    rows += [("last", "weight", 9, 0, 0, 0)] * 3
    row = Outcomes(rows, proportional=True).summary("layer").iloc[0]
    assert row["sdc_rate"] == 2 / 4
    assert (row["sdc_low"], row["sdc_high"]) == wilson(2, 4)


def test_a_stratum_that_has_a_fault_only_because_each_has_one_weighs_little():
    rows = [("conv", "output", 100_000, 20, 0, 0)]
    rows += [("conv", f"weight{x}", 1, 1, 1, 0) for x in range(18)]
    row = Outcomes(rows, proportional=True).summary("layer").iloc[0]
    assert row["sdc"] == 18
    assert row["sdc_rate"] == pytest.approx(18 / 100_018)


def test_bits_are_in_order_and_sum_up_to_all_faults():
    table = Outcomes().summary("bit")
    assert table["bit"].tolist() == list(range(32))
    assert table["faults"].sum() == 600
    assert len(Outcomes().summary(("layer", "role", "bit"))) > 80


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(CampaignError, match="no column 'colour'"):
        Outcomes().summary("colour")


def test_the_total_weights_strata_by_their_sizes():
    found = Outcomes().total()
    expected = stratified([40, 2, 0], [200] * 3, [1000, 100, 3000])
    assert found == expected
    assert found.rate == pytest.approx((200 + 1) / 4100)
    assert found.trials == 600
    with pytest.raises(CampaignError, match="no outcome"):
        Outcomes().total("wrong")


def test_the_total_of_a_plain_random_sample_takes_all_strata_as_one():
    few = [("conv", "output", 1000, 3, 2, 0), ("conv", "weight", 100, 0, 0, 0)]
    found = Outcomes(few, proportional=True).total()
    assert found.rate == pytest.approx(2 / 3)
    assert (found.low, found.high) == pytest.approx(wilson(2, 3))
    unequal = Outcomes(few).total()
    assert unequal.high > found.high


def test_exposure_in_proportion_to_bits_gives_the_size_weighted_rate():
    uniform = exposure(conv=1100.0, last=3000.0)
    found = Outcomes().reweight(uniform)
    assert found.total.rate == pytest.approx(Outcomes().total().rate)
    assert found.layers["share"].tolist() == pytest.approx([1000 / 4100, 100 / 4100, 3000 / 4100])
    assert found.layers["risk"].sum() == pytest.approx(1)
    assert found.covered == 1


def test_twice_the_time_doubles_the_exposure_and_leaves_the_rates():
    one = Outcomes().reweight(exposure(conv=1.0, last=3.0), upset_rate=1e-9)
    two = Outcomes().reweight(exposure(conv=2.0, last=3.0), upset_rate=1e-9)
    pd.testing.assert_series_equal(one.layers["rate"], two.layers["rate"])
    conv = one.layers["layer"] == "conv"
    ratio = two.layers["bit_seconds"] / one.layers["bit_seconds"]
    assert ratio[conv].tolist() == [2, 2]
    assert ratio[~conv].tolist() == [1]
    more = two.layers["events_per_inference"] / one.layers["events_per_inference"]
    assert more[conv].tolist() == [2, 2]


def test_a_layer_that_is_not_exposed_weighs_nothing():
    found = Outcomes().reweight(exposure(conv=0.0, last=3.0, identity=0.0))
    assert found.layers["share"].tolist() == [0, 0, 1]
    assert found.total.rate == 0
    assert (found.total.low, found.total.high) == pytest.approx(wilson(0, 200))
    assert found.layers["risk"].isna().all()


def test_roles_have_exposures_of_their_own_where_the_table_says_so():
    table = pd.DataFrame(
        {"layer": ["conv", "conv"], "role": ["weight", "output"], "bit_seconds": [1.0, 3.0]}
    )
    found = Outcomes().reweight(table)
    assert found.layers["share"].tolist() == [0.75, 0.25, 0]
    assert found.total.rate == pytest.approx(0.75 * 0.2 + 0.25 * 0.01)


def test_exposure_of_what_was_not_struck_is_told():
    found = Outcomes().reweight(exposure(conv=1.0, last=1.0, other=2.0))
    assert found.covered == 0.5
    assert "covers 50.0% of the exposure" in repr(found)
    assert found.layers["share"].sum() == pytest.approx(1)


def test_exposures_that_vary_widen_the_interval_to_first_order():
    table = exposure(conv=1.0, last=1.0)
    sure, unsure = (Outcomes().reweight(table.assign(bit_seconds_sd=x)) for x in (0.0, 0.1))
    assert unsure.total.rate == sure.total.rate
    table.attrs["forwards"] = 100
    surer = Outcomes().reweight(table.assign(bit_seconds_sd=0.1))
    assert unsure.total.low < surer.total.low < sure.total.low
    assert unsure.total.low < sure.total.low < sure.total.high < unsure.total.high
    rng = np.random.default_rng(0)
    one = Outcomes()
    drawn = [
        one.reweight(exposure(conv=1 + 0.1 * a, last=1 + 0.1 * b)).total.rate
        for a, b in rng.standard_normal((80, 2))
    ]
    conv = (1000 * 0.2 + 100 * 0.01) / 1100
    assert np.std(drawn) == pytest.approx(0.1 * conv / 2 / np.sqrt(2), rel=0.3)


def test_reweighting_gives_the_truth_within_its_interval():
    rates, sizes, shares = [0.25, 0.02, 0.004], [1000, 100, 3000], np.array([0.1, 0.2, 0.7])
    table = pd.DataFrame([x[:2] for x in STRATA], columns=["layer", "role"])
    table["bit_seconds"] = shares
    rng, inside = np.random.default_rng(3), 0
    for _ in range(100):
        rows = [
            (*x[:2], n, 300, int(rng.binomial(300, p)), 0)
            for x, n, p in zip(STRATA, sizes, rates, strict=True)
        ]
        found = Outcomes(rows).reweight(table).total
        inside += found.low <= shares @ rates <= found.high
    assert inside >= 93


def test_nothing_absolute_is_said_without_an_upset_rate():
    found = Outcomes().reweight(exposure(conv=1.0, last=1.0))
    assert found.events_per_inference is None
    assert "per recorded forward" not in repr(found)
    assert "events_per_inference" not in found.layers
    given = Outcomes().reweight(exposure(conv=1.0, last=1.0), upset_rate=2e-12)
    assert given.events_per_inference.rate == pytest.approx(2 * 2e-12 * given.total.rate)
    assert "SDC per recorded forward" in repr(given)


@pytest.mark.parametrize(
    ("table", "options", "told"),
    [
        (exposure(other=1.0), {}, "none of the campaign's layers"),
        (exposure(conv=-1.0), {}, "negative"),
        (exposure(conv=float("nan")), {}, "no number"),
        (exposure(conv=1.0).drop(columns="layer"), {}, "no column 'layer'"),
        (exposure(conv=1.0), {"upset_rate": -1}, "upset rate of -1"),
        (exposure(conv=1.0), {"event": "crash"}, "no event 'crash'"),
    ],
)
def test_an_exposure_that_cannot_be_is_refused(table, options, told):
    with pytest.raises(CampaignError, match=told):
        Outcomes().reweight(table, **options)


def test_figures_show_an_interval_for_each_row_and_a_dot_where_something_was_seen():
    figure = Outcomes().plot_layers()
    (ax,) = figure.axes
    assert [x.get_text() for x in ax.get_yticklabels()] == [
        "conv output",
        "conv weight",
        "last weight",
    ]
    assert [len(x.get_segments()) for x in ax.collections] == [3, 3]
    drawn = [(x.get_marker(), len(x.get_xdata())) for x in ax.lines]
    assert drawn == [("o", 2), ("<", 1), ("o", 2), ("<", 1), ("<", 0)]
    assert ax.lines[1].get_xdata() == [100 * Outcomes().summary()["sdc_high"].iloc[2]]
    assert figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("draw", ["plot_layers", "plot_bits"])
@pytest.mark.parametrize("seen", [False, True])
def test_a_legend_covers_nothing_and_tells_bounds_from_rates(draw, seen):
    rows = [("conv", "output", 1000, 600, 200, 200)] if seen else STRATA
    figure = getattr(Outcomes(rows), draw)()
    (ax,) = figure.axes
    figure.canvas.draw()
    legend = ax.get_legend()
    told = ["SDC", "DUE"] + ([] if seen else ["none seen: upper bound"])
    assert [x.get_text() for x in legend.get_texts()] == told
    box = legend.get_window_extent()
    texts = [x.get_window_extent() for x in ax.texts]
    assert not any(box.overlaps(x) for x in [ax.get_window_extent(), *texts])
    assert figure.bbox.containsx(box.x0)
    assert figure.bbox.containsy(box.y1)


def test_figures_of_bits_name_the_fields_and_draw_where_they_are_asked_to():
    own = Figure()
    ax = own.subplots()
    assert Outcomes().plot_bits(ax=ax) is own
    assert [x.get_text() for x in ax.texts] == ["s", "exponent", "mantissa"]
    assert [len(x.get_segments()) for x in ax.collections] == [32, 32]
    left, right = ax.get_xlim()
    assert left > right


def test_faults_of_whole_values_have_no_bits_to_draw():
    outcomes = Outcomes()
    outcomes.results["bit"] = -1
    assert outcomes.plot_bits().axes[0].texts[0].get_text() == "no bits were struck"


def test_exports_keep_each_row_and_each_bit_of_the_masks(tmp_path):
    outcomes = Outcomes()
    for form in ("csv", "json", "parquet"):
        getattr(outcomes, f"to_{form}")(tmp_path / f"results.{form}")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "results.parquet"), outcomes.results)
    csv = pd.read_csv(tmp_path / "results.csv")
    assert csv["outcome"].tolist() == outcomes.results["outcome"].tolist()
    rows = json.loads((tmp_path / "results.json").read_text())
    assert len(rows) == 600
    assert {row["xor_mask"] for row in rows} == {1 << 63}
    assert {row["after"] for row in rows} == {1e-30, 2.5, None}


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ExportPathError, match="nowhere"):
        Outcomes().to_json(tmp_path / "nowhere" / "results.json")
