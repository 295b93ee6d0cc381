"""Marks and layers in the timeline: rows of their own, above the thread that told them."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from synthetic import PERIOD_NS, PID, START_NS, make_recording

from pystack_nb.views.figures import plot_timeline
from pystack_nb.views.svg import timeline_svg
from pystack_nb.views.timeline import layout


def event(kind, name, begin, end, tid=PID):
    """An event from one period to another."""
    begin_ns, end_ns = round(begin * PERIOD_NS), round(end * PERIOD_NS)
    times = {"ts_ns": START_NS + begin_ns, "dur_ns": end_ns - begin_ns}
    return {"kind": kind, "name": name, "tid": tid, **times}


SAMPLES = [(x, PID, ["work"]) for x in range(20)]
EVENTS = [
    event("mark", "epoch", 2, 18),
    event("layer", "(model)", 4, 12),
    event("layer", "conv1", 5, 8),
    event("fault", "conv1:output", 6, 6),
    event("layer", "fc", 8, 11),
]


def shown(recording, **options):
    picture = layout(recording, **options)
    return picture, picture.slices[picture.slices["unit"] == "event"]


def test_events_stand_above_their_thread_and_within_each_other():
    picture, slices = shown(make_recording(SAMPLES, EVENTS))
    assert [(x.name, x.thread, x.unit, x.size, x.top, x.levels) for x in picture.rows] == [
        ("events", PID, "event", 5, 0, 4),
        (picture.rows[1].name, PID, "sample", 20, 4, 1),
    ]
    depths = dict(zip(slices["function"], slices["depth"], strict=True))
    assert depths == {"epoch": 0, "(model)": 1, "conv1": 2, "conv1:output": 3, "fc": 2}
    assert slices.set_index("function")["dur_ns"]["fc"] == 3 * PERIOD_NS
    assert dict(zip(slices["function"], slices["filename"], strict=True))["fc"] == "layer"


def test_the_mark_of_the_cell_itself_is_not_drawn():
    cell = event("mark", "cell", 0, 20)
    rec = make_recording(SAMPLES, [cell], cell={"start_ns": START_NS})
    assert [x.unit for x in layout(rec).rows] == ["sample"]
    own = event("mark", "cell", 3, 5)
    rec = make_recording(SAMPLES, [cell, own], cell={"start_ns": START_NS})
    assert len(shown(rec)[1]) == 1


def test_threads_with_events_alone_come_last_and_the_bound_on_threads_holds():
    events = [event("mark", "x", 1, 2, tid) for tid in (PID, 900, 901, 902)]
    picture, _ = shown(make_recording(SAMPLES, events))
    assert [(x.thread, x.unit) for x in picture.rows] == [
        (PID, "event"),
        (PID, "sample"),
        *((x, "event") for x in (900, 901, 902)),
    ]
    picture, _ = shown(make_recording(SAMPLES, events), max_threads=2)
    assert [x.thread for x in picture.rows] == [PID, PID, 900]


def test_many_events_are_merged_within_the_bounds():
    events = [event("layer", f"layer {x % 7}", x / 1000, (x + 1) / 1000) for x in range(20_000)]
    picture, slices = shown(make_recording(SAMPLES, events), columns=500, max_slices=800)
    assert len(picture.slices) <= 800
    assert slices["count"].sum() == 20_000


def test_events_that_overlap_without_nesting_are_all_drawn():
    events = [event("mark", x, y, y + 4) for x, y in [("a", 0), ("b", 2), ("c", 5)]]
    _, slices = shown(make_recording(SAMPLES, events))
    depths = dict(zip(slices["function"], slices["depth"], strict=True))
    assert depths == {"a": 0, "b": 1, "c": 2}


def test_both_pictures_name_events_and_their_kind():
    rec = make_recording(SAMPLES, EVENTS)
    picture = ET.fromstring(timeline_svg(rec))
    tips = [x.text for x in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert any(x.startswith("conv1\nlayer\n") and x.endswith("1 event") for x in tips)
    labels = [x.get_text() for x in plot_timeline(rec).axes[0].get_yticklabels()]
    assert labels[0] == f"events {PID}"
