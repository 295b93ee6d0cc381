"""Compile and run a cell's text the way that ``%%time`` does, where IPython doesn't run it.

The value of the last expression is returned.  Top-level ``await`` runs on an event loop of
its own in a helper thread, since the kernel's loop is busy with the cell that called.
"""

from __future__ import annotations

import ast
import asyncio
import contextvars
import inspect
import threading

from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pystack_nb.quiet import quiet


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import CodeType, TracebackType

    from IPython.core.interactiveshell import InteractiveShell


@dataclass(frozen=True)
class CompiledCell:
    """A cell's code, ready to run.

    Attributes
    ----------
    filename : str
        What it was compiled under; tracebacks find its source by it.
    parts : tuple of code
        All statements, then the last expression where there is one.
    """

    filename: str
    parts: tuple[CodeType, ...]

    def run(self, names: dict[str, Any], local_names: Mapping[str, Any] | None = None) -> Any:
        """Run it in a namespace and return the last expression's value, or None."""
        __tracebackhide__ = True
        scope = (names, names if local_names is None else local_names)
        if any(part.co_flags & inspect.CO_COROUTINE for part in self.parts):
            return _run_in_helper_thread(self.parts, scope)
        value = None
        for part in self.parts:
            value = eval(part, *scope)  # noqa: S307 - the user's own cell
        return value


def compile_cell(shell: InteractiveShell, cell: str, lines_above: int = 0) -> CompiledCell:
    """Compile a cell's text as IPython would.

    Parameters
    ----------
    shell : InteractiveShell
        Whose transformers and compiler to use.
    cell : str
        The text.
    lines_above : int
        How many lines of what the user wrote stand above it, for tracebacks.

    Raises
    ------
    SyntaxError
        As IPython raises it for a cell.
    """
    above = "\n" * lines_above
    text = above + shell.transform_cell(cell)
    compiler = shell.compile
    filename = compiler.cache(text, shell.displayhook.prompt_count, raw_code=above + cell)
    module = shell.transform_ast(compiler.ast_parse(text, filename=filename))
    body = list(module.body)
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if shell.autoawait else 0
    with compiler.extra_flags(flags):
        parts = [compiler(ast.Module(body, module.type_ignores), filename, "exec")]
        if last is not None:
            parts.append(compiler(ast.Expression(last.value), filename, "eval"))
    return CompiledCell(filename, tuple(parts))


def describe(error: SyntaxError) -> str:
    """Say what is wrong with a cell's text, and where; the last line says what to do."""
    lines = [f"this is no valid Python: {error.msg}"]
    if error.text and error.offset:
        text = error.text.rstrip().expandtabs(1)
        margin = len(text) - len(text.lstrip())
        caret = " " * max(error.offset - 1 - margin, 0) + "^"
        lines += [f"    {text.strip()}", f"    {caret}"]
    return "\n".join([*lines, f"Correct line {error.lineno or 1} of the statement."])


def _run_in_helper_thread(parts: tuple[CodeType, ...], scope: tuple[Any, Any]) -> Any:
    __tracebackhide__ = True
    cancel: Future[Callable[[], object]] = Future()
    done: Future[Any] = Future()

    async def run_parts() -> Any:
        __tracebackhide__ = True
        value = None
        for part in parts:
            value = eval(part, *scope)  # noqa: S307 - the user's own cell
            if part.co_flags & inspect.CO_COROUTINE:
                value = await value
        return value

    async def main() -> Any:
        __tracebackhide__ = True
        task = asyncio.create_task(run_parts())
        with quiet():
            loop = asyncio.get_running_loop()
            cancel.set_result(partial(loop.call_soon_threadsafe, task.cancel))
        return await task

    def work() -> None:
        __tracebackhide__ = True
        tell: Callable[[Any], None] = done.set_result
        try:
            outcome = context.run(asyncio.run, main())
        except BaseException as error:  # noqa: BLE001 - raised again where the cell was called
            tell, outcome = done.set_exception, error
        with quiet():
            tell(outcome)

    # Output finds its cell by context variables.
    context = contextvars.copy_context()
    thread = threading.Thread(target=work, name="pystack-await")
    thread.start()
    try:
        error = done.exception()
    except KeyboardInterrupt:
        if not done.done():
            cancel.result()()
        raise
    finally:
        thread.join()
    if error is not None:
        raise error.with_traceback(_inside(error.__traceback__, parts))
    return done.result()


def _inside(trace: TracebackType | None, parts: tuple[CodeType, ...]) -> TracebackType | None:
    """Cut the helper thread's own frames off a traceback."""
    while trace is not None and trace.tb_frame.f_code not in parts:
        trace = trace.tb_next
    return trace
