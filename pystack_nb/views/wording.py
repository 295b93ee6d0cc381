"""Colours, durations, labels and axis ticks, the same in every view."""

from __future__ import annotations

import colorsys
import functools
import html
import math
import zlib


@functools.lru_cache(maxsize=4096)
def colour(kind: str, function: str, filename: str) -> str:
    """Choose a function's colour: its hue tells the file, its shade the function.

    It depends on the names alone, so that a function looks the same in every picture.  Dark
    text is readable on each.

    Returns
    -------
    str
        ``#rrggbb``.
    """
    shade = zlib.crc32(function.encode()) % 64 / 64
    if kind in {"python", "event"}:
        hue, saturation = zlib.crc32(filename.encode()) % 360 / 360, 0.55
    else:
        hue, saturation = (0.58, 0.18) if kind == "native" else (0.02, 0.35)
    red, green, blue = colorsys.hls_to_rgb(hue, 0.64 + 0.14 * shade, saturation)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def duration(ns: float) -> str:
    """Write a time with three digits and its unit."""
    for unit, name in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if ns >= 0.9995 * unit:
            value = ns / unit
            digits = max(0, 2 - max(0, math.floor(math.log10(value))))
            return f"{value:.{digits}f} {name}"
    return f"{ns:.0f} ns"


def known(ns: float | None) -> str:
    """Write a time, or that it is not known."""
    return "-" if ns is None else duration(ns)


def many(count: int, what: str, plural: str | None = None) -> str:
    """Write a number and what is counted."""
    return f"{count:,} {what if count == 1 else plural or what + 's'}"


def visible(text: str) -> str:
    """Replace what a terminal or a browser would obey rather than show.

    Names come from the process that was recorded: escape sequences, and characters that
    reverse the direction of what follows, are not for its author to send.  Line feeds stay.
    """
    return text.translate(_OBEYED)


def markup(text: str) -> str:
    """Write text as it is into HTML or SVG."""
    return html.escape(visible(text))


def place(filename: str, line_number: int) -> str:
    """Write where a function is: the last two parts of its path, and its line."""
    short = "/".join(_one_line(filename).rsplit("/", 2)[-2:])
    return f"{short}:{line_number}" if line_number else short


def label(function: str, room: float) -> str:
    """Shorten a function's name to what is readable in `room` characters, "" if nothing is."""
    function = _one_line(function)
    if len(function) <= room:
        return function
    short = function.rpartition(".")[2]
    if len(short) <= room:
        return short
    return short[: int(room) - 1] + "…" if room >= 4 else ""


def shorten(text: str, room: int) -> str:
    """Cut the beginning off a long text: the end of a path says more."""
    text = _one_line(text)
    return text if len(text) <= room else "…" + text[1 - room :]


def ticks(start_ns: int, end_ns: int, about: int = 8) -> list[tuple[int, str]]:
    """Choose round times between two, counted from the first.

    Returns
    -------
    list of (int, str)
        Time in ns on the recording's clock, and its name.
    """
    span = end_ns - start_ns
    step = 10 ** math.floor(math.log10(span / about)) if span > about else 1
    step = next(int(step * x) for x in (1, 2, 5, 10) if step * x * about >= span)
    unit, name = next(((x, y) for x, y in _UNITS if span >= x), _UNITS[-1])
    return [(start_ns + t, f"{t / unit:g} {name}") for t in range(0, span + 1, max(step, 1))]


def _one_line(text: str) -> str:
    return visible(text).replace("\n", "\ufffd")


_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF]
_DIRECTIONS = [0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_OBEYED = dict.fromkeys({*_CONTROLS, *_DIRECTIONS} - {ord("\n")}, "\ufffd")
_UNITS = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs"), (1, "ns")]
