"""Rates with their intervals, as matplotlib figures."""

from __future__ import annotations

import io

from typing import TYPE_CHECKING, Any

import numpy as np

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pystack_nb.errors import OptionError
from pystack_nb.faults.bits import fields
from pystack_nb.faults.strata import as_dtype


if TYPE_CHECKING:
    import pandas as pd

EVENTS = {"sdc": ("SDC", "#b2182b"), "due": ("DUE", "#2166ac")}
_APART = 0.17  # the two outcomes of a row, from its middle
_FONT = 8.0
_GAP = 3  # columns from the sign of a type to the last bit of that to its left
_ABOVE_FIELDS = 1.06  # of the axes' height
_NONE_SEEN = "none seen: upper bound"


class CampaignFigure(Figure):
    """A figure that a notebook shows where nobody has said ``%matplotlib inline``."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png")
        return picture.getvalue()


def plot_layers(summary: pd.DataFrame, confidence: float, *, ax: Axes | None = None) -> Figure:
    """Draw a row for each layer and role: SDC and DUE rates with intervals.

    Parameters
    ----------
    summary : pandas.DataFrame
        As `Analysis.summary` gives it per layer and role.
    confidence : float
        Of its intervals.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure of a fitting height by default, which is not registered
        with pyplot, so that nothing has to be closed.  Beside other axes the names of layers
        need room: make the figure with ``layout="constrained"``.

    Returns
    -------
    matplotlib.figure.Figure
        That of `ax`, or a new one.  Where no event was seen there is no dot: the interval ends
        in a hollow arrowhead at its upper bound.
    """
    rows = np.arange(len(summary))
    if ax is None:
        ax = _axes(7.0, min(max(0.32 * len(summary) + 1.2, 2.0), 60.0))
    _check_axes(ax)
    for number, (name, (label, colour)) in enumerate(EVENTS.items()):
        low, rate, high = (100 * summary[f"{name}_{x}"].to_numpy() for x in ("low", "rate", "high"))
        at = rows + (2 * number - 1) * _APART
        ax.hlines(at, low, high, color=colour, linewidth=1.5, label=label)
        seen = summary[name].to_numpy() > 0
        ax.plot(rate[seen], at[seen], "o", color=colour, markersize=4)
        ax.plot(high[~seen], at[~seen], "<", **_hollow(colour))
    names = [f"{x} {y}" for x, y in zip(summary["layer"], summary["role"], strict=True)]
    ax.set_yticks(rows, names, fontsize=_FONT)
    ax.set_ylim(len(summary) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.set_xlabel(f"rate in %, with {confidence:.0%} intervals")
    return _finished(ax, "x", _unseen(summary), 1.0)


def plot_bits(
    summary: pd.DataFrame,
    confidence: float,
    dtypes: list[str],
    *,
    ax: Axes | None = None,
    empty: str = "no bits were struck",
) -> Figure:
    """Draw a column for each bit, the most significant one first; a group for each type.

    Parameters
    ----------
    summary : pandas.DataFrame
        As `Analysis.summary` gives it per type and bit.  Faults of whole values (-1) are left
        out.
    confidence : float
        Of its intervals.
    dtypes : list of str
        Types of the elements, in the order of their groups, which are named if there are
        several.
    ax : matplotlib.axes.Axes, optional
        As for `plot_layers`.
    empty : str, optional
        What to say where there is no bit.

    Returns
    -------
    matplotlib.figure.Figure
        As for `plot_layers`.
    """
    summary = summary[summary["bit"] >= 0].sort_values("bit")
    tops = summary.groupby("dtype")["bit"].max().reindex(dtypes).dropna().astype(int)
    # Numbers fall to the right, and so do the places of the groups.
    ends = (tops + _GAP)[::-1].cumsum()[::-1]
    first = ends - tops - _GAP
    left = int(ends.max()) - _GAP if len(tops) else 0
    if ax is None:
        ax = _axes(min(9.0 + 0.2 * max(0, left - 64), 30.0), 3.2)
    _check_axes(ax)
    bit = summary["bit"].to_numpy()
    places = bit + summary["dtype"].map(first).to_numpy(int)
    for number, (name, (label, colour)) in enumerate(EVENTS.items()):
        low, rate, high = (100 * summary[f"{name}_{x}"].to_numpy() for x in ("low", "rate", "high"))
        at = places - (2 * number - 1) * _APART
        ax.vlines(at, low, high, color=colour, linewidth=1.5, label=label)
        seen = summary[name].to_numpy() > 0
        ax.plot(at[seen], rate[seen], "o", color=colour, markersize=4)
        ax.plot(at[~seen], high[~seen], "v", **_hollow(colour))
    ax.set_xlim(left + 0.7, -0.7)
    texts = [str(x) for x in bit]
    for dtype in tops.index if len(tops) > 1 else ():
        # Below the number in the middle.
        of = np.flatnonzero(summary["dtype"] == dtype)
        texts[of[len(of) // 2]] += f"\n{dtype.removeprefix('torch.')}"
    ax.set_xticks(places, texts, fontsize=_FONT - 1)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("bit, 0 is the least significant")
    ax.set_ylabel(f"rate in %, with {confidence:.0%} intervals")
    if not len(summary):
        ax.text(0.5, 0.5, empty, transform=ax.transAxes, ha="center", va="center")
    for dtype, top, place in zip(tops.index, tops, first, strict=True):
        _name_fields(ax, dtype, top, place)
    return _finished(ax, "y", _unseen(summary), _ABOVE_FIELDS)


def _name_fields(ax: Axes, dtype: str, top: int, place: int) -> None:
    for name, of in fields(as_dtype(dtype)).items():
        if of.start > top:
            continue
        ax.axvline(place + of.start - 0.5, color="0.7", linewidth=0.5)
        middle = place + (of.start + min(of.stop - 1, top)) / 2
        ax.text(
            middle,
            1.01,
            name if len(of) > 1 else name[0],
            transform=ax.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=_FONT,
        )


def _check_axes(ax: Any) -> None:
    if not isinstance(ax, Axes):
        raise OptionError(
            f"ax is {type(ax).__name__} {ax!r:.60}; pass axes of a matplotlib Figure, such as"
            " figure.subplots()"
        )


def _axes(width: float, height: float) -> Axes:
    return CampaignFigure(figsize=(width, height), layout="constrained").subplots()


def _hollow(colour: str) -> dict[str, Any]:
    return {"color": colour, "markerfacecolor": "white", "markersize": 4}


def _unseen(summary: pd.DataFrame) -> bool:
    """Tell whether a row has but an upper bound."""
    return any(bool((summary[name] == 0).any()) for name in EVENTS)


def _finished(ax: Axes, along: str, unseen: bool, above: float) -> Figure:
    """Finish a figure, with its legend above all that is drawn."""
    ax.grid(axis="x" if along == "x" else "y", color="0.9", linewidth=0.5)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    if unseen:
        ax.plot([], [], "<" if along == "x" else "v", label=_NONE_SEEN, **_hollow("0.4"))
    ax.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, above),
        borderaxespad=0.2,
        ncols=3,
        fontsize=_FONT,
        frameon=False,
    )
    figure = ax.get_figure(root=True)
    if not isinstance(figure, Figure):
        raise OptionError("these axes are in no figure; pass axes of a matplotlib Figure")
    return figure
