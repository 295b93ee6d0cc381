"""What a campaign found: rates with intervals, per layer, role, bit and in all."""

from __future__ import annotations

import json
import math

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pystack_nb.errors import CampaignError, ExportPathError
from pystack_nb.faults.models import BitFlip, BitModel
from pystack_nb.faults.patterns import BitErrorRate, Element, ElementErrorRate
from pystack_nb.faults.reweighting import Reweighted, reweight
from pystack_nb.faults.statistics import Estimate, stratified, wilson_limits


if TYPE_CHECKING:
    import os

    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pystack_nb.faults.models import ErrorModel
    from pystack_nb.faults.patterns import Pattern

OUTCOMES = ("masked", "SDC", "DUE")


class Analysis(ABC):
    """Everything that is computed from outcomes, without another injection."""

    pattern: Pattern | None = None
    error_model: ErrorModel = BitFlip()

    @property
    @abstractmethod
    def results(self) -> pd.DataFrame:
        """A row per fault."""

    @property
    @abstractmethod
    def strata(self) -> pd.DataFrame:
        """The strata that the faults were drawn from; see `Plan.strata`."""

    @property
    @abstractmethod
    def proportional(self) -> bool:
        """Whether strata have faults in proportion to their sizes, as far as can be."""

    @property
    @abstractmethod
    def confidence(self) -> float:
        """Of the intervals."""

    def summary(
        self, by: str | Iterable[str] = ("layer", "role"), *, confidence: float | None = None
    ) -> pd.DataFrame:
        """Count outcomes, and give their rates with intervals.

        Parameters
        ----------
        by : str or iterable of str, optional
            Columns of `results`, such as ``"bit"``, ``"layer,bit"`` or ``("layer", "bit")``, and
            ``"dtype"``: with layers of several types, bits of one number are not alike, and
            ``("dtype", "bit")`` keeps them apart.
        confidence : float, optional
            The campaign's by default.

        Returns
        -------
        pandas.DataFrame
            The columns of `by`, ``faults masked sdc due`` (counts), and ``sdc_rate sdc_low
            sdc_high`` and ``due_rate due_low due_high``.  The intervals are Wilson's; where
            no event was seen the lower limit is 0 and the upper one a bound on the rate
            (``z^2 / (n + z^2)``, a little above the rule of three): read such a row as "below
            sdc_high", never as "0 %".  A row that sums up strata weights them by their sizes,
            as `stratified` tells, and its rate is not the ratio of its counts: a proportional
            sample, too, has a whole number of faults of each stratum, and one at least.  One
            of fewer faults than strata is a plain random one, and counts as one stratum.

        Raises
        ------
        CampaignError
            There is no such column, or no result.
        """
        confidence = self.confidence if confidence is None else confidence
        keys = _names(by)
        results = self.results
        if "dtype" in keys and "dtype" not in results:
            of = self.strata.set_index("stratum")["dtype"]
            results = results.assign(dtype=results["stratum"].map(of))
        if "outcome" in keys:
            raise CampaignError(
                "outcomes are what is counted, by something else: pass other columns, such as"
                ' ("layer", "bit")'
            )
        if unknown := [x for x in keys if x not in list(results)] or (not keys and ["()"]):
            raise CampaignError(
                f"results have no column {unknown[0]!r}; pass some of"
                f" {[*dict.fromkeys([*results, 'dtype'])]}"
            )
        outcomes = pd.Categorical(results["outcome"], OUTCOMES).codes
        flags = {x: (outcomes == i).astype(np.int64) for i, x in enumerate(OUTCOMES)}
        cell = [*dict.fromkeys([*keys, "stratum"])]
        counts = results[cell].assign(faults=1, **flags).groupby(cell).sum().reset_index()
        sizes = self.strata.set_index("stratum")["weight"]
        of_stratum = counts.groupby("stratum")["faults"].transform("sum")
        counts["weight"] = counts["stratum"].map(sizes) * counts["faults"] / of_stratum
        # Layers in the order of the strata, which is that of the network.
        first = counts.groupby(keys)["stratum"].transform("min") if "layer" in keys else 0
        counts = counts.assign(first=first).sort_values(["first", *keys], kind="stable")
        groups = counts.groupby(keys, sort=False)
        table = groups[["faults", *OUTCOMES]].sum().reset_index()
        alone = (groups["stratum"].size().to_numpy() == 1) | self._is_plain(len(results))
        of_several = [(row, x) for row, (_, x) in enumerate(groups) if not alone[row]]
        for event in ("SDC", "DUE"):
            name = event.lower()
            low, high = wilson_limits(table[event], table["faults"], confidence)
            rate = table[event].to_numpy() / table["faults"].to_numpy()
            for row, cells in of_several:
                found = stratified(
                    cells[event], cells["faults"], cells["weight"], confidence=confidence
                )
                rate[row], low[row], high[row] = found.rate, found.low, found.high
            table[f"{name}_rate"], table[f"{name}_low"], table[f"{name}_high"] = rate, low, high
        return table.rename(columns={"SDC": "sdc", "DUE": "due"})

    def total(self, event: str = "SDC", *, confidence: float | None = None) -> Estimate:
        """Estimate the rate over all possible faults: ``sum(N_h / N p_h)``.

        Parameters
        ----------
        event : {"SDC", "DUE"}, optional
            Which outcome.
        confidence : float, optional
            The campaign's by default.

        Returns
        -------
        Estimate
            With the finite population correction where no fault is drawn twice; see
            `stratified` for the interval.  A proportional sample of fewer faults than strata
            is a plain random one, and counts as one stratum.
        """
        if event not in OUTCOMES:
            raise CampaignError(f"there is no outcome {event!r}; pass one of {OUTCOMES}")
        return overall(
            self.strata,
            self._counts(),
            event,
            proportional=self.proportional,
            confidence=self.confidence if confidence is None else confidence,
        )

    def reweight(
        self,
        exposure: pd.DataFrame,
        *,
        event: str = "SDC",
        upset_rate: float | None = None,
        confidence: float | None = None,
    ) -> Reweighted:
        """Weight the rates of layers by how long their bits were exposed; see `reweight`.

        With a pattern the rates are per event that strikes it, and not per upset.

        Parameters
        ----------
        exposure : pandas.DataFrame
            As `exposure` gives it, perhaps without some rows; what each forward gave then
            tells how layers vary together.  Or any other with ``layer``, ``bit_seconds``, and
            perhaps ``role`` and ``bit_seconds_sd``, whose rows are taken for independent.
        event : {"SDC", "DUE"}, optional
            Which outcome.
        upset_rate : float, optional
            Upsets per bit and second.  Without it nothing absolute is given.
        confidence : float, optional
            The campaign's by default.

        Returns
        -------
        Reweighted
            Per layer and in total; no fault is injected for it.

        Raises
        ------
        CampaignError
            As `reweight`, and if the campaign's pattern is an error rate, which strikes whole
            tensors; or if it is another one and there is an upset rate.
        """
        if isinstance(self.pattern, ElementErrorRate | BitErrorRate):
            raise CampaignError(
                f"{self.pattern} strikes all of a tensor at once, so that its rates can't be"
                " weighted by exposure, which is for single upsets; run a campaign without a"
                " pattern"
            )
        single = isinstance(self.pattern, Element | None)
        if upset_rate is not None and not single:
            raise CampaignError(
                f"an upset rate is of single bits, and {self.pattern} strikes several elements:"
                " leave upset_rate away, or run a campaign without a pattern"
            )
        found = reweight(
            self._counts(),
            self.strata,
            exposure,
            event=event,
            upset_rate=upset_rate,
            confidence=self.confidence if confidence is None else confidence,
        )
        return found if single else replace(found, cause=f"event of {self.pattern}")

    def _is_plain(self, finished: int) -> bool:
        """Whether each possible fault was as likely to be drawn as another."""
        return self.proportional and _is_whole_pool(self.strata["faults"], finished)

    def _counts(self) -> pd.DataFrame:
        results, rows = self.results, len(self.strata)
        outcomes = pd.Categorical(results["outcome"], OUTCOMES).codes
        cells = results["stratum"].to_numpy(np.int64) * len(OUTCOMES) + outcomes
        table = np.bincount(cells, minlength=rows * len(OUTCOMES)).reshape(rows, len(OUTCOMES))
        counts = pd.DataFrame(table, columns=list(OUTCOMES))
        counts.insert(0, "faults", table.sum(1))
        return counts.assign(stratum=self.strata["stratum"].to_numpy())

    def plot_layers(self, *, ax: Axes | None = None) -> Figure:
        """Draw the rates of each layer and role, with their intervals; see `plots`."""
        from pystack_nb.faults import plots  # noqa: PLC0415 - matplotlib, only when it is drawn

        return plots.plot_layers(self.summary(), self.confidence, ax=ax)

    def plot_bits(self, *, ax: Axes | None = None) -> Figure:
        """Draw the rates of each bit of each type, with their intervals; see `plots`."""
        from pystack_nb.faults import plots  # noqa: PLC0415 - matplotlib, only when it is drawn

        return plots.plot_bits(
            self.summary(("dtype", "bit")),
            self.confidence,
            list(self.strata["dtype"].unique()),
            ax=ax,
            empty=self._why_no_bits(),
        )

    def _why_no_bits(self) -> str:
        error = self.error_model
        if not isinstance(error, BitModel):
            return f"{error} strikes whole values"
        if error.bits > 1 or isinstance(error.bit, Collection):
            return f"{error} strikes several bits together"
        if self.pattern is None:
            return "no bits were struck"
        return 'bits of patterns are not told apart: pass per="layer,bit"'

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write `results` as CSV."""
        _written(path, lambda x: self.results.to_csv(x, index=False))

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write `results` as a JSON array of objects; NaN and infinities become null."""
        # Not pandas' own: it rounds to decimal places, and small values to zero.
        rows = [
            {
                k: None if isinstance(v, float) and not math.isfinite(v) else v
                for k, v in row.items()
            }
            for row in self.results.to_dict("records")
        ]
        _written(path, lambda x: x.write_text(json.dumps(rows)))

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write `results` as one Parquet file."""
        _written(path, lambda x: self.results.to_parquet(x, index=False))


def overall(
    strata: pd.DataFrame,
    counts: pd.DataFrame,
    event: str,
    *,
    proportional: bool,
    confidence: float,
) -> Estimate:
    """Estimate the rate over all possible faults; see `Analysis.total`.

    Parameters
    ----------
    strata : pandas.DataFrame
        As `Plan.strata`.
    counts : pandas.DataFrame
        ``stratum faults`` and the event, of strata that have some.
    event : str
        Which outcome.
    proportional : bool
        Whether strata have faults in proportion to their sizes, as far as can be.
    confidence : float
        Of the interval.
    """
    columns = [event, "faults", "weight", "population"]
    found = strata.drop(columns="faults").merge(counts, on="stratum", how="left")
    found = found[columns].fillna({event: 0, "faults": 0})
    if proportional and _is_whole_pool(strata["faults"], int(found["faults"].sum())):
        found = found.sum().to_frame().T
    return stratified(
        found[event],
        found["faults"],
        found["weight"],
        populations=found["population"],
        confidence=confidence,
    )


def _names(by: Any) -> list[str]:
    names = [x.strip() for x in by.split(",")] if isinstance(by, str) else by
    if not isinstance(names, Iterable):
        raise CampaignError(f'by={by!r} names no columns; pass "layer" or ("layer", "role")')
    return list(names)


def _is_whole_pool(planned: pd.Series, finished: int) -> bool:
    # Of an unfinished sample only the first strata are there.
    return bool((planned == 0).any() and finished == planned.sum())


def _written(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    try:
        write(Path(path))
    except OSError as error:
        raise ExportPathError(
            f"{path} can't be written ({error.strerror or error}); choose another place"
        ) from None
