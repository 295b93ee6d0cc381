"""The other forms of the magic, its options, and the times when a cell is refused."""

from __future__ import annotations

import os
import re
import socket
import threading

import kernels
import pytest

from kernels import BUSY, plain


pytestmark = pytest.mark.bpf


@pytest.fixture(autouse=True, scope="module")
def functions(kernel):
    assert kernel.run(BUSY).status == "ok"


@pytest.fixture(autouse=True)
def no_recording_is_left(kernel):
    yield
    kernel.forget_recordings()


def functions_of(kernel, name):
    return kernel.evaluate(f"set(map(str, {name}.stacks['function'].unique()))")


# The line form ------------------------------------------------------------------------------


def test_the_line_form_gives_the_statements_value(kernel):
    assert kernel.run("%pystack --quiet sum(range(10))").value == "45"
    kernel.run("total = %pystack --quiet sum(range(11))")
    assert kernel.evaluate("total") == 55


def test_the_line_form_records_its_statement(kernel):
    outcome = kernel.run("%pystack -o line --hz 999 spin(0.3)")
    assert len(outcome.displays) == 1
    assert "spin" in functions_of(kernel, "line")
    assert kernel.evaluate("line.info['hz']['asked']") == 999
    outermost = "line.stacks.query(\"depth == 0 and kind == 'python'\")['function']"
    assert kernel.evaluate(f"sorted({outermost}.unique())") == ["<module>"]


def test_a_semicolon_silences_the_line_form(kernel):
    assert kernel.run("%pystack --quiet 6 * 7;").value is None


def test_a_line_in_a_cell_whose_calls_are_recorded_says_what_to_do_and_that_works(kernel):
    outcome = kernel.run("%%pystack --quiet -o outer\n%pystack --quiet 6 * 7")
    assert outcome.error == "ProfilerStateError"
    assert "recorded already" in outcome.message
    assert "give it --mode sample" in outcome.message
    assert kernel.evaluate("outer.info['error']") is None
    outcome = kernel.run("%%pystack --quiet -o outer\n%pystack --quiet --mode sample 6 * 7")
    assert outcome.value == "42"


def test_the_line_form_sees_the_locals_around_it(kernel):
    kernel.run(
        "def inside(x):\n    return get_ipython().run_line_magic('pystack', '--quiet x + 1')"
    )
    assert kernel.run("inside(2)").value == "3"


def test_the_line_form_without_a_statement_says_so(kernel):
    outcome = kernel.run("%pystack --hz 99")
    assert (outcome.status, outcome.error) == ("error", "OptionError")
    assert "statement" in outcome.message


def test_an_error_in_the_line_form_points_at_the_statement(kernel):
    outcome = kernel.run("%pystack --quiet 1 / 0")
    assert outcome.error == "ZeroDivisionError"
    assert "----> 1 1 / 0" in plain(outcome.traceback)


@pytest.mark.parametrize(
    ("cell", "text", "line"),
    [
        ("%pystack --quiet [i", "[i\n", 1),
        ("%%time\n%%pystack --quiet\nx = 1\nx +* 2", "x +* 2\n       ^", 3),
    ],
)
def test_a_statement_that_is_no_python_is_shown_without_our_frames(kernel, cell, text, line):
    outcome = kernel.run(cell)
    assert (outcome.status, outcome.error) == ("error", "OptionError")
    shown = plain(outcome.traceback)
    assert shown.startswith("OptionError: this is no valid Python: ")
    assert text in shown
    assert shown.endswith(f"\nCorrect line {line} of the statement.")


# Under other magics -------------------------------------------------------------------------


def test_it_runs_under_time_and_keeps_value_and_names(kernel):
    outcome = kernel.run("%%time\n%%pystack -o timed\nspin(0.2)\nnested = 6\nnested * 7")
    assert (outcome.status, outcome.value) == ("ok", "42")
    assert "Wall time" in outcome.stdout
    assert kernel.evaluate("nested") == 6
    assert "spin" in functions_of(kernel, "timed")
    outermost = "timed.stacks.query(\"depth == 0 and kind == 'python'\")['function']"
    assert kernel.evaluate(f"sorted({outermost}.unique())") == ["<module>"]


def test_it_runs_over_time(kernel):
    outcome = kernel.run("%%pystack -o timed\n%%time\nspin(0.2)\n5")
    assert (outcome.status, outcome.value) == ("ok", "5")
    names = functions_of(kernel, "timed")
    assert "spin" in names
    assert "run_cell_magic" not in names


def test_what_the_display_of_a_value_calls_is_shown_as_the_cells(kernel):
    shown = "class Shown:\n    def _repr_html_(self):\n        spin(0.2)\n        return 'x'\n"
    kernel.run(f"%%pystack -o rec\n{shown}Shown()")
    kernel.run("_s = rec.stacks; _s = _s[_s['function'] == 'Shown._repr_html_']", silent=True)
    assert kernel.evaluate("_s['depth'].unique().tolist()") == [1]


def test_capture_takes_the_output_and_the_display(kernel):
    outcome = kernel.run("%%capture taken\n%%pystack -o captured\nprint('hello')\nspin(0.2)")
    assert (outcome.stdout, outcome.displays) == ("", [])
    assert kernel.evaluate("taken.stdout") == "hello\n"
    assert kernel.evaluate("len(taken.outputs)") == 1
    assert "spin" in functions_of(kernel, "captured")


def test_an_error_under_another_magic_fails_the_cell_with_one_traceback(kernel):
    outcome = kernel.run("%%time\n%%pystack --quiet\nx = 1\n1 / 0")
    assert (outcome.status, outcome.error) == ("error", "ZeroDivisionError")
    text = plain(outcome.traceback)
    assert text.count("Traceback") == 1
    assert "----> 3 1 / 0" in text
    assert "pystack_nb/" not in text


def test_run_cell_magic_gives_the_value(kernel):
    assert kernel.run("get_ipython().run_cell_magic('pystack', '--quiet', '6 * 7')").value == "42"


def test_await_works_where_ipython_does_not_run_the_cell(kernel):
    code = "import asyncio\nspin(0.2)\nawait asyncio.sleep(0.01)\n42"
    outcome = kernel.run(f"get_ipython().run_cell_magic('pystack', '-o waited --quiet', {code!r})")
    assert outcome.value == "42"
    assert "spin" in functions_of(kernel, "waited")


def test_an_error_of_such_an_await_has_only_the_cells_frames(kernel):
    code = "import asyncio\nawait asyncio.sleep(0.01)\n1 / 0"
    outcome = kernel.run(f"get_ipython().run_cell_magic('pystack', '--quiet', {code!r})")
    text = plain(outcome.traceback)
    assert outcome.error == "ZeroDivisionError"
    assert "----> 4 1 / 0" in text
    assert "asyncio/" not in text
    assert "concurrent/" not in text


def test_help_shows_the_options(kernel):
    reply = kernel.help("%%pystack?")
    for option in ("--mode", "--hz", "-o NAME", "--export PATH", "--quiet"):
        assert option in reply


@pytest.mark.parametrize("form", ["%%pystack {}\nran = True", "%pystack {} exec('ran = True')"])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_is_printed_and_nothing_run(kernel, form, option):
    kernel.run("ran = False; kept = pystack_nb.last()")
    outcome = kernel.run(form.format(option))
    assert (outcome.status, outcome.displays) == ("ok", [])
    assert outcome.stdout.startswith("%pystack [")
    assert kernel.evaluate("ran is False and pystack_nb.last() is kept")


# Options ------------------------------------------------------------------------------------


def test_exports_are_written_and_read_back(kernel, tmp_path):
    paths = [tmp_path / name for name in ("x.json", "x.pftrace", "folder")]
    line = " ".join(f"--export {path}" for path in paths)
    assert kernel.run(f"%%pystack -o sent --quiet {line}\nspin(0.2)").stderr == ""
    assert all(path.exists() for path in paths)
    for path in (paths[0], paths[2]):
        back = f"pystack_nb.load({str(path)!r}).samples.equals(sent.samples)"
        assert kernel.evaluate(back)


def test_names_are_expanded_in_the_options(kernel, tmp_path):
    kernel.run(f"folder = {str(tmp_path)!r}")
    kernel.run("%%pystack --quiet --export {folder}/x.json\n1")
    assert (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("options", "error", "hint"),
    [
        ("--frequency 3", "OptionError", "%%pystack?"),
        ("--mode dreams", "OptionError", "sample"),
        ("--mode sample --depth 3", "OptionError", "leave one of them out"),
        ("--hz 0", "RateError", "499"),
        ("--hz 1e9", "RateError", "hz|rate"),
        ("-o 1st", "OptionError", "name of a variable"),
        ("--export /proc/nowhere/x.json", "ExportPathError", "/proc/nowhere/x.json"),
        ("--export x.mp3", "ExportPathError", ".json"),
    ],
)
@pytest.mark.parametrize("form", ["%%pystack {}\nran = True", "%pystack {} exec('ran = True')"])
def test_a_cell_with_a_bad_option_is_not_run(kernel, form, options, error, hint):
    kernel.run("ran = False; kept = pystack_nb.last()")
    outcome = kernel.run(form.format(options))
    assert (outcome.status, outcome.error) == ("error", error)
    assert re.search(hint.replace("?", r"\?"), outcome.message)
    assert plain(outcome.traceback) == f"{error}: {outcome.message}"
    assert kernel.evaluate("ran is False and pystack_nb.last() is kept")
    assert outcome.displays == []


# Refused ------------------------------------------------------------------------------------


def test_without_a_collector_the_cell_is_not_run_and_the_error_says_how_to_get_one():
    nowhere = {**os.environ, "PYSTACK_NB_SOCKET": "/nonexistent/collector.sock"}
    with kernels.kernel(env=nowhere) as alone:
        alone.run("%load_ext pystack_nb\nran = False")
        for cell in ("%%pystack\nran = True", "%%time\n%%pystack\nran = True"):
            outcome = alone.run(cell)
            assert outcome.error == "CollectorUnavailableError"
            assert "root" in outcome.message
            assert "sudo" in outcome.message
            assert "PYSTACK_NB_SOCKET" in outcome.message
            assert "ran = True" not in plain(outcome.traceback).partition("Error:")[2]
            assert alone.evaluate("ran") is False


def test_a_second_interrupt_ends_the_wait_for_a_service_that_does_not_answer(tmp_path):
    path = tmp_path / "silent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with kernels.kernel(env={**os.environ, "PYSTACK_NB_SOCKET": str(path)}) as alone:
            alone.run("%load_ext pystack_nb\nran = False")
            for seconds in (1.5, 2.5):
                threading.Timer(seconds, alone.interrupt).start()
            outcome = alone.run("%%pystack\nran = True")
            assert (outcome.status, outcome.error) == ("error", "KeyboardInterrupt")
            assert alone.evaluate("ran") is False


def test_a_silent_execution_is_refused_rather_than_run_unrecorded(kernel):
    kernel.run("ran = False")
    outcome = kernel.run("%%pystack\nran = True", silent=True)
    assert (outcome.status, outcome.error) == ("error", "ProfilerStateError")
    assert kernel.evaluate("ran") is False


def test_looking_at_a_cell_arms_nothing(kernel):
    kernel.run("text = '%%pystack\\n1'")
    kernel.run("get_ipython().transform_cell(text); get_ipython().check_complete(text);")
    before = kernel.evaluate("id(pystack_nb.last())")
    kernel.run("print(1)")
    assert kernel.evaluate("id(pystack_nb.last())") == before


# Coming and going ---------------------------------------------------------------------------

HOOKS = (
    "[len(x) for x in (ip.input_transformers_cleanup, ip.input_transformers_post,"
    " ip.ast_transformers, ip.events.callbacks['pre_run_cell'],"
    " ip.events.callbacks['post_run_cell'])]"
    " + ['pystack' in ip.magics_manager.magics[x] for x in ('line', 'cell')]"
)


def test_loading_again_does_not_double_and_unloading_leaves_nothing():
    with kernels.kernel() as fresh:
        fresh.run("ip = get_ipython()")
        bare = fresh.evaluate(HOOKS)
        fresh.run("%load_ext pystack_nb")
        loaded = fresh.evaluate(HOOKS)
        assert loaded != bare
        for again in (
            "%reload_ext pystack_nb",
            "import pystack_nb as p\np.load_ipython_extension(ip)",
        ):
            assert fresh.run(again).status == "ok"
            assert fresh.evaluate(HOOKS) == loaded
        assert len(fresh.run("%%pystack\nsum(range(100_000))").displays) == 1
        fresh.run("%unload_ext pystack_nb")
        assert fresh.evaluate(HOOKS) == bare


def test_unloading_inside_a_recorded_cell_ends_its_recording(kernel):
    kernel.run("%%pystack -o cut\nspin(0.2)\n%unload_ext pystack_nb")
    assert kernel.evaluate("len(cut.samples) > 0")
    assert kernel.run("%load_ext pystack_nb").status == "ok"
    assert kernel.run("%%pystack\n1").status == "ok"


def test_no_large_library_is_imported_before_the_first_recorded_cell_has_run(tmp_path):
    large = "{'pandas', 'numpy', 'matplotlib', 'pyarrow'} & set(__import__('sys').modules)"
    with kernels.kernel() as fresh:
        fresh.run("%load_ext pystack_nb")
        assert fresh.evaluate(large) == set()
        # WHEN a recorded cell is the first one to import
        options = f"-o first --export {tmp_path}/x.json"
        outcome = fresh.run(f"%%pystack {options}\nfound = {large}\nimport pandas")
        # THEN nobody was there before it, and the import is in its recording
        assert outcome.status == "ok"
        assert fresh.evaluate("found") == set()
        assert "pandas/core" in fresh.evaluate("' '.join(first.stacks['filename'].unique())")
