"""Tables of calls made by hand, and by Hypothesis, for tests of what is done with them."""

from __future__ import annotations

import pandas as pd

from hypothesis import strategies as st


PID = 100


def call(name, start, end, *children, kind="call", complete=True):
    """Make a call of ``"function file"`` between two times."""
    function, _, filename = name.partition(" ")
    return {
        "function": function,
        "filename": filename or "/src/cell.py",
        "kind": kind,
        "start": start,
        "end": end,
        "complete": complete,
        "children": children,
    }


def make_calls(threads, start_ns=0, unit_ns=1):
    """Make a table of calls.

    Parameters
    ----------
    threads : dict of int to list
        The outermost calls of each thread, in order of time, as `call` makes them.
    start_ns, unit_ns : int
        Where the times begin, and what they are measured in.
    """
    rows = []

    def add(tid, node, parent, depth):
        number = len(rows)
        inside = sum(x["end"] - x["start"] for x in node["children"])
        rows.append(
            {
                "ts_ns": start_ns + node["start"] * unit_ns,
                "dur_ns": (node["end"] - node["start"]) * unit_ns,
                "self_ns": (node["end"] - node["start"] - inside) * unit_ns,
                "pid": PID,
                "tid": tid,
                "depth": depth,
                "parent": parent,
                "line_number": 1,
                **{x: node[x] for x in ("function", "filename", "kind", "complete")},
            }
        )
        for child in node["children"]:
            add(tid, child, number, depth + 1)

    for tid, outermost in threads.items():
        for node in outermost:
            add(tid, node, -1, 0)
    return pd.DataFrame(rows, columns=COLUMNS)


COLUMNS = [
    "ts_ns", "dur_ns", "self_ns", "pid", "tid", "depth", "parent",
    "function", "filename", "line_number", "complete", "kind",
]  # fmt: skip


@st.composite
def threads_of_calls(draw, names, tids=(PID, 101), most=30):
    """Draw what `make_calls` takes: times rise, also by nothing, and calls nest."""
    count = draw(st.integers(0, most))
    moves = draw(
        st.lists(
            st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from(names)),
            min_size=count,
            max_size=count,
        )
    )
    threads = {tid: [] for tid in tids}
    open_, now, tid = [], 0, tids[0]

    def close(until):
        while len(open_) > until:
            open_.pop()["end"] = now

    for closing, passing, name in moves:
        now += passing
        close(max(len(open_) - closing, 0))
        if not open_ and passing:
            tid = tids[(tids.index(tid) + 1) % len(tids)]
        node = call(name, now, now) | {"children": []}
        (open_[-1]["children"] if open_ else threads[tid]).append(node)
        open_.append(node)
    now += 1
    close(0)
    return threads
