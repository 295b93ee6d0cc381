"""The magic: ``%%pystack`` above a cell, ``%pystack`` before a statement.

``%%pystack`` on the first line of a cell is taken by the hooks of `pystack_nb.cell_hooks`, and
IPython runs the cell itself.  What is registered here is the line form, and the cell form
for the places that no hook sees: below another magic, in ``run_cell_magic`` and in help.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from IPython.core.magic import (
    Magics,
    line_cell_magic,
    magics_class,
    needs_local_scope,
    no_var_expand,
    output_can_be_silenced,
)

from pystack_nb import options, statement
from pystack_nb.cell_hooks import CellHooks
from pystack_nb.cell_recording import CellRecording
from pystack_nb.errors import OptionError
from pystack_nb.quiet import quiet


if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


_NAME = "pystack"


@magics_class
class PystackMagics(Magics):  # type: ignore[misc]
    """The registered magics, and the hooks that belong to them."""

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self.hooks = CellHooks(shell, self._options)

    @needs_local_scope  # type: ignore[untyped-decorator]
    @no_var_expand  # type: ignore[untyped-decorator]
    @output_can_be_silenced  # type: ignore[untyped-decorator]
    @line_cell_magic  # type: ignore[untyped-decorator]
    @options.with_arguments
    def pystack(self, line: str, cell: str | None = None, local_ns: Any = None) -> Any:
        """Run a cell or a statement under eBPF probes, and show what it did."""
        __tracebackhide__ = True
        lines_above = 1  # the magic's own
        if cell is None:
            line, cell = options.split_statement(line)
            lines_above = 0
        try:
            with quiet():
                given = self._options(line)
        except options.HelpAsked as text:
            print(text)  # noqa: T201 - it was asked for
            return None
        if not cell:
            raise OptionError("there is no statement to run; write it behind the options")
        try:
            with quiet():
                code = statement.compile_cell(self.shell, cell, lines_above)
        except SyntaxError as error:
            # IPython would show it below a stack of its own frames and ours.
            raise OptionError(statement.describe(error)) from None
        recording = CellRecording(self.shell, given, code.filename)
        recording.start()
        try:
            return code.run(self.shell.user_ns, local_ns)
        finally:
            recording.finish()

    def _options(self, line: str) -> options.Options:
        return options.parse(self.pystack, line, self.shell.user_ns)


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magic; called by ``%load_ext pystack_nb``."""
    unload_ipython_extension(shell)
    magics = PystackMagics(shell)
    shell.register_magics(magics)
    magics.hooks.install()


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Take the magic and all of its hooks away; called by ``%unload_ext pystack_nb``."""
    manager = shell.magics_manager
    magics = manager.registry.pop(PystackMagics.__name__, None)
    if magics is None:
        return
    magics.hooks.remove()
    for kind in ("line", "cell"):
        manager.magics[kind].pop(_NAME, None)
