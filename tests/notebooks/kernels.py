"""Real Jupyter kernels for tests, under the Python that runs the tests."""

from __future__ import annotations

import os
import re
import signal
import sys

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import nbformat

from jupyter_client.manager import KernelManager
from nbclient import NotebookClient


if TYPE_CHECKING:
    from collections.abc import Iterator

# Not a kernelspec: none has to be installed, and none that is can be meant instead.
COMMAND = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]

BUSY = """
def spin(seconds):
    import time
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        sum(x * x for x in range(1000))
"""


def plain(lines: list[str]) -> str:
    """Return a traceback's text without its colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(lines))


def manager() -> KernelManager:
    made = KernelManager()
    made.kernel_spec.argv = COMMAND
    return made


@dataclass
class Outcome:
    """What one cell did."""

    status: str
    error: str = ""
    message: str = ""
    traceback: list[str] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [output["content"] for output in self.outputs if output["msg_type"] == kind]

    @property
    def stdout(self) -> str:
        return "".join(x["text"] for x in self.of("stream") if x["name"] == "stdout")

    @property
    def stderr(self) -> str:
        return "".join(x["text"] for x in self.of("stream") if x["name"] == "stderr")

    @property
    def value(self) -> str | None:
        """Of ``Out``, as text; None if there is none."""
        shown = self.of("execute_result")
        return shown[-1]["data"]["text/plain"] if shown else None

    @property
    def displays(self) -> list[dict[str, Any]]:
        return [x["data"] for x in self.of("display_data")]


class Kernel:
    """A running kernel, driven cell by cell."""

    def __init__(self, client: Any, started: KernelManager) -> None:
        self._client = client
        self.manager = started

    def run(self, code: str, *, timeout: float = 60, **options: Any) -> Outcome:
        outputs: list[dict[str, Any]] = []
        reply = self._client.execute_interactive(
            code,
            timeout=timeout,
            output_hook=outputs.append,
            allow_stdin=False,
            stop_on_error=False,
            **options,
        )["content"]
        return Outcome(
            reply["status"],
            reply.get("ename", ""),
            reply.get("evalue", ""),
            reply.get("traceback", []),
            outputs,
        )

    def help(self, code: str) -> str:
        """Run a cell that opens the pager, and return what it shows."""
        content = self._client.execute_interactive(code, timeout=60)["content"]
        return "".join(page["data"]["text/plain"] for page in content["payload"])

    def forget_recordings(self) -> None:
        """Delete every name of a recording, so that none is taken for the next test's."""
        self.run(
            "for _name in [x for x in globals() if type(globals()[x]).__name__ == 'Recording']:\n"
            "    del globals()[_name]",
            silent=True,
        )

    def begin(self, code: str) -> None:
        """Have a cell run, and do not wait for it; the next `run` does, and shows nothing of it."""
        self._client.execute(code, allow_stdin=False, stop_on_error=False)

    def interrupt(self) -> None:
        """Do what Jupyter's interrupt button does, from any thread."""
        os.killpg(self.manager.provisioner.pid, signal.SIGINT)

    def evaluate(self, expression: str) -> Any:
        """Evaluate an expression of literals in the kernel."""
        reply = self._client.execute_interactive(
            "", user_expressions={"x": expression}, silent=True, timeout=60
        )["content"]["user_expressions"]["x"]
        if reply["status"] != "ok":
            raise AssertionError(f"{expression}: {reply}")
        return eval(reply["data"]["text/plain"])


@contextmanager
def kernel(**options: Any) -> Iterator[Kernel]:
    """Start a kernel, and end it at the end of the block."""
    started = manager()
    started.start_kernel(**options)
    client = started.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield Kernel(client, started)
    finally:
        client.stop_channels()
        started.shutdown_kernel(now=True)


def run_notebook(*cells: str, allow_errors: bool = False) -> list[Any]:
    """Run cells from top to bottom with nbclient, and return them with their outputs."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(x) for x in cells])
    client = NotebookClient(notebook, timeout=120, allow_errors=allow_errors)
    client.create_kernel_manager()
    client.km.kernel_spec.argv = COMMAND
    client.execute()
    return notebook.cells
