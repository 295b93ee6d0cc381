"""One run of the magic: probes on, probes off, and what becomes of the recording."""

from __future__ import annotations

import glob
import linecache
import os
import re
import signal
import sys
import threading
import time
import traceback

from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.display import display

from pystack_nb.call_facts import tell_unwanted
from pystack_nb.errors import OptionError, ProfilerStateError, PystackError
from pystack_nb.machinery import GENERATED, Machinery
from pystack_nb.quiet import quietly


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from IPython.core.interactiveshell import InteractiveShell

    from pystack_nb.options import Options
    from pystack_nb.probe import CallOptions
    from pystack_nb.recording import Recording

# What runs a cell.  These call code that is not theirs, or are, as the time zones of Jupyter's
# messages are, the cell's own where that calls them ...
_CARRIERS = (
    "asyncio",
    "dateutil",
    "tornado",
    "threading",
    "nest_asyncio",
    "nest_asyncio2",
    "IPython.core.events",
)
# ... and these only their own.
_OTHERS = (
    "IPython",
    "debugpy",
    "ipykernel",
    "jupyter_client",
    "pystack_nb",
    "selectors",
    "traitlets",
    "zmq",
)
# What a cell's code goes through on its way to code that is the user's, too.
_INSIDE = ("IPython", "ipykernel", "pystack_nb", "traitlets")
_SHELL = ("IPython.core.interactiveshell",)
_WAITS = ("selectors",)
# What shows a cell's value, and what of that calls the value's own functions.
_DISPLAY = ("IPython.core.displayhook",)
_RENDERERS = ("IPython.core.formatters", "IPython.lib.pretty")

_CELL_NAME = re.compile(r"In\[(\d+|\*)\]")

# How the kernel's own program was started; asked now, since cells may change sys.argv.
_STARTERS = ("<frozen runpy>", *(path for path in sys.argv[:1] if path))


class CellRecording:
    """A recording of one cell or statement.

    Parameters
    ----------
    shell : InteractiveShell
        Where the cell runs.
    options : Options
        From the magic's line.
    filename : str
        What the cell's code was compiled under.
    """

    @quietly
    def __init__(self, shell: InteractiveShell, options: Options, filename: str) -> None:
        # NumPy and pandas come only when the probes are off: a cell that imports them is
        # recorded doing so, and may set before what they read then, such as OMP_NUM_THREADS.
        from pystack_nb import core  # noqa: PLC0415 - loading the extension need not wait for it

        self._shell = shell
        self._options = options
        self._core = core
        self._filename = filename
        self._stacks = dict(_stacks())
        self._profiler = core.PyStackProfiler(
            mode=_mode(options),
            hz=options.hz,
            source=options.source,
            calls=self._inside(options.calls),
        )
        self._cell: dict[str, Any] = {}

    @quietly
    def start(self) -> None:
        """Switch the probes on.

        Raises
        ------
        PystackError
            If the probes can't be attached; nothing is recorded then.
        """
        try:
            with _interrupts_held():
                self._profiler.start_profiling()
        except KeyboardInterrupt:
            with suppress(ProfilerStateError):  # it may not have come to that
                self._profiler.stop_profiling()
            raise
        self._cell = {
            "pid": os.getpid(),
            "tid": threading.get_native_id(),
            "filename": self._filename,
            "start_ns": time.perf_counter_ns(),
        }

    def end(self) -> None:
        """Say that the code has ended; the first time counts."""
        self._cell.setdefault("end_ns", time.perf_counter_ns())

    @quietly
    def finish(self) -> None:
        """Switch the probes off, keep the recording, export and display it.

        What goes wrong here is shown, and not raised: the cell's own outcome stands.
        """
        self.end()
        if os.getpid() != self._cell["pid"]:
            return  # a forked copy of the kernel ran on to the end of the cell
        recording = None
        with _errors_shown():
            recording = self._stop()
        if recording is None:
            return
        with _errors_shown():
            recording = self._trimmed(recording)
        self._core.remember(recording)
        if self._options.output is not None:
            self._shell.user_ns[self._options.output] = recording
        if not self._options.quiet:
            with _errors_shown():
                # Made here: IPython would put an error in making it in place of the cell's own.
                display(recording._repr_mimebundle_(), raw=True)
        for path in self._options.export:
            with _errors_shown():
                recording.export(path)

    def _stop(self) -> Recording | None:
        try:
            with _interrupts_held():
                self._profiler.stop_profiling()
        except (PystackError, KeyboardInterrupt):
            # What was recorded up to the failure is kept, and the failure shown.
            _show_error()
        return self._profiler.recording

    def _inside(self, calls: CallOptions) -> CallOptions:
        """Record and count from the cell's own code on, and nothing of what runs it."""
        places = (*_places(_CARRIERS), *_places(_OTHERS), *_STARTERS)
        machinery = _machinery()
        belongs = machinery.runs_users_code
        # Slices tell the trimming who called them; counts are told apart while they are made.
        serving = _places(x for x in _OTHERS if x not in {*_INSIDE, *_WAITS})
        library = (*machinery.library, GENERATED)
        return replace(
            calls,
            include=self._files(calls.include),
            exclude=self._files(calls.exclude),
            outside=tuple(f"{glob.escape(x)}*" for x in places),
            uncounted=tuple(f"{glob.escape(x)}*" for x in machinery.inside),
            serving=tuple(f"{glob.escape(x)}*" for x in serving),
            library=tuple(f"{glob.escape(x)}*" for x in library),
            only_in=self._filename,
            foreign=tuple(tid for tid, files in self._stacks.items() if not belongs(files)),
        )

    def _files(self, globs: tuple[str, ...]) -> tuple[str, ...]:
        """Put the files of cells in place of names such as ``In[5]`` that tables show for them."""
        labels = {file: self._shell.compile.format_code_name(file) for file in linecache.cache}
        files = {file: label[-1] for file, label in labels.items() if label}
        found = []
        for glob_ in globs:
            if not _CELL_NAME.fullmatch(glob_):
                found.append(glob_)
                continue
            every = glob_ == "In[*]"
            cells = [glob.escape(file) for file, name in files.items() if every or name == glob_]
            if not cells:
                raise OptionError(
                    f"there is no code of {glob_} any more, or not yet: run that cell, or name the "
                    "newest run of it."
                )
            found += cells
        return tuple(found)

    def _trimmed(self, recording: Recording) -> Recording:
        from pystack_nb.trim import trim  # noqa: PLC0415 - imports pandas

        tables = (recording.frames, recording.calls, recording.counts)
        files = {file for table in tables for file in table["filename"].cat.categories}
        labels = {file: self._shell.compile.format_code_name(file) for file in files}
        names = {file: label[-1] for file, label in labels.items() if label}
        trimmed = trim(recording, _machinery(), self._cell, names, self._stacks)
        if "calls" in str(trimmed.info["mode"]).split(","):
            tell_unwanted(trimmed, self._options.calls)
        return trimmed


def _mode(options: Options) -> str:
    if options.mode is not None:
        return options.mode
    return "calls" if options.source == "inprocess" else "sample,calls"


def _machinery() -> Machinery:
    return Machinery(
        carriers=tuple(_places(_CARRIERS)),
        others=(*_places(_OTHERS), *_STARTERS),
        inside=tuple(_places(_INSIDE)),
        threads=("ZMQbg/",),
        display=tuple(_places(_DISPLAY)),
        renderers=tuple(_places(_RENDERERS)),
        library=(f"{Path(os.__file__).parent}/", "<frozen "),
        shell=tuple(_places(_SHELL)),
        waits=tuple(_places(_WAITS)),
    )


def _stacks() -> Iterator[tuple[int, list[str]]]:
    """Give the files of what each other thread is in, outermost first, by its native id."""
    frames = sys._current_frames()  # noqa: SLF001 - documented, and there is no other way
    for thread in threading.enumerate():
        if thread is threading.current_thread() or thread.native_id is None:
            continue
        files = []
        frame = frames.get(thread.ident or 0)
        while frame:
            files.append(frame.f_code.co_filename)
            frame = frame.f_back
        yield thread.native_id, files[::-1]


def _places(names: Iterable[str]) -> Iterator[str]:
    """Find the files and folders that the frames of modules are called by."""
    for name in names:
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if file:
            yield f"{Path(file).parent}/" if hasattr(module, "__path__") else file


@contextmanager
def _errors_shown() -> Iterator[None]:
    try:
        yield
    except (Exception, KeyboardInterrupt):  # noqa: BLE001 - shown beside the cell's own outcome
        _show_error()


def _show_error() -> None:
    # Not by the shell: its newest traceback is the cell's, which the frontend is still to get.
    error = sys.exception()
    if isinstance(error, PystackError):
        print(  # noqa: T201 - to the cell's own output
            f"{type(error).__name__}: {error}", file=sys.stderr
        )
    else:
        traceback.print_exc()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keep a Ctrl-C for later, so that it can't leave the probes on.

    A second one ends what hangs: it closes the connection, and with it the probes go.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []

    def hold(number: int, _: object) -> None:
        if pending:
            pending.clear()
            raise KeyboardInterrupt
        pending.append(number)

    before = signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pending:
            signal.raise_signal(signal.SIGINT)
