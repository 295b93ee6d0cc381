"""A recording in words: what happened, what took the time, and a timeline of characters."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from pystack_nb.views.timeline import GAP_PERIODS, extent, period_ns, spread, threads
from pystack_nb.views.wording import duration, label, many, place, shorten, visible


if TYPE_CHECKING:
    from pystack_nb.recording import Recording

FUNCTIONS = 10
THREADS = 8
COLUMNS = 72
KEYS = "123456789abcdefghijklmnopqrstuvwxyz"
OTHER = "·"


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
    if len(recording.samples):
        top = top_functions(recording) if top is None else top
        lines += ["", *_table(top), "", *_timeline(recording, top)]
    return visible("\n".join(lines))


def facts(recording: Recording) -> str:
    """Say in one line how long, how many samples, and at which rate."""
    info, samples = recording.info, recording.samples
    start_ns, end_ns = extent(recording)
    parts = [duration(info.get("wall_ns") or end_ns - start_ns)]
    threads = samples["tid"].nunique()
    parts.append(f"{many(len(samples), 'sample')} of {many(threads, 'thread')}")
    hz = info.get("hz") or {}
    asked, reached = hz.get("asked"), hz.get("reached")
    if asked:
        # A timer that a virtual machine delays makes up for it: more than asked is no merit.
        short = reached and round(reached) < asked
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
    found += [str(note) for note in info.get("notes") or ()]
    if not len(recording.samples):
        asked = (info.get("hz") or {}).get("asked")
        now = f" above {asked:g}" if asked else ""
        found.append(
            "No samples: the code was waiting, or used less CPU time than lies between two "
            f"samples. Raise --hz{now}, or record something that runs longer."
        )
    return found


class Top(NamedTuple):
    """One function of those that took the most time; shares are of all sampled time."""

    kind: str
    function: str
    filename: str
    line_number: int
    self_ns: int
    total_ns: int
    self_share: float
    total_share: float


def top_functions(recording: Recording) -> list[Top]:
    """Take the functions with the most time of their own, from `Recording.functions`."""
    table = recording.functions().head(FUNCTIONS)
    whole = max(int(recording.samples["weight_ns"].sum()), 1)
    frames = recording.frames
    named = frames[frames["function"].isin(table["function"])]
    kinds = dict(
        zip(
            zip(named["function"], named["filename"], strict=True),
            named["kind"],
            strict=True,
        )
    )
    columns = ("function", "filename", "line_number", "self_ns", "total_ns")
    return [
        Top(
            kinds[function, filename],
            function,
            filename,
            line,
            own,
            total,
            own / whole,
            total / whole,
        )
        for function, filename, line, own, total in zip(
            *(table[x].tolist() for x in columns), strict=True
        )
    ]


def _table(top: list[Top]) -> list[str]:
    lines = ["      self         total         function"]
    lines += [
        f"  {key}  {duration(x.self_ns):>8} {x.self_share:>4.0%}"
        f" {duration(x.total_ns):>8} {x.total_share:>4.0%}"
        f"  {label(x.function, 32):<32}  {shorten(place(x.filename, x.line_number), 36)}"
        for key, x in zip(KEYS, top, strict=False)
    ]
    return lines


def _timeline(recording: Recording, top: list[Top]) -> list[str]:
    """Draw a line per thread; a column shows the function that was innermost most often in it."""
    samples, shown = recording.samples, threads(recording)[:THREADS]
    start_ns, end_ns = extent(recording)
    function_of, key_of = _leaves(recording, top)
    function = samples["stack_id"].map(function_of).fillna(-1).to_numpy(np.int64) + 1
    tid, ts, period = samples["tid"].to_numpy(), samples["ts_ns"].to_numpy(), period_ns(recording)
    lines = []
    for thread in shown:
        own = tid == thread.tid
        # Each sample stands for the time up to the next one, or for a period before a gap.
        start = ts[own] - start_ns
        following = np.append(start[1:], start[-1] + period)
        end = np.where(following - start <= GAP_PERIODS * period, following, start + period)
        first, last = (x * COLUMNS // (end_ns - start_ns) for x in (start, end - 1))
        sample, column = spread(first.clip(0, COLUMNS - 1), last.clip(0, COLUMNS - 1) + 1)
        votes = np.zeros((COLUMNS, int(function.max()) + 1), np.int32)
        np.add.at(votes, (column, function[own][sample]), 1)
        cells = [
            key_of.get(winner - 1, OTHER) if running else " "
            for winner, running in zip(
                votes.argmax(axis=1).tolist(), votes.max(axis=1).tolist(), strict=True
            )
        ]
        lines.append(f"  {label(thread.name, 15):<15} |{''.join(cells)}|")
    if (more := samples["tid"].nunique() - len(shown)) > 0:
        lines.append(f"  and {many(more, 'less busy thread')}")
    lines.append(f"  {'':<15}  0{duration(end_ns - start_ns):>{COLUMNS - 1}}")
    lines.append(f"  {OTHER} another function   blank: not running")
    return lines


def _leaves(recording: Recording, top: list[Top]) -> tuple[pd.Series, dict[int, str]]:
    """Give the functions that stacks' time belongs to numbers, and their keys in the table.

    As in `Recording.functions`, that is the innermost Python frame, where there is one.
    """
    frames = recording.frames
    stack = frames["stack_id"].to_numpy()
    python = (frames["kind"] == "python").to_numpy()
    relevant = np.flatnonzero(python | ~np.isin(stack, stack[python]))
    innermost = relevant[np.diff(stack[relevant], append=-1) != 0]
    leaves = frames.iloc[innermost]
    columns = (leaves[x].tolist() for x in ("function", "filename", "first_line"))
    names = list(zip(*columns, strict=True))
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    keys = {
        numbers[x.function, x.filename, x.line_number]: key
        for x, key in zip(top, KEYS, strict=False)
        if (x.function, x.filename, x.line_number) in numbers
    }
    return pd.Series([numbers[x] for x in names], index=leaves["stack_id"].to_numpy()), keys


def _causes(by_cause: dict[str, int] | None) -> str:
    causes = [f"{cause} {count:,}" for cause, count in (by_cause or {}).items() if count]
    return f" ({', '.join(causes)})" if causes else ""
