from __future__ import annotations

import io
import subprocess
import sys

import pytest

from matplotlib.figure import Figure
from synthetic import PID, make_recording

from pystack_nb.views.figures import plot_timeline
from pystack_nb.views.wording import colour


@pytest.fixture
def recording():
    return make_recording(
        [(i, PID, ["<module>", "Model.fit"]) for i in range(900)]
        + [(i, 102, ["run $x_1$"]) for i in range(500, 900)]
        + [(901, 102, ["tiny"])]
    )


def texts(figure):
    return [x.get_text() for x in figure.axes[0].texts]


def test_threads_are_rows_named_beside_the_axis(recording):
    axes = plot_timeline(recording).axes[0]
    assert [x.get_text() for x in axes.get_yticklabels()] == ["main 100", "worker-102 102"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # depth grows downwards
    assert axes.get_xlabel() == "time from the start (ms)"


def test_labels_stand_where_they_fit_and_nowhere_else(recording):
    assert texts(plot_timeline(recording)) == ["<module>", "Model.fit", "run"]


def test_names_are_no_formulas(recording):
    figure = plot_timeline(make_recording([(i, PID, ["$\\broken{$ /a.py"]) for i in range(100)]))
    figure.savefig(io.BytesIO(), format="png")
    assert texts(figure) == ["$\\broken{$"]


def test_a_slice_has_its_function_s_colour(recording):
    (boxes,) = plot_timeline(recording).axes[0].collections
    shown = {
        "#" + "".join(f"{round(x * 255):02x}" for x in face[:3]) for face in boxes.get_facecolor()
    }
    assert colour("python", "Model.fit", "/src/cell.py") in shown


def test_depth_is_cut_where_asked_and_that_is_said(recording):
    shown = texts(plot_timeline(recording, max_depth=1))
    assert "Model.fit" not in shown
    assert "not drawn: 1 deeper level" in shown


def test_it_is_drawn_into_axes_that_are_given(recording):
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plot_timeline(recording, ax=right) is figure
    assert right.collections
    assert not left.collections


def test_nothing_recorded_is_said():
    figure = plot_timeline(make_recording([]))
    figure.savefig(io.BytesIO(), format="png")
    assert "nothing recorded" in texts(figure)


def test_what_is_left_out_is_said():
    recording = make_recording([(0, PID + i, ["f"]) for i in range(20)])
    assert "not drawn: 4 less busy threads" in texts(plot_timeline(recording))


def test_it_works_without_a_display_and_without_pyplot():
    program = (
        "import sys; sys.path.insert(0, 'tests/unit')\n"
        "from synthetic import PID, make_recording\n"
        "make_recording([(0, PID, 'f')]).plot_timeline().savefig('/dev/null', format='png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PATH": ""})
