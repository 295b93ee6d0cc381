"""The timeline as an inline SVG: what a notebook shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pystack_nb.views.timeline import Timeline, layout
from pystack_nb.views.wording import (
    colour,
    duration,
    label,
    many,
    markup,
    place,
    shorten,
    ticks,
)


if TYPE_CHECKING:
    import pandas as pd

    from numpy.typing import NDArray

    from pystack_nb.recording import Recording

WIDTH = 960
NAMES = 130  # for the threads' names, left of the time axis
PLOT = WIDTH - NAMES - 10
AXIS = 22
LEVEL = 15
ROW_GAP = 8
CHAR = 7.0  # widest that a label's character is on average
PALE = 0.6  # of white over what did not run
MOST_BYTES = 300_000
MOST_SLICES = 1500


def timeline_svg(recording: Recording) -> str:
    """Draw a recording's timeline.

    Parameters
    ----------
    recording : Recording
        Any number of calls and samples; what is shorter than a pixel is merged.

    Returns
    -------
    str
        An ``<svg>`` element of less than 300 kB, without scripts or styles of its own.  Text
        and lines take the page's colour, so that it is readable on dark and light pages; each
        slice has a tooltip.
    """
    most = MOST_SLICES
    while True:
        picture = _draw(layout(recording, columns=PLOT, max_slices=most))
        if len(picture.encode()) < MOST_BYTES:
            return picture
        most //= 2


def _draw(timeline: Timeline) -> str:
    height = AXIS + timeline.levels * LEVEL + len(timeline.rows) * ROW_GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height + 18}" '
        f'role="img" style="width:100%;max-width:{WIDTH + 340}px;height:auto" '
        'font-family="system-ui,sans-serif" font-size="11" fill="currentColor">'
    )
    parts = [head, *_axis(timeline, height)]
    for number, row in enumerate(timeline.rows):
        y = AXIS + row.top * LEVEL + number * ROW_GAP
        parts.append(
            f"<g><title>{markup(row.name)}, thread {row.thread}: "
            f"{many(row.size, row.unit)}</title>"
            f'<rect x="0" y="{y - ROW_GAP / 2:g}" width="{WIDTH}" height="0.5" opacity=".4"/>'
            f'<text x="4" y="{y + 11}">{markup(label(row.name, 20))}</text>'
            f'<text x="4" y="{y + 23}" font-size="9" opacity=".7">'
            f"{row.thread if row.levels > 1 else ''}</text></g>"
        )
    parts += _slices(timeline)
    if notes := " · ".join(x for x in (legend(timeline), hidden(timeline)) if x):
        parts.append(f'<text x="{NAMES}" y="{height + 12}" opacity=".7">{markup(notes)}</text>')
    parts.append("</svg>")
    return "".join(parts)


def legend(timeline: Timeline) -> str:
    """Say what the pale parts of a picture are; "" where it has none."""
    return "pale: the thread was not running" if len(timeline.pauses) else ""


def hidden(timeline: Timeline) -> str:
    """Say what of the recording a picture leaves out; "" when nothing."""
    notes = []
    if timeline.hidden_threads:
        notes.append(many(timeline.hidden_threads, "less busy thread"))
    if timeline.hidden_levels:
        notes.append(many(timeline.hidden_levels, "deeper level"))
    if timeline.hidden_slices:
        notes.append(many(timeline.hidden_slices, "short stretch", "short stretches"))
    return f"not drawn: {', '.join(notes)}" if notes else ""


def _axis(timeline: Timeline, height: int) -> list[str]:
    parts = []
    for time, name in ticks(timeline.start_ns, timeline.end_ns):
        x = NAMES + _x(timeline, time)
        parts.append(
            f'<rect x="{x:.1f}" y="{AXIS - 6}" width="0.5" height="{height - AXIS + 6}" '
            f'opacity=".25"/><text x="{x + 3:.1f}" y="{AXIS - 10}" opacity=".8">{name}</text>'
        )
    return parts


def _slices(timeline: Timeline) -> list[str]:
    table = timeline.slices
    gaps = {row.tid: number * ROW_GAP for number, row in enumerate(timeline.rows)}
    x, width, y = _places(table, timeline, gaps)
    columns = (
        x,
        np.maximum(width, 0.8),
        y,
        *(table[x] for x in ("kind", "function", "filename", "line_number", "dur_ns", "count")),
        table["unit"],
    )
    parts, texts = [], []
    for x, width, y, kind, function, filename, line, dur_ns, count, unit in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        tip = (
            f"{shorten(function, 80)}\n{shorten(place(filename, line), 80)}\n"
            f"{duration(dur_ns)}, {_content(count, unit)}"
        )
        text = label(function, (width - 5) / CHAR)
        if text:
            texts.append(f'<text x="{x + 3:.1f}" y="{y + 11}">{markup(text)}</text>')
        parts.append(
            f'<g><title>{markup(tip)}</title><rect x="{x:.1f}" y="{y}" width="{width:.1f}" '
            f'height="{LEVEL - 1}" fill="{colour(kind, function, filename)}"/></g>'
        )
    # Nothing here is in the way of the tooltips.
    return [
        *parts,
        '<g pointer-events="none" fill="#111">',
        *_pauses(timeline, gaps),
        *texts,
        "</g>",
    ]


def _pauses(timeline: Timeline, gaps: dict[int, int]) -> list[str]:
    columns = _places(timeline.pauses, timeline, gaps)
    return [
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{LEVEL - 1}" fill="#fff" '
        f'fill-opacity="{PALE}"/>'
        for x, width, y in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _places(
    table: pd.DataFrame, timeline: Timeline, gaps: dict[int, int]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Give where boxes begin, how wide they are and how far down they stand."""
    scale = PLOT / (timeline.end_ns - timeline.start_ns)
    gap = np.array([gaps[x] for x in table["tid"].tolist()], np.int64)
    return (
        NAMES + (table["ts_ns"].to_numpy() - timeline.start_ns) * scale,
        table["dur_ns"].to_numpy() * scale,
        AXIS + table["level"].to_numpy() * LEVEL + gap,
    )


def _content(count: int, unit: str) -> str:
    merged = " that are too short to draw, most of their time in this one"
    return many(count, unit) + (merged if unit == "call" and count > 1 else "")


def _x(timeline: Timeline, ts_ns: int) -> float:
    return PLOT * (ts_ns - timeline.start_ns) / (timeline.end_ns - timeline.start_ns)
