"""The options of ``%%pystack`` and ``%pystack``."""

from __future__ import annotations

import keyword
import os
import re

from dataclasses import dataclass, field
from inspect import cleandoc
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from IPython.utils.text import DollarFormatter

from pystack_nb.errors import OptionError
from pystack_nb.probe import MAX_EVENTS, SOURCES, CallOptions
from pystack_nb.rate import DEFAULT_HZ, parse_rate


if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Mapping

_TOKEN = re.compile(r"""(?:"[^"]*"|'[^']*'|[^\s"'])+""")
_WITH_VALUE = (
    "--mode",
    "--source",
    "--hz",
    "--include",
    "--exclude",
    "--depth",
    "--min-us",
    "--max-events",
    "--budget",
    "-o",
    "--export",
)
_OF_CALLS = ("include", "exclude", "depth", "min_us", "c_calls", "max_events", "budget")
_DEFAULT_BUDGET = 0.5  # of the cell's time, for calls that nobody asked for by name


class HelpAsked(Exception):  # noqa: N818 - an answer, no error
    """The line asks for the help, which is the message; nothing is to be run."""


@dataclass(frozen=True)
class Options:
    """What the line of the magic asks for.

    Attributes
    ----------
    mode : str or None
        Ways of looking, with commas between them; None: all that the source has.
    source : str
        Where events come from.
    hz : int
        Samples per second of a thread's CPU time.
    calls : CallOptions
        What is recorded of calls.
    output : str or None
        Name in the user's namespace that gets the recording.
    export : tuple of str
        Paths that it is written to.
    quiet : bool
        Whether nothing is displayed.
    """

    mode: str | None = None
    source: str = "ebpf"
    hz: int = DEFAULT_HZ
    calls: CallOptions = field(default_factory=lambda: CallOptions(budget=_DEFAULT_BUDGET))
    output: str | None = None
    export: tuple[str, ...] = ()
    quiet: bool = False


def with_arguments(magic: Callable[..., Any]) -> Callable[..., Any]:
    """Declare the options on the function of a magic; its help shows them, then."""
    for decorate in (
        argument("--quiet", action="store_true", help="Display nothing."),
        argument(
            "--export",
            metavar="PATH",
            action="append",
            default=[],
            help="Write the recording to PATH too; may be given more than once. The suffix says "
            "how: .json, .pftrace (Perfetto), or none for a folder of Parquet files, whose name "
            "may also end as in v3.12.1, or in /.",
        ),
        argument("-o", metavar="NAME", dest="output", help="Keep the Recording as NAME."),
        argument(
            "--hz",
            metavar="N",
            type=parse_rate,
            default=DEFAULT_HZ,
            help=f"Samples per second of a thread's CPU time (default: {DEFAULT_HZ}).",
        ),
        argument(
            "--budget",
            metavar="FRACTION",
            type=float,
            help="What recording calls may cost, as a fraction of the cell's time: functions that "
            "cost more are counted only, and named. Default: none with --mode calls, else "
            f"{_DEFAULT_BUDGET}.",
        ),
        argument(
            "--max-events",
            metavar="N",
            type=int,
            help=f"Record no more calls after N events, two to a call (default: {MAX_EVENTS:,}).",
        ),
        argument("--c-calls", action="store_true", help="Record calls of C functions, too."),
        argument(
            "--min-us",
            metavar="N",
            type=float,
            help="Only count calls that are shorter than N microseconds.",
        ),
        argument(
            "--depth",
            metavar="N",
            type=int,
            help="Record no calls that are deeper than N recorded ones.",
        ),
        argument(
            "--exclude",
            metavar="GLOB",
            action="append",
            default=[],
            help="Record no calls of functions whose file or module is like GLOB.",
        ),
        argument(
            "--include",
            metavar="GLOB",
            action="append",
            default=[],
            help="Record only calls of functions whose file or module is like GLOB; may be given "
            "more than once.",
        ),
        argument(
            "--source",
            choices=SOURCES,
            default="ebpf",
            help="inprocess: calls alone, without eBPF and what the kernel knows (default: ebpf).",
        ),
        argument(
            "--mode",
            help="What to look at, with commas between: sample (where time goes), calls (every "
            "Python call). Default: both.",
        ),
        argument("-h", "--help", action="store_true", help="Show this, and run nothing."),
        # Decorators apply from the inside, so the first option of the help stands last.
        magic_arguments(),
    ):
        magic = decorate(magic)
    return magic


def parse(magic: Callable[..., Any], line: str, names: Mapping[str, Any]) -> Options:
    """Parse the options of a magic.

    Parameters
    ----------
    magic : callable
        Decorated by `with_arguments`.
    line : str
        The options alone.  ``{x}`` and ``$x`` are replaced as on the line of any magic.
    names : mapping
        The user's namespace, for these.

    Raises
    ------
    HelpAsked
        If ``--help`` or ``-h`` is among them.
    OptionError
        If an option is unknown or has a value that makes no sense.
    ExportPathError
        If a path of ``--export`` can't be written.
    """
    try:
        given = parse_argstring(magic, _expand(line, names))
    except (UsageError, ValueError) as error:
        reason = str(error).removesuffix(".")
        raise OptionError(f"{reason}; see %%pystack? for the options") from error
    if given.help:
        raise HelpAsked(cleandoc(magic.__doc__ or "").removeprefix("::").strip())
    if given.output is not None and (
        not given.output.isidentifier() or keyword.iskeyword(given.output)
    ):
        raise OptionError(f"-o {given.output}: this is no name; give the name of a variable")
    # Not by pathlib, which drops the / at the end of a folder's name.
    paths = tuple(os.path.expanduser(_unquoted(path)) for path in given.export)  # noqa: PTH111
    if paths:
        from pystack_nb.util import check_export_path  # noqa: PLC0415 - imports NumPy

        for path in paths:
            check_export_path(path)
    _check_together(given)
    return Options(
        given.mode, given.source, given.hz, _calls(given), given.output, paths, given.quiet
    )


def _check_together(given: Namespace) -> None:
    looks_at = set() if given.mode is None else {x.strip() for x in given.mode.split(",")}
    if looks_at == {"sample"}:
        chosen = [name for name in _OF_CALLS if _is_given(getattr(given, name))]
        if chosen:
            raise OptionError(
                f"--{chosen[0].replace('_', '-')} is about calls, which --mode sample does not "
                "record: leave one of them out."
            )


def _is_given(value: object) -> bool:
    return not (value is None or value is False or value == [])


def _calls(given: Namespace) -> CallOptions:
    by_default = _DEFAULT_BUDGET if given.mode is None and given.source == "ebpf" else None
    return CallOptions(
        include=tuple(_unquoted(glob) for glob in given.include),
        exclude=tuple(_unquoted(glob) for glob in given.exclude),
        depth=given.depth,
        min_us=0.0 if given.min_us is None else given.min_us,
        c_calls=given.c_calls,
        max_events=MAX_EVENTS if given.max_events is None else given.max_events,
        budget=by_default if given.budget is None else given.budget,
    )


def split_statement(line: str) -> tuple[str, str]:
    """Split the line of ``%pystack`` into its options and the statement behind them.

    Options end at the first word that is none, or behind ``--``.
    """
    end = 0
    words = iter(_TOKEN.finditer(line))
    for word in words:
        text = word.group()
        if text == "--":
            return line[:end], line[word.end() :].strip()
        if not re.match(r"--?[a-zA-Z]", text):
            break
        end = word.end()
        if text in _WITH_VALUE and (value := next(words, None)):
            end = value.end()
    return line[:end], line[end:].strip()


def _expand(line: str, names: Mapping[str, Any]) -> str:
    try:
        return str(DollarFormatter().vformat(line, (), names))
    except Exception:  # noqa: BLE001 - IPython's own rule: what can't be expanded stays as it is
        return line


def _unquoted(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text
