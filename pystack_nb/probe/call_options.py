"""What is to be recorded of the calls, and whether that makes sense."""

from __future__ import annotations

import math
import re

from dataclasses import dataclass
from fnmatch import fnmatchcase

from pystack_nb.errors import OptionError


MAX_EVENTS = 50_000_000
_DEEPEST, _MOST_EVENTS = 2**31, 2**63
_MOST_THREADS = 2**32
_WILDCARD = re.compile(r"\*|\?|\[!?\]?[^]]*\]")
_LONGEST_US = 86_400e6  # a day


@dataclass(frozen=True)
class CallOptions:
    """What is recorded of the calls.

    Attributes
    ----------
    include, exclude : tuple of str
        Globs (as `fnmatch`) of files or of modules' names. Without `include`, everything but
        what `exclude` names.
    depth : int or None
        Calls inside so many recorded ones are not recorded.
    outside : tuple of str
        Globs of files: their calls count for no depth, as long as no other call is around them.
        They are what runs the code that is looked at.
    uncounted : tuple of str
        Globs of files: their short calls are not counted, nor those of what they call in files
        of `outside`, `serving` and `library`. Calls of any other file, and from there, are.
    serving : tuple of str
        Globs of files: the same, but where such another file is around.
    library : tuple of str
        Globs of files of Python's own library; packages installed in its folder are none of it.
    only_in : str or None
        A file's name: of the thread that starts the recording, only what is called while code
        of this file runs is recorded. That of a coroutine runs until it ends. Code that ran
        already when the recording began does not count.
    foreign : tuple of int
        Native ids of threads whose short calls are not counted, as they are of what runs the
        code that is looked at.
    min_us : float
        Shorter calls have no slice, and are counted; a day at most.
    c_calls : bool
        Whether calls of C functions are recorded, too: those that are wanted by their modules'
        names (``builtins``, ``numpy``) and whose caller is recorded.
    max_events : int
        The recording of calls ends after so many events: a call has two.
    budget : float or None
        What recording may cost, as a fraction of the time recorded; None: whatever it costs.

    Raises
    ------
    OptionError
        For a value that can't be, or that leaves nothing to record.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    depth: int | None = None
    outside: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()
    serving: tuple[str, ...] = ()
    library: tuple[str, ...] = ()
    only_in: str | None = None
    foreign: tuple[int, ...] = ()
    min_us: float = 0.0
    c_calls: bool = False
    max_events: int = MAX_EVENTS
    budget: float | None = None

    def __post_init__(self) -> None:
        for name in ("include", "exclude", "outside", "uncounted", "serving", "library"):
            _check_globs(name, getattr(self, name))
        _check_threads(self.foreign)
        _check_file("only_in", self.only_in)
        if self.depth is not None:
            _check_whole("depth", self.depth, _DEEPEST)
        _check_whole("max_events", self.max_events, _MOST_EVENTS)
        if not _is_number(self.min_us) or not 0 <= self.min_us <= _LONGEST_US:
            raise OptionError(
                f"{self.min_us!r} µs is no length of a call: give a number from 0 to "
                f"{_LONGEST_US:.0f}, which is a day."
            )
        if self.budget is not None and not (_is_number(self.budget) and 0 < self.budget <= 1):
            raise OptionError(
                f"{self.budget!r} is no budget: give a fraction of the time, such as 0.2."
            )
        self._check_together()

    def _check_together(self) -> None:
        both = sorted({*self.include} & {*self.exclude})
        if both:
            raise OptionError(f"{both[0]!r} is both included and excluded: take it out of one.")
        for glob in self.exclude:
            if all(_covers(glob, wanted) for wanted in self.include or ("",)):
                what = "all that is included" if self.include else "everything"
                raise OptionError(
                    f"{glob!r} excludes {what}, and nothing is left to record: take it out, or "
                    "use --mode sample."
                )


def _covers(glob: str, other: str) -> bool:
    """Tell whether a glob surely matches whatever another one does."""
    if not _WILDCARD.search(other):
        return fnmatchcase(other, glob)
    # A wildcard stands for any text, and no character of a glob is NUL.
    return not {*glob} & {*"?["} and fnmatchcase(_WILDCARD.sub("\0", other), glob)


def _check_threads(tids: object) -> None:
    known = isinstance(tids, tuple) and all(
        isinstance(tid, int) and not isinstance(tid, bool) and 0 < tid < _MOST_THREADS
        for tid in tids
    )
    if not known:
        raise OptionError(
            f"foreign={tids!r} is no tuple of threads: give their native ids, such as "
            "foreign=(thread.native_id,)."
        )


def _check_file(name: str, file: object) -> None:
    if file is not None and not (isinstance(file, str) and file):
        raise OptionError(
            f"{name}={file!r} is no file's name: give what the code was compiled under, such as "
            "code.co_filename."
        )


def _check_globs(name: str, globs: object) -> None:
    if not isinstance(globs, tuple):
        raise OptionError(
            f"{name}={globs!r} is no tuple of globs: give one, such as {name}=('*/work.py',)."
        )
    for glob in globs:
        if not isinstance(glob, str) or not glob or "\0" in glob or not _is_unicode(glob):
            raise OptionError(
                f"{glob!r} in {name} is no glob: give the name of a file or of a module, such as "
                "'*/work.py'."
            )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_whole(name: str, number: object, bound: int) -> None:
    whole = isinstance(number, int) and not isinstance(number, bool)
    if not whole or not 1 <= number < bound:  # type: ignore[operator]
        raise OptionError(
            f"{name}={number!r} can't be: give a whole number from 1 to {bound - 1:,}."
        )


def _is_number(value: object) -> bool:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return known and (isinstance(value, int) or math.isfinite(value))  # type: ignore[arg-type]
