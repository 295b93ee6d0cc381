"""The command line's arguments, formats and errors; what needs probes is in tests/bpf."""

from __future__ import annotations

import os
import subprocess
import sys

from pathlib import Path

import pandas as pd
import pytest

import pystack_nb

from pystack_nb import cli, load
from pystack_nb.collector import install
from pystack_nb.recording import from_traces


FRAME = {"kind": "python", "function": "spin", "filename": "spin.py", "line_number": 3}
TRACE = {"timestamp": 1_000, "pid": 7, "tid": 7, **FRAME, "stack": [FRAME]}
del TRACE["kind"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "saved.json"
    from_traces([TRACE, TRACE | {"timestamp": 2_000}]).to_json(path)
    return path


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that an error leaves on standard error."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pystack-nb: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["record"],
        ["record", "--"],
        ["record", "-p", "1", "--", "true"],
        ["record", "--seconds", "1", "--", "true"],
        ["record", "-p", "one"],
        ["record", "--hz", "often", "--", "true"],
        ["record", "--hz", "0.5", "--", "true"],
        ["record", "--hz", "inf", "--", "true"],
        ["record", "true"],
        ["convert", "in"],
        ["convert", "in", "out", "--", "true"],
        ["report"],
        ["collector"],
        ["collector", "dance"],
        ["--hz", "3"],
    ],
)
def test_a_mistake_in_the_arguments_ends_with_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: pystack-nb" in capsys.readouterr().err


def test_what_stands_behind_the_dashes_is_the_programs_alone() -> None:
    options = cli._parse(["record", "--hz", "99", "--", "prog", "--hz", "3", "--", "-p", "x"])
    assert options.command == ["prog", "--hz", "3", "--", "-p", "x"]
    assert (options.hz, options.pid) == (99, None)


@pytest.mark.parametrize(
    "arguments",
    [["python", "prog.py"], ["-o", "x", "python", "prog.py"], ["python", "-m", "prog", "--deep"]],
)
def test_a_program_without_the_dashes_is_told_about_them(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["record", *arguments])
    assert ended.value.code == 2
    assert "stands behind --, as in `pystack-nb record -- python" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["report", "in", "--deep"], ["record", "--deep", "-p", "1"]])
def test_a_mistake_that_is_no_program_is_not_told_about_the_dashes(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert capsys.readouterr().err.endswith("unrecognized arguments: --deep\n")


@pytest.mark.parametrize("module", ["pystack_nb", "pystack_nb.cli"])
def test_the_version_is_said_by_either_name_of_the_command(module: str) -> None:
    command = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"pystack-nb {pystack_nb.__version__}\n"


@pytest.mark.parametrize("name", ["out.json", "out.pftrace", "out", "v3.12.1"])
def test_convert_writes_the_format_of_the_suffix(saved: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    assert cli.main(["convert", str(saved), str(target)]) == 0
    if target.suffix == ".pftrace":
        assert target.read_bytes()[:1] == b"\x0a"
    else:
        pd.testing.assert_frame_equal(load(target).samples, load(saved).samples)


def test_report_prints_the_functions_that_took_the_time(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(saved)]) == 0
    assert "spin" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["report"], ["convert"]])
def test_what_is_no_recording_is_said_so_in_one_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "rubbish.json"
    source.write_text("{")
    target = [str(tmp_path / "out.json")] if command == ["convert"] else []
    assert cli.main([*command, str(source), *target]) == 1
    assert "rubbish.json" in error_of(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["rubbish.json"]


@pytest.mark.parametrize("command", [["report"], ["convert"]])
def test_a_perfetto_trace_is_said_to_be_no_input(
    command: list[str], saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "out.pftrace", tmp_path / "again.json"
    load(saved).to_perfetto(source)
    assert (
        cli.main([*command, str(source), *([str(target)] if command == ["convert"] else [])]) == 1
    )
    assert "can't be read back" in error_of(capsys)
    assert not target.exists()


@pytest.mark.parametrize("name", ["out.xlsx", "missing/out.json"])
def test_a_place_that_cannot_be_written_is_an_error(
    saved: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", str(saved), str(tmp_path / name)]) == 1
    assert name in error_of(capsys)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--hz", "0"], "0 is no sampling rate"),
        (["--mode", "psychic"], "no mode 'psychic'"),
        (["-o", "out.xlsx"], "out.xlsx"),
        (["-o", "missing/out.json"], "missing/out.json"),
    ],
)
def test_a_program_is_not_run_when_it_cannot_be_recorded_as_asked(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["record", *arguments, "--", "touch", "it-ran"]) == 1
    assert said in error_of(capsys)
    assert not Path("it-ran").exists()


def test_a_program_that_does_not_exist_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["record", "--", "no-such-program", "-x"]) == 1
    assert "no-such-program" in error_of(capsys)


def test_a_file_that_can_t_be_executed_is_said_so_with_both_ways_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "prog.py"
    program.touch()
    assert cli.main(["record", "--", str(program), "-x"]) == 1
    said = error_of(capsys)
    assert f"{program} can't be executed" in said
    assert f"`python {program} -x`" in said
    assert f"`chmod +x {program}`" in said


@pytest.mark.parametrize("pid", ["0", "-5", "4194305", "99999999999999999999"])
def test_a_process_that_does_not_exist_is_an_error(
    pid: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["record", "-p", pid]) == 1
    assert f"no process {pid}" in error_of(capsys)


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_a_stretch_of_no_time_is_an_error(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["record", "-p", "1", f"--seconds={seconds}"]) == 1
    assert "--seconds" in error_of(capsys)


@pytest.mark.parametrize("verb", ["install", "uninstall"])
def test_what_is_done_about_the_service_is_printed(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install, verb, lambda: [f"{verb}: one", "two"])
    assert cli.main(["collector", verb]) == 0
    assert capsys.readouterr().out == f"{verb}: one\ntwo\n"


@pytest.mark.parametrize(("answers", "status"), [(True, 0), (False, 1)])
def test_the_status_of_the_service_is_an_exit_status_too(
    answers: bool,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(install, "status", lambda: (["one", "two"], answers))
    assert cli.main(["collector", "status"]) == status
    assert capsys.readouterr().out == "one\ntwo\n"


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_service_its_status_says_so_and_blames_no_variable(
    value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv("PYSTACK_NB_SOCKET", raising=False)
    else:
        monkeypatch.setenv("PYSTACK_NB_SOCKET", value)
    lines, answers = install.status(tmp_path / "prefix", tmp_path / "nobody.sock")
    assert not answers
    assert lines[0] == "not installed"
    assert f"no collector listens on {tmp_path / 'nobody.sock'}" in lines[1]
    assert "unset PYSTACK_NB_SOCKET" not in lines[1]


def test_the_rate_is_described_as_one_of_a_threads_cpu_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["record", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--hz N samples per second of a thread's CPU time (default: 499)" in said


def test_collector_run_ends_as_the_service_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "run", lambda: 5)
    assert cli.main(["collector", "run"]) == 5


def test_every_command_of_the_help_has_a_help_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command in ("record", "convert", "report", "doctor", "collector"):
        with pytest.raises(SystemExit) as ended:
            cli.main([command, "--help"])
        assert ended.value.code == 0
        assert command in capsys.readouterr().out


def test_a_reader_who_leaves_early_gets_no_traceback(saved: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "pystack_nb.cli", "report", saved],
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")
