"""The probe's counter into CLOCK_MONOTONIC, by the pairs that were read of both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pystack_nb import wire
from pystack_nb.pairing import KNOT


if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pystack_nb.ragged import Ints

_LARGEST = 2**60  # more than any clock says
_TIGHT = 2  # times the median: whoever was interrupted between the two counters took longer
_SPACING_NS = 50_000_000  # of the knots: what a pair is wrong by is nothing against it


class Calibration(NamedTuple):
    """How the counter is read.

    Attributes
    ----------
    knots : numpy.ndarray of `pairing.KNOT`
        Points of the line from the counter to ns.
    source : str
        ``tsc`` or ``monotonic``.
    hz : float
        Ticks per second, measured.
    error_ns : int
        Largest distance of a pair from the line through its neighbours.
    is_sound : bool
        False if there were too few pairs to measure by.
    """

    knots: NDArray[Any]
    source: str
    hz: float
    error_ns: int
    is_sound: bool


def calibrate(pairs: NDArray[Any], source: wire.ClockSource | None) -> Calibration:
    """Lay a line through pairs.

    Parameters
    ----------
    pairs : numpy.ndarray of `wire.PAIR`
        In any order; any of them may be wrong.
    source : wire.ClockSource, optional
        What the counter is; None: what the pairs look like.
    """
    before, ns, after = (pairs[x].astype(np.int64) for x in ("before", "ns", "after"))
    usable = (before > 0) & (after >= before) & (after < _LARGEST) & (ns > 0) & (ns < _LARGEST)
    before, ns, after = before[usable], ns[usable], after[usable]
    if source is None and len(ns) and ((before <= ns) & (ns <= after)).all():
        source = wire.ClockSource.MONOTONIC
    if source == wire.ClockSource.MONOTONIC:
        start = int(ns.min()) if len(ns) else 0
        return Calibration(_straight(start, start), "monotonic", 1e9, 0, is_sound=True)
    width = after - before
    tight = width <= _TIGHT * max(np.median(width), 1) if len(width) else usable[:0]
    counter, ns = _rising(before[tight] + width[tight] // 2, ns[tight])
    if len(counter) < 2:
        start, at = (int(counter[0]), int(ns[0])) if len(counter) else (0, 0)
        return Calibration(_straight(start, at), "tsc", 1e9, 0, is_sound=False)
    chosen = _spaced(ns)
    knots = np.empty(len(chosen), KNOT)
    knots["counter"], knots["ns"] = counter[chosen], ns[chosen]
    hz = float(counter[-1] - counter[0]) * 1e9 / float(ns[-1] - ns[0])
    error = max(
        _distance(counter, ns, counter[chosen], ns[chosen]), _bend(counter[chosen], ns[chosen])
    )
    return Calibration(knots, "tsc", hz, int(np.ceil(error)), is_sound=True)


def _straight(counter: int, ns: int) -> NDArray[Any]:
    """One tick is one ns."""
    return np.array([(counter, ns), (counter + _LARGEST, ns + _LARGEST)], KNOT)


def _rising(counter: Ints, ns: Ints) -> tuple[Ints, Ints]:
    """Leave out what does not rise with the others, which no clock does."""
    order = np.argsort(counter, kind="stable")
    counter, ns = counter[order], ns[order]
    later = np.minimum.accumulate(ns[::-1])[::-1]
    keep = (ns >= np.maximum.accumulate(ns)) & (ns <= later)
    counter, ns = counter[keep], ns[keep]
    first = np.append(True, (np.diff(counter) > 0) & (np.diff(ns) > 0))[: len(ns)]
    return counter[first], ns[first]


def _spaced(ns: Ints) -> Ints:
    """Choose the first pair, the last one, and some between that are far from these."""
    chosen = np.flatnonzero(np.diff(ns // _SPACING_NS, prepend=-1))
    apart = np.minimum(ns[chosen] - ns[0], ns[-1] - ns[chosen]) > _SPACING_NS // 2
    return np.concatenate([[0], chosen[apart], [len(ns) - 1]])


def _distance(counter: Ints, ns: Ints, knot_counter: Ints, knot_ns: Ints) -> float:
    """Measure how far the pairs are from the line through the knots."""
    start = knot_counter[0]
    line = np.interp(
        (counter - start).astype(float),
        (knot_counter - start).astype(float),
        (knot_ns - knot_ns[0]).astype(float),
    )
    return float(np.abs(line - (ns - knot_ns[0])).max())


def _bend(counter: Ints, ns: Ints) -> float:
    """Measure how far each knot is from the line through its neighbours."""
    slope = (ns[2:] - ns[:-2]) / (counter[2:] - counter[:-2])
    line = slope * (counter[1:-1] - counter[:-2])
    return float(np.abs(line - (ns[1:-1] - ns[:-2])).max(initial=0))
