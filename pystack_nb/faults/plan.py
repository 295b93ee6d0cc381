"""What a campaign will inject: sample sizes, and every fault, drawn from the seed alone."""

from __future__ import annotations

import math

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pystack_nb.errors import CampaignError
from pystack_nb.faults.statistics import allocate, neyman, quantile, sample_size


if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pystack_nb.faults.strata import Stratum

    Ints = NDArray[np.int64]

PER = ("network", "layer", "layer,bit")
ALLOCATIONS = ("proportional", "equal", "neyman")
PILOT = 100  # faults of each stratum before Neyman's allocation, where it has as many
_MOST = 20_000_000  # faults of a plan: some 400 bytes each while they are drawn
_NAMES = ("layer", "role", "kind")
_SHOWN = 40


@dataclass(frozen=True)
class Design:
    """How many faults each stratum gets.

    Attributes
    ----------
    per, allocation
        As `Campaign` takes them.
    error, confidence : float
        Wanted margin and its confidence.
    faults : int or None
        The whole sample's size instead.
    """

    per: str = "network"
    error: float = 0.01
    confidence: float = 0.99
    faults: int | None = None
    allocation: str = "proportional"

    def __post_init__(self) -> None:
        if self.per not in PER:
            raise CampaignError(f"per={self.per!r} is unknown; pass one of {PER}")
        if self.allocation not in ALLOCATIONS:
            raise CampaignError(
                f"allocation={self.allocation!r} is unknown; pass one of {ALLOCATIONS}"
            )
        if self.faults is not None and self.faults < 1:
            raise CampaignError(f"{self.faults} faults are no campaign; pass 1 or more")
        sample_size(1, self.error, self.confidence)

    @property
    def proportional(self) -> bool:
        """Whether strata have faults in proportion to their sizes, as far as can be."""
        return self.allocation == "proportional" and (
            self.per == "network" or self.faults is not None
        )

    def pilot(self, of: list[Stratum]) -> Ints:
        """Give the faults of each stratum that Neyman's allocation needs first.

        Raises
        ------
        CampaignError
            They are more than `faults`.
        """
        first = np.array([int(min(PILOT, x.population)) for x in of], np.int64)
        if self.faults is not None and self.faults < first.sum():
            raise CampaignError(
                f"faults={self.faults} are fewer than the {first.sum()} of the pilot of Neyman's"
                f" allocation, {PILOT} in each of {len(of)} strata where it has as many; pass"
                f" faults={first.sum()} or more, or another allocation"
            )
        return first

    def total(self, of: list[Stratum]) -> int:
        """Give the number of faults in all, at most as many as there are.

        Raises
        ------
        CampaignError
            They are more than a plan can hold.
        """
        population = sum(x.population for x in of)
        if self.faults is not None:
            total = int(min(self.faults, population))
        elif self.per == "network":
            total = sample_size(float(population), self.error, self.confidence)
        else:
            total = sum(sample_size(x.population, self.error, self.confidence) for x in of)
        if total > _MOST:
            raise CampaignError(
                f"this campaign has more than the {_MOST:,} faults that can be held; pass fewer"
                " faults or a larger error, or run a campaign for each part of sites"
            )
        return total

    def sizes(self, of: list[Stratum], seed: int, events: Ints | None = None) -> Ints:
        """Give the sample size of each stratum.

        Parameters
        ----------
        of : list of Stratum
            All of them.
        seed : int
            Draws the strata of a proportional sample that has less than a fault for each.
        events : numpy.ndarray, optional
            SDCs and DUEs of each stratum in its pilot, for Neyman's allocation.
        """
        most = np.array([x.population for x in of])
        weights = np.array([x.weight for x in of])
        total = self.total(of)
        if self.faults is None and self.per != "network" and self.allocation == "proportional":
            return np.array([sample_size(x.population, self.error, self.confidence) for x in of])
        if self.allocation == "proportional" and total < len(of):
            # Rounded shares would be of the largest strata alone, whatever the seed.
            return _one_pool(total, weights, most, seed)
        least = np.minimum(1 if total >= len(of) else 0, most)
        if self.allocation == "equal":
            return allocate(total, np.ones(len(of)), least=least, most=most)
        if self.allocation == "neyman" and events is not None:
            asked = neyman(total, weights, events, self.pilot(of))
            return allocate(total, asked, least=self.pilot(of), most=most)
        return allocate(total, weights, least=least, most=most)


@dataclass(frozen=True)
class Plan:
    """What a campaign will do; as text, a table.

    Attributes
    ----------
    strata : pandas.DataFrame
        A row per stratum: ``stratum layer role kind bit dtype elements weight population faults
        margin``.  `weight` is its number of different faults on one sample, `population` also
        counts samples, and is infinite where faults are drawn with replacement; `margin` is
        half the width of an interval for a rate of 50 % at the campaign's confidence.
    faults : pandas.DataFrame
        A row per fault: ``fault stratum layer role kind call element sample and_mask or_mask
        xor_mask value bit``; `Campaign.fault` makes a `Fault` of it.  `element` is the flat
        index without the batch dimension; the stored bits become ``((bits & and_mask) |
        or_mask) ^ xor_mask``.  With a pattern, or an error model that looks at values, the
        masks change nothing, and ``seed`` tells the fault: it is what ``faults.inject(model,
        Fault(layer, role, pattern, error, call=call), seed=seed)`` does to that sample alone,
        the error model with `bit` where that is not -1.  `element` is then the first one that
        is struck, or -1 where it does not tell the others.
    seed : int
        All of it was drawn from this.
    confidence : float
        Of the margins.
    seconds : float
        How long the run will take where it is going to run, as a short trial tells, whose
        faults are the first that are finished; NaN where none ran.
    proportional : bool
        Whether strata have faults in proportion to their sizes, as far as can be.
    """

    strata: pd.DataFrame
    faults: pd.DataFrame
    seed: int
    confidence: float
    seconds: float = math.nan
    proportional: bool = False

    @property
    def sizes(self) -> Ints:
        """Faults of each stratum."""
        return self.strata["faults"].to_numpy(np.int64)

    @property
    def one_by_one(self) -> bool:
        """Whether each fault has a forward of its own: what a seed tells strikes no batch."""
        return "seed" in self.faults

    def __repr__(self) -> str:
        shown = (
            self.strata.groupby(["layer", "role", "kind", "dtype"], sort=False)
            .agg(
                strata=("stratum", "size"),
                elements=("elements", "first"),
                population=("population", "sum"),
                faults=("faults", "sum"),
                margin=("margin", "max"),
            )
            .reset_index()
        )
        if (shown["strata"] == 1).all():
            shown = shown.drop(columns="strata")
        table = shown.to_string(
            index=False,
            max_rows=_SHOWN,
            formatters={
                "elements": "{:,}".format,
                "population": _count,
                "faults": "{:,}".format,
                "margin": "{:.2%}".format,
            },
        )
        return f"{self.heading}\n{table}"

    @property
    def heading(self) -> str:
        """One line: how many faults, of how many, for how long."""
        population = _count(float(self.strata["population"].sum()))
        time = "" if math.isnan(self.seconds) else f", about {duration(self.seconds)}"
        time += ", a forward for each" if self.one_by_one else ""
        return (
            f"{len(self.faults):,} faults of {population} in {len(self.strata):,} strata,"
            f" seed {self.seed}, margins at {self.confidence:.0%} confidence{time}"
        )


def make(of: list[Stratum], design: Design, seed: int, events: Ints | None = None) -> Plan:
    """Draw a plan.

    Parameters
    ----------
    of : list of Stratum
        All of them.
    design : Design
        How many faults of each.  With Neyman's allocation and no `events` it is the pilot.
    seed : int
        Of all random streams.
    events : numpy.ndarray, optional
        SDCs and DUEs of each stratum in the pilot.

    Returns
    -------
    Plan
        Faults of the pilot come first, so that their numbers stay what they are.
    """
    first = design.pilot(of) if design.allocation == "neyman" else np.zeros(len(of), np.int64)
    pilot_only = design.allocation == "neyman" and events is None
    sizes = first if pilot_only else design.sizes(of, seed, events)
    drawn = [x.draw(seed, int(n)) for x, n in zip(of, sizes, strict=True)]
    faults = pd.DataFrame(
        {x: np.concatenate([*_pilot_first([y[x] for y in drawn], first)]) for x in drawn[0]}
    )
    which = np.concatenate([*_pilot_first([np.repeat(i, n) for i, n in enumerate(sizes)], first)])
    named = {
        "fault": np.arange(len(faults)),
        "stratum": np.array([x.number for x in of])[which],
        **{x: np.array([getattr(y, x) for y in of], object)[which] for x in _NAMES},
    }
    for place, (name, column) in enumerate(named.items()):
        faults.insert(place, name, column)
    strata = describe(of, sizes, design.confidence)
    return Plan(strata, faults, seed, design.confidence, proportional=design.proportional)


def _one_pool(total: int, weights: NDArray[np.float64], most: Any, seed: int) -> Ints:
    """Draw the strata of a plain random sample of the whole."""
    # Strata draw from streams of a single key.
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(0, 0))))
    sizes = np.zeros(len(weights), np.int64)
    for point in rng.random(int(min(total, most.sum()))):
        ends = np.cumsum(weights * (1 - sizes / np.maximum(most, 1)))
        sizes[np.searchsorted(ends, point * ends[-1], side="right")] += 1
    return sizes


def _pilot_first(parts: list[NDArray[Any]], first: Ints) -> Iterator[NDArray[Any]]:
    yield from (x[:n] for x, n in zip(parts, first, strict=True))
    yield from (x[n:] for x, n in zip(parts, first, strict=True))


def describe(of: list[Stratum], sizes: Ints, confidence: float) -> pd.DataFrame:
    """Make the table of strata of a `Plan`."""
    population = np.array([x.population for x in of], float)
    with np.errstate(invalid="ignore", divide="ignore"):
        left = np.where(np.isinf(population), 1, (population - sizes) / (population - 1))
        margin = quantile(confidence) * 0.5 * np.sqrt(np.nan_to_num(left) / sizes)
    return pd.DataFrame(
        {
            "stratum": [x.number for x in of],
            "layer": [x.layer for x in of],
            "role": [x.role for x in of],
            "kind": [x.kind for x in of],
            "bit": [x.bit for x in of],
            "dtype": [str(x.dtype).removeprefix("torch.") for x in of],
            "elements": [sum(x.elements) for x in of],
            "weight": [float(x.weight) for x in of],
            "population": population,
            "faults": sizes,
            "margin": np.minimum(margin, 1.0),
        }
    )


def duration(seconds: float) -> str:
    """Give a time as a person says it."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _count(number: float) -> str:
    return "∞" if math.isinf(number) else f"{number:,.0f}"
