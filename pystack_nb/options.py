"""The options of ``%%pystack`` and ``%pystack``."""

from __future__ import annotations

import keyword
import re

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from IPython.utils.text import DollarFormatter

from pystack_nb.errors import OptionError
from pystack_nb.rate import DEFAULT_HZ, parse_rate


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_TOKEN = re.compile(r"""(?:"[^"]*"|'[^']*'|[^\s"'])+""")
_WITH_VALUE = ("--mode", "--hz", "-o", "--export")


@dataclass(frozen=True)
class Options:
    """What the line of the magic asks for.

    Attributes
    ----------
    mode : str
        Ways of looking, with commas between them.
    hz : int
        Samples a second on each processor.
    output : str or None
        Name in the user's namespace that gets the recording.
    export : tuple of str
        Paths that it is written to.
    quiet : bool
        Whether nothing is displayed.
    """

    mode: str = "sample"
    hz: int = DEFAULT_HZ
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
            "how: .json, .pftrace (Perfetto), or none for a folder of Parquet files.",
        ),
        argument("-o", metavar="NAME", dest="output", help="Keep the Recording as NAME."),
        argument(
            "--hz",
            metavar="N",
            type=parse_rate,
            default=DEFAULT_HZ,
            help=f"Samples a second on each processor (default: {DEFAULT_HZ}).",
        ),
        argument(
            "--mode",
            default="sample",
            help="What to look at, with commas between (default: sample).",
        ),
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
    if given.output is not None and (
        not given.output.isidentifier() or keyword.iskeyword(given.output)
    ):
        raise OptionError(f"-o {given.output}: this is no name; give the name of a variable")
    paths = tuple(str(Path(_unquoted(path)).expanduser()) for path in given.export)
    if paths:
        from pystack_nb.util import check_export_path  # noqa: PLC0415 - imports NumPy

        for path in paths:
            check_export_path(path)
    return Options(given.mode, given.hz, given.output, paths, given.quiet)


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
