"""Let IPython itself run a ``%%pystack`` cell, with the probes on.

So its value, output, errors, line numbers, interrupts and top-level ``await`` are those of a
cell without the magic.  Four hooks of the shell see a cell pass, in this order:

1. the input transformer takes the line of the magic away and leaves a blank one (*armed*);
2. ``pre_run_cell`` reads the options (*ready*); it is not called for a silent execution;
3. the AST transformer switches the probes on (*running*) or, where that is refused, has the
   cell raise the reason instead of running: a callback of an event could not stop it;
4. ``post_run_cell`` switches the probes off, whatever the cell did.

Between the last two, ``showtraceback`` tells that the cell's code has ended in an error: what
IPython takes to render the traceback is not the cell's time.

All of them look only at cells on the outside: what a running cell runs in its turn, such as
``%%time`` over ``%%pystack``, goes to the registered magic.
"""

from __future__ import annotations

import ast
import sys
import threading

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from IPython.core.inputtransformer2 import (
    cell_magic,
    classic_prompt,
    ipython_prompt,
    leading_empty_lines,
    leading_indent,
)
from IPython.core.interactiveshell import InteractiveShell

from pystack_nb.cell_recording import CellRecording
from pystack_nb.errors import ProfilerStateError
from pystack_nb.options import HelpAsked


if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from IPython.core.interactiveshell import ExecutionInfo, ExecutionResult

    from pystack_nb.options import Options

_MAGIC = "%%pystack"
_RUN_CELL = InteractiveShell.run_cell_async.__code__
_RUN_CODE = InteractiveShell.run_code.__code__


@dataclass
class _Cell:
    """A cell on its way through the hooks."""

    line: str
    raw: str = ""
    options: Options | None = None
    refusal: BaseException | None = None
    recording: CellRecording | None = None


class _Local(threading.local):
    # Each thread that runs cells (ipykernel's subshells are such) has its own.
    cell: _Cell | None = None
    refusal: BaseException | None = None


_local = _Local()


class CellHooks(ast.NodeTransformer):
    """The hooks in one shell.

    Parameters
    ----------
    shell : InteractiveShell
        Where to hook in.
    parse : callable
        Turns the line of the magic into `Options`, or raises.
    """

    def __init__(self, shell: InteractiveShell, parse: Callable[[str], Options]) -> None:
        self._shell = shell
        self._parse = parse

    def install(self) -> None:
        """Add the hooks."""
        shell = self._shell
        shell.input_transformers_cleanup.append(self.take_line)
        shell.input_transformers_post.append(self.expand)
        shell.ast_transformers.append(self)
        shell.events.register("pre_run_cell", self.before)
        shell.events.register("post_run_cell", self.after)
        self._show = shell.showtraceback
        shell.showtraceback = self.show_traceback

    def remove(self) -> None:
        """Remove the hooks, and end what the cell that is running records."""
        shell = self._shell
        for hooks, hook in (
            (shell.input_transformers_cleanup, self.take_line),
            (shell.input_transformers_post, self.expand),
            (shell.ast_transformers, self),
        ):
            if hook in hooks:
                hooks.remove(hook)
        shell.events.unregister("pre_run_cell", self.before)
        shell.events.unregister("post_run_cell", self.after)
        if shell.showtraceback == self.show_traceback:  # else somebody else has replaced it
            shell.showtraceback = self._show
        cell, _local.cell = _local.cell, None
        if cell is not None and cell.recording is not None:
            cell.recording.finish()

    def take_line(self, lines: list[str]) -> list[str]:
        """Arm, if this is a ``%%pystack`` cell, and return it without the magic."""
        if _cells_running() or _is_recording():
            return lines
        _local.cell = None
        magic, _, line = lines[0].strip().partition(" ") if lines else ("", "", "")
        if magic != _MAGIC:
            return lines
        _local.cell = _Cell(line.strip())
        # The body gets what a cell gets without the magic, and its lines keep their numbers.
        body = lines[1:]
        for clean in (leading_indent, classic_prompt, ipython_prompt):
            body = clean(body)
        code = leading_empty_lines(body)
        return [*["\n"] * (len(lines) - len(code)), *cell_magic(code)]

    # A check whether a cell is complete does not call it.
    take_line.has_side_effects = True  # type: ignore[attr-defined]

    def expand(self, lines: list[str]) -> list[str]:
        """Expand a command without a % that is all of the cell, as IPython does in a first line."""
        cell = _local.cell
        if cell is None or _cells_running() or _is_recording():
            return lines
        *blank, last = lines
        if not "".join(blank).strip():
            # IPython expands commands without a % only in cells of one line.
            with self._shell.builtin_trap:
                last = self._shell.prefilter_manager.prefilter_lines(last.rstrip("\n")) + "\n"
            lines = [*blank, last]
        return lines

    def before(self, info: ExecutionInfo) -> None:
        """Read the options of an armed cell."""
        cell = _local.cell
        if cell is None or cell.recording or _cells_running() != 1:
            return
        if _MAGIC not in info.raw_cell:
            _local.cell = None  # armed by somebody who only looked at a cell's text
            return
        cell.raw = info.raw_cell
        try:
            cell.options = self._parse(cell.line)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the cell raises it
            cell.refusal = error

    def visit(self, node: ast.AST) -> ast.AST:
        """Start an armed cell, or refuse it."""
        cell = _local.cell
        if cell is None or cell.recording or _cells_running() != 1:
            return node
        try:
            cell.recording = self._started(cell)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the cell raises it
            _local.refusal, _local.cell = error, None
            return ast.parse(f"__import__({__name__!r}).cell_hooks.raise_refusal()")
        return node

    def _started(self, cell: _Cell) -> CellRecording:
        if cell.refusal is not None:
            raise cell.refusal
        if cell.options is None:
            raise ProfilerStateError(
                "a silent execution can't show a recording; run the cell as an ordinary one"
            )
        recording = CellRecording(self._shell, cell.options, _filename())
        recording.start()
        return recording

    def show_traceback(self, *arguments: Any, **options: Any) -> None:
        """Note that a cell's code has ended, and have its error shown as ever."""
        cell, caller = _local.cell, sys._getframe(1)  # noqa: SLF001 - has no other name
        if cell is not None and cell.recording is not None and caller.f_code is _RUN_CODE:
            result = caller.f_locals.get("result")
            # Else it is of a cell inside this one, or run by a task while this one awaits.
            if _cells_running() == 1 and result is not None and result.info.raw_cell == cell.raw:
                cell.recording.end()
        self._show(*arguments, **options)

    def after(self, result: ExecutionResult | None) -> None:
        """Finish the cell that ran."""
        cell = _local.cell
        if cell is None or _cells_running():
            return
        if result is not None and result.info.raw_cell != cell.raw:
            return  # run by a background task while the cell awaits something
        _local.cell = None
        if cell.recording is not None:
            cell.recording.finish()


def raise_refusal() -> None:
    """Raise why the probes are not on, or show the help; all that a refused cell runs."""
    __tracebackhide__ = True
    error, _local.refusal = _local.refusal, None
    if isinstance(error, HelpAsked):
        print(error)  # noqa: T201 - it was asked for
    elif error is not None:
        raise error


def _is_recording() -> bool:
    return _local.cell is not None and _local.cell.recording is not None


def _filename() -> str:
    """Tell what the cell that is about to run is compiled under."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - has no other name
    while frame is not None and frame.f_code is not _RUN_CELL:
        frame = frame.f_back
    # Its text may have been changed by others since: only IPython knows.
    name = frame.f_locals.get("cell_name") if frame else None
    if not isinstance(name, str):
        raise ProfilerStateError(
            "this release of IPython does not tell what a cell is compiled under: use the line "
            "form, %pystack, or pystack_nb.PyStackProfiler()."
        )
    return name


def _cells_running() -> int:
    """Count the cells that are running on this thread, one inside the other."""
    count = 0
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - has no other name
    while frame is not None:
        count += frame.f_code is _RUN_CELL
        frame = frame.f_back
    return count
