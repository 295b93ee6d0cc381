"""Exposure-weighted vulnerability: a campaign's rates, weighted by where bits are exposed.

For upsets that are uniform over bits and time, and only in storage that the exposure table
models, a site class `i` (a layer and a role) with exposure ``E_i`` (bit-seconds) has the share
``W_i = E_i / sum(E_j)`` of them, and ``EWV = sum(W_i p_i)`` is the probability that one upset
ends in the event.  Its variance is ``sum(W_i^2 p_i (1 - p_i) / n_i)`` of the sample, which the
interval takes from Wilson limits instead (`stratified`), plus that of the exposures, to first
order (the delta method).  With the gradient ``g_i = (p_i - EWV) / sum(E_j)``, n forwards in each
of which the exposures were ``E_ik`` give n numbers ``L_k = sum(g_i E_ik)``, and the variance of
their mean is ``sum((L_k - mean(L))^2) / (n (n - 1))``: covariances of layers count, and what makes
all of a forward slower, which leaves the shares alone, does not.  Of the absolute number,
``sum(E_i p_i)`` upsets, the gradient is ``p_i``, and there it does.  Where only each row's standard
deviation is known, rows are taken for independent: ``sum(g_i^2 sd_i^2 / n)``.

Sources
-------
* Mukherjee et al., "A systematic methodology to compute the architectural vulnerability
  factors", MICRO 2003: exposure of bits over time.
* Schirmeier, Borchert, Spinczyk, "Avoiding pitfalls in fault-injection based comparison of
  program susceptibility", DSN 2015: why variants are compared by absolute counts, exposure
  times rate, and never by percentages: a protected program that runs longer is exposed longer.
* Powell, Cukier, Arlat, "On stratified sampling for high coverage estimations", EDCC 1996.
* Cochran, "Sampling techniques", 3rd edition, 1977, chapter 6: the variance of a ratio of means,
  which EWV is, of exposures by rates to exposures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from pystack_nb.errors import CampaignError
from pystack_nb.faults.bits import width
from pystack_nb.faults.exposure_noise import deviations
from pystack_nb.faults.statistics import Estimate, stratified
from pystack_nb.faults.strata import as_dtype


@dataclass(frozen=True)
class Reweighted:
    """The exposure-weighted vulnerability (EWV) of a network.

    Attributes
    ----------
    layers : pandas.DataFrame
        A row per layer and role: ``layer role faults rate low high bit_seconds share
        contribution risk``.  `share` is W_i, `rate` p_i with its interval, `contribution` W_i
        p_i and `risk` its part of the whole (NaN where no event was seen at all); with an upset
        rate also ``events_per_inference``, an inference being one of the recorded forwards.
    total : Estimate
        The EWV with its interval.
    event : str
        ``SDC`` or ``DUE``.
    covered : float
        Part of the table's exposure that the campaign injected into; the rest is left out of
        the shares.
    events_per_inference : Estimate or None
        ``upset_rate sum(E_i p_i)`` with its interval, where the user gave a rate: the number by
        which variants are compared.  It is for one of the recorded forwards with the batch that
        this had; divide it by the batch's size for the events of a sample.
    cause : str
        What the rates are per: an upset, or an event that strikes a pattern of elements.
    """

    layers: pd.DataFrame
    total: Estimate
    event: str
    covered: float
    events_per_inference: Estimate | None = None
    cause: str = "upset"

    def __repr__(self) -> str:
        lines = [f"exposure-weighted {self.event} rate per {self.cause}: {self.total}"]
        if self.covered < 1 - 1e-9:
            lines.append(f"the campaign covers {self.covered:.1%} of the exposure")
        if self.events_per_inference is not None:
            x = self.events_per_inference
            lines.append(
                f"{self.event} per recorded forward: {x.rate:.3g} ({x.low:.3g} to {x.high:.3g})"
            )
        return "\n".join([*lines, self.layers.to_string(index=False)])


def reweight(
    counts: pd.DataFrame,
    strata: pd.DataFrame,
    exposure: pd.DataFrame,
    *,
    event: str = "SDC",
    upset_rate: float | None = None,
    confidence: float = 0.95,
) -> Reweighted:
    """Weight the rates of site classes by their exposure.

    Parameters
    ----------
    counts : pandas.DataFrame
        ``stratum faults masked SDC DUE``.
    strata : pandas.DataFrame
        As `Plan.strata`.
    exposure : pandas.DataFrame
        ``layer``, ``bit_seconds`` and, where there is one, ``role``; without it a layer's
        exposure is shared among its roles in proportion to their bits.
        ``bit_seconds_sd``, where there is one, is each row's standard deviation over
        ``attrs["forwards"]`` forwards (one, where that is missing), of which `bit_seconds` is
        the mean.  A table of `exposure` also keeps what each forward gave, so that what rows
        have in common counts as it should, also when some of its rows were left out.  In any
        other table, and in one whose numbers or names were changed since, rows are taken for
        independent: noise that all layers share then widens the interval of the total
        although it leaves the shares alone, and that of the events too little.  Forwards are
        taken for independent, so that drift does not count, and for many: of fewer than ten
        or so the variance is itself not well known, and the intervals are too narrow.
    event : {"SDC", "DUE"}, optional
        Which outcome.
    upset_rate : float, optional
        Upsets per bit and second.
    confidence : float, optional
        Of the intervals.

    Raises
    ------
    CampaignError
        The table has not these columns, has nothing in common with the campaign, or a number
        in it or the upset rate is negative or none.
    """
    if not isinstance(exposure, pd.DataFrame):
        raise CampaignError(
            f"the exposure is {type(exposure).__name__} {exposure!r:.60}; pass faults.exposure(...)"
        )
    if event not in {"SDC", "DUE"}:
        raise CampaignError(f'there is no event {event!r}; pass "SDC" or "DUE"')
    if upset_rate is not None and not 0 < upset_rate < np.inf:
        raise CampaignError(
            f"an upset rate of {upset_rate} can't be; pass upsets per bit and second, above 0"
        )
    table = strata.drop(columns="faults").merge(counts, on="stratum", how="left")
    table = table.fillna({"faults": 0, event: 0})
    layers = _rates(table, event, confidence).merge(
        _exposed(exposure, table), on=["layer", "role"], how="left"
    )
    layers = layers.fillna({"bit_seconds": 0.0, "sd": 0.0})
    seconds = float(layers["bit_seconds"].sum())
    if not seconds > 0:
        raise CampaignError(
            "none of the campaign's layers was exposed; pass the exposure of the same model, and"
            " of roles that the campaign injects into"
        )
    layers["share"] = layers["bit_seconds"] / seconds
    layers["contribution"] = layers["share"] * layers["rate"]
    ewv = float(layers["contribution"].sum())
    layers["risk"] = layers["contribution"] / (ewv if ewv > 0 else np.nan)

    noise = deviations(exposure, layers)
    if noise is None:
        noise = np.diag(layers["sd"])

    def estimate(slope: pd.Series) -> Estimate:
        return stratified(
            table[event],
            table["faults"],
            table.merge(layers, on=["layer", "role"])["share"] * _within(table),
            populations=table["population"],
            confidence=confidence,
            variance=float(((noise @ slope.to_numpy() / seconds) ** 2).sum()),
        )

    expected = None
    if upset_rate is not None:
        layers["events_per_inference"] = upset_rate * layers["bit_seconds"] * layers["rate"]
        found, upsets = estimate(layers["rate"]), upset_rate * seconds
        expected = replace(
            found, rate=found.rate * upsets, low=found.low * upsets, high=found.high * upsets
        )
    covered = seconds / float(exposure["bit_seconds"].sum())
    return Reweighted(
        layers.drop(columns="sd"), estimate(layers["rate"] - ewv), event, covered, expected
    )


def _rates(table: pd.DataFrame, event: str, confidence: float) -> pd.DataFrame:
    rows = []
    for (layer, role), cells in table.groupby(["layer", "role"], sort=False):
        found = stratified(
            cells[event],
            cells["faults"],
            cells["weight"],
            populations=cells["population"],
            confidence=confidence,
        )
        rows.append((layer, role, found.trials, found.rate, found.low, found.high))
    return pd.DataFrame(rows, columns=["layer", "role", "faults", "rate", "low", "high"])


def _exposed(exposure: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    if missing := {"layer", "bit_seconds"} - {*exposure}:
        raise CampaignError(
            f"this table of exposure has no column {min(missing)!r}; pass faults.exposure(...)"
        )
    # The rows are means over forwards, and what varies is the mean.
    forwards = max(1, int(exposure.attrs.get("forwards", 1)))
    found = exposure.assign(variance=exposure.get("bit_seconds_sd", 0.0) ** 2 / forwards)
    found["variance"] = found["variance"].fillna(0.0)
    if not (found["bit_seconds"] >= 0).all() or np.isinf(found["bit_seconds"]).any():
        raise CampaignError("an exposure is negative or no number; pass bit-seconds, 0 or more")
    sums = ["bit_seconds", "variance"]
    if "role" in found:
        found = found.groupby(["layer", "role"])[sums].sum().reset_index()
    else:
        bits = table.drop_duplicates(["layer", "role"])[["layer", "role", "dtype", "elements"]]
        size = bits["elements"] * [width(as_dtype(x)) for x in bits["dtype"]]
        part = size / size.groupby(bits["layer"]).transform("sum")
        found = bits.assign(part=part).merge(found.groupby("layer")[sums].sum(), on="layer")
        found["bit_seconds"] *= found["part"]
        found["variance"] *= found["part"] ** 2
    return found.assign(sd=found["variance"] ** 0.5)[["layer", "role", "bit_seconds", "sd"]]


def _within(table: pd.DataFrame) -> pd.Series:
    return table["weight"] / table.groupby(["layer", "role"])["weight"].transform("sum")
