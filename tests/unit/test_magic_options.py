from __future__ import annotations

import pytest

from pystack_nb import options
from pystack_nb.errors import ExportPathError, OptionError
from pystack_nb.probe import CallOptions


@options.with_arguments
def pystack(line):
    """Do nothing."""


def parse(line, **names):
    return options.parse(pystack, line, names)


def test_a_bare_line_gives_the_defaults():
    assert parse("") == options.Options(hz=499, output=None, export=(), quiet=False)


def test_every_option_is_taken(tmp_path):
    first, second = tmp_path / "a.json", tmp_path / "b.pftrace"
    given = parse(f"--mode sample,calls --hz 999 -o rec --export {first} --export {second} --quiet")
    assert (given.mode, given.hz, given.output) == ("sample,calls", 999, "rec")
    assert (given.export, given.quiet) == ((str(first), str(second)), True)


@pytest.mark.parametrize(("text", "rate"), [("1e3", 1000), ("0", 0), ("-1", -1)])
def test_a_rate_is_a_whole_number(text, rate):
    assert parse(f"--hz {text}").hz == rate


@pytest.mark.parametrize(
    "line",
    [
        "--frequency 3",
        "--hz",
        "--hz fast",
        "--hz 1.5",
        "--hz nan",
        "--hz inf",
        "stray",
        "-o",
        "--quiet=3",
    ],
)
def test_what_makes_no_sense_is_refused_and_the_help_named(line):
    with pytest.raises(OptionError, match=r"%%pystack\?"):
        parse(line)


@pytest.mark.parametrize("name", ["1st", "a.b", "class", "a-b"])
def test_the_recordings_name_must_be_a_variables(name):
    with pytest.raises(OptionError, match="name of a variable"):
        parse(f"-o {name}")


@pytest.mark.parametrize("name", ["missing/x.json", "x.unknown"])
def test_a_path_that_cannot_be_written_is_found_out_at_once(tmp_path, name):
    with pytest.raises(ExportPathError):
        parse(f"--export {tmp_path}/{name}")


def test_quotes_keep_a_path_with_spaces_together(tmp_path):
    assert parse(f'--export "{tmp_path}/a b.json"').export == (f"{tmp_path}/a b.json",)


def test_a_tilde_is_the_users_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse('--export ~/a.json --export "~/b c.json"').export == (
        f"{tmp_path}/a.json",
        f"{tmp_path}/b c.json",
    )


@pytest.mark.parametrize("line", ["--export {folder}/x.json", "--export $folder/x.json"])
def test_names_of_the_user_are_expanded(tmp_path, line):
    assert parse(line, folder=tmp_path).export == (f"{tmp_path}/x.json",)


@pytest.mark.parametrize("line", ["--help", "-h", "--hz 99 -h --export nowhere/x.json"])
def test_help_is_an_answer_of_its_own(line):
    with pytest.raises(options.HelpAsked) as asked:
        parse(line)
    assert str(asked.value).startswith("%pystack [")
    assert "--export PATH" in str(asked.value)
    assert "samples per second of a thread's cpu time" in " ".join(str(asked.value).lower().split())


def test_a_slash_at_the_end_of_a_path_is_kept(tmp_path):
    assert parse(f"--export {tmp_path}/run.csv/").export == (f"{tmp_path}/run.csv/",)


def test_help_shows_every_option():
    for option in ("--mode", "--hz", "-o NAME", "--export PATH", "--quiet"):
        assert option in pystack.__doc__


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("f(x)", ("", "f(x)")),
        ("  f(  'a  b' )", ("", "f(  'a  b' )")),
        ("--hz 99 -o r f(-x, --y)", ("--hz 99 -o r", "f(-x, --y)")),
        ("--quiet --hz=99 g -o 3", ("--quiet --hz=99", "g -o 3")),
        ("--quiet -- -x", ("--quiet", "-x")),
        ("-1 + 2", ("", "-1 + 2")),
        ("--nonsense f()", ("--nonsense", "f()")),
        ('--export "a b.json" f()', ('--export "a b.json"', "f()")),
        ("", ("", "")),
    ],
)
def test_a_line_is_split_where_its_statement_begins(line, parts):
    assert options.split_statement(line) == parts


WRONG = {
    "depth": (0, -1, 1.5, True, "3", 2**31, 2**32, 2**32 + 1),
    "max_events": (0, -1, 1.5, True, 2**63, 2**64, 2**64 + 4),
    "min_us": (-1, float("inf"), float("nan"), 1e30, True, "3", 10**30),
    "budget": (0, 1.1, float("nan"), True, "0.5"),
    "include": ("opts*", ["opts*"], (3,), ("a\udc80",), ("",), ("a\0b",), None),
    "only_in": (5, "", ("a.py",)),
    "uncounted": ("opts*", ("",)),
    "library": ("opts*", ("",)),
    "foreign": (("x",), [1], (0,), (2**32,), (True,), None),
    "exclude": ("opts*", ["opts*"], (3,), ("a\udc80",), ("",), ("a\0b",), None),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_what_can_not_be_asked_of_calls_is_refused_with_a_way_on(name, value):
    with pytest.raises(OptionError, match=r"(give|choose) "):
        CallOptions(**{name: value})


@pytest.mark.parametrize(
    "line",
    [
        "--depth 4294967296",
        "--depth 4294967297",
        "--max-events 18446744073709551616",
        "--max-events 18446744073709551620",
        "--min-us inf",
        "--min-us nan",
        "--min-us 1e30",
    ],
)
def test_numbers_that_can_not_be_are_refused_by_the_magic_too(line):
    with pytest.raises(OptionError, match="give "):
        parse(line)


def test_the_largest_numbers_are_taken():
    options = CallOptions(depth=2**31 - 1, max_events=2**63 - 1, min_us=86_400e6, budget=1)
    assert options.depth == 2**31 - 1


@pytest.mark.parametrize(
    ("include", "exclude"),
    [
        ((), ("*",)),
        ((), ("**",)),
        (("opts*",), ("*",)),
        (("opts*",), ("opts*",)),
        (("opts.py", "opts_more.py"), ("x", "opts*")),
        (("a", "b"), ("b",)),
    ],
)
def test_filters_that_leave_nothing_are_refused(include, exclude):
    with pytest.raises(OptionError, match="take it out"):
        CallOptions(include=include, exclude=exclude)


def test_filters_that_leave_something_are_taken():
    assert CallOptions(include=("opts*", "more.py"), exclude=("opts_*", "*/opts.py"))


@pytest.mark.parametrize(
    "option",
    [
        "--depth 1",
        "--min-us 0",
        "--max-events 5",
        "--budget 0.5",
        "--c-calls",
        "--include a",
        "--exclude a",
    ],
)
def test_what_is_about_calls_is_refused_where_none_are_recorded(option):
    with pytest.raises(OptionError, match="about calls"):
        parse(f"--mode sample {option}")


@pytest.mark.parametrize(
    ("include", "exclude"),
    [
        (("*/work*",), ("*/work?",)),
        (("numpy*",), ("numpy[.]*",)),
        (("*",), ("[!_]*",)),
        (("*",), ("?",)),
        (("a*",), ("[!b]*",)),
        (("[ab]*",), ("*]*",)),
    ],
)
def test_globs_that_leave_something_are_no_contradiction(include, exclude):
    assert CallOptions(include=include, exclude=exclude).exclude == exclude


@pytest.mark.parametrize("include", ["a?c*", "a[bx]c", "abc", "ac*"])
def test_a_glob_that_covers_another_one_leaves_nothing(include):
    with pytest.raises(OptionError, match="nothing is left"):
        CallOptions(include=(include,), exclude=("a*c*",))
