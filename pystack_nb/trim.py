"""Cut IPython and the magic out of a recording: the cell is the root.

Pure: a Recording goes in and another one comes out.  Only recordings of cells are trimmed;
what belongs to the machinery is told by `Machinery`, as files and folders.

Samples from before and after the cell are dropped.  For the others there are four rules,
looked at once for each distinct stack:

* a stack with a frame of the cell's own code starts at the outermost of these;
* any other stack loses its leading frames of the machinery, so that a task that the cell
  awaits, and a thread that it started, keep their own.  If the last frame lost is not one
  that runs other people's code (a `carriers` frame), then the rest is the kernel's own
  business and the sample is dropped, as is one of which nothing in Python is left;
  In what is left, frames of the machinery (`inside`), with what they call of Python's own
  library, make way for those around them, whose time theirs is.  On the cell's thread, nothing
  outside of the shell that runs the cell counts;
* of what shows the value of the cell's last expression, only the value's own functions stay;
* a stack without Python, such as that of a native thread pool, stays as it is, unless its
  thread is one of the machinery's.

How many samples were dropped stands in ``info["trimmed"]``.  Calls are left to
`pystack_nb.trim_calls`, and counted in ``info["trimmed_calls"]``; events to
`pystack_nb.trim_events`.  Calls that were only counted stay: the probe
counts none of the machinery's (`CallOptions.uncounted`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pystack_nb import tables
from pystack_nb.call_facts import tell_demoted
from pystack_nb.machinery import Machinery
from pystack_nb.recording import Recording
from pystack_nb.trim_calls import trim_calls
from pystack_nb.trim_events import trim_events
from pystack_nb.trim_tables import of_category, of_file, renamed, shows, shows_value


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]


__all__ = ["Machinery", "trim"]


def trim(
    recording: Recording,
    machinery: Machinery,
    cell: Mapping[str, Any],
    names: Mapping[str, str] | None = None,
    stacks: Mapping[int, Sequence[str]] | None = None,
) -> Recording:
    """Return the recording with the cell as its root.

    Parameters
    ----------
    recording : Recording
        As the profiler gives it.
    machinery : Machinery
        What to cut.
    cell : mapping
        Of the cell: ``filename``, what its code was compiled under, ``pid`` and ``tid`` of its
        thread, and ``start_ns`` and ``end_ns``, which are what the recording spans, then, and
        become an event of kind ``mark`` named ``cell``.  All of it goes to ``info["cell"]``.
    names : mapping of str to str, optional
        File names that cells were compiled under, and what to call them instead, such as
        ``In[5]``.  Those that the recording has go to ``info["cell_files"]``.
    stacks : mapping of int to sequence of str, optional
        Files of the functions that each thread was in when the recording began, outermost first.

    Returns
    -------
    Recording
        With stacks numbered anew, from 0 and without gaps; equal ones have one number.
    """
    start_ns, end_ns = int(cell["start_ns"]), int(cell["end_ns"])
    samples, frames = _trim_samples(recording, machinery, cell)
    trimmed = len(recording.samples) - len(samples)
    calls = trim_calls(recording.calls, machinery, cell, stacks)
    counts = recording.counts
    trimmed_calls = len(recording.calls) - len(calls)
    info = {
        **recording.info,
        "start_ns": start_ns,
        "end_ns": end_ns,
        "wall_ns": end_ns - start_ns,
        "samples": len(samples),
        "trimmed": int(recording.info.get("trimmed", 0)) + trimmed,
        "calls": len(calls),
        "trimmed_calls": int(recording.info.get("trimmed_calls", 0)) + trimmed_calls,
        "cell": dict(cell),
    }
    tell_demoted(info, _left_of(info.get("demoted") or [], calls, counts))
    if names:
        frames, samples, calls, counts = (
            renamed(table, names) for table in (frames, samples, calls, counts)
        )
        info["demoted"] = [
            x | {"filename": names.get(x["filename"], x["filename"])}
            for x in info.get("demoted") or ()
        ]
        info["cell_files"] = dict(names)
    return Recording(samples, frames, trim_events(recording.events, cell), info, calls, counts)


def _trim_samples(
    recording: Recording, machinery: Machinery, cell: Mapping[str, Any]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keep the samples of the cell, and the frames of their stacks that are the cell's."""
    ts_ns = recording.samples["ts_ns"].to_numpy()
    in_time = (ts_ns >= int(cell["start_ns"])) & (ts_ns <= int(cell["end_ns"]))
    samples = recording.samples[in_time]
    if not len(samples):
        return samples, recording.frames[:0]
    # Sorted by stack and depth, as a Recording makes sure.
    frames = recording.frames
    frames = frames[np.isin(frames["stack_id"].to_numpy(), samples["stack_id"].to_numpy())]
    old_ids, stack = np.unique(frames["stack_id"].to_numpy(), return_inverse=True)
    mine = np.isin(old_ids, _stacks(samples, samples["tid"].to_numpy() == cell["tid"]))
    first, dropped = _cuts(frames, stack, mine, cell["filename"], machinery)
    samples = _without_machinery(samples, old_ids[dropped], machinery)
    used = np.isin(old_ids, _stacks(samples))
    keep = used[stack] & (_position(stack) >= first[stack]) & ~_inside(frames, machinery)
    samples = _with_leaves(samples, frames, keep)
    frames, stack = frames[keep], stack[keep]
    numbers, chosen = _renumber(_rows(frames), stack, len(old_ids))
    frames = frames.assign(stack_id=numbers[stack], depth=_position(stack))[chosen]
    new_ids = np.append(numbers, -1)[pd.Index(old_ids).get_indexer(_stacks(samples))]
    return samples.assign(stack_id=new_ids), frames


def _stacks(samples: pd.DataFrame, chosen: Bools | slice = slice(None)) -> Ints:
    stacks: Ints = samples["stack_id"].to_numpy()[chosen]
    return stacks


def _cuts(
    frames: pd.DataFrame, stack: Ints, mine: Bools, cell_filename: str, machinery: Machinery
) -> tuple[Ints, Bools]:
    """Tell for each stack how many leading frames go, and whether it goes as a whole."""
    python = tables.is_text(frames["kind"], "python")
    position, count = _position(stack), len(mine)
    beyond = np.iinfo(np.int64).max

    def first_position(where: Bools) -> Ints:
        result = np.full(count, beyond, dtype=np.int64)
        np.minimum.at(result, stack[where], position[where])
        return result

    in_cell = first_position(python & of_file(frames, lambda name: name == cell_filename))
    carrier = of_file(frames, lambda name: name.startswith(machinery.carriers))
    other = of_file(frames, lambda name: name.startswith(machinery.others))
    shell = np.full(count, -1, dtype=np.int64)
    runs = python & mine[stack] & of_file(frames, lambda x: x.startswith(machinery.shell or "\0"))
    np.maximum.at(shell, stack[runs], position[runs])
    own = first_position(python & ~carrier & ~other & (position > shell[stack]))
    has_python = first_position(python) != beyond

    # The frame just outside the first one that is nobody's machinery decides whose that is.
    outside = np.zeros(count, dtype=bool)
    last = (position == own[stack] - 1) & other & ~carrier
    outside[stack[last]] = True
    without_cell = in_cell == beyond
    dropped = without_cell & has_python & ((own == beyond) | outside)

    # What shows the cell's value is dropped, unless it is the value that has been asked.
    shown = python & shows_value(frames, machinery.display)
    display = first_position(shown & (position > in_cell[stack]))
    asks = of_file(frames, lambda name: name.startswith(machinery.renderers or "\0"))
    asked = python & ~carrier & ~other & shows(frames) & np.append(False, asks[:-1])[: len(stack)]
    dropped |= (display != beyond) & (first_position(asked & (position > display[stack])) == beyond)
    first = np.where(without_cell, np.where(own == beyond, 0, own), in_cell)
    return first, dropped


def _inside(frames: pd.DataFrame, machinery: Machinery) -> Bools:
    python = tables.is_text(frames["kind"], "python")
    inside: Bools = of_file(frames, lambda name: name.startswith(machinery.inside)) & python
    helps = of_file(frames, machinery.is_help) & ~shows(frames) & ~inside & python
    # What helps belongs to the frame that it helps: the last one before it that does not.
    stack = frames["stack_id"].to_numpy()
    helped = np.maximum.accumulate(np.where(helps, 0, np.arange(len(stack))))
    inside |= helps & inside[helped] & (stack[helped] == stack)
    return inside


def _with_leaves(samples: pd.DataFrame, frames: pd.DataFrame, keep: Bools) -> pd.DataFrame:
    """Name the innermost Python function that is kept, where that is another one now."""
    python = frames.assign(kept=keep)[tables.is_text(frames["kind"], "python")]
    last = python.drop_duplicates("stack_id", keep="last")
    changed = samples["stack_id"].isin(last.loc[~last["kept"], "stack_id"]).to_numpy()
    if not changed.any():
        return samples
    leaf = python[python["kept"]].drop_duplicates("stack_id", keep="last").set_index("stack_id")
    leaf = leaf.reindex(samples.loc[changed, "stack_id"])
    new = {}
    for name in ("function", "filename"):
        texts = samples[name].astype(object).to_numpy(copy=True)
        texts[changed] = leaf[name].astype(object).to_numpy()
        new[name] = tables.categorical(*pd.factorize(texts))
    lines = samples["line_number"].to_numpy(copy=True)
    lines[changed] = leaf["line_number"].fillna(0).to_numpy()
    return samples.assign(**new, line_number=lines)


def _left_of(
    demoted: Sequence[Mapping[str, Any]], calls: pd.DataFrame, counts: pd.DataFrame
) -> list[dict[str, Any]]:
    """Find the demoted functions that something is left of."""
    key = ["function", "filename", "line_number"]
    names, left = {x["function"] for x in demoted}, set()
    for table in (calls, counts) if names else ():
        named = table.loc[table["function"].isin(names), key].drop_duplicates()
        left |= set(named.itertuples(index=False, name=None))
    return [dict(x) for x in demoted if tuple(x[name] for name in key) in left]


def _position(stack: Ints) -> Ints:
    """Count the rows of each stack from 0; the rows of one stack stand together."""
    index = np.arange(len(stack))
    starts = np.flatnonzero(np.diff(stack, prepend=-1))
    return index - np.repeat(starts, np.diff(starts, append=len(stack)))


def _rows(frames: pd.DataFrame) -> Ints:
    """Give equal frames equal numbers, whatever stack they are in."""
    row = np.zeros(len(frames), dtype=np.int64)
    for name in ("kind", "function", "filename", "line_number", "first_line"):
        array = frames[name].array
        values = array.codes if isinstance(array, pd.Categorical) else array.to_numpy()
        distinct, code = np.unique(values, return_inverse=True)
        row = np.unique(row * len(distinct) + code, return_inverse=True)[1]
    return row


def _renumber(row: Ints, stack: Ints, count: int) -> tuple[Ints, Bools]:
    """Give equal stacks equal numbers, by walking all of them inwards at once.

    Returns the new number of each old one (-1: no frame is left), in the order of the old
    ones, and the rows that belong to the first old stack of each new number.
    """
    node = np.full(count, -1, dtype=np.int64)
    position = _position(stack)
    used, distinct_rows = 0, int(row.max(initial=0)) + 1
    for depth in range(int(position.max(initial=-1)) + 1):
        here = position == depth
        # A node stands for all frames from the root to here, so its number is never reused.
        keys = (node[stack[here]] + 1) * distinct_rows + row[here]
        distinct, code = np.unique(keys, return_inverse=True)
        node[stack[here]] = used + code
        used += len(distinct)
    numbers = np.full(count, -1, dtype=np.int64)
    present = np.flatnonzero(node >= 0)
    _, where, code = np.unique(node[present], return_index=True, return_inverse=True)
    order = np.empty(len(where), dtype=np.int64)
    order[np.argsort(where)] = np.arange(len(where))
    numbers[present] = order[code]
    first = np.zeros(count, dtype=bool)
    first[present[where]] = True
    return numbers, first[stack]


def _without_machinery(
    samples: pd.DataFrame, dropped_ids: Ints, machinery: Machinery
) -> pd.DataFrame:
    out = np.isin(_stacks(samples), dropped_ids)
    # A thread whose Python is all machinery is part of it without Python, too.
    tids, python = samples["tid"].to_numpy(), samples["function"].array.codes >= 0
    out |= ~python & np.isin(tids, tids[out]) & ~np.isin(tids, tids[python & ~out])
    out |= ~python & of_category(samples["comm"], lambda name: name.startswith(machinery.threads))
    return samples[~out]
