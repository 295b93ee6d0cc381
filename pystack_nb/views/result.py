"""A recording in a notebook: its facts, its functions and its timeline, in HTML and in text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pystack_nb.views.svg import timeline_svg
from pystack_nb.views.text import Top, facts, summary, top_functions, warnings
from pystack_nb.views.wording import colour, known, label, markup, place, shorten


if TYPE_CHECKING:
    from pystack_nb.recording import Recording

# Styles stand on the elements themselves: a style sheet would reach the rest of the page, and
# notebooks that are not trusted lose theirs.
CELL = "padding:1px 10px;border:0;white-space:nowrap"
NUMBER = f"{CELL};text-align:right;font-variant-numeric:tabular-nums"
NAME = f"{CELL};text-align:left"
WARNING = "border-left:3px solid #e08000;padding:2px 8px;margin:4px 0"


def mimebundle(recording: Recording) -> dict[str, str]:
    """Describe a recording for whoever displays it.

    Returns
    -------
    dict of str to str
        ``text/html`` and ``text/plain``.  Names in the HTML are escaped: they come from
        whatever process was recorded.
    """
    top = top_functions(recording) if len(recording.samples) or len(recording.calls) else []
    return {"text/html": html(recording, top), "text/plain": summary(recording, top)}


def html(recording: Recording, top: list[Top]) -> str:
    """Write the facts, the functions that took the most time and the timeline as HTML."""
    parts = [f"<div><div>{markup(facts(recording))}</div>"]
    parts += [f'<div style="{WARNING}">{markup(text)}</div>' for text in warnings(recording)]
    if top:
        parts += [_functions(top), timeline_svg(recording)]
    parts.append("</div>")
    return "".join(parts)


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _functions(top: list[Top]) -> str:
    rows = []
    called = any(x.ncalls is not None for x in top)
    for x in top:
        ncalls = "" if x.ncalls is None else f"{x.ncalls:,}"
        calls = f'<td style="{NUMBER}">{ncalls}</td>' if called else ""
        name = label(x.function, 60) + x.mark
        swatch = colour(x.kind, x.function, x.filename)
        where = f"{x.filename}:{x.line_number}" if x.line_number else x.filename
        rows.append(
            f'<tr><td style="{NUMBER}">{known(x.self_ns)}</td>'
            f'<td style="{NUMBER}">{_share(x.self_share)}</td>'
            f'<td style="{NUMBER}">{known(x.total_ns)}</td>'
            f'<td style="{NUMBER}">{_share(x.total_share)}</td>'
            f"{calls}"
            f'<td style="{NAME}"><span style="display:inline-block;width:9px;height:9px;'
            f'margin-right:6px;background:{swatch}"></span>{markup(name)}</td>'
            f'<td style="{NAME};opacity:.8" title="{markup(where)}">'
            f"{markup(shorten(place(x.filename, x.line_number), 60))}</td></tr>"
        )
    heads = "".join(
        f'<th style="{style}">{name}</th>'
        for name, style in (
            ("self", NUMBER),
            ("", NUMBER),
            ("total", NUMBER),
            ("", NUMBER),
            *([("calls", NUMBER)] if called else []),
            ("function", NAME),
            ("where", NAME),
        )
    )
    return (
        '<table style="margin:6px 0;border-collapse:collapse;font-size:12px">'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
