"""Recording: what a profiler saw, as DataFrames."""

from __future__ import annotations

import os

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pystack_nb import tables
from pystack_nb.conversion import refuse_trace
from pystack_nb.errors import RecordingFormatError
from pystack_nb.functions import sum_up, times_are_sampled
from pystack_nb.util import export_format


if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Recording:
    """The tables of one recording.  Treat it as immutable.

    Times are int64 nanoseconds of CLOCK_MONOTONIC, strings are categoricals.

    Parameters
    ----------
    samples : pandas.DataFrame
        One row per sample: ``ts_ns pid tid comm cpu state weight_ns stack_id function
        filename line_number``.  The last three are the innermost Python frame's; missing,
        missing and 0 for a thread that ran no Python.
    frames : pandas.DataFrame
        One row per frame of a distinct stack: ``stack_id depth kind function filename
        line_number first_line``; depth 0 is the outermost.  ``line_number`` is the line
        that was executing, 0 if it is not known or the frame is not Python's.
    events : pandas.DataFrame, optional
        One row per other event: ``ts_ns dur_ns pid tid kind name args``.  ``kind`` is ``mark``
        for what `pystack_nb.mark` told, and of models ``layer`` and ``fault``; ``args`` a dict.
    info : dict, optional
        Facts about the recording, such as ``lost`` and ``hz``; all of it fits in JSON.
        ``lost`` are samples that never arrived; ``incomplete`` are samples that arrived with
        something missing, also among those that were ``trimmed`` off a cell's recording.
    calls : pandas.DataFrame, optional
        One row per Python call, in the order in which they began: ``ts_ns dur_ns self_ns pid
        tid depth parent function filename line_number complete kind``.  ``parent`` is the
        row of the call that called it, -1 for none; depth 0 is the outermost; the line is
        the function's first.  ``complete`` is False for a call that was still open at the
        end.  ``kind`` is ``call``; ``resume`` of a generator or coroutine; ``continued``, for
        a call that goes on after its thread was on another stack, as greenlets do; or
        ``c-call``.
    counts : pandas.DataFrame, optional
        Calls that were counted and have no row in `calls`, one row per function: ``function
        filename line_number ncalls total_ns``.

    Raises
    ------
    RecordingFormatError
        If a table lacks a column or holds what the column can't.
    """

    def __init__(  # noqa: PLR0917  (its parts, in the order of `Decoded`)
        self,
        samples: pd.DataFrame,
        frames: pd.DataFrame,
        events: pd.DataFrame | None = None,
        info: dict[str, Any] | None = None,
        calls: pd.DataFrame | None = None,
        counts: pd.DataFrame | None = None,
    ) -> None:
        if events is None:
            events = tables.empty(tables.EVENTS)
        if calls is None:
            calls = tables.empty(tables.CALLS)
        if counts is None:
            counts = tables.empty(tables.COUNTS)
        self.samples = tables.conform(samples, tables.SAMPLES, ["ts_ns"], "samples")
        self.frames = tables.conform(frames, tables.FRAMES, ["stack_id", "depth"], "frames")
        self.events = tables.conform(events, tables.EVENTS, ["ts_ns"], "events")
        self.calls = tables.conform_calls(calls)
        self.counts = tables.conform(counts, tables.COUNTS, [], "counts")
        self.info = dict(info or {})

    @cached_property
    def stacks(self) -> pd.DataFrame:
        """The frames of each distinct stack: `frames` without ``first_line``."""
        return self.frames.drop(columns="first_line")

    def functions(self) -> pd.DataFrame:
        """Sum the calls and the samples per function.

        Where calls were recorded, the times of a function are those of its calls, to which
        the ones are added that were only counted; recursion counts once in the total.
        Where a function was demoted to counting (``info["demoted"]``), the time of its calls
        is in that of its callers from then on, and where the recording of calls ended early
        (``info["calls_stopped"]``), later ones have none.  So if there are samples, the times
        of all functions are then those of the samples: CPU time, without waiting, and 0 for
        what was called between two samples.  Without samples they stay those of calls.

        Every sample counts for the function that was executing and, once each, for the
        functions that called it.  Time in native and kernel code belongs to the Python
        function that called it; samples of threads that ran no Python go to their native
        and kernel functions.  The times of a function that has no calls are those of its
        samples: if none has, the ``self_ns`` of all rows sum to the recorded time.

        Returns
        -------
        pandas.DataFrame
            Sorted by ``self_ns``, largest first: ``function``, ``filename``,
            ``line_number`` (the function's first; 0 for native), ``ncalls`` (missing:
            samples do not count calls; a generator's resume is one), ``total_ns``,
            ``self_ns``, ``samples``, the number in which the function was on the stack, and
            ``counted``, how many of ``ncalls`` were only counted: their time, where it was
            measured, is in ``total_ns``, and it is in the ``self_ns`` of whoever called them. So
            where all were, a ``self_ns`` of 0 says that it is not known, which the screen shows
            as a dash.
        """
        return sum_up(
            self.samples,
            self.frames,
            self.calls,
            self.counts,
            sampled_times=times_are_sampled(self),
        )

    def to_traces(self) -> list[dict[str, Any]]:
        """List the samples as plain dictionaries.

        Returns
        -------
        list of dict
            One per sample, in order of time: ``timestamp`` (ns), ``pid``, ``tid``,
            ``function``, ``filename``, ``line_number`` (the innermost Python frame; None,
            None, 0 if there is none) and ``stack``, outermost first: a list of dict with
            ``kind``, ``function``, ``filename`` and ``line_number``.
        """
        names = ["kind", "function", "filename", "line_number"]
        columns = [
            *(tables.texts(self.frames[x]) for x in names[:3]),
            self.frames[names[3]].tolist(),
        ]
        rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        stacks: dict[int, list[dict[str, Any]]] = {}
        for stack_id, row in zip(self.frames["stack_id"].tolist(), rows, strict=True):
            stacks.setdefault(stack_id, []).append(row)
        samples = self.samples
        return [
            {
                "timestamp": ts_ns,
                "pid": pid,
                "tid": tid,
                "function": function,
                "filename": filename,
                "line_number": line_number,
                "stack": list(stacks.get(stack_id, ())),
            }
            for ts_ns, pid, tid, function, filename, line_number, stack_id in zip(
                samples["ts_ns"].tolist(),
                samples["pid"].tolist(),
                samples["tid"].tolist(),
                tables.texts(samples["function"]),
                tables.texts(samples["filename"]),
                samples["line_number"].tolist(),
                samples["stack_id"].tolist(),
                strict=True,
            )
        ]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a folder: its tables as Parquet, ``stacks`` for frames, and ``info.json``.

        Raises
        ------
        ExportPathError
            If it can't be written, or the folder holds something else than a recording.
        """
        from pystack_nb.storage import save_folder  # noqa: PLC0415  (pyarrow: only when used)

        save_folder(self, path)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write one JSON file, which `load` reads back; see ``docs/json-format.md``."""
        from pystack_nb.convert_to_json import write_json  # noqa: PLC0415  (only when used)

        write_json(self, path)

    def to_perfetto(self, path: str | os.PathLike[str]) -> None:
        """Write a Perfetto trace, for https://ui.perfetto.dev or its trace processor."""
        from pystack_nb.convert_to_perfetto import (  # noqa: PLC0415  (protobuf: only when used)
            write_perfetto,
        )

        write_perfetto(self, path)

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write the recording in the format that the path's suffix names.

        Parameters
        ----------
        path
            ``.json``; ``.pftrace`` or ``.perfetto-trace``; or no suffix, for a folder as
            `save` writes it.

        Raises
        ------
        ExportPathError
            For any other suffix, or if it can't be written.
        """
        write = {"json": self.to_json, "perfetto": self.to_perfetto, "parquet": self.save}
        write[export_format(path)](path)

    def plot_timeline(self, **options: Any) -> Figure:
        """Draw threads as rows, time across and stack depth inside a row.

        Parameters
        ----------
        **options
            As for `pystack_nb.views.figures.plot_timeline`.
        """
        from pystack_nb.views.figures import (  # noqa: PLC0415  (matplotlib: only when used)
            plot_timeline,
        )

        return plot_timeline(self, **options)

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        from pystack_nb.views.result import mimebundle  # noqa: PLC0415  (IPython asks, nobody else)

        return mimebundle(self)

    def __repr__(self) -> str:
        threads = len(set(self.samples["tid"].unique()) | set(self.calls["tid"].unique()))
        wall = self.info.get("wall_ns")
        over = f" over {wall / 1e9:.3f} s" if isinstance(wall, int) else ""
        calls = f"{len(self.calls)} calls and " if len(self.calls) else ""
        return (
            f"<Recording{_origin(self.info)}: {calls}{len(self.samples)} samples of "
            f"{threads} threads{over}, {self.info.get('lost', 0)} lost>"
        )


def _origin(info: Mapping[str, Any]) -> str:
    """Say which process recorded, and when, in local time, where a recording was recovered."""
    pid, written_ns = info.get("spool_pid"), info.get("spool_written_ns")
    if pid is None or written_ns is None:
        return ""
    written = datetime.fromtimestamp(written_ns / 1e9).astimezone()
    return f" by process {pid} until {written:%Y-%m-%d %H:%M:%S}"


def load(path: str | os.PathLike[str]) -> Recording:
    """Read a recording back.

    Parameters
    ----------
    path : path-like
        A folder that `Recording.save` wrote, or a file that `Recording.to_json` wrote.

    Returns
    -------
    Recording
        With tables equal to those that were written.

    Raises
    ------
    RecordingFormatError
        If there is no recording at `path`, or only a part of one, or a Perfetto trace.
    """
    from pathlib import Path  # noqa: PLC0415  (kept beside its only use)

    source = Path(path)
    refuse_trace(os.fspath(source))
    if source.is_dir():
        from pystack_nb.storage import load_folder  # noqa: PLC0415  (pyarrow: only when used)

        return load_folder(source)
    if source.is_file():
        from pystack_nb.convert_to_json import read_json  # noqa: PLC0415  (only when used)

        return read_json(source)
    raise RecordingFormatError(
        f"there is no recording at {source}; give the folder that save wrote, "
        "or the file that to_json wrote"
    )


def trace_list(x: object) -> list[Any]:
    """Take what a converter was given for the list of ``get_stack_traces()``.

    Raises
    ------
    RecordingFormatError
        If it is no such list; `from_traces` looks at the entries.
    """
    if isinstance(x, Mapping | str | bytes) or not isinstance(x, Iterable):
        raise RecordingFormatError(
            f"{type(x).__name__} is neither a Recording nor the list of get_stack_traces(): give "
            "one of these, such as pystack_nb.last() after a recording"
        )
    return list(x)


def from_traces(traces: list[dict[str, Any]]) -> Recording:
    """Make a Recording of what `Recording.to_traces` and ``get_stack_traces`` give.

    What such a list does not tell is left open: ``comm`` is empty, ``cpu`` -1 and
    ``weight_ns`` 0.

    Raises
    ------
    RecordingFormatError
        If an entry lacks a key.
    """
    numbers: dict[tuple[tuple[Any, ...], ...], int] = {}
    names = ("kind", "function", "filename", "line_number")
    try:
        ids = [
            numbers.setdefault(tuple(tuple(y[z] for z in names) for y in x["stack"]), len(numbers))
            for x in traces
        ]
        samples = pd.DataFrame(
            {
                "ts_ns": np.array([x["timestamp"] for x in traces], np.int64),
                "pid": np.array([x["pid"] for x in traces], np.int64),
                "tid": np.array([x["tid"] for x in traces], np.int64),
                "function": pd.Series([x["function"] for x in traces], dtype="object"),
                "filename": pd.Series([x["filename"] for x in traces], dtype="object"),
                "line_number": np.array([x["line_number"] for x in traces], np.int64),
            }
        ).assign(comm="", cpu=-1, state=tables.ON_CPU, weight_ns=0, stack_id=ids)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RecordingFormatError(
            f"an entry is not one of get_stack_traces(): {error!r}; give its list unchanged"
        ) from error
    rows = [(n, depth, *row) for stack, n in numbers.items() for depth, row in enumerate(stack)]
    frames = pd.DataFrame(rows, columns=["stack_id", "depth", *names]).assign(first_line=0)
    return Recording(samples, frames)
