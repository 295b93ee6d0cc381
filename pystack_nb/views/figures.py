"""The timeline as a matplotlib figure."""

from __future__ import annotations

import io

from typing import TYPE_CHECKING

from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pystack_nb.errors import OptionError
from pystack_nb.views.svg import PALE, hidden, legend
from pystack_nb.views.text import facts
from pystack_nb.views.timeline import Timeline, layout
from pystack_nb.views.wording import colour, label


if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pystack_nb.recording import Recording

WIDTH_INCHES = 12.0
LEVEL_INCHES = 0.17
FONT = 7.0
CHAR = 0.58  # width of a label's character, in font sizes
ROW_GAP = 0.6  # between threads, in levels
COLUMNS = 1000


class TimelineFigure(Figure):
    """A figure that a notebook shows where nobody has said ``%matplotlib inline``."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png")
        return picture.getvalue()


def plot_timeline(
    recording: Recording, *, ax: Axes | None = None, max_depth: int = 20, max_threads: int = 16
) -> Figure:
    """Draw threads as rows, time across and stack depth downwards inside a row.

    Parameters
    ----------
    recording : Recording
        Any number of calls and samples; what is shorter than a pixel is merged.  Threads that
        have calls are drawn by them, the others by their samples.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure of a fitting height by default.  It is not registered
        with pyplot, so nothing has to be closed.
    max_depth : int, optional
        Outermost frames that are shown of each stack.
    max_threads : int, optional
        The busiest ones are shown.

    Returns
    -------
    matplotlib.figure.Figure
        That of `ax`, or a new one that shows itself as the last expression of a cell.
    """
    timeline = layout(
        recording,
        columns=COLUMNS,
        max_depth=max_depth,
        max_threads=max_threads,
        max_slices=20_000,
    )
    height = timeline.levels + ROW_GAP * len(timeline.rows)
    if ax is None:
        inches = min(max(height * LEVEL_INCHES + 1.0, 2.0), 60.0)
        ax = TimelineFigure(figsize=(WIDTH_INCHES, inches), layout="constrained").subplots()
    unit, name = _unit(timeline.end_ns - timeline.start_ns)
    ax.set_xlim(0, (timeline.end_ns - timeline.start_ns) / unit)
    ax.set_ylim(max(height, 1.0), 0)
    ax.set_xlabel(f"time from the start ({name})")
    ax.set_title(facts(recording), loc="left", fontsize=9)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    if not timeline.rows:
        ax.text(0.5, 0.5, "nothing recorded", transform=ax.transAxes, ha="center", va="center")
    _name_rows(ax, timeline)
    _draw_slices(ax, timeline, unit)
    if notes := " · ".join(x for x in (legend(timeline), hidden(timeline)) if x):
        ax.annotate(notes, (1, 0), xycoords="axes fraction", ha="right", va="bottom", fontsize=FONT)
    return _figure(ax)


def _name_rows(ax: Axes, timeline: Timeline) -> None:
    tops = [row.top + number * ROW_GAP for number, row in enumerate(timeline.rows)]
    ax.set_yticks(
        [top + 0.5 for top in tops],
        [f"{label(row.name, 20)} {row.thread}" for row in timeline.rows],
        fontsize=FONT + 1,
    )
    ax.tick_params(axis="y", length=0)
    for top in tops[1:]:
        ax.axhline(top - ROW_GAP / 2, color="0.6", linewidth=0.5)


def _draw_slices(ax: Axes, timeline: Timeline, unit: float) -> None:
    table = timeline.slices
    gaps = {row.tid: number * ROW_GAP for number, row in enumerate(timeline.rows)}
    left = ((table["ts_ns"] - timeline.start_ns) / unit).tolist()
    width = (table["dur_ns"] / unit).tolist()
    top = (table["level"] + table["tid"].map(gaps)).tolist()
    names = list(zip(*(table[x].tolist() for x in ("kind", "function", "filename")), strict=True))
    boxes = [Rectangle((x, y), w, 0.94) for x, y, w in zip(left, top, width, strict=True)]
    ax.add_collection(
        PatchCollection(boxes, facecolors=[colour(*x) for x in names], linewidths=0),
        autolim=False,
    )
    pauses = timeline.pauses
    pale = [
        Rectangle((x, y), w, 0.94)
        for x, y, w in zip(
            ((pauses["ts_ns"] - timeline.start_ns) / unit).tolist(),
            (pauses["level"] + pauses["tid"].map(gaps)).tolist(),
            (pauses["dur_ns"] / unit).tolist(),
            strict=True,
        )
    ]
    if pale:
        ax.add_collection(
            PatchCollection(pale, facecolors="white", alpha=PALE, linewidths=0), autolim=False
        )
    inches = _figure(ax).get_figwidth() * ax.get_position().width
    characters = inches * 72 / (FONT * CHAR) / ax.get_xlim()[1]
    for x, y, w, (_, function, _) in zip(left, top, width, names, strict=True):
        if text := label(function, w * characters - 1):
            ax.text(
                x + 0.4 / characters,
                y + 0.5,
                text,
                fontsize=FONT,
                color="#111111",
                va="center_baseline",
                clip_on=True,
                parse_math=False,
            )


def _figure(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    if not isinstance(figure, Figure):
        raise OptionError("these axes are in no figure; pass axes of a matplotlib Figure")
    return figure


def _unit(span_ns: int) -> tuple[float, str]:
    return (1e9, "s") if span_ns >= 2e9 else (1e6, "ms") if span_ns >= 2e6 else (1e3, "µs")
