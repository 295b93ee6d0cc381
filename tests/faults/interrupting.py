"""Ctrl-C at each line of the faults' code, one run for each."""

from __future__ import annotations

import dis
import itertools
import sys

from contextlib import contextmanager
from pathlib import Path

from pystack_nb import faults


FOLDER = str(Path(faults.__file__).parent)


class _Line:
    """The line before which a KeyboardInterrupt comes, counted from 1."""

    def __init__(self, number, files):
        self.left, self.files, self.place = number, files, None

    def calls(self, frame, *_):
        name = frame.f_code.co_filename
        wanted = name.startswith(FOLDER) and (not self.files or Path(name).name in self.files)
        return self.lines if wanted else None

    def lines(self, frame, event, _):
        if event == "line" and not _leaves_with(frame):
            self.left -= 1
            if not self.left:
                self.place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self.lines


def _leaves_with(frame):
    """Tell whether a with is about to call its __exit__.

    Where its line is told for the second time, the interpreter looks for no signal: a lock that
    was taken is always given back.
    """
    code, at = frame.f_code, frame.f_lasti
    if code not in _exits:
        names = [(x.opname, x.offset) for x in dis.get_instructions(code)]
        _exits[code] = {
            offset
            for n, (name, offset) in enumerate(names)
            if [x for x, _ in names[n + (name == "SWAP") :][:4]] in _EXITS
            or [x for x, _ in names[n : n + 2]] == ["PUSH_EXC_INFO", "WITH_EXCEPT_START"]
        }
    return at in _exits[code]


_NONE = ["LOAD_CONST"] * 3
_EXITS = [[*_NONE, "PRECALL"], [*_NONE, "CALL"]]
_exits = {}


@contextmanager
def interrupted(number, *files):
    """Raise a KeyboardInterrupt before a line of some files, or of all those of faults.

    What is given has the ``place`` where it was raised, None if there are fewer lines.
    """
    line, before = _Line(number, files), sys.gettrace()
    sys.settrace(line.calls)
    try:
        yield line
    finally:
        sys.settrace(before)


def interrupted_everywhere(run, check, *files, step=1):
    """Run something with an interrupt at each line (or each so many), until one comes too late.

    Parameters
    ----------
    run : callable
        What is run; it may catch the interrupt, or let it pass.
    check : callable
        Called after each run with the place of the interrupt, to see that all is as it was.

    Returns
    -------
    int
        How many interrupts there were.
    """
    for number in itertools.count(1, step):
        place = None
        try:
            with interrupted(number, *files) as line:
                run()
        except KeyboardInterrupt:
            pass
        place = line.place
        check(place)
        if place is None:
            return number - 1
    raise AssertionError
