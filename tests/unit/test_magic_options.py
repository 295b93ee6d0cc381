from __future__ import annotations

import pytest

from pystack_nb import options
from pystack_nb.errors import ExportPathError, OptionError


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
