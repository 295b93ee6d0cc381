"""A recording in words: what happened, what took the time, and a timeline of characters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from pystack_nb import tables
from pystack_nb.functions import times_are_sampled
from pystack_nb.views.lanes import lanes
from pystack_nb.views.pauses import extent
from pystack_nb.views.wording import duration, known, label, many, place, shorten, visible


if TYPE_CHECKING:
    from pystack_nb.recording import Recording

FUNCTIONS = 10
DEMOTED = 5
FEWEST = 20  # samples that were to be expected, for the rate to mean something
MARK = "*"  # of a function whose time stands at its callers
KEYS = "123456789abcdefghijklmnopqrstuvwxyz"


def summary(recording: Recording, top: list[Top] | None = None) -> str:
    """Describe a recording in plain text, for terminals.

    Parameters
    ----------
    recording : Recording
        What to describe.
    top : list of Top, optional
        Its `top_functions`, where they are known already.

    Returns
    -------
    str
        The facts, the functions that took the most time, and for each thread which of them
        ran when: lines of at most about 100 characters.
    """
    lines = [facts(recording), *warnings(recording)]
    if len(recording.samples) or len(recording.calls):
        top = top_functions(recording) if top is None else top
        keys = {
            (x.function, x.filename, x.line_number): key for x, key in zip(top, KEYS, strict=False)
        }
        lines += ["", *_table(top), "", *lanes(recording, keys)]
    return visible("\n".join(lines))


def facts(recording: Recording) -> str:
    """Say in one line how long, how many calls and samples, and at which rate."""
    info, samples, calls = recording.info, recording.samples, recording.calls
    start_ns, end_ns = extent(recording)
    parts = [duration(info.get("wall_ns") or end_ns - start_ns)]
    threads = len(np.union1d(samples["tid"].to_numpy(), calls["tid"].to_numpy()))
    modes = str(info.get("mode", "sample")).split(",")
    counted = int(recording.counts["ncalls"].to_numpy().sum())
    found = [
        many(len(calls), "call") if "calls" in modes or len(calls) else "",
        f"{counted:,} only counted" if counted else "",
        many(len(samples), "sample") if "sample" in modes or len(samples) else "",
    ]
    parts.append(f"{', '.join(x for x in found if x)} of {many(threads, 'thread')}")
    hz = info.get("hz") or {}
    asked, reached = hz.get("asked"), hz.get("reached")
    if asked and ("sample" in modes or len(samples)):
        # A timer that a virtual machine delays makes up for it: more than asked is no merit.
        # Nor do a few samples tell a rate.
        short = reached and round(reached) < asked and len(samples) * asked / reached >= FEWEST
        parts.append(f"{reached:,.0f} of {asked:,g} Hz reached" if short else f"{asked:,g} Hz")
    parts += [
        f"{info[what]:,} {what}{_causes(info.get(f'{what}_by_cause'))}"
        for what in ("lost", "incomplete")
        if info.get(what)
    ]
    return " · ".join(parts)


def warnings(recording: Recording) -> list[str]:
    """Say what the reader must know to judge the rest; nothing in the usual case."""
    info = recording.info
    found = []
    if info.get("error"):
        found.append(f"The recording ended with an error: {info['error']}")
    elif not info.get("complete", True):
        found.append("The recording was cut short: what follows is its beginning.")
    if info.get("source") == "inprocess":
        found.append(
            "Recorded by the process itself, as asked (source inprocess): "
            "there is nothing of the kernel's in it."
        )
    found += [str(note) for note in info.get("notes") or ()]
    found += _demoted(recording)
    if times_are_sampled(recording):
        found.append(
            "The times of functions are of samples (CPU time, without waiting): "
            "the exact ones are known of a part of the calls only."
        )
    if not len(recording.samples) and not len(recording.calls):
        found.append(_nothing(info))
    return found


def _demoted(recording: Recording) -> list[str]:
    demoted = recording.info.get("demoted") or []
    if not demoted:
        return []
    start_ns, _ = extent(recording)
    most = sorted(demoted, key=lambda x: -x["counted"])
    told = [
        f"{x['function']} ({place(x['filename'], x['line_number'])}) "
        f"{many(x['counted'], 'call')} from {duration(max(x['since_ns'] - start_ns, 0))} on"
        for x in most[:DEMOTED]
    ]
    more = [f"and {len(most) - DEMOTED} more"] if len(most) > DEMOTED else []
    text = f"Counted and not shown one by one, to keep the cost down: {'; '.join([*told, *more])}."
    if not times_are_sampled(recording):
        text += f" What they took since then stands at their callers; they are marked {MARK} below."
    return [text]


def _nothing(info: dict[str, Any]) -> str:
    asked = (info.get("hz") or {}).get("asked")
    now = f" above {asked:g}" if asked else ""
    modes = str(info.get("mode", "sample")).split(",")
    if "sample" not in modes:
        return "No calls: no Python function was called that is not excluded. Check the filters."
    return (
        "No samples: the code was waiting, or used less CPU time than lies between two "
        f"samples. Raise --hz{now}, or record something that runs longer."
    )


class Top(NamedTuple):
    """One function of those that took the most time; shares are of all recorded time.

    A time and its share are None where all calls were only counted, and it is not known.
    """

    kind: str
    function: str
    filename: str
    line_number: int
    ncalls: int | None
    self_ns: int | None
    total_ns: int | None
    self_share: float | None
    total_share: float | None
    mark: str = ""


def top_functions(recording: Recording) -> list[Top]:
    """Take the functions with the most time of their own, from `Recording.functions`."""
    every = recording.functions()
    whole = max(int(every["self_ns"].sum()), 1)
    if times_are_sampled(recording):
        every = every[every["total_ns"] > 0]  # that of the others is not known
    table = every.head(FUNCTIONS)
    kinds = _kinds(recording, table)
    demoted = [] if times_are_sampled(recording) else recording.info.get("demoted") or []
    marked = {(x["function"], x["filename"], x["line_number"]) for x in demoted}
    columns = ("function", "filename", "line_number", "ncalls", "self_ns", "total_ns")
    # The time of a call that was only counted is in the self time of whoever called it.
    unknown = pd.Series(data=False, index=table.index)
    if not times_are_sampled(recording):
        unknown = (table["counted"] == table["ncalls"]).fillna(value=False) & (table["ncalls"] > 0)
        unknown &= table["self_ns"] == 0  # what went on on another stack may have some
    return [
        Top(
            kinds.get((function, filename), "python"),
            function,
            filename,
            line,
            None if ncalls is pd.NA else ncalls,
            None if hidden else own,
            None if hidden and not total else total,
            None if hidden else own / whole,
            None if hidden and not total else total / whole,
            MARK if (function, filename, line) in marked else "",
        )
        for function, filename, line, ncalls, own, total, hidden in zip(
            *([x or "[unknown]" for x in tables.texts(table[name])] for name in columns[:2]),
            *(table[name].tolist() for name in columns[2:]),
            unknown.tolist(),
            strict=True,
        )
    ]


def _kinds(recording: Recording, table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Tell which functions are not Python's, by name and file."""
    key = ("function", "filename")
    kinds: dict[tuple[Any, ...], str] = {}
    calls, frames = recording.calls, recording.frames
    if (rows := tables.is_text(calls["kind"], tables.C_CALL)).any():
        named = calls.loc[rows, list(key)].drop_duplicates()
        kinds |= dict.fromkeys(zip(*(tables.texts(named[x]) for x in key), strict=True), "native")
    if (rows := ~tables.is_text(frames["kind"], "python")).any():
        named = frames[rows]
        names = zip(*(tables.texts(named[x]) for x in key), strict=True)
        kinds |= dict(zip(names, tables.texts(named["kind"]), strict=True))
    # A module may have a function in C and one of the same name in Python.
    wanted = zip(*(tables.texts(table[x]) for x in key), strict=True) if kinds else ()
    return {x: kinds[x] for x in wanted if x in kinds}


def _table(top: list[Top]) -> list[str]:
    """Write the functions as lines; where calls were recorded, with how many of them."""
    called = any(x.ncalls is not None for x in top)
    room, place_room = (28, 30) if called else (32, 36)
    head = f"        {'calls':>12}  function" if called else "         function"
    lines = [f"      self         total{head}"]
    for key, x in zip(KEYS, top, strict=False):
        ncalls = "" if x.ncalls is None else f"{x.ncalls:,}"
        lines.append(
            f"  {key}  {known(x.self_ns):>8} {_share(x.self_share):>4}"
            f" {known(x.total_ns):>8} {_share(x.total_share):>4}{f'{ncalls:>12}' if called else ''}"
            f"  {label(x.function, room - len(x.mark)) + x.mark:<{room}}"
            f"  {shorten(place(x.filename, x.line_number), place_room)}"
        )
    return lines


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _causes(by_cause: dict[str, int] | None) -> str:
    causes = [f"{cause} {count:,}" for cause, count in (by_cause or {}).items() if count]
    return f" ({', '.join(causes)})" if causes else ""
