"""The command line: ``pystack-nb``."""

from __future__ import annotations

import argparse
import os
import shlex
import sys

from typing import TYPE_CHECKING, Any, NoReturn

from pystack_nb.conversion import refuse_trace
from pystack_nb.errors import PystackError
from pystack_nb.rate import DEFAULT_HZ, parse_rate


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - its only name

_FORMATS = (
    ".json, .pftrace (Perfetto), or no suffix for a folder of Parquet files, whose name may also "
    "end as in v3.12.1, or in /"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments
        Without the program's name; None: those of this process.

    Returns
    -------
    int
        The exit status: 0; 1 after an error, which is one line on standard error; 2 after a
        mistake in the arguments; for `record` of a program, that program's own.
    """
    options = _parse(sys.argv[1:] if arguments is None else list(arguments))
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        status = run(options)
        sys.stdout.flush()
    except PystackError as error:
        print("pystack-nb:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    except BrokenPipeError:
        # `pystack-nb report X | head`; Python itself would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pystack-nb",
        description="Record Python programs under eBPF probes, and look at recordings.",
    )
    parser.add_argument("--version", action=_Version, help="say the version and end")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_record(commands)
    _add_convert(commands)
    _add_report(commands)
    _add_doctor(commands)
    _add_collector(commands)
    # What stands behind -- is a program's, down to its own options.
    command = None
    if "--" in arguments:
        end = arguments.index("--")
        arguments, command = arguments[:end], arguments[end + 1 :]
    options, strays = parser.parse_known_args(arguments)
    if command is not None and options.run is not _record:
        parser.error("only record takes a program behind --")
    if strays:
        parser.error(f"unrecognized arguments: {shlex.join(strays)}{_hint(options, command)}")
    if options.run is _record:
        _check_record(parser, options, command)
    return options


class _Version(argparse.Action):
    """Look the version up only when it is asked for, which takes a while."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from pystack_nb import __version__  # noqa: PLC0415 - as above

        print(f"pystack-nb {__version__}")
        parser.exit()


def _hint(options: argparse.Namespace, command: list[str] | None) -> str:
    if options.run is _record and command is None and options.pid is None:
        return "; a program stands behind --, as in `pystack-nb record -- python program.py`"
    return ""


def _add_record(commands: Commands) -> None:
    parser = commands.add_parser(
        "record",
        help="record a process, or a program from its start to its end",
        usage="pystack-nb record [--mode MODE] [--hz N] [-o PATH] "
        "(-p PID [--seconds S] | -- PROGRAM ARG...)",
        description="Ctrl-C ends the recording and keeps it. A summary goes to standard error.",
    )
    parser.add_argument(
        "--mode", default="sample", help="what to look at, with commas between (default: sample)"
    )
    parser.add_argument(
        "--hz",
        type=parse_rate,
        default=DEFAULT_HZ,
        metavar="N",
        help=f"samples per second of a thread's CPU time (default: {DEFAULT_HZ})",
    )
    parser.add_argument(
        "-o",
        dest="output",
        metavar="PATH",
        help=f"write the recording: {_FORMATS}",
    )
    parser.add_argument("-p", dest="pid", type=int, metavar="PID", help="record this process")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="for so long (default: until it ends)"
    )
    parser.set_defaults(run=_record)


def _check_record(
    parser: argparse.ArgumentParser, options: argparse.Namespace, command: list[str] | None
) -> None:
    options.command = command or []
    if (options.pid is None) == (not options.command):
        parser.error("record needs either -p PID or -- PROGRAM")
    if options.seconds is not None and options.pid is None:
        parser.error("--seconds goes with -p PID; a program is recorded to its end")


def _record(options: argparse.Namespace) -> int:
    from pystack_nb import record  # noqa: PLC0415 - pandas: --help must not wait for it

    request = record.Request(options.mode, options.hz, options.output)
    if options.pid is not None:
        return record.record_process(request, options.pid, options.seconds)
    return record.record_program(request, options.command)


def _add_convert(commands: Commands) -> None:
    parser = commands.add_parser(
        "convert",
        help="write a recording in another format",
        description="IN is a folder of Parquet files or a .json file (a Perfetto trace can't be "
        f"read back). The suffix of OUT says the format: {_FORMATS}.",
    )
    parser.add_argument("source", metavar="IN")
    parser.add_argument("target", metavar="OUT")
    parser.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> int:
    from pystack_nb.recording import load  # noqa: PLC0415 - pandas: --help must not wait for it
    from pystack_nb.util import check_export_path  # noqa: PLC0415

    refuse_trace(options.source)
    check_export_path(options.target)
    load(options.source).export(options.target)
    return 0


def _add_report(commands: Commands) -> None:
    parser = commands.add_parser("report", help="print what is in a recording")
    parser.add_argument("source", metavar="IN", help="a folder or a .json file")
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from pystack_nb.recording import load  # noqa: PLC0415 - pandas: --help must not wait for it
    from pystack_nb.views.text import summary  # noqa: PLC0415

    refuse_trace(options.source)
    print(summary(load(options.source)))
    return 0


def _add_doctor(commands: Commands) -> None:
    parser = commands.add_parser(
        "doctor",
        help="say what this machine has and lacks, and what mends it",
        description="The exit status is 1 if the default mode can't run.",
    )
    parser.set_defaults(run=_doctor)


def _doctor(_: argparse.Namespace) -> int:
    from pystack_nb.doctor import main as examine  # noqa: PLC0415 - starts a collector

    return examine()


def _add_collector(commands: Commands) -> None:
    parser = commands.add_parser(
        "collector", help="install, remove, run or ask the service for users who are not root"
    )
    verbs = parser.add_subparsers(required=True, metavar="COMMAND", dest="verb")
    verbs.add_parser("run", help="run the installed service in the foreground")
    verbs.add_parser("install", help="install it, for root alone to change")
    verbs.add_parser("uninstall", help="remove it")
    verbs.add_parser(
        "status",
        help="say whether it is installed and answers",
        description="The exit status is 1 if no service answers.",
    )
    parser.set_defaults(run=_collector)


def _collector(options: argparse.Namespace) -> int:
    from pystack_nb.collector import install  # noqa: PLC0415 - only this command needs it

    if options.verb == "run":
        return install.run()
    if options.verb == "status":
        lines, answers = install.status()
    else:
        act = {"install": install.install, "uninstall": install.uninstall}
        lines, answers = act[options.verb](), True
    for line in lines:
        print(line)
    return 0 if answers else 1


if __name__ == "__main__":
    sys.exit(main())
