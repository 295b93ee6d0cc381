"""How many faults are enough, and how sure a rate is.

Pure functions of counts.  The unit of every count is one fault: outcomes of one fault on
several samples are one observation, for they are not independent.

Sources
-------
* Leveugle, Calvez, Maistri, Vanhauwaert, "Statistical fault injection: quantified error and
  confidence", DATE 2009: the sample size for a finite population.
* Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22
  (1927): the interval for a rate.  The textbook one (Wald's) covers a rate of 0.002 in 53 % of
  385-fault campaigns that claim 95 %.
* Neyman, "On the two different aspects of the representative method", JRSS 97 (1934): the
  allocation of a sample to strata.
* Zou, Donner, "Construction of confidence limits about effect measures", Statistics in
  Medicine 27 (2008): the interval of a sum from the intervals of its terms (MOVER).
"""

from __future__ import annotations

import math
import numbers

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from pystack_nb.errors import CampaignError


if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]


def sample_size(
    population: float, error: float = 0.01, confidence: float = 0.99, p: float = 0.5
) -> int:
    """Give the number of faults that estimates a rate with a wanted margin of error.

    ``n = N / (1 + e^2 (N - 1) / (z^2 p (1 - p)))`` (Leveugle et al., DATE 2009), with `z` the
    normal quantile of the confidence, not a rounded one, and `n` rounded to the nearest.

    Parameters
    ----------
    population : int
        Number `N` of possible faults; ``math.inf`` for an error model with endless choices.
    error : float, optional
        Margin of error `e`, half the interval's width, as a fraction.
    confidence : float, optional
        Between 0 and 1, both excluded.
    p : float, optional
        The rate that is expected; 0.5 needs the most faults.

    Returns
    -------
    int
        Between 1 and the population; 0 where there is nothing to sample.

    Raises
    ------
    CampaignError
        A number is out of its range.
    """
    if not population >= 0:
        raise CampaignError(f"a population of {population} faults can't be; pass 0 or more")
    if not _is_between(error):
        raise CampaignError(f"an error margin of {error} can't be; pass one between 0 and 1")
    if not _is_between(p):
        raise CampaignError(f"an expected rate of {p} can't be; pass one between 0 and 1")
    endless = quantile(confidence) ** 2 * p * (1 - p) / error**2
    if math.isinf(population):
        return max(1, round(endless))
    if population == 0:
        return 0
    return min(max(1, round(population / (1 + (population - 1) / endless))), int(population))


def wilson(events: float, trials: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a rate.

    Parameters
    ----------
    events, trials : float
        Counts; fractions are allowed, since a finite population and strata give effective ones.
    confidence : float, optional
        Between 0 and 1, both excluded.

    Returns
    -------
    tuple of float
        Lower and upper limit, within 0 and 1.  Where no event was seen the lower one is exactly
        0 and the upper one, ``z^2 / (n + z^2)``, is a bound on the rate: never report "0 %".
        Without a trial nothing is known: 0 and 1.

    Raises
    ------
    CampaignError
        More events than trials, a negative count, or a confidence that can't be.

    See Also
    --------
    upper_bound : The tighter, one-sided bound when no event was seen.
    """
    if not 0 <= events <= trials:
        raise CampaignError(
            f"{events} events in {trials} trials can't be; pass 0 <= events <= trials"
        )
    low, high = wilson_limits([events], [trials], confidence)
    return float(low[0]), float(high[0])


def upper_bound(trials: float, confidence: float = 0.95) -> float:
    """One-sided bound on a rate when none of the trials was an event.

    ``1 - (1 - confidence)^(1 / n)``, exact for independent trials and about ``3 / n`` for 95 %:
    the rule of three (Hanley, Lippman-Hand, JAMA 249 (1983)).
    """
    quantile(confidence)
    return 1.0 if trials <= 0 else -math.expm1(math.log1p(-confidence) / trials)


def wilson_limits(
    events: ArrayLike, trials: ArrayLike, confidence: float = 0.95
) -> tuple[Floats, Floats]:
    """Give `wilson` of each pair of arrays; infinite trials stand for a rate that is known."""
    k, n = np.broadcast_arrays(np.asarray(events, float), np.asarray(trials, float))
    square = quantile(confidence) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = np.where(n > 0, k / n, 0.5)
        middle = (k + square / 2) / (n + square)
        half = np.sqrt(square * (n * rate * (1 - rate) + square / 4)) / (n + square)
    low = np.where(k <= 0, 0.0, np.clip(middle - half, 0, 1))
    high = np.where(k >= n, 1.0, np.clip(middle + half, 0, 1))
    return low, high


@dataclass(frozen=True)
class Estimate:
    """A rate with its interval.

    Attributes
    ----------
    rate, low, high : float
        Fractions; `low` and `high` are the limits at `confidence`.
    confidence : float
        Of the interval.
    trials : int
        Faults behind it.
    """

    rate: float
    low: float
    high: float
    confidence: float
    trials: int

    def __str__(self) -> str:
        return (
            f"{self.rate:.3%} ({self.confidence:.0%} interval {self.low:.3%} to {self.high:.3%}, "
            f"{self.trials:,} faults)"
        )


def stratified(
    events: ArrayLike,
    trials: ArrayLike,
    weights: ArrayLike,
    *,
    populations: ArrayLike | None = None,
    confidence: float = 0.95,
    variance: float = 0.0,
) -> Estimate:
    """Rate of a population from samples of its strata, ``sum(W_h k_h / n_h)``, with its interval.

    Strata that were sampled about as densely (``n_h / W_h`` within a factor of two) are pooled:
    the variance of their part, ``sum(W_h^2 p_h (1 - p_h) / n_h)``, is never above ``max(W_h /
    n_h) p (1 - p)`` per unit of weight, so that Wilson's interval with ``min(n_h / W_h)`` trials
    per unit holds.  A proportional sample is one pool.  Several pools add up by MOVER: ``p -
    sqrt(sum(W^2 (p_h - l_h)^2))`` and likewise above, the lower limits with the continuity
    correction of Newcombe, Statistics in Medicine 17 (1998), without which one chance event in
    a heavy stratum moves the limit too far.  Strata without an event thus still widen the
    interval, unlike in the normal approximation, which takes them for certain.

    Parameters
    ----------
    events, trials : array_like
        Counts, one a stratum.  A stratum of some weight without a trial adds all it could be:
        it counts as half, nothing of its weight goes into the lower limit and the whole of it
        into the upper one, since strata that were not tried may well be wrong together.
    weights : array_like
        Sizes of the strata in any unit; their shares are used.
    populations : array_like, optional
        Possible faults of each stratum, for the finite population correction where faults are
        drawn without replacement; ``math.inf`` (the default) for none.
    confidence : float, optional
        Of the interval.
    variance : float, optional
        More variance of the sum, from another cause, such as of the weights.

    Returns
    -------
    Estimate
        Of the whole population.

    Raises
    ------
    CampaignError
        The weights are negative or all zero.
    """
    k, n, shares = (np.atleast_1d(np.asarray(x, float)) for x in (events, trials, weights))
    if not shares.sum() > 0 or (shares < 0).any():
        raise CampaignError("strata without any weight have no rate; pass positive weights")
    shares = shares / shares.sum()
    size = np.inf if populations is None else np.asarray(populations, float)
    tried = n > 0
    unknown = float(shares[~tried].sum())
    known, part, low, high = 1.0 - unknown, 0.0, 0.0, 0.0
    if (shares[tried] > 0).any():
        rates = k[tried] / n[tried]
        part = float(shares[tried] @ rates)
        pools = _pooled(rates, effective_trials(n, size)[tried], shares[tried])
        weight, of_pool, trials_of_pool = (np.array(x) for x in zip(*pools, strict=True))
        lows, highs = _limits_of(of_pool, trials_of_pool, confidence)
        if len(pools) > 1:
            lows = _corrected_lows(of_pool, trials_of_pool, confidence)
        more = variance * quantile(confidence) ** 2
        below = math.sqrt(float(((weight * (of_pool - lows)) ** 2).sum()) + more)
        above = math.sqrt(float(((weight * (highs - of_pool)) ** 2).sum()) + more)
        low = max(0.0, part - below) if part > 0 else 0.0
        high = min(known, part + above) if part < known else known
    rate, high = part + unknown / 2, min(1.0, high + unknown)
    return Estimate(rate, low, high, confidence, int(n.sum()))


def _pooled(rates: Floats, trials: Floats, shares: Floats) -> list[tuple[float, float, float]]:
    """Give the weight, rate and trials of pools of strata that were sampled about as densely."""
    used = shares > 0
    rates, trials, shares = rates[used], trials[used], shares[used]
    density = trials / shares
    usual = trials[np.isfinite(trials)].sum() or 1.0
    with np.errstate(divide="ignore"):
        pool = np.round(np.log2(density / usual))
    found = []
    for number in np.unique(pool):
        here = pool == number
        weight = float(shares[here].sum())
        found.append(
            (weight, float(shares[here] @ rates[here]) / weight, weight * density[here].min())
        )
    return found


def effective_trials(trials: ArrayLike, populations: ArrayLike) -> Floats:
    """Trials with replacement that would say as much: ``n (N - 1) / (N - n)``.

    Infinite where the whole population was tried.
    """
    n, size = np.broadcast_arrays(np.asarray(trials, float), np.asarray(populations, float))
    with np.errstate(divide="ignore", invalid="ignore"):
        some = np.where(size > n, n * (size - 1) / (size - n), np.where(n > 0, np.inf, 0.0))
    return np.where(np.isinf(size), n, some)


def neyman(
    total: int, weights: ArrayLike, events: ArrayLike, trials: ArrayLike, *, floor: int = 1
) -> NDArray[np.int64]:
    """Allocate a sample to strata so that the whole rate's variance is least.

    ``n_h`` in proportion to ``W_h sqrt(p (1 - p))`` with ``p = (k + 1) / (n + 2)`` from a pilot,
    so that a stratum whose pilot saw nothing still gets its part.

    Parameters
    ----------
    total : int
        Faults to allocate, the pilot's included.
    weights : array_like
        Sizes of the strata.
    events, trials : array_like
        Counts of the pilot.
    floor : int, optional
        Least number of each stratum.

    Returns
    -------
    numpy.ndarray
        Faults of each stratum, at least its pilot's; their sum is `total` unless the floors
        and the pilot are more.
    """
    k, n = np.asarray(events, float), np.asarray(trials, float)
    guess = (k + 1) / (n + 2)
    least = np.maximum(n, floor).astype(np.int64)
    return allocate(total, np.asarray(weights, float) * np.sqrt(guess * (1 - guess)), least=least)


def allocate(
    total: int,
    weights: ArrayLike,
    *,
    least: ArrayLike = 0,
    most: ArrayLike = np.inf,
) -> NDArray[np.int64]:
    """Split a number in proportion to weights, within bounds, by largest remainders.

    Parameters
    ----------
    total : int
        What to split; a part without weight gets its `least`.
    weights : array_like
        Not negative, one a part.
    least, most : array_like, optional
        Bounds of the parts; they go before `total`.

    Returns
    -------
    numpy.ndarray
        Whole numbers; the same for the same arguments.
    """
    share = np.asarray(weights, float)
    low = np.broadcast_to(np.asarray(least, float), share.shape)
    high = np.where(share > 0, np.maximum(np.asarray(most, float), low), low)
    target = float(np.clip(total, low.sum(), high.sum()))
    ideal = np.clip(_scale(share, low, high, target) * share, low, high)
    whole = np.floor(ideal)
    order = np.argsort(whole - ideal, kind="stable")
    whole[order[: round(target - whole.sum())]] += 1
    return whole.astype(np.int64)


def _scale(share: Floats, low: Any, high: Any, target: float) -> float:
    # The sum of the clipped parts grows with the scale: bisection finds it to rounding.
    positive = share[share > 0]
    if not len(positive):
        return 0.0
    plain = target / float(positive.sum())
    if ((low <= plain * share) & (plain * share <= high)).all():
        return plain
    below, above = 0.0, (target + 1) / float(positive.min())
    for _ in range(200):
        middle = (below + above) / 2
        if np.clip(middle * share, low, high).sum() < target:
            below = middle
        else:
            above = middle
    return above


def quantile(confidence: float) -> float:
    """Two-sided normal quantile of a confidence: 1.96 for 0.95."""
    if not _is_between(confidence):
        raise CampaignError(f"a confidence of {confidence} can't be; pass one between 0 and 1")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _is_between(fraction: Any) -> bool:
    return isinstance(fraction, numbers.Real) and 0 < float(fraction) < 1


def _limits_of(rates: Floats, trials: ArrayLike, confidence: float) -> tuple[Floats, Floats]:
    known = np.isinf(trials)
    counted = np.where(known, 1.0, trials)
    low, high = wilson_limits(rates * counted, counted, confidence)
    return np.where(known, rates, low), np.where(known, rates, high)


def _corrected_lows(rates: Floats, trials: Floats, confidence: float) -> Floats:
    known = np.isinf(trials)
    n, z = np.where(known, 1.0, trials), quantile(confidence)
    root = np.sqrt(np.maximum(z**2 - 2 - 1 / n + 4 * rates * (n * (1 - rates) + 1), 0))
    low = (2 * n * rates + z**2 - 1 - z * root) / (2 * (n + z**2))
    return np.where(known, rates, np.where(n * rates <= 0, 0.0, np.clip(low, 0, rates)))
