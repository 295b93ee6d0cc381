from __future__ import annotations

import re

from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from synthetic import PERIOD_NS, PID, START_NS, frame, make_recording

from pystack_nb.views.result import mimebundle
from pystack_nb.views.svg import timeline_svg
from pystack_nb.views.text import facts, summary, warnings
from pystack_nb.views.timeline import layout
from pystack_nb.views.wording import colour, duration, label, place, ticks


@pytest.fixture
def recording():
    return make_recording(
        [(i, PID, ["<module>", "fit /src/model.py"]) for i in range(30)]
        + [(i, PID, ["<module>"]) for i in range(30, 40)]
        + [(i, 102, [frame("dgemm", kind="native")]) for i in range(10, 20)]
    )


class Text(HTMLParser):
    """What a reader sees of HTML, and the elements that show it."""

    def __init__(self, html):
        super().__init__()
        self.words, self.tags = [], set()
        self.feed(html)

    def handle_data(self, data):
        self.words.append(data)

    def handle_starttag(self, tag, _attributes):
        self.tags.add(tag)


def test_the_facts_are_one_line(recording):
    assert facts(recording) == "1.50 s · 50 samples of 2 threads · 998 of 1,000 Hz reached"


@pytest.mark.parametrize("reached", [1000, 1084.2, 999.7, None])
def test_a_rate_that_was_reached_is_told_as_it_was_asked(recording, reached):
    recording.info["hz"] = {"asked": 1000, "reached": reached}
    assert facts(recording).endswith(" · 1,000 Hz")


@pytest.mark.parametrize(("count", "told"), [(10, "1,000 Hz"), (30, "800 of 1,000 Hz reached")])
def test_a_rate_is_told_only_where_enough_samples_were_to_be_expected(count, told):
    hz = {"asked": 1000, "reached": 800}
    recording = make_recording([(n, PID, "f") for n in range(count)], hz=hz)
    assert facts(recording).endswith(f" · {told}")


def test_the_axis_ends_where_the_recording_does():
    recording = make_recording([(0, PID, "f")], end_ns=START_NS + PERIOD_NS // 2)
    assert layout(recording).end_ns == START_NS + PERIOD_NS // 2
    slices = layout(recording).slices
    assert (slices["ts_ns"] + slices["dur_ns"]).max() == START_NS + PERIOD_NS // 2


def test_loss_is_shown_by_cause_when_there_is_any(recording):
    recording.info.update(
        lost=1200,
        lost_by_cause={"ring-buffer-full": 1200, "disk-full": 0},
        incomplete=3,
        incomplete_by_cause={"too-deep": 2, "code-not-named": 1},
    )
    for view in (facts(recording), *mimebundle(recording).values()):
        assert "1,200 lost (ring-buffer-full 1,200)" in view
        assert "3 incomplete (too-deep 2, code-not-named 1)" in view


def test_errors_and_notes_are_shown(recording):
    recording.info.update(error="the disk is full", notes=["hz was limited"], complete=False)
    assert warnings(recording) == [
        "The recording ended with an error: the disk is full",
        "hz was limited",
    ]
    assert "the disk is full" in mimebundle(recording)["text/html"]


def test_a_recording_that_was_cut_short_says_so(recording):
    recording.info["complete"] = False
    assert "cut short" in summary(recording)


def test_no_samples_say_what_to_do():
    for view in mimebundle(make_recording([])).values():
        assert "No samples" in view
        assert "Raise --hz above 1000" in view


def test_the_functions_with_the_most_time_of_their_own_come_first(recording):
    lines = summary(recording).splitlines()
    assert re.fullmatch(r"  1   30.0 ms  60%  30.0 ms  60%  fit +src/model.py:1", lines[3])
    assert re.fullmatch(r"  2   10.0 ms  20%  40.0 ms  80%  <module> +src/cell.py:1", lines[4])
    assert re.fullmatch(r"  3   10.0 ms  20%  10.0 ms  20%  dgemm +lib/libm.so", lines[5])


def test_the_text_timeline_shows_which_function_ran_when(recording):
    rows = [x.partition("|")[2][:-1] for x in summary(recording).splitlines() if x.endswith("|")]
    main, worker = rows
    assert re.fullmatch("1{54}2{18}", main)
    assert re.fullmatch(" {17,18}3{18,20} {34,36}", worker)


def test_html_has_the_facts_the_functions_and_the_timeline(recording):
    text = Text(mimebundle(recording)["text/html"])
    assert facts(recording) in text.words
    assert {"fit", "src/model.py:1", "60.0%", "dgemm"} <= set(text.words)
    assert {"table", "svg"} <= text.tags


def test_names_from_the_process_are_escaped_wherever_they_appear():
    # GIVEN a process whose every name is markup
    evil = "<script>alert('&\"')</script>"
    recording = make_recording(
        [(i, PID, [frame(f"{evil} {evil}", 4)]) for i in range(50)],
        thread_names={str(PID): evil},
        error=evil,
        notes=[evil],
        lost=1,
        lost_by_cause={evil: 1},
    )
    # WHEN it is shown
    html = mimebundle(recording)["text/html"]
    # THEN none of it is markup, and the reader sees it as it is
    text = Text(html)
    assert "script" not in text.tags
    assert any(evil in word for word in text.words)
    assert text.tags == Text(mimebundle(make_recording([(0, PID, "f")]))["text/html"]).tags


def test_the_svg_is_well_formed_and_its_slices_have_tooltips(recording):
    root = ET.fromstring(timeline_svg(recording))
    titles = [x.text for x in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "fit\nsrc/model.py:1\n30.0 ms, 30 samples" in titles
    assert "worker-102, thread 102: 10 samples" in titles


def test_the_svg_is_bounded_whatever_is_recorded():
    # GIVEN many threads and long names, a new stack in each sample
    name = "é" * 200
    recording = make_recording(
        [
            (i, PID + i % 40, [f"{name}{i + d} /{name}/{name}.py" for d in range(25)])
            for i in range(4000)
        ]
    )
    # THEN the picture keeps its size, and says that something is missing
    picture = timeline_svg(recording)
    assert len(picture.encode()) < 300_000
    assert "less busy threads" in picture
    ET.fromstring(picture)


def test_names_cannot_command_a_terminal_or_a_browser():
    recording = make_recording([(0, PID, ["a\x00\x1b[2J\u202e\nb"])])
    ET.fromstring(timeline_svg(recording))
    for view in mimebundle(recording).values():
        assert "a\ufffd\ufffd[2J\ufffd\ufffdb" in view
        assert not {"\x00", "\x1b", "\u202e"} & set(view)


def test_colours_depend_on_the_names_alone_and_differ_between_files():
    assert colour("python", "f", "/a.py") == colour("python", "f", "/a.py")
    assert len({colour("python", "f", f"/{x}.py") for x in range(20)}) > 15


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1_000, "1.00 µs"),
        (45_678_000, "45.7 ms"),
        (999_999_999, "1.00 s"),
        (123_456_000_000, "123 s"),
    ],
)
def test_durations_have_three_digits_and_a_unit(ns, text):
    assert duration(ns) == text


def test_labels_are_shortened_to_their_room():
    assert label("Model.fit", 9) == "Model.fit"
    assert label("Model.fit", 5) == "fit"
    assert label("a_long_name", 6) == "a_lon…"
    assert label("a_long_name", 3) == ""


def test_places_are_the_end_of_the_path_and_the_line():
    assert place("/usr/lib/python3.11/ast.py", 33) == "python3.11/ast.py:33"
    assert place("/lib/libm.so", 0) == "lib/libm.so"


@pytest.mark.parametrize("span", [1, 7, 999, 10**6, 3 * 10**9, 86_400 * 10**9])
def test_ticks_are_few_and_round_and_inside(span):
    found = ticks(1000, 1000 + span)
    assert 1 <= len(found) <= 12
    assert all(1000 <= time <= 1000 + span for time, _ in found)
    assert found[0][1].startswith("0 ")
